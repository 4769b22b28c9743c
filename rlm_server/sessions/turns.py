"""Turns of sessions: the caller's code runs, is paid for, and what happens meanwhile is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from rlm_server.broker.broker import Broker
from rlm_server.ledger import Ledger, Payer
from rlm_server.repl.events import NONE_UNTOLD, CallFinished, CallStarted, CallTraced, CodeFinished
from rlm_server.repl.functions import Functions, Repl
from rlm_server.repl.memo import Memo
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls
from rlm_server.repl.output import OutputBatcher
from rlm_server.sessions.happenings import Happening, Happenings
from rlm_server.sessions.results import Results
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.shares.shares import Shares
from rlm_server.tracing.spans import span
from sandbox.cancellation import cancel_and_wait
from sandbox.turn import Turn


class Turns:
    """Runs turns of sessions. A turn waits `budget_wait_seconds` for room that other turns of its tenant hold.

    `shares` counts what turns and sessions have of the server's memory, and more.
    """

    def __init__(
        self, broker: Broker, ledger: Ledger, functions: Functions, shares: Shares, *, budget_wait_seconds: float
    ) -> None:
        self._broker, self._ledger, self._functions, self._shares = broker, ledger, functions, shares
        self._results = Results(shares.held)
        self._budget_wait_seconds = budget_wait_seconds

    def memo(self, new: NewSession) -> Memo:
        """Make the memory of answers of a new session."""
        return Memo(new.tenant, new.limits.memo_bytes, self._shares.held)

    def result(self, session: ReplSession, request_id: str | None) -> CodeFinished | None:
        """Return the result of a request that has run; None where it has not, or has no id.

        Raises:
            ResultForgotten: it has run, and its result is no longer remembered.
        """
        return None if request_id is None else self._results.find(session.id, request_id)

    def forget(self, session: ReplSession) -> None:
        """Forget what is remembered of a session that has ended."""
        session.memo.close()
        self._results.forget(session.asked.tenant, session.id)

    async def run(
        self, session: ReplSession, code: str, request_id: str | None = None
    ) -> AsyncGenerator[Happening, None]:
        """Run code as a turn and yield what happens. Closing the iterator stops the turn and rolls it back.

        The turn goes on while nobody takes what happens. Its result is remembered under the id of its request.
        """
        happenings = Happenings(session.asked.tenant, self._shares.held)
        session.turn = task = asyncio.create_task(self._turn(session, code, request_id, happenings.put))
        task.add_done_callback(lambda _: happenings.end())
        try:
            async for happening in happenings.each():
                yield happening
            task.result()
        finally:
            happenings.close()
            await cancel_and_wait(task)

    async def _turn(
        self, session: ReplSession, code: str, request_id: str | None, tell: Callable[[Happening], None]
    ) -> None:
        calls = self._calls(session, tell)
        tally = calls.begin_turn()
        repl = Repl(session.live, calls, session.asked.tenant, self._shares)
        answer = partial(self._functions.answer_session, repl)

        async def execute() -> Turn:
            turn = await session.live.execute(code, answer, output.take, output.restarted)
            if request_id is not None:  # at once: the session keeps it, whatever becomes of the caller
                self._results.remember(session.asked.tenant, session.id, request_id, CodeFinished(turn))
            return turn

        limits = session.asked.limits.sandbox
        session.running += 1
        try:
            with OutputBatcher(tell) as output, span("turn", rlm__session_id=session.id):
                soon = time.monotonic() + self._budget_wait_seconds
                done = await metered(
                    self._ledger,
                    _payer(session),
                    limits,
                    execute,
                    deadline=soon,
                    host_seconds=session.asked.limits.host_seconds,
                    host_times=self._shares.host_times,
                )
            await session.tracer.settle()
        finally:
            session.running -= 1
            session.used_at = time.monotonic()
        if tally.untold != NONE_UNTOLD:
            tell(tally.untold)
        tell(CodeFinished(done.turn))

    def _calls(self, session: ReplSession, tell: Callable[[Happening], None]) -> ModelCalls:
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
            self._shares,
        )


def _payer(session: ReplSession) -> Payer:
    return Payer(session.id, session.asked.tenant, session.id, session.id)
