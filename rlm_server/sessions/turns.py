"""Turns of sessions: the caller's code runs, is paid for, and what happens meanwhile is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from rlm_server.broker.broker import Broker
from rlm_server.broker.calls import Payer
from rlm_server.ledger import Ledger
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, CodeFinished, Printed
from rlm_server.repl.functions import Functions, Repl
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, ModelCalls
from rlm_server.repl.output import OutputBatcher
from rlm_server.sessions.session import ReplSession
from sandbox.cancellation import cancel_and_wait
from sandbox.turn import Turn

BUDGET_WAIT_SECONDS = 60.0
"""How long a turn waits for room that other turns of its tenant hold."""

Happening = Printed | CallFinished | CallTraced | CodeFinished
"""What a caller sees of a turn while it runs; `CodeFinished` is the last."""


class Turns:
    """Runs turns of sessions."""

    def __init__(self, broker: Broker, ledger: Ledger, functions: Functions) -> None:
        self._broker, self._ledger, self._functions = broker, ledger, functions

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
        answer = partial(self._functions.answer_session, Repl(session.live, self._calls(session, tell)))

        async def execute() -> Turn:
            turn = await session.live.execute(code, answer, output.take)
            session.remember(request_id, turn)  # at once: the session keeps it, whatever becomes of the caller
            return turn

        session.running += 1
        try:
            with OutputBatcher(tell) as output:
                soon = time.monotonic() + BUDGET_WAIT_SECONDS
                result, _ = await metered(self._ledger, _payer(session), session.asked.limits, execute, deadline=soon)
            await session.tracer.settle()
        finally:
            session.running -= 1
            session.used_at = time.monotonic()
        tell(CodeFinished(result))

    def _calls(self, session: ReplSession, tell: Callable[[Happening], None]) -> ModelCalls:
        def report(body: CallStarted | CallFinished | CallTraced) -> None:
            if not isinstance(body, CallStarted):
                tell(body)

        limits = RunLimits()
        options = CallOptions(
            session.asked.sub_model, limits.sub_tokens, limits.batch, time.monotonic() + limits.wall_seconds
        )
        return ModelCalls(self._broker, _payer(session), options, session.memo, session.tracer, report)


def _payer(session: ReplSession) -> Payer:
    return Payer(session.id, session.asked.tenant, session.id, session.id)
