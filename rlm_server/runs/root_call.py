"""The call of a node's own model: a failure that may not come the next time is no end of a run."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from rlm_server.broker.broker import Backoff, CallFailed, Completion
from rlm_server.broker.provider import ModelRequest
from rlm_server.ledger import Payer
from rlm_server.repl.bounds import MAX_ERROR, cut
from rlm_server.repl.events import CallFinished, CallStarted, FinishedCall
from rlm_server.repl.model_calls import seconds_left
from rlm_server.runs.events import Guard
from rlm_server.runs.tree import Tree

PAUSES = Backoff(first=0.5, most=8.0)
"""Between the attempts."""


async def ask(
    tree: Tree,
    payer: Payer,
    request: ModelRequest,
    deadline: float,
    report: Callable[[CallStarted | CallFinished], None],
    emit: Callable[[Guard], None],
) -> Completion:
    """Ask, and ask again where that failed for a reason that may pass: at most `root_attempts` times.

    Each attempt is a call with a hold of its own. One that failed is told with what it cost, and so is that another
    follows. None begins that could not be sent before the deadline. The reply comes ahead of the books (`settling`).

    Raises:
        BudgetError: the budget does not cover the call, or not another attempt.
        CallFailed: the last failure.
    """
    attempt, most = 0, tree.limits.root_attempts
    while True:
        attempt += 1
        call_id = "call_" + secrets.token_hex(16)
        try:
            return await tree.services.broker.complete(
                request, payer, deadline=deadline, call_id=call_id, ahead=lambda: 0.0
            )
        except CallFailed as error:
            if error.unrecorded:
                await tree.no_database()
            report(CallStarted(call_id, request.model, sum(len(message.content) for message in request.messages)))
            said = cut(f"{error.failure}: {error}", MAX_ERROR)
            report(CallFinished(FinishedCall(call_id, request.model, error.spent, error=said), 0))
            pause = PAUSES.pause(attempt, error.retry_after)
            if attempt == most or not error.transient or pause >= seconds_left(deadline):
                raise
            emit(Guard("root_call", f"attempt {attempt} of {most} failed ({said}); the next in {pause:.1f} s"))
        await asyncio.sleep(pause)
