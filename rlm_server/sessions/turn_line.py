"""The turns of sessions in their order: who asks for one, reads it, watches it, or stops it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from rlm_server.database.requests import RequestIdReused
from rlm_server.repl.events import CodeFinished
from rlm_server.sessions import turn_notes
from rlm_server.sessions.collected import Collected
from rlm_server.sessions.happenings import Accepted, Happenings
from rlm_server.sessions.results import Results
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.state import SessionEnded
from rlm_server.sessions.turn import Listener, SessionTurn, TurnRequest, turn_id_of
from rlm_server.sessions.turn_log import Told, TurnLog
from rlm_server.sessions.turn_notes import RanTurn
from rlm_server.sessions.turns import Turns
from sandbox.cancellation import cancel_and_wait
from sandbox.pool.worker_session import SessionClosed, undone
from sandbox.turn import Stop

SESSION_TURNS = 64
"""Turns of one session that are asked for and have not ended: one runs, the others wait for it."""
WATCHABLE_TURNS = 8
"""Detached turns of one session that have ended, of which all that is kept can still be watched."""
WATCHABLE_SECONDS = 600.0
"""For so long after its end."""
QUIET_SECONDS = 15.0
"""After so long without anything to tell, readers of a turn are told that."""


class SessionLineFull(Exception):
    """As many turns of the session wait for each other as may."""

    def __init__(self, used: int) -> None:
        super().__init__(f"{used} turns of this session have not ended; the limit is {SESSION_TURNS} (session_turns)")
        self.unit, self.limit, self.used = "session_turns", SESSION_TURNS, used


class TurnUnknown(Exception):
    """There is no turn to watch; the message says why."""

    def __init__(self, turn: str, why: str = "") -> None:
        super().__init__(why)
        self.turn = turn


class TurnLine:
    """Has the turns of every session run one after another, and remembers what came of them."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held = turns.shares.held
        self._results = Results(self._held)

    # ---- asking for turns ----------------------------------------------------------------------------------------

    def execute(self, session: ReplSession, request: TurnRequest) -> AsyncGenerator[Told, None]:
        """Run a turn and yield what happens. Closing the iterator stops the turn and rolls it back.

        A repeated request yields its first result and runs nothing. One that is under way in a detached turn is read.

        Raises:
            SessionEnded: the session ends, or has ended.
            ResultForgotten: the request has run, and its result is no longer remembered.
            RequestIdReused: another request with the same id has run.
            SessionLineFull: too many wait already.
        """
        log = self._detached(session, request)
        return self._attended(session, request) if log is None else log.each(0, QUIET_SECONDS)

    async def _attended(self, session: ReplSession, request: TurnRequest) -> AsyncGenerator[Told, None]:
        happenings = Happenings(session.row.tenant, self._held)
        turn = self._begin(session, request, happenings)
        try:
            async with aclosing(happenings.each(QUIET_SECONDS)) as each:
                async for happening in each:
                    yield Told(happening)
        finally:
            happenings.close()
            await cancel_and_wait(turn.task)

    def execute_detached(self, session: ReplSession, request: TurnRequest) -> AsyncGenerator[Told, None]:
        """Run a turn and yield what happens. It goes on though the iterator is closed.

        Raises as `execute`, and:
            TooMuchHeld: the tenant may have no more of the server's memory.
        """
        log = self._detached(session, request)
        if log is None:
            known = self._known(session, request)
            if known is not None:
                return _alone(known)
            self._check(session)
            log = TurnLog(session.row.tenant, self._held, request.code)
            log.put(Accepted(self._begin(session, request, log, log).id))
        return log.each(0, QUIET_SECONDS)

    async def execute_once(self, session: ReplSession, request: TurnRequest) -> Collected:
        """Run a turn and return what came of it. Cancelling this stops the turn and rolls it back.

        Raises as `execute`.
        """
        collected = Collected()
        turn = self._begin(session, request, collected)
        try:
            await asyncio.wait([turn.task])
        finally:
            if not turn.task.done():
                await cancel_and_wait(turn.task)
        collected.check()
        collected.remembered = turn.result is None
        return collected

    # ---- what else there is to do with them ------------------------------------------------------------------------

    def watch(self, session: ReplSession, turn_id: str, first: int) -> AsyncGenerator[Told, None]:
        """Yield what happens in a detached turn, from a number on, until its end; of an old one its result alone.

        Raises:
            TurnUnknown: there is no such turn, or it is not detached and under way.
            ResultForgotten: it has ended, and its result is no longer remembered.
            Exception: why it could not be run, or not to its end.
        """
        turn = session.watchable.get(turn_id) or self._under_way(session, turn_id)
        if turn is not None and turn.log is not None:
            return turn.log.each(first, QUIET_SECONDS)
        known = self._results.find(session.id, turn_id)
        if known is None:
            why = "it is not detached: only what came of it can be watched, once it has ended" if turn else ""
            raise TurnUnknown(turn_id, why)
        return _alone(known)

    async def interrupt(self, session: ReplSession, turn_id: str = "") -> bool:
        """Stop the turn under way, or this detached one, and wait until it has stopped. Say whether there was one.

        It is rolled back, and whoever reads it is told so. One whose code has ended already stays.
        """
        turn = session.running if not turn_id else self._under_way(session, turn_id)
        if turn is None or turn.result is not None:
            return False
        if turn is session.running:
            turn.ran_seconds = session.live.running_seconds
        turn.interrupted = True
        await cancel_and_wait(turn.task)
        remembered = [one for one in self._results.ran(session.id) if one.turn == turn.id]
        if turn.stopped and remembered:
            await session.live.add_note(turn_notes.write(remembered))
        return turn.stopped

    async def stop(self, session: ReplSession) -> None:
        """Stop all turns of a session that ends, and forget what is remembered of them."""
        turns = list(session.turns)
        for turn in turns:
            turn.interrupted = True
            turn.task.cancel()
        if turns:
            await asyncio.wait([turn.task for turn in turns])
        for turn in session.watchable.values():
            _close(turn)
        session.watchable.clear()
        if session.bookings:
            await asyncio.wait(session.bookings)
        session.memo.close()
        self._results.forget(session.row.tenant, session.id)

    def tidy(self, session: ReplSession) -> None:
        """Let go of what is kept of detached turns that ended long enough ago."""
        before = time.monotonic() - WATCHABLE_SECONDS
        while session.watchable:
            oldest = next(iter(session.watchable.values()))
            if len(session.watchable) <= WATCHABLE_TURNS and oldest.ended_at > before:
                return
            del session.watchable[oldest.id]
            _close(oldest)

    def note(self, session: ReplSession) -> Callable[[], bytes]:
        """Return what writes, in a thread, what is known now of a session's turns, to be stored with its state."""
        return partial(turn_notes.write, self._results.ran(session.id))

    def restore(self, session: ReplSession, ran: Sequence[RanTurn]) -> None:
        """Remember of a session that was taken up which turns have run."""
        for one in ran:
            self._results.remember(session.row.tenant, session.id, one.turn, one.content_sha256, one.result)

    # ---- how a turn goes -----------------------------------------------------------------------------------------

    def _begin(
        self, session: ReplSession, request: TurnRequest, listener: Listener, log: TurnLog | None = None
    ) -> SessionTurn:
        self._check(session)
        turn = SessionTurn(turn_id_of(request.id), request, listener, log)
        session.turns[turn] = None
        turn.task = asyncio.create_task(self._go(session, turn))
        turn.task.add_done_callback(lambda _: self._over(session, turn))
        return turn

    async def _go(self, session: ReplSession, turn: SessionTurn) -> None:
        async with session.one_turn:
            await self._run(session, turn)

    def _over(self, session: ReplSession, turn: SessionTurn) -> None:
        """Tell how a turn ended, though it was stopped before it began."""
        error = None if turn.task.cancelled() else turn.task.exception()
        if turn.task.cancelled() and turn.interrupted:
            error = self._interrupted(session, turn)
        elif isinstance(error, SessionClosed) and session.end is not None:
            error = SessionEnded(session.id, session.end)
        del session.turns[turn]
        turn.ended_at = time.monotonic()
        turn.listener.end(error)
        if turn.log is not None:
            turn.result = None  # the log has it
            before = session.watchable.pop(turn.id, None)
            if before is not None:  # it failed, and was asked for again
                _close(before)
            session.watchable[turn.id] = turn
            self.tidy(session)

    async def _run(self, session: ReplSession, turn: SessionTurn) -> None:
        known = self._known(session, turn.request)
        if known is not None:
            turn.listener.put(known)
            return
        session.check_living()
        session.running = turn
        session.paused = False
        try:
            await self._turns.run(session, turn, lambda: self._remember(session, turn))
        finally:
            session.running = None
        self._tell_result(turn)

    def _interrupted(self, session: ReplSession, turn: SessionTurn) -> Exception | None:
        """Tell the result of a turn that was interrupted. In a session that ends there is none but of its own."""
        if turn.result is None:
            if session.end is not None:
                return SessionEnded(session.id, session.end)
            turn.stopped = True
            stopped = undone(Stop.INTERRUPTED, "the turn was interrupted")
            turn.result = CodeFinished(replace(stopped, running_seconds=turn.ran_seconds))
            self._remember(session, turn)
        self._tell_result(turn)
        return None

    def _tell_result(self, turn: SessionTurn) -> None:
        if turn.result is not None and not turn.told:
            turn.told = True
            turn.listener.put(turn.result)

    def _remember(self, session: ReplSession, turn: SessionTurn) -> None:
        if turn.result is not None and (turn.request.id or turn.log is not None):
            content = turn.request.content_sha256
            self._results.remember(session.row.tenant, session.id, turn.id, content, turn.result)

    # ---- what is known -------------------------------------------------------------------------------------------

    def _known(self, session: ReplSession, request: TurnRequest) -> CodeFinished | None:
        return self._results.find(session.id, turn_id_of(request.id), request) if request.id else None

    def _detached(self, session: ReplSession, request: TurnRequest) -> TurnLog | None:
        """Return the log of the detached turn that a request has begun, where it is still there, and did not fail."""
        if not request.id:
            return None
        turn_id = turn_id_of(request.id)
        turn = session.watchable.get(turn_id) or self._under_way(session, turn_id)
        if turn is None or turn.log is None or turn.log.failed:
            return None
        if turn.request.code != request.code:
            raise RequestIdReused(request.id)
        return turn.log

    def _under_way(self, session: ReplSession, turn_id: str) -> SessionTurn | None:
        return next((turn for turn in session.turns if turn.id == turn_id), None)

    def _check(self, session: ReplSession) -> None:
        session.check_living()
        if len(session.turns) >= SESSION_TURNS:
            raise SessionLineFull(len(session.turns))


async def _alone(result: CodeFinished) -> AsyncGenerator[Told, None]:
    yield Told(result)


def _close(turn: SessionTurn) -> None:
    if turn.log is not None:
        turn.log.close()
