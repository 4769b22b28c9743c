"""A turn of sandboxed code and its hold: the most it may run is reserved before, and what it ran is posted after."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable

from rlm_server.ledger import Amounts, Hold, Ledger, Payer, settle
from sandbox.cancellation import run_to_completion
from sandbox.limits import Limits
from sandbox.pool.worker_turn import TURN_SLACK_SECONDS
from sandbox.turn import Turn


async def metered(
    ledger: Ledger, payer: Payer, limits: Limits, execute: Callable[[], Awaitable[Turn]], *, deadline: float
) -> tuple[Turn, Amounts]:
    """Execute a turn under a hold for its longest, and return it with what it cost.

    Waiting in the door is not counted. Where the turn ends without a result, as when it is cancelled, the time that
    passed stands for the time it ran, which cannot have been more. Whatever happens, the hold is settled, and for no
    more than it is. `deadline` is on `time.monotonic()`.

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
        spent = _within(worst, turn.running_seconds)
    except BaseException:
        await run_to_completion(_post(ledger, hold, _within(worst, time.monotonic() - started)))
        raise
    return turn, await run_to_completion(_post(ledger, hold, spent))


def _within(worst: Amounts, seconds: float) -> Amounts:
    """Return a time that was measured, in amounts; all of the hold where it is longer, or no time at all."""
    return Amounts(cpu_ms=math.ceil(seconds * 1000)) if 0 <= seconds * 1000 < worst.cpu_ms else worst


async def _post(ledger: Ledger, hold: Hold, spent: Amounts) -> Amounts:
    """Post what a turn ran, and return what the books say: all of its hold where they could not be written."""
    settled = await settle(hold.id, lambda: ledger.post(hold.id, spent, None))
    return spent if settled else hold.amounts
