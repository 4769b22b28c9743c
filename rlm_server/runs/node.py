"""One RLM of a run's tree: the loop in which its model writes code and is shown what came of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from rlm_server.broker.broker import CallFailed
from rlm_server.broker.provider import Failure, Message, ModelRequest
from rlm_server.database.engine import DatabaseError
from rlm_server.ledger import BudgetError, Payer
from rlm_server.repl.bounds import MAX_REASON, cut
from rlm_server.repl.coverage import Coverage, Looked
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, CodeFinished
from rlm_server.repl.functions import NodeRepl
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls, seconds_left
from rlm_server.repl.output import OutputBatcher
from rlm_server.runs import prompt, reply, root_call
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
    TurnCheckpointed,
    TurnStarted,
)
from rlm_server.runs.guards import Guards
from rlm_server.runs.journal import PATIENCE
from rlm_server.runs.state import NodeEnded, RunState
from rlm_server.runs.tree import Outcome, Task, Tree
from sandbox.cancellation import cancel_and_wait, run_to_completion
from sandbox.corpora.corpus import CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import JailMissing, LiveSession
from sandbox.pool.process import WorkerLost
from sandbox.pool.snapshots import SnapshotRefused
from sandbox.turn import Turn

log = logging.getLogger(__name__)


class Node:
    """Runs the loop of one RLM. Everything it starts has ended when `run` returns."""

    def __init__(self, tree: Tree, task: Task) -> None:
        self.tree = tree
        self.task = task
        self.origin = EventOrigin(task.id, task.parent, task.depth)
        self.payer = Payer(task.id, tree.run.tenant, tree.run.id, task.id)
        limits = tree.limits
        options = CallOptions.of(limits, tree.run.sub_model, tree.deadline)
        self.calls = ModelCalls(
            tree.services.broker,
            self.payer,
            options,
            tree.memo,
            tree.failures,
            tree.tracer,
            self._reported,
            tree.services.shares,
        )
        self._children = Children(tree, task, self.calls, self.emit, lambda child: Node(tree, child).run())
        self._guards = Guards(limits, self.emit)
        self._draft = Draft()
        self._messages: list[Message] = []
        self._coverage = Coverage()
        self._looked: Looked | None = None
        self._booking: list[asyncio.Future[None]] = []
        """Costs of turns that are not in the books yet."""
        self._call_notes: list[str] = []

    def emit(self, body: Body) -> None:
        """Report something that happened in this node."""
        self.tree.event_log.emit(self.origin, body)

    def _reported(self, body: CallStarted | CallFinished | CallTraced) -> None:
        self.emit(body)
        if isinstance(body, CallFinished):
            self.tree.count(self.origin, body.call.spent)

    # ---- from start to end ---------------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Work until there is an answer or a limit, keep the outcome, and return it.

        Cancelling the task ends the node as cancelled, with everything under it, and then goes on.
        """
        # Kept with the hold of the first request, which is not sent before.
        moving = asyncio.create_task(self.tree.services.journal.move(self.task.id, RunState.RUNNING, patience=PATIENCE))
        try:
            outcome = await self._outcome()
            await moving
        except asyncio.CancelledError:
            await run_to_completion(self._keep(Outcome(RunState.CANCELLED, self._draft.text, "cancelled"), moving))
            raise
        except DatabaseError as error:  # it is away, or full: said once, and by name
            log.error("node %s ended: %s", self.task.id, type(error).__name__)  # noqa: TRY400
            outcome = Outcome(RunState.FAILED, self._draft.text, "the server cannot reach its database")
        except Exception:
            log.exception("node %s failed", self.task.id)
            outcome = Outcome(RunState.FAILED, self._draft.text, "an internal error of the server; it has been logged")
        await run_to_completion(self._keep(outcome, moving))
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
            return self._ended(closed.result() if closed.done() else self._out_of_time())
        try:
            return Outcome(RunState.SUCCEEDED, work.result())
        except NodeEnded as ended:
            return self._ended(ended)

    async def _until_over(self, work: asyncio.Task[str], closed: asyncio.Future[NodeEnded]) -> None:
        """Wait until the work is done, or must end."""
        while not (work.done() or closed.done()):
            pause, seconds = self.tree.pause, seconds_left(self.tree.deadline)
            if pause is not None:
                await asyncio.wait((work, closed, pause), return_when=asyncio.FIRST_COMPLETED)
            elif seconds:
                await asyncio.wait((work, closed), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    def _ended(self, how: NodeEnded) -> Outcome:
        return Outcome(how.state, self._draft.text, cut(str(how), MAX_REASON))

    def _out_of_time(self) -> NodeEnded:
        reason = f"wall_seconds: the run may take {self.tree.limits.wall_seconds:g} s"
        return NodeEnded(RunState.EXHAUSTED, reason)

    async def _keep(self, outcome: Outcome, after: asyncio.Task[None]) -> None:
        services = self.tree.services
        await asyncio.wait([after, *self._booking])
        if not after.cancelled():
            after.exception()  # marks it as retrieved: where it failed, the move below does too
        await services.ledger.close_account(self.task.id)
        await services.journal.move(
            self.task.id,
            outcome.state,
            answer=outcome.answer,
            reason=outcome.reason,
            turns=self.origin.turn,
            coverage_fraction=self._coverage.fraction,
        )

    async def _work(self) -> str:
        try:
            session = await self.tree.services.pool.create(
                self.tree.run.tenant, self.tree.image, self.tree.limits.sandbox
            )
        except (PoolFull, JailMissing, WorkerLost) as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        try:
            if self.task.node_context is not None:
                await session.attach("context", self.task.node_context.corpus)
                await self._look(session)  # of what is empty, everything has been looked at
            return await self._converse(session)
        except (MemoryError, WorkerLost, PoolFull, SnapshotRefused, CorpusDamaged, OSError) as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        finally:
            await session.close()

    # ---- the loop ------------------------------------------------------------------------------------------------

    async def _converse(self, session: LiveSession) -> str:
        limits = self.tree.limits
        self._messages = [Message("user", prompt.task(self.task.question, await self._environment(1)))]
        for turn in range(1, limits.max_turns + 1):
            await self.tree.services.shares.pace.wait(self.tree.run.tenant)
            self.origin = replace(self.origin, turn=turn)
            await self._renew_place()
            await self.tree.event_log.room()
            self.emit(TurnStarted(limits.max_turns))
            read = reply.read(await self._ask(limits.root_tokens))
            if read.final is not None:
                if read.final.strip() and self._too_long(read.final) is None:
                    return self._answered(read.final)
                read = reply.Reply((f"FINAL({read.final!r})",))  # refused as that of code is
            named = read.final_variable
            blocks = read.blocks or ((f"FINAL_VAR({named!r})",) if named is not None else ())
            results = await self._run_blocks(session, blocks)
            await self._look(session)
            self.emit(TurnCheckpointed(session.private_bytes, self._coverage))
            if self._draft.ready:
                return self._answered(self._draft.text)
            notes = [*self._guards.look(blocks, results), *self._call_notes]
            self._call_notes.clear()
            environment = await self._environment(min(turn + 1, limits.max_turns))
            feedback = prompt.feedback(results, len(blocks), environment)
            self._messages.append(Message("user", "\n\n".join([*notes, feedback])))
        await self._last_word()
        raise NodeEnded(RunState.EXHAUSTED, f"max_turns: no answer after {limits.max_turns} turns")

    async def _renew_place(self) -> None:
        if self.task.depth == 0 and self.origin.turn > 1:
            await self.tree.renew_place()
            self.calls.options = replace(self.calls.options, deadline=self.tree.deadline)

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

    async def _ask(self, max_tokens: int) -> str:
        model = self.task.model
        request = ModelRequest(model, tuple(self._messages), prompt.system(self.tree.services.functions), max_tokens)
        try:
            done = await root_call.ask(self.tree, self.payer, request, self._reported, self.emit)
        except BudgetError as error:
            raise NodeEnded(RunState.EXHAUSTED, f"budget.{error.unit}: {error}") from None
        except CallFailed as error:
            if error.failure is Failure.TIMED_OUT and not seconds_left(self.tree.deadline):
                raise self._out_of_time() from None
            raise NodeEnded(RunState.FAILED, f"the model {model} did not answer: {error.failure}: {error}") from None
        self.tree.tracer.trace(done.call_id, [message.content for message in self._messages], self._reported)
        self.emit(ModelReplied(done.model, done.reply.text, done.spent, done.call_id))
        self.tree.count(self.origin, done.spent)
        self._messages.append(Message("assistant", done.reply.text or "(no text)"))
        return done.reply.text

    async def _last_word(self) -> None:
        self._messages.append(Message("user", prompt.LAST_WORD))
        try:
            said = (await self._ask(min(1024, self.tree.limits.root_tokens))).strip()
            self._draft.text = beginning_of(said, self.tree.limits.answer_bytes) or self._draft.text
        except NodeEnded as ended:
            self.emit(Guard("last_word", f"no closing answer: {ended}"))

    async def _run_blocks(self, session: LiveSession, blocks: tuple[str, ...]) -> list[Turn]:
        results: list[Turn] = []
        for number, code in enumerate(blocks, start=1):
            await self.tree.event_log.room()
            self.emit(CodeStarted(code, number))
            tally = self.calls.begin_turn()
            self._draft.begin()
            with OutputBatcher(self.emit) as output:
                result = await self._turn(session, code, output)
            self._draft.end(result.status)
            told = replace(result, stdout="", stderr="")  # which are told already
            self.emit(CodeFinished(told, tally.untold))
            self._call_notes += prompt.call_notes(tally.notes)
            results.append(result)
            if result.error or self._draft.ready:
                break
        return results

    async def _turn(self, session: LiveSession, code: str, output: OutputBatcher) -> Turn:
        repl = NodeRepl(
            session,
            self.calls,
            self.tree.run.tenant,
            self.tree.services.shares,
            self._children.rlm_query,
            self._left,
            self._take_answer,
        )
        answer = partial(self._answer_call, repl)

        def restarted(reason: str) -> None:
            self._draft.begin()
            output.restarted(reason)

        execute = partial(session.execute, code, answer, output.take, restarted)
        ledger, limits = self.tree.services.ledger, self.tree.limits.sandbox
        try:
            done = await metered(
                ledger,
                self.payer,
                limits,
                execute,
                deadline=self.tree.deadline,
                host_seconds=self.tree.limits.host_seconds,
                host_times=self.tree.services.shares.host_times,
                patience=PATIENCE,
            )
        except BudgetError as error:
            raise NodeEnded(RunState.EXHAUSTED, f"budget.{error.unit}: {error}") from None
        self._booking = [booked for booked in self._booking if not booked.done()] + [done.booked]
        self.tree.count(self.origin, done.spent)
        return done.turn

    async def _environment(self, turn: int) -> prompt.Environment:
        limits = self.tree.limits
        return prompt.Environment(
            turn, limits.max_turns, self.task.node_context.corpus if self.task.node_context else None, self._coverage,
            self.task.depth, limits.max_depth, await self.tree.services.ledger.left(self.task.id), self.calls.count,
            seconds_left(self.tree.deadline),
        )  # fmt: skip

    # ---- what its code asks for ----------------------------------------------------------------------------------

    async def _answer_call(self, repl: NodeRepl, call: HostCall) -> Json:
        await self.tree.event_log.room()
        return await self.tree.services.functions.answer_run(repl, call)

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

    async def _left(self) -> Json:
        left = await self.tree.services.ledger.left(self.task.id)
        return {
            "usd": None if left.nano_usd is None else left.nano_usd / 1e9,
            "tokens": left.tokens,
            "calls": left.calls,
            "cpu_seconds": None if left.cpu_ms is None else left.cpu_ms / 1000,
            "turns": self.tree.limits.max_turns - self.origin.turn,
            "depth": self.tree.limits.max_depth - self.task.depth,
            "seconds": round(seconds_left(self.tree.deadline), 1),
        }
