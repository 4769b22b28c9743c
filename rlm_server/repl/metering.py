"""A turn of sandboxed code and its hold: the most it may run is reserved before, and what it ran is posted after."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable

from rlm_server.broker.calls import Payer
from rlm_server.ledger import Amounts, Hold, Ledger, settle
from sandbox.cancellation import run_to_completion
from sandbox.limits import Limits
from sandbox.pool.worker_turn import TURN_SLACK_SECONDS
from sandbox.turn import Turn


async def metered(
    ledger: Ledger, payer: Payer, limits: Limits, execute: Callable[[], Awaitable[Turn]], *, deadline: float
) -> tuple[Turn, Amounts]:
    """Execute a turn under a hold for its longest, and return it with what it cost.

    Waiting in the door is not counted. Where the turn ends without a result (cancelled, its worker lost twice), the
    time that passed stands for the time it ran, which cannot have been more. `deadline` is on `time.monotonic()`.

    Raises:
        BudgetExceeded: what is left is less than a turn may take.
        BudgetBusy: other turns' holds left too little until the deadline.
        Exception: what `execute` raised.
    """
    worst = Amounts(cpu_ms=math.ceil((limits.turn_seconds + TURN_SLACK_SECONDS) * 1000))
    hold = Hold("turn_" + secrets.token_hex(16), payer.account, worst, "", "", payer.tenant, payer.run, payer.node)
    await ledger.reserve(hold, deadline=deadline, dispatch=True)
    started = time.monotonic()
    try:
        turn = await execute()
    except (Exception, asyncio.CancelledError):
        passed = math.ceil((time.monotonic() - started) * 1000)
        await run_to_completion(_post(ledger, hold, Amounts(cpu_ms=min(passed, worst.cpu_ms))))
        raise
    spent = Amounts(cpu_ms=math.ceil(turn.running_seconds * 1000))
    return turn, await run_to_completion(_post(ledger, hold, spent))


async def _post(ledger: Ledger, hold: Hold, spent: Amounts) -> Amounts:
    """Post what a turn ran, and return what the books say: all of its hold where they could not be written."""
    settled = await settle(hold.id, lambda: ledger.post(hold.id, spent, None))
    return spent if settled else hold.amounts
