"""Runs turns of sessions: the caller's code runs, is paid for, and what happens meanwhile is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial

from rlm_server.broker.broker import Broker
from rlm_server.clock import now
from rlm_server.ledger import Ledger, Payer
from rlm_server.repl.events import NONE_UNTOLD, CallFinished, CallStarted, CallTraced, CodeFinished
from rlm_server.repl.functions import Functions, Repl
from rlm_server.repl.memo import Memo
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls
from rlm_server.repl.output import OutputBatcher
from rlm_server.repl.owed import Owed
from rlm_server.sessions import turn_notes
from rlm_server.sessions.happenings import Happening
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.turn import SessionTurn
from rlm_server.sessions.turn_notes import RanTurn
from rlm_server.shares.shares import Shares
from rlm_server.tracing.spans import span
from sandbox.cancellation import run_to_completion
from sandbox.turn import Turn

BOOKED_SECONDS = 0.02
"""For so long what a turn took waits for another write, where nothing limits it: they share a commit."""
UNBOOKED = 64
"""Turns of a session that are not in the books yet. The next one waits."""


class Turns:
    """Runs turns of sessions. A turn waits `budget_wait_seconds` for room that other turns of its tenant hold.

    `shares` counts what turns and sessions have of the server's memory, and more.
    """

    def __init__(
        self, broker: Broker, ledger: Ledger, functions: Functions, shares: Shares, *, budget_wait_seconds: float
    ) -> None:
        self._broker, self._ledger, self._functions = broker, ledger, functions
        self.shares = shares
        self._budget_wait_seconds = budget_wait_seconds

    def memo(self, new: NewSession) -> Memo:
        """Make the memory of answers of a new session."""
        return Memo(new.tenant, new.limits.memo_bytes, self.shares.held)

    async def run(self, session: ReplSession, turn: SessionTurn, ended: Callable[[], None]) -> None:
        """Run a turn and tell what happens. Cancelling this stops the turn and rolls it back.

        `ended` is called at once when its code has ended: from then on the session keeps what it did.

        Raises:
            BudgetError: there is not enough for it.
            SessionClosed: the session was ended before the turn began.
            PoolFull, WorkerLost, SnapshotRefused: the session cannot be brought into a worker.
        """
        if len(session.bookings) >= UNBOOKED:
            await asyncio.wait(session.bookings, return_when=asyncio.FIRST_COMPLETED)
        tell = turn.listener.put
        owed = Owed(self._ledger.hurry)
        calls = self._calls(session, tell, owed)
        tally = calls.begin_turn()
        answer = partial(self._functions.answer_session, Repl(session.live, calls, session.row.tenant, self.shares))
        batcher = OutputBatcher(tell) if turn.listener.gathers_output else None

        async def execute() -> Turn:
            take, restarted = (batcher.take, batcher.restarted) if batcher is not None else (_unheard, _unheard)
            done = await session.live.execute(turn.request.code, answer, take, restarted, partial(_note, turn))
            turn.result = CodeFinished(done)
            ended()
            return done

        try:
            with batcher or nullcontext(), span("turn", rlm__session_id=session.id):
                await self._metered(session, execute)
            await session.tracer.settle()
        finally:
            if owed.any:
                await run_to_completion(owed.settled())
            session.turns_ended += 1
            session.used_at = now()
        if tally.untold != NONE_UNTOLD:
            tell(tally.untold)

    async def _metered(self, session: ReplSession, execute: Callable[[], Awaitable[Turn]]) -> None:
        done = await metered(
            self._ledger,
            _payer(session),
            session.asked.limits.sandbox,
            execute,
            deadline=time.monotonic() + self._budget_wait_seconds,
            host_seconds=session.asked.limits.host_seconds,
            host_times=self.shares.host_times,
            patience=BOOKED_SECONDS,
            ran=lambda: session.live.running_seconds,
        )
        if not done.booked.done():
            session.bookings.add(done.booked)
            done.booked.add_done_callback(session.bookings.discard)

    def _calls(self, session: ReplSession, tell: Callable[[Happening], None], owed: Owed) -> ModelCalls:
        def report(body: CallStarted | CallFinished | CallTraced) -> None:
            if not isinstance(body, CallStarted):
                tell(body)

        limits = session.asked.limits
        options = CallOptions.of(limits, session.asked.sub_model, time.monotonic() + limits.wall_seconds)
        return ModelCalls(
            self._broker,
            _payer(session),
            options,
            session.memo,
            session.failures,
            session.tracer,
            report,
            self.shares,
            owed,
        )


def _note(turn: SessionTurn, done: Turn) -> bytes:
    """Return what is stored with a turn's effect, so that its request does not run again."""
    if not (turn.request.id or turn.log is not None):
        return b""
    return turn_notes.write([RanTurn(turn.id, turn.request.content_sha256, CodeFinished(done))])


def _payer(session: ReplSession) -> Payer:
    return Payer(session.id, session.row.tenant, session.id, session.id)


def _unheard(*_: object) -> None:
    pass
