"""Turns of sessions: the caller's code runs, is paid for, and what happens meanwhile is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from rlm_server.broker.broker import Broker
from rlm_server.ledger import Ledger, Payer
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, CodeFinished, Printed, TurnRestarted
from rlm_server.repl.functions import Functions, Repl
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls
from rlm_server.repl.output import OutputBatcher
from rlm_server.sessions.session import ReplSession
from rlm_server.shares.shares import Shares
from sandbox.cancellation import cancel_and_wait
from sandbox.turn import Turn

Happening = Printed | TurnRestarted | CallFinished | CallTraced | CodeFinished
"""What a caller sees of a turn while it runs; `CodeFinished` is the last."""


class Turns:
    """Runs turns of sessions. A turn waits `budget_wait_seconds` for room that other turns of its tenant hold."""

    def __init__(
        self, broker: Broker, ledger: Ledger, functions: Functions, shares: Shares, *, budget_wait_seconds: float
    ) -> None:
        self._broker, self._ledger, self._functions, self._shares = broker, ledger, functions, shares
        self._budget_wait_seconds = budget_wait_seconds

    async def run(
        self, session: ReplSession, code: str, request_id: str | None = None
    ) -> AsyncGenerator[Happening, None]:
        """Run code as a turn and yield what happens. Closing the iterator stops the turn and rolls it back.

        The turn goes on while nobody takes what happens. Its result is remembered under the id of its request.
        """
        happenings: asyncio.Queue[Happening | None] = asyncio.Queue()
        session.turn = task = asyncio.create_task(self._turn(session, code, request_id, happenings.put_nowait))
        task.add_done_callback(lambda _: happenings.put_nowait(None))
        try:
            while happening := await happenings.get():
                yield happening
            task.result()
        finally:
            await cancel_and_wait(task)

    async def _turn(
        self, session: ReplSession, code: str, request_id: str | None, tell: Callable[[Happening], None]
    ) -> None:
        answer = partial(
            self._functions.answer_session,
            Repl(session.live, self._calls(session, tell), session.asked.tenant, self._shares),
        )

        async def execute() -> Turn:
            turn = await session.live.execute(code, answer, output.take, output.restarted)
            session.remember(request_id, turn)  # at once: the session keeps it, whatever becomes of the caller
            return turn

        limits = session.asked.limits.sandbox
        session.running += 1
        try:
            with OutputBatcher(tell) as output:
                soon = time.monotonic() + self._budget_wait_seconds
                result, _ = await metered(
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
        tell(CodeFinished(result))

    def _calls(self, session: ReplSession, tell: Callable[[Happening], None]) -> ModelCalls:
        def report(body: CallStarted | CallFinished | CallTraced) -> None:
            if not isinstance(body, CallStarted):
                tell(body)

        limits = session.asked.limits
        options = CallOptions(
            session.asked.sub_model, limits.sub_tokens, limits.batch, time.monotonic() + limits.wall_seconds
        )
        return ModelCalls(self._broker, _payer(session), options, session.memo, session.tracer, report)


def _payer(session: ReplSession) -> Payer:
    return Payer(session.id, session.asked.tenant, session.id, session.id)
