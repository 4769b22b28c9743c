"""Child RLMs: nodes one level deeper, each with its own session and text, and an account carved from its parent's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rlm_server.ledger import NANO, UNITS, AccountUnknown, BudgetError, BudgetExceeded, Limit, names
from rlm_server.repl.bounds import MAX_ERROR, cut
from rlm_server.repl.call_batch import Slot, failed, said_in
from rlm_server.repl.call_request import check_model, models_named
from rlm_server.repl.limits import MAX_QUESTION
from rlm_server.repl.model_calls import ModelCalls
from rlm_server.runs import closing
from rlm_server.runs.child_context import ChildContext, child_context
from rlm_server.runs.events import Body, ChildFinished, ChildStarted, Guard
from rlm_server.runs.journal import NodeRow
from rlm_server.runs.node_context import NodeContext
from rlm_server.runs.past.entries import ChildMade
from rlm_server.runs.past.recorder import Recorder, request_key
from rlm_server.runs.request_texts import RequestTexts
from rlm_server.runs.state import RunState
from rlm_server.runs.told.last_word import ChildrenSaid
from rlm_server.runs.tree import Outcome, Task, Tree, kept_outcome
from rlm_server.shares.held import TooMuchHeld
from rlm_server.shares.host_time import charged
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json

AT_THE_CAP_CHARACTERS = 100_000
"""Of a text, shown to the model that answers in place of a child at the depth cap."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A child that is asked for, and may be."""

    question: str
    context: ChildContext
    model: str | None


class Children:
    """Serves `rlm_query` for one node."""

    def __init__(
        self,
        tree: Tree,
        parent: Task,
        calls: ModelCalls,
        emit: Callable[[Body], None],
        run: Callable[[Task], Awaitable[Outcome]],
        settled: Callable[[], Awaitable[None]],
        record: Recorder,
    ) -> None:
        """`settled` waits until what the parent has spent is in the books. `record` is the parent's."""
        self._record = record
        self._tree, self._parent, self._calls, self._emit, self._run_node = tree, parent, calls, emit, run
        self._settled = settled
        self.told()

    def told(self) -> None:
        """The parent's model has been told what came of its code: what children said is no longer kept for it."""
        self.said = ChildrenSaid()

    async def rlm_query(self, call: HostCall) -> Json:
        """Answer a request `rlm_query(prompts, contexts, model, budget)`: a slot for each prompt, in order.

        What cannot be asked has its error in its own slot; where that is all of them, the request is refused.
        """
        questions, asked = call.texts("prompts"), call.items("contexts")
        if len(questions) != len(asked):
            raise DoorRefusal("ValueError", f"{len(questions)} prompts but {len(asked)} contexts")
        slots: list[Slot] = [{}] * len(questions)
        wanted, refusals = dict[int, _Wanted](), list[DoorRefusal]()
        for number, model in enumerate(models_named(call, len(questions))):
            try:
                wanted[number] = self._wanted(questions[number], asked[number], model)
            except DoorRefusal as refusal:
                slots[number] = failed(refusal.type, str(refusal))
                refusals.append(refusal)
        if refusals and not wanted:
            raise refusals[0]
        if wanted:
            at_the_cap = self._parent.depth >= self._tree.limits.max_depth
            children = list(wanted.values())
            answers = await (self._without_children(children) if at_the_cap else self._with_children(call, children))
            for number, slot in zip(wanted, answers, strict=True):
                slots[number] = slot
        return list(slots)

    def _wanted(self, question: str, asked: Json, model: str | None) -> _Wanted:
        routes = self._tree.services.broker.routes_of(self._tree.run.tenant)
        check_model(routes, model if model is not None else self._tree.run.sub_model, "rlm_query")
        if isinstance(asked, str) and asked != question and asked in routes.models:
            raise DoorRefusal(
                "ValueError", f"the context is the name of a model: write rlm_query(prompt, model={asked!r}) to ask it"
            )
        if len(question) > MAX_QUESTION:
            raise DoorRefusal(
                "LimitExceeded",
                f"prompts: a child RLM's question may have {MAX_QUESTION} characters, not {len(question)}; give it a "
                "text to read as its context",
            )
        return _Wanted(question, child_context(asked, self._parent.node_context), model)

    async def _beginning(self, context: ChildContext) -> str:
        threads, tenant = self._tree.services.shares.threads, self._tree.run.tenant
        return await threads.run(Purpose.READING, tenant, lambda _: context.beginning(AT_THE_CAP_CHARACTERS))

    def _texts(self) -> RequestTexts:
        tree = self._tree
        return RequestTexts(tree.services.shares.held, tree.run.tenant, tree.limits.sandbox.frame_bytes)

    async def _with_children(self, call: HostCall, wanted: list[_Wanted]) -> list[Slot]:
        request = request_key(call)
        made = [self._record.recall_child(request, number) for number in range(len(wanted))]
        begun = [one for one in made if one is not None]
        try:
            budget = begun[0].budget if begun else await self._budget(call, len(wanted))
        except BudgetError as error:
            raise DoorRefusal("LimitExceeded", str(error)) from None
        self._tree.add_nodes(len(wanted) - len(begun))
        names = [self._named(request, number, one, budget) for number, one in enumerate(made)]
        said = self.said
        said.asked += len(wanted)
        with self._texts() as answers:
            async with asyncio.TaskGroup() as group:
                with charged(self._tree.bill):  # the turn that asks for them is not limited by their work
                    children = [
                        group.create_task(self._told_child(name, one, budget, answers, said))
                        for name, one in zip(names, wanted, strict=True)
                    ]
            return [child.result() for child in children]

    def _named(self, request: str, number: int, made: ChildMade | None, budget: Limit) -> str:
        """Return the id of the child for a prompt: a new one, or what it was when this was asked before."""
        if made is not None:
            return made.child
        child = names.NODE + secrets.token_hex(16)
        self._record.child(request, number, child, budget)
        return child

    async def give_up(self, children: Sequence[str]) -> None:
        """End children of an unfinished turn that it did not ask for when it ran again."""
        for child in children:
            await self._abandon(child)

    async def _without_children(self, wanted: list[_Wanted]) -> list[Slot]:
        most, prompts, notes = self._tree.limits.max_depth, list[str](), list[str]()
        self._emit(Guard("max_depth", f"at depth {most} rlm_query is answered by llm_query"))
        with self._texts() as made:
            for one in wanted:
                text = await self._beginning(one.context)
                prompt = one.question if text == one.question else f"{one.question}\n\nText:\n{text}"
                made.take(prompt, "the prompts at the depth cap")
                prompts.append(prompt)
                notes.append(f"the depth cap {most} is reached: llm_query answered, over {len(text)} characters")
            slots = await self._calls.ask_each(prompts, [one.model for one in wanted])
        for slot, note in zip(slots, notes, strict=True):
            slot["note"] = note
        return slots

    async def _budget(self, call: HostCall, children: int) -> Limit:
        """Return what each child may spend: what the code asks for, else an equal share; the parent keeps one."""
        await self._settled()
        left = await self._tree.services.ledger.left(self._parent.id)
        shares = {unit: None if (of := getattr(left, unit)) is None else of // (children + 1) for unit in UNITS}
        dollars = call.arguments.get("budget")
        if dollars is not None:
            if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 < dollars < 1e9:
                raise DoorRefusal("ValueError", "budget must be a positive number of US dollars")
            asked = int(dollars * NANO)
            if left.nano_usd is not None and asked > left.nano_usd:  # not one of them could be paid
                raise DoorRefusal("LimitExceeded", f"budget: {dollars} USD is more than what is left")
            shares["nano_usd"] = asked
        for unit, share in shares.items():
            if share is not None and share <= 0:
                raise DoorRefusal("LimitExceeded", f"too little {unit} is left to start a child RLM")
        return Limit(**shares)

    async def _told_child(
        self, child_id: str, one: _Wanted, budget: Limit, answers: RequestTexts, said: ChildrenSaid
    ) -> Slot:
        slot = await self._child(child_id, one.question, one.context, one.model, budget, answers)
        said.add(one.question, said_in(slot))
        return slot

    async def _child(
        self,
        child_id: str,
        question: str,
        context: ChildContext,
        model: str | None,
        budget: Limit,
        answers: RequestTexts,
    ) -> Slot:
        known = await self._ended_before(child_id)
        if known is not None:
            return known
        try:
            # One that waits for its place holds nothing but its name.
            async with self._tree.level(self._parent.depth + 1), self._tree.contexts.opened(context) as node_context:
                named = model if model is not None else self._tree.run.sub_model
                slot = await self._started(child_id, question, node_context, named, budget)
            answers.take(str(slot.get("ok", "")), "the answers of a batch of children")
        except TooMuchHeld as error:
            return failed("LimitExceeded", str(error))
        except DoorRefusal as error:
            return failed(error.type, str(error), error.kind)
        except (CorpusDamaged, OSError, EOFError) as error:
            return failed("RuntimeError", cut(f"what the child RLM reads cannot be made: {error}", MAX_ERROR))
        return slot

    async def _ended_before(self, child_id: str) -> Slot | None:
        """Return what a child said that ended before the server was lost."""
        if self._tree.past is None:
            return None
        outcome = await kept_outcome(self._tree.services.journal, child_id)
        if outcome is None:
            return None
        await self._tell_end(child_id, outcome)
        return _slot(outcome)

    async def _started(
        self, child_id: str, question: str, node_context: NodeContext, model: str, budget: Limit
    ) -> Slot:
        try:
            await run_to_completion(self._open(child_id, question, node_context.corpus.characters, model, budget))
        except BudgetExceeded as error:
            return failed("LimitExceeded", str(error))
        except asyncio.CancelledError:
            if not self._tree.left:
                await run_to_completion(self._abandon(child_id))
            raise
        return await self._run(child_id, question, node_context, model)

    async def _open(self, child_id: str, question: str, characters: int, model: str, budget: Limit) -> None:
        run, services, parent = self._tree.run, self._tree.services, self._parent
        if self._tree.past is not None and await services.journal.has_node(child_id):
            return
        reserve = closing.reserve(budget, services.broker.routes.route(model).price)
        await services.ledger.open_account(
            child_id, tenant=run.tenant, parent=parent.id, limit=budget, carve=True, reserve=reserve
        )
        kept, redacted = self._tree.redaction.text("question", question)
        await services.journal.add_node(
            NodeRow(child_id, run.id, parent.id, parent.depth + 1, RunState.PENDING, kept, redacted=redacted)
        )
        self._emit(ChildStarted(child_id, question, characters, budget))

    async def _abandon(self, child_id: str) -> None:
        """Close what `_open` opened, if it did before the run was stopped."""
        with suppress(AccountUnknown):
            await self._tree.services.ledger.close_account(child_id)
            await self._tree.services.journal.move(child_id, RunState.CANCELLED, reason="cancelled")
            await self._tell_end(child_id, Outcome(RunState.CANCELLED, reason="cancelled"))

    async def _run(self, child_id: str, question: str, node_context: NodeContext, model: str) -> Slot:
        depth = self._parent.depth + 1
        outcome = Outcome(RunState.CANCELLED, reason="cancelled")
        try:
            outcome = await self._run_node(Task(child_id, self._parent.id, depth, question, node_context, model))
        finally:
            if not self._tree.left:
                await run_to_completion(self._tell_end(child_id, outcome))
        return _slot(outcome)

    async def _tell_end(self, child_id: str, outcome: Outcome) -> None:
        if outcome.state is RunState.CANCELLED:  # perhaps when it had ended, and only that was still to be told
            outcome = await kept_outcome(self._tree.services.journal, child_id) or outcome
        spent = (await self._tree.services.ledger.balance(child_id)).posted
        self._emit(ChildFinished(child_id, outcome.state, outcome.reason, spent))


def _slot(outcome: Outcome) -> Slot:
    """Return what the code that asked a child is told."""
    if outcome.state is RunState.SUCCEEDED:
        return {"ok": outcome.answer}
    ending = f"the child RLM ended {outcome.state}: {outcome.reason}"
    return {"ok": outcome.answer, "note": ending} if outcome.answer else failed("ModelError", ending, outcome.state)
