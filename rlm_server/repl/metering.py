"""A turn of sandboxed code and its hold: the most it may take is reserved before, and what it took is posted after.

A turn takes the time that its code runs, and the processor time that this process works for it meanwhile.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable

from rlm_server.ledger import Amounts, Hold, Ledger, Payer, settle
from rlm_server.shares.host_time import HostTimes, charged, current, measured
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal
from sandbox.limits import Limits
from sandbox.pool.worker_turn import TURN_SLACK_SECONDS
from sandbox.turn import Turn


async def metered(
    ledger: Ledger,
    payer: Payer,
    limits: Limits,
    execute: Callable[[], Awaitable[Turn]],
    *,
    deadline: float,
    host_seconds: float,
    host_times: HostTimes,
) -> tuple[Turn, Amounts]:
    """Execute a turn under a hold for its longest, and return it with what it cost.

    Waiting in the door is not counted. Where the turn ends without a result, as when it is cancelled, the time that
    passed stands for the time it ran, which cannot have been more. Whatever happens, the hold is settled, and for no
    more than it is. `deadline` is on `time.monotonic()`. This process may work `host_seconds` for the turn: see
    `check_host_time`. What it works beyond the hold goes on the tenant's bill.

    Raises:
        BudgetExceeded: what is left is less than a turn may take.
        BudgetBusy: other turns' holds left too little until the deadline.
        Exception: what `execute` raised.
    """
    worst = Amounts(cpu_ms=math.ceil((limits.turn_seconds + max(TURN_SLACK_SECONDS, host_seconds)) * 1000))
    hold = Hold("turn_" + secrets.token_hex(16), payer.account, worst, "", "", payer.tenant, payer.run, payer.node)
    await ledger.reserve(hold, deadline=deadline, dispatch=True)
    started, host_time = time.monotonic(), host_times.of_turn(payer.tenant, host_seconds)

    def spent(seconds: float) -> Amounts:
        code, host = _within(worst, seconds), int(host_time.seconds * 1000)
        over = max(0, code.cpu_ms + host - worst.cpu_ms)
        host_times.of(payer.tenant).owe(over / 1000)
        return Amounts(cpu_ms=code.cpu_ms + host - over)

    try:
        with charged(host_time):
            turn = await measured(execute(), host_time)
        cost = spent(turn.running_seconds)
    except BaseException:
        await run_to_completion(_post(ledger, hold, spent(time.monotonic() - started)))
        raise
    return turn, await run_to_completion(_post(ledger, hold, cost))


def check_host_time() -> None:
    """Refuse a request of a turn for which this process has worked as long as it may.

    Raises:
        DoorRefusal: it has.
    """
    host_time = current()
    if host_time is not None and host_time.over():
        raise DoorRefusal(
            "LimitExceeded",
            f"the server has worked {host_time.limit:g} s for this turn, the limit (host_seconds)",
        )


def _within(worst: Amounts, seconds: float) -> Amounts:
    """Return a time that was measured, in amounts; all of the hold where it is longer, or no time at all."""
    return Amounts(cpu_ms=math.ceil(seconds * 1000)) if 0 <= seconds * 1000 < worst.cpu_ms else worst


async def _post(ledger: Ledger, hold: Hold, spent: Amounts) -> Amounts:
    """Post what a turn ran, and return what the books say: all of its hold where they could not be written."""
    settled = await settle(hold.id, lambda: ledger.post(hold.id, spent, None))
    return spent if settled else hold.amounts
