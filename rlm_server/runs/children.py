"""Child RLMs: nodes one level deeper, each with its own session and text, and an account carved from its parent's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

from rlm_server.ledger import NANO, UNITS, AccountUnknown, BudgetError, BudgetExceeded, Limit
from rlm_server.repl.model_calls import ModelCalls, check_batch, check_model, failed, model_named
from rlm_server.runs.child_context import beginning, child_context
from rlm_server.runs.events import Body, ChildFinished, ChildStarted, Guard
from rlm_server.runs.journal import NodeRow
from rlm_server.runs.node_context import NodeContext
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import CHILD, Outcome, Task, Tree
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal, HostCall, Json

AT_THE_CAP_CHARACTERS = 100_000
"""Of a text, shown to the model that answers in place of a child at the depth cap."""


class Children:
    """Serves `rlm_query` for one node."""

    def __init__(
        self,
        tree: Tree,
        parent: Task,
        calls: ModelCalls,
        emit: Callable[[Body], None],
        run: Callable[[Task], Awaitable[Outcome]],
    ) -> None:
        self._tree, self._parent, self._calls, self._emit, self._run_node = tree, parent, calls, emit, run

    async def rlm_query(self, call: HostCall) -> Json:
        """Answer a request `rlm_query(prompts, contexts, model, budget)`: a slot for each prompt, in order."""
        tree, depth, model = self._tree, self._parent.depth, model_named(call)
        check_model(tree.services.broker.routes, model if model is not None else tree.run.sub_model)
        questions, contexts = call.texts("prompts"), call.items("contexts")
        check_batch(len(questions), tree.limits.batch)
        if len(questions) != len(contexts):
            raise DoorRefusal("ValueError", f"{len(questions)} prompts but {len(contexts)} contexts")
        node_contexts = [child_context(context, self._parent.node_context) for context in contexts]
        if depth >= tree.limits.max_depth:
            return list(await self._without_children(questions, node_contexts, model))
        try:
            budget = await self._budget(call, len(questions))
        except BudgetError as error:
            raise DoorRefusal("LimitExceeded", str(error)) from None
        async with asyncio.TaskGroup() as group:
            children = [
                group.create_task(self._child(question, node_context, model, budget))
                for question, node_context in zip(questions, node_contexts, strict=True)
            ]
        return [child.result() for child in children]

    async def _without_children(
        self, questions: list[str], node_contexts: list[AbstractAsyncContextManager[NodeContext]], model: str | None
    ) -> list[dict[str, Json]]:
        most = self._tree.limits.max_depth
        self._emit(Guard("max_depth", f"at depth {most} rlm_query is answered by llm_query"))
        prompts, notes = [], []
        for question, opening in zip(questions, node_contexts, strict=True):
            async with opening as node_context:
                text = beginning(node_context.corpus, AT_THE_CAP_CHARACTERS)
            prompts.append(question if text == question else f"{question}\n\nText:\n{text}")
            notes.append(f"the depth cap {most} is reached: llm_query answered, over {len(text)} characters")
        slots = await self._calls.ask(prompts, model)
        for slot, note in zip(slots, notes, strict=True):
            slot["note"] = note
        return slots

    async def _budget(self, call: HostCall, children: int) -> Limit:
        """Return what each child may spend: what the code asks for, else an equal share; the parent keeps one."""
        left = await self._tree.services.ledger.left(self._parent.id)
        shares = {unit: None if (of := getattr(left, unit)) is None else of // (children + 1) for unit in UNITS}
        dollars = call.arguments.get("budget")
        if dollars is not None:
            if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 < dollars < 1e9:
                raise DoorRefusal("ValueError", "budget must be a positive number of US dollars")
            shares["nano_usd"] = int(dollars * NANO)
        for unit, share in shares.items():
            if share is not None and share <= 0:
                raise DoorRefusal("LimitExceeded", f"too little {unit} is left to start a child RLM")
        return Limit(**shares)

    async def _child(
        self, question: str, opening: AbstractAsyncContextManager[NodeContext], model: str | None, budget: Limit
    ) -> dict[str, Json]:
        child_id = CHILD + secrets.token_hex(16)
        async with self._tree.level(self._parent.depth + 1), opening as node_context:
            return await self._started(child_id, question, node_context, model, budget)

    async def _started(
        self, child_id: str, question: str, node_context: NodeContext, model: str | None, budget: Limit
    ) -> dict[str, Json]:
        try:
            await run_to_completion(self._open(child_id, question, node_context.corpus.characters, budget))
        except BudgetExceeded as error:
            return failed("LimitExceeded", str(error))
        except asyncio.CancelledError:
            await run_to_completion(self._abandon(child_id))
            raise
        return await self._run(child_id, question, node_context, model)

    async def _open(self, child_id: str, question: str, characters: int, budget: Limit) -> None:
        run, services, parent = self._tree.run, self._tree.services, self._parent
        await services.ledger.open_account(child_id, tenant=run.tenant, parent=parent.id, limit=budget, carve=True)
        await services.journal.add_node(
            NodeRow(child_id, run.id, parent.id, parent.depth + 1, RunState.PENDING, question)
        )
        self._emit(ChildStarted(child_id, question, characters, budget))

    async def _abandon(self, child_id: str) -> None:
        """Close what `_open` opened, if it did before the run was stopped."""
        with suppress(AccountUnknown):
            await self._tree.services.ledger.close_account(child_id)
            await self._tree.services.journal.move(child_id, RunState.CANCELLED, reason="cancelled")
            await self._tell_end(child_id, Outcome(RunState.CANCELLED, reason="cancelled"))

    async def _run(self, child_id: str, question: str, node_context: NodeContext, model: str | None) -> dict[str, Json]:
        depth, named = self._parent.depth + 1, model if model is not None else self._tree.run.sub_model
        outcome = Outcome(RunState.CANCELLED, reason="cancelled")
        try:
            outcome = await self._run_node(Task(child_id, self._parent.id, depth, question, node_context, named))
        finally:
            await run_to_completion(self._tell_end(child_id, outcome))
        if outcome.state is RunState.SUCCEEDED:
            return {"ok": outcome.answer}
        ending = f"the child RLM ended {outcome.state}: {outcome.reason}"
        return {"ok": outcome.answer, "note": ending} if outcome.answer else failed("RuntimeError", ending)

    async def _tell_end(self, child_id: str, outcome: Outcome) -> None:
        spent = (await self._tree.services.ledger.balance(child_id)).posted
        self._emit(ChildFinished(child_id, outcome.state, outcome.reason, spent))
