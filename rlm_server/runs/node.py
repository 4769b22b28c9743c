"""One RLM of a run's tree: the loop in which its model writes code and is shown what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from rlm_server.broker.broker import CallFailed
from rlm_server.broker.provider import Failure, Message, ModelReply, ModelRequest
from rlm_server.broker.providers.client import SEAT
from rlm_server.database.engine import DatabaseError
from rlm_server.ledger import BudgetError, Limit, Payer
from rlm_server.repl.awaited import Awaited
from rlm_server.repl.bounds import MAX_REASON, cut
from rlm_server.repl.call_request import CallForm
from rlm_server.repl.coverage import Coverage, Looked
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, CodeFinished, Printed
from rlm_server.repl.functions import NodeRepl
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls, seconds_left
from rlm_server.repl.output import OutputBatcher
from rlm_server.repl.owed import Owed
from rlm_server.runs import closing, root_call
from rlm_server.runs.children import Children
from rlm_server.runs.cuts import beginning_of, size_of
from rlm_server.runs.draft import Draft
from rlm_server.runs.events import (
    Answer,
    Body,
    CodeStarted,
    EventOrigin,
    Guard,
    ModelReplied,
    NodeResumed,
    TurnCheckpointed,
    TurnStarted,
)
from rlm_server.runs.guards import Guards
from rlm_server.runs.journal import PATIENCE
from rlm_server.runs.leftovers import end_below
from rlm_server.runs.past.entries import RanBlock, Standing
from rlm_server.runs.purse import Purse
from rlm_server.runs.reply.decision import closing_answer, decide
from rlm_server.runs.state import NodeEnded, RunState
from rlm_server.runs.told import last_word
from rlm_server.runs.told.environment import Environment, Sent
from rlm_server.runs.told.feedback import Block, after_turn, call_notes, feedback
from rlm_server.runs.told.system import Facts, system
from rlm_server.runs.told.task import task as first_message
from rlm_server.runs.told.variables import Variables
from rlm_server.runs.tree import Outcome, Task, Tree, kept_form
from rlm_server.runs.typed import TypedAnswers, guard
from rlm_server.tracing.spans import span
from sandbox.cancellation import cancel_and_wait, run_to_completion
from sandbox.corpora.corpus import CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import JailMissing, LiveSession
from sandbox.pool.process import WorkerLost
from sandbox.pool.sealing import SnapshotRefused
from sandbox.turn import Stop, Turn

log = logging.getLogger(__name__)

SERVER_STOPPED = "the server stopped during the run"

_MAY_DIFFER = frozenset({"budget", "tool"})
"""Requests that are answered otherwise when they are made again, and are no calls of models."""

MORE_WORKERS = 2
"""So often a block's code begins anew where the process that ran it was lost."""
CLOSING = 0
"""Stands for the turn in which a node's model is asked for its last word."""

MOST_BOOKING = 4
"""Turns of a node whose cost waits to be written down, before another begins."""


class Node:
    """Runs the loop of one RLM. Everything it starts has ended when `run` returns."""

    def __init__(self, tree: Tree, task: Task) -> None:
        self.tree = tree
        self.task = task
        self.origin = EventOrigin(task.id, task.parent, task.depth)
        self.payer = Payer(task.id, tree.run.tenant, tree.run.id, task.id)
        limits, broker = tree.limits, tree.services.broker
        self._record = tree.recorder(task.id)
        self._kept_seconds = closing.seconds(limits, task.depth)
        options = CallOptions.of(limits, tree.run.sub_model, self._deadline, CallForm.usual(tree.asked.sampling))
        owed = Owed(tree.services.ledger.hurry)
        self._purse = Purse(tree.services.ledger, task.id, owed)
        self.calls = ModelCalls(
            tree.services.broker,
            self.payer,
            options,
            tree.memo,
            tree.failures,
            tree.tracer,
            self._reported,
            tree.services.shares,
            owed,
            self._record,
        )
        self._children = Children(
            tree,
            task,
            self.calls,
            self.emit,
            lambda child: Node(tree, child).run(),
            self._purse.settled,
            self._record,
        )
        self._guards = Guards(limits, self.emit)
        self._draft = Draft()
        self._typed: TypedAnswers | None = None
        """Where the answer has a schema, as a root's may (`rlm_server/runs/root.py`)."""
        self._system = system(
            Facts(
                tree.services.functions, broker.routes_of(tree.run.tenant), task.model, tree.run.sub_model,
                broker.run_calls, tree.services.numbers.get(tree.image, ""), tree.tools.prompt,
                tree.services.advice, tree.asked.instructions, is_child=task.depth > 0,
            )
        )  # fmt: skip
        self._messages: list[Message] = []
        self._variables = Variables()
        self._shown = 0
        self._left_last = Limit()
        self._own_calls: set[str] = set()
        self._awaited = Awaited()
        self._coverage = Coverage()
        self._looked: Looked | None = None
        self._booking: list[asyncio.Future[None]] = []
        """Costs of turns that are not in the books yet."""
        self._call_notes: list[str] = []
        self._stays = False
        """Whether the session stays for a run that continues this one."""
        if self._record.past.standing is not None:
            self._restore(self._record.past.standing)

    def _restore(self, standing: Standing) -> None:
        self._messages = [*self._record.past.messages]
        self._draft.text, self._shown, self.calls.count = standing.draft, standing.shown, standing.calls
        self._guards.restore(standing.errors, standing.seen)
        self._variables.restore(standing.told, standing.loops, standing.assigned)

    def _standing(self) -> Standing:
        errors, seen = self._guards.standing
        told, loops, assigned = self._variables.standing
        root, sent = not self.task.depth, self.tree.sent
        return Standing(
            self._draft.text, self._shown, self.calls.count, errors, seen, told, loops, assigned,
            seconds_left(self.tree.deadline), self.tree.failures.count,
            0 if self._typed is None else self._typed.refused_count, "" if self._typed is None else self._typed.best,
            sent.ranges if root else (), sent.more,
        )  # fmt: skip

    def emit(self, body: Body) -> None:
        """Report something that happened in this node."""
        self.tree.event_log.emit(self.origin, body)

    @property
    def _deadline(self) -> float:
        """When the node's work ends, on `time.monotonic()`: what follows is kept for a closing call."""
        return self.tree.deadline - self._kept_seconds

    def _reported(self, body: CallStarted | CallFinished | CallTraced) -> None:
        self.emit(body)
        if isinstance(body, CallFinished):
            self.tree.count(self.origin, body.call.spent)
        if isinstance(body, CallTraced) and (self.task.depth or body.call_id not in self._own_calls):
            self.tree.sent.add(body.passages, more=body.more)

    # ---- from start to end ---------------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Work until there is an answer or a limit, keep the outcome, and return it.

        Cancelling the task ends the node as cancelled, with everything under it, and then goes on. In a tree that is
        left for later it stays as it is.
        """
        SEAT.set(self.tree.tools.seat(self.emit, lambda: seconds_left(self._deadline)))
        # Kept with the hold of the first request, which is not sent before.
        moving = asyncio.create_task(self.tree.services.journal.begin(self.task.id, patience=PATIENCE))
        try:
            return await self._ended_and_kept(moving)
        except asyncio.CancelledError:
            cancelled = Outcome(RunState.CANCELLED, self._best, "cancelled")
            await run_to_completion(self._left(moving) if self.tree.left else self._keep(cancelled, moving))
            raise

    async def _ended_and_kept(self, moving: asyncio.Task[None]) -> Outcome:
        try:
            outcome = await self._outcome()
            await moving
            if outcome.state is RunState.FAILED:
                await self.tree.services.journal.last_sequence(self.tree.run.id)  # or else that is why
        except DatabaseError as error:  # it is away, or full: said once, and by name
            log.error("node %s ended: %s", self.task.id, type(error).__name__)  # noqa: TRY400
            await self.tree.no_database()
            outcome = Outcome(RunState.FAILED, self._best, "the server cannot reach its database")
        except Exception:
            log.exception("node %s failed", self.task.id)
            outcome = Outcome(RunState.FAILED, self._best, "an internal error of the server; it has been logged")
        try:
            await run_to_completion(self._keep(outcome, moving))
        except DatabaseError:
            await self.tree.no_database()
            raise
        return outcome

    async def _outcome(self) -> Outcome:
        # The deadline and a cancellation may come at once, here and in every node above. So the work is cancelled
        # once at most, and is always waited for.
        work = asyncio.create_task(self._work())
        closed = self.tree.event_log.closed
        try:
            await self._until_over(work, closed)
        finally:
            if not work.done():
                await cancel_and_wait(work)
            if not work.cancelled():
                work.exception()  # marks it as retrieved, where this was cancelled as the work ended
        if work.cancelled():
            if closed.done():
                return self._ended(closed.result())
            return await self._closed_with_a_word(self._out_of_time())
        try:
            return Outcome(RunState.SUCCEEDED, work.result())
        except NodeEnded as ended:
            return await self._closed_with_a_word(ended)

    async def _closed_with_a_word(self, how: NodeEnded) -> Outcome:
        """End the node for a reason; where a limit was it, ask its model once more before."""
        self._kept_seconds = closing.closed(self.tree.limits, self.task.depth)
        begun = len(self._messages) > 1 and not self.tree.event_log.closed.done()
        if how.state is RunState.EXHAUSTED and begun and seconds_left(self._deadline):
            await self._last_word(str(how))
        elif self._typed is not None:
            await self._typed.settle(self._draft.text)
        return self._ended(how)

    async def _until_over(self, work: asyncio.Task[str], closed: asyncio.Future[NodeEnded]) -> None:
        """Wait until the work is done, or must end."""
        while not (work.done() or closed.done()):
            pause, seconds = self.tree.pause, seconds_left(self._deadline)
            if pause is not None:
                await asyncio.wait((work, closed, pause), return_when=asyncio.FIRST_COMPLETED)
            elif seconds:
                await asyncio.wait((work, closed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    def _ended(self, how: NodeEnded) -> Outcome:
        return Outcome(how.state, self._best, cut(str(how), MAX_REASON))

    @property
    def _best(self) -> str:
        """The best answer there is so far."""
        return self._draft.text if self._typed is None else self._typed.best

    def _out_of_time(self) -> NodeEnded:
        reason = f"wall_seconds: the run may take {self.tree.limits.wall_seconds:g} s"
        return NodeEnded(RunState.EXHAUSTED, reason)

    async def _left(self, after: asyncio.Task[None]) -> None:
        """Leave the node as it is: all that it spent is in the books, or will be at the next start."""
        await asyncio.wait([after, *self._booking])
        await self._purse.settled()
        if not after.cancelled():
            after.exception()  # marks it as retrieved

    async def _keep(self, outcome: Outcome, after: asyncio.Task[None]) -> None:
        services = self.tree.services
        await asyncio.wait([after, *self._booking])
        await self._purse.settled()
        if not after.cancelled():
            after.exception()  # marks it as retrieved: where it failed, the move below does too
        if self.tree.past is not None:
            await end_below(services, self.tree.event_log, self.tree.run, self.task.id, self.tree.past)
        await services.ledger.close_account(self.task.id)
        kept, redacted = kept_form(outcome, self.tree.redaction, root=not self.task.depth)
        await services.journal.move(
            self.task.id,
            kept.state,
            answer=kept.answer,
            reason=kept.reason,
            turns=self.origin.turn,
            coverage_fraction=self._coverage.fraction,
            redacted=redacted,
        )
        if self.task.depth:
            self._record.over()

    async def _work(self) -> str:
        try:
            return await self._worked()
        except WorkerLost as error:
            await self.tree.leave(str(error))
            raise NodeEnded(RunState.FAILED, str(error)) from None

    async def _worked(self) -> str:
        try:
            session = await self._session()
        except (PoolFull, JailMissing) as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        except SnapshotRefused as error:
            raise NodeEnded(RunState.FAILED, f"{SERVER_STOPPED}, and the state cannot be used: {error}") from None
        session.keep_note(lambda: self._record.note)
        try:
            await self._look(session)  # of what is empty, everything has been looked at
            if not self._record.resumed:
                await self._offer_tools(session)
            return await self._converse(session)
        except (MemoryError, PoolFull, SnapshotRefused, CorpusDamaged, OSError) as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        finally:
            await (session.put_away() if self.tree.left or self._stays else session.close())

    async def _session(self) -> LiveSession:
        """Begin the node's session, or go on with the one that it had.

        Raises:
            SnapshotRefused: it is not there any more, or cannot be used.
        """
        pool, tenant, node = self.tree.services.pool, self.tree.run.tenant, self.task.node_context
        image, limits, corpora = self.tree.image, self.tree.limits.sandbox, () if node is None else (node.corpus,)
        carried = self._record.past.carried
        if self._record.resumed or (carried is not None and carried.session):
            session = pool.take_up(tenant, image, limits, self.task.id, corpora)
            try:
                self._record.stored(await session.recall())
            except BaseException:
                await session.put_away()
                raise
            return session
        session = await pool.create(tenant, image, limits, self.task.id if self._record.kept else "")
        if node is not None:
            try:
                await session.attach("context", node.corpus)
            except BaseException:
                await session.close()
                raise
        return session

    async def _offer_tools(self, session: LiveSession) -> None:
        if not self.tree.tools.offer:
            return
        offered = await self._execute_unseen(session, self.tree.tools.offer)
        if offered.error is not None:
            raise NodeEnded(RunState.FAILED, cut(f"the tools cannot be offered: {offered.error.message}", MAX_REASON))

    # ---- the loop ------------------------------------------------------------------------------------------------

    async def _converse(self, session: LiveSession) -> str:
        limits = self.tree.limits
        began = self._record.past.turn
        if self._record.resumed:
            self._messages = self._messages or [*self._record.past.messages]
            self.origin = replace(self.origin, turn=min(began + 1, limits.max_turns))
            self.emit(NodeResumed(self.tree.resumed))
            self._left_last = await self._purse.left()
        else:
            schema = self.tree.asked.answer_schema if self._typed is not None else ""
            environment, further = await self._environment(1), self._record.past.carried is not None
            first = first_message(self.task.question, environment, schema, further=further)
            self._messages = [*self._record.past.messages, Message("user", first)]
            self._record.begin(first)
        for turn in range(began + 1, limits.max_turns + 1):
            await self._begin_turn(turn)
            reply = await self._ask(limits.root_tokens, turn)
            decision = self._record.recall_decision(turn)
            if decision is None:
                decision = await decide(reply, limits.root_tokens, partial(self._execute_unseen, session))
                self._record.decided(turn, decision)
            self._messages.append(Message("assistant", decision.said or "(no text)"))
            ran = await self._run_blocks(session, decision.codes)
            await self._look(session)
            self.emit(TurnCheckpointed(session.private_bytes, self._coverage))
            refused = await self._refused(session) if self._draft.ready else []
            if self._draft.ready:
                self._conclude(turn, decision.said)
                return self._answered(self._draft.text)
            self._messages.append(Message("user", await self._after_turn(turn, ran, len(decision.codes))))
            self._children.told()
            results = [block.result for block in ran]
            noticed = self._guards.look(decision.codes, results, decision.nothing)
            notes = [*decision.told, *refused, *noticed, *self._call_notes]
            self._call_notes.clear()
            if notes:
                self._messages[-1] = Message("user", "\n\n".join([*notes, self._messages[-1].content]))
            await self._children.give_up(self._record.past.orphans)
            said, shown = (message.content for message in self._messages[-2:])
            self._record.end_turn(turn, said, shown, self._standing())
        raise NodeEnded(RunState.EXHAUSTED, f"max_turns: no answer after {limits.max_turns} turns")

    def _conclude(self, turn: int, said: str) -> None:
        """Write down what a root leaves for a run that continues it."""
        if self.task.depth == 0:
            self._stays = self._record.kept
            self._record.conclude(turn, said or "(no text)", self._standing())

    async def _begin_turn(self, turn: int) -> None:
        await self.tree.services.shares.pace.wait(self.tree.run.tenant)
        self.origin = replace(self.origin, turn=turn)
        await self._renew_place()
        await self.tree.event_log.room()
        self.emit(TurnStarted(self.tree.limits.max_turns))

    async def _refused(self, session: LiveSession) -> list[str]:
        """Take an answer that is ready, or say why it cannot be taken: then it is ready no longer."""
        if self._typed is None:
            return []
        verdict = await self._typed.judge(self._draft.text)
        if not verdict.violations:
            self._draft.text = verdict.answer
            return []
        await self._execute_unseen(session, "__import__('_runner').reserved['answer']['ready'] = False")
        self._draft.ready = False
        self.emit(guard(verdict))
        return [self._typed.refuse(verdict)]

    async def _renew_place(self) -> None:
        if self.task.depth == 0 and self.origin.turn > 1:
            await self.tree.renew_place()
            self.calls.options = replace(self.calls.options, deadline=self._deadline)

    async def _after_turn(self, turn: int, ran: list[Block], blocks: int) -> str:
        told = feedback(ran, blocks, self._variables)
        self._shown += told.shown
        return after_turn(told.text, await self._environment(min(turn + 1, self.tree.limits.max_turns)))

    async def _look(self, session: LiveSession) -> None:
        """Sum up what the session has looked at so far, where that is more than before."""
        node_context, blocks = self.task.node_context, session.seen[0] if session.seen else 0
        if node_context is None:
            return
        if self._looked is None or self._looked.blocks & ~blocks:  # none yet, or a turn was undone
            self._looked = Looked(node_context.corpus)
        self._coverage = await self.tree.saw(node_context, self._looked, blocks)

    def _answered(self, text: str) -> str:
        self._draft.text = text
        self.emit(Answer(text))
        return text

    async def _ask(self, max_tokens: int, turn: int = CLOSING) -> ModelReply:
        """Ask the node's model in a turn, or for its last word."""
        model, known = self.task.model, self._record.recall_reply(turn)
        if known is not None:
            self._own_calls.add(known.call_id)
            self.emit(ModelReplied(known.model, known.reply.text, known.spent, known.call_id, known.reply.stopped))
            return known.reply
        sampling = self.tree.asked.sampling
        whole = ModelRequest(
            model, tuple(self._messages), self._system, max_tokens, sampling.temperature, sampling.stop
        )
        request = await self._within_budget(whole)
        try:
            done = await root_call.ask(self.tree, self.payer, request, self._deadline, self._reported, self.emit)
        except BudgetError as error:
            raise NodeEnded(RunState.EXHAUSTED, f"budget.{error.unit}: {error}") from None
        except CallFailed as error:
            if error.failure is Failure.TIMED_OUT and not seconds_left(self._deadline):
                raise self._out_of_time() from None
            raise NodeEnded(RunState.FAILED, f"the model {model} did not answer: {error.failure}: {error}") from None
        self._record.replied(turn, done)
        self._purse.replied(done.settling)
        self._own_calls.add(done.call_id)
        self.tree.tracer.trace(done.call_id, [message.content for message in self._messages], self._reported)
        self.emit(ModelReplied(done.model, done.reply.text, done.spent, done.call_id, done.reply.stopped))
        self.tree.count(self.origin, done.spent)
        return done.reply

    async def _within_budget(self, request: ModelRequest) -> ModelRequest:
        services = self.tree.services
        left, price = self._left_last, services.broker.routes.route(request.model).price
        if closing.fits(request, left, price):
            return request
        return closing.lowered(request, left, (await services.ledger.balance(self.task.id)).carved, price)

    async def _last_word(self, reason: str) -> None:
        """Ask once more, in what is left of the node's money and time with what was kept for this."""
        if self._typed is not None:
            await self._typed.settle(self._draft.text)
        ledger, route = self.tree.services.ledger, self.tree.services.broker.routes.route(self.task.model)
        await self._purse.settled()
        await ledger.release_reserve(self.task.id)
        messages = (*self._messages, *self._children.said.messages())
        conversation = last_word.Conversation(self._system, messages)
        self._left_last = await self._purse.left()
        rooms = closing.rooms(self._left_last, route, self.tree.limits.root_tokens, len(messages) + 1)
        schema = self.tree.asked.answer_schema if self._typed is not None else ""
        ending = last_word.Ending(self.task.question, reason, self._draft.text, schema, self.tree.asked.instructions)
        fitting = last_word.fitting(conversation, ending, [(room.input_bytes, room.output_tokens) for room in rooms])
        if fitting is None:
            self.emit(Guard("last_word", "no closing answer: too little is left for one"))
            return
        asked, most_tokens = fitting
        self._system, self._messages = asked.system, list(asked.messages)
        try:
            said = await closing_answer((await self._ask(most_tokens)).text)
        except NodeEnded as ended:
            self.emit(Guard("last_word", f"no closing answer: {ended}"))
            return
        if said is None:
            self.emit(Guard("last_word", "the closing reply was code, which does not run any more"))
            return
        if self._typed is not None and (verdict := await self._typed.judge(said)).violations:
            self.emit(guard(verdict, "last_word"))
            return
        self._draft.text = beginning_of(said, self.tree.limits.answer_bytes) or self._draft.text

    async def _run_blocks(self, session: LiveSession, blocks: tuple[str, ...]) -> list[Block]:
        ran: list[Block] = []
        for number, code in enumerate(blocks, start=1):
            await self.tree.services.shares.pace.wait(self.tree.run.tenant)
            await self.tree.event_log.room()
            self.emit(CodeStarted(code, number))
            tally = self.calls.begin_turn()
            self._awaited = Awaited()
            known = self._record.recall_block(number)
            if known is not None:
                result = self._ran_before(known)
            else:
                with OutputBatcher(self.emit) as output, span("turn", rlm__node_id=self.task.id) as opened:
                    result = await self._turn(session, code, output, number)
                    opened.note(rlm__status=result.status)
            told = replace(result, stdout="", stderr="")  # which are told already
            self.emit(CodeFinished(told, tally.untold))
            self._call_notes += call_notes(tally.notes) if known is None else list(known.notes)
            ran.append(Block(code, result, self._awaited.seconds))
            if result.error or self._draft.ready:
                break
        return ran

    def _ran_before(self, block: RanBlock) -> Turn:
        """Take what a block did before the server was lost."""
        result = block.result
        for stream, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            if text:
                self.emit(Printed("stdout" if stream == "stdout" else "stderr", text))
        self._draft.begin()
        if block.draft is not None:
            self._draft.take(*block.draft)
        self._draft.end(result.status)
        return result

    async def _execute_unseen(self, session: LiveSession, code: str) -> Turn:
        with OutputBatcher(lambda _: None) as output:
            return await self._turn(session, code, output)

    async def _turn(self, session: LiveSession, code: str, output: OutputBatcher, block: int = 0) -> Turn:
        """Run code. `block` is its number in the turn; 0 for code of the server's own."""
        repl = NodeRepl(
            session,
            self.calls,
            self.tree.run.tenant,
            self.tree.services.shares,
            self._children.rlm_query,
            self._left_to_spend,
            self._take_answer,
            self.tree.tools.turn(
                self.emit,
                self._reported,
                self.payer,
                lambda: seconds_left(self._deadline),
                self._record.tool_call,
            ).call,
        )
        answer = partial(self._answer_call, repl)

        def restarted(reason: str) -> None:
            self._draft.begin()
            output.restarted(reason)

        def note(done: Turn) -> bytes:
            if not block:
                return b""
            return self._record.block_ran(
                self.origin.turn, block, done, self._draft.given, call_notes(self.calls.tally.notes)
            )

        inputs = self._record.inputs(self.origin.turn, block) if block and self._record.kept else None
        execute = partial(session.execute, code, answer, output.take, restarted, note, inputs, self._record.heard)
        turn = await self._metered(execute, session)
        for _ in range(MORE_WORKERS):
            if not (turn.error is not None and turn.error.type is Stop.WORKER_LOST and block and self._record.kept):
                break
            await self._record.again()
            restarted(turn.error.message)
            turn = await self._metered(execute, session)
        self._draft.end(turn.status)
        return turn

    async def _metered(self, execute: Callable[[], Awaitable[Turn]], session: LiveSession) -> Turn:
        ledger, limits = self.tree.services.ledger, self.tree.limits.sandbox
        self._draft.begin()
        try:
            done = await metered(
                ledger,
                self.payer,
                limits,
                execute,
                deadline=self._deadline,
                host_seconds=self.tree.limits.host_seconds,
                host_times=self.tree.services.shares.host_times,
                patience=PATIENCE,
                ran=lambda: session.running_seconds,
            )
        except BudgetError as error:
            raise NodeEnded(RunState.EXHAUSTED, f"budget.{error.unit}: {error}") from None
        self.tree.count(self.origin, done.spent)
        self._booking = [booked for booked in self._booking if not booked.done()] + [done.booked]
        if len(self._booking) >= MOST_BOOKING:  # else short blocks would fill the line of the database's writer
            await asyncio.wait(self._booking)
        return done.turn

    async def _environment(self, turn: int) -> Environment:
        limits, corpus = self.tree.limits, self.task.node_context.corpus if self.task.node_context else None
        self._left_last = await self._purse.left()
        return Environment(
            turn, limits.max_turns, corpus, self._coverage, self.task.depth, limits.max_depth,
            self._left_last, self.calls.count, seconds_left(self._deadline),
            self._shown, self._sent(),
        )  # fmt: skip

    def _sent(self) -> Sent:
        """Say how much of the run's context other models were sent; of a child's text that is not known."""
        tree = self.tree
        if self.task.node_context is None or self.task.node_context.corpus is not tree.context:
            return Sent(None)
        return Sent(tree.sent.characters / max(1, tree.context.characters), tree.sent.more or tree.tracer.busy)

    # ---- what its code asks for ----------------------------------------------------------------------------------

    async def _answer_call(self, repl: NodeRepl, call: HostCall) -> Json:
        await self.tree.event_log.room()
        self._purse.spending()
        answer = partial(self.tree.services.functions.answer_run, repl, call)
        if call.op in _MAY_DIFFER:
            return await self._record.told(call, answer)
        with self._awaited.request(call.op):
            return await answer()

    def _take_answer(self, content: str, ready: bool) -> None:
        too_long = self._too_long(content)
        if too_long is not None:
            raise DoorRefusal("LimitExceeded", too_long)
        if ready and not content.strip():
            raise DoorRefusal("ValueError", "the answer is empty")
        self._draft.take(content, ready)

    def _too_long(self, answer: str) -> str | None:
        """Say that a text is too long for an answer, where it is."""
        most, size = self.tree.limits.answer_bytes, size_of(answer)
        return None if size <= most else f"answer_bytes: an answer may have {most} bytes of UTF-8, not {size}"

    async def _left_to_spend(self) -> Json:
        left = await self._purse.left()
        return {
            "usd": None if left.nano_usd is None else left.nano_usd / 1e9,
            "tokens": left.tokens,
            "calls": left.calls,
            "cpu_seconds": None if left.cpu_ms is None else left.cpu_ms / 1000,
            "turns": self.tree.limits.max_turns - self.origin.turn,
            "depth": self.tree.limits.max_depth - self.task.depth,
            "seconds": round(seconds_left(self._deadline), 1),
        }
