"""A turn of sandboxed code and its hold: the most it may take is reserved before, and what it took is posted after.

A turn takes the time that its code runs, and the processor time that this process works for it meanwhile. Where nothing
limits that, nothing need be reserved, and what it took is posted all the same.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import Self

from rlm_server.ledger import AccountClosed, AccountUnknown, Amounts, BudgetError, Hold, Ledger, Payer, settle
from rlm_server.shares.host_time import HostTime, HostTimes, charged, current, measured
from sandbox.cancellation import run_to_completion, until_ended
from sandbox.door import DoorRefusal
from sandbox.limits import Limits
from sandbox.pool.worker_turn import TURN_SLACK_SECONDS
from sandbox.turn import Turn

log = logging.getLogger(__name__)

ON_THE_WAY_SECONDS = 1.0
"""How often a turn without a hold is posted while it goes on: what it takes is not to be free until its end."""


@dataclass(frozen=True, slots=True)
class Metered:
    """A turn, and what it cost. `booked` ends once that is durable in the books, or on the tenant's bill."""

    turn: Turn
    spent: Amounts
    booked: asyncio.Future[None]


async def metered(
    ledger: Ledger,
    payer: Payer,
    limits: Limits,
    execute: Callable[[], Awaitable[Turn]],
    *,
    deadline: float,
    host_seconds: float,
    host_times: HostTimes,
    patience: float | None = None,
    ran: Callable[[], float] = lambda: 0.0,
) -> Metered:
    """Execute a turn under a hold for its longest, and return it with what it cost.

    Waiting in the door is not counted. Where the turn ends without a result, as when it is cancelled, the time that
    passed stands for the time it ran, which cannot have been more. Whatever happens, the hold is settled, and for no
    more than it is. `deadline` is on `time.monotonic()`. This process may work `host_seconds` for the turn: see
    `check_host_time`. What it works beyond the hold goes on the tenant's bill.

    With `patience` there is no hold where nothing limits processor time. The cost is then posted with another write
    that comes within so many seconds, and whoever calls this waits until it is `booked`. Of a turn that goes on for
    longer, what it took so far is posted every second; `ran` says for how many seconds its code ran, at least.

    Raises:
        BudgetExceeded: what is left is less than a turn may take.
        BudgetBusy: other turns' holds left too little until the deadline.
        Exception: what `execute` raised.
    """
    worst = Amounts(cpu_ms=math.ceil((limits.turn_seconds + max(TURN_SLACK_SECONDS, host_seconds)) * 1000))
    hold = Hold("turn_" + secrets.token_hex(16), payer.account, worst, "", "", payer.tenant, payer.run, payer.node)
    held = patience is None or await ledger.limited(payer.account, "cpu_ms")
    if held:
        await ledger.reserve(hold, deadline=deadline, dispatch=True)
    started, host_time = time.monotonic(), host_times.of_turn(payer.tenant, host_seconds)

    def spent(seconds: float) -> Amounts:
        code, host = _within(worst, seconds), int(host_time.seconds * 1000)
        over = max(0, code.cpu_ms + host - worst.cpu_ms)
        host_times.of(payer.tenant).owe(over / 1000)
        return Amounts(cpu_ms=max(code.cpu_ms + host - over, part.posted_ms))

    def so_far() -> int:
        return min(_within(worst, ran()).cpu_ms + int(host_time.seconds * 1000), worst.cpu_ms)

    part = _OnTheWay(ledger, hold, host_times.of(payer.tenant), so_far)

    def book(cost: Amounts) -> asyncio.Future[None]:
        rest = replace(hold, amounts=Amounts(cpu_ms=cost.cpu_ms - part.posted_ms))
        return asyncio.ensure_future(_charge(ledger, rest, host_times.of(payer.tenant), patience or 0.0))

    try:
        async with nullcontext() if held else part:
            with charged(host_time):
                turn = await measured(execute(), host_time)
        cost = spent(turn.running_seconds)
    except BaseException:
        cost = spent(time.monotonic() - started)
        await run_to_completion(_post(ledger, hold, cost) if held else asyncio.wait([book(cost)]))
        raise
    if not held:
        return Metered(turn, cost, book(cost))
    cost = await run_to_completion(_post(ledger, hold, cost))
    booked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    booked.set_result(None)
    return Metered(turn, cost, booked)


class _OnTheWay:
    """Posts every second what a turn without a hold has taken so far, as long as the context is open."""

    def __init__(self, ledger: Ledger, hold: Hold, bill: HostTime, so_far: Callable[[], int]) -> None:
        """`so_far` returns the milliseconds that it took since it began."""
        self._ledger, self._hold, self._bill, self._so_far = ledger, hold, bill, so_far
        self._over = asyncio.Event()
        self._posting: asyncio.Task[None] | None = None
        self.posted_ms = 0

    async def __aenter__(self) -> Self:
        # Most turns have ended by then, and need no task of this.
        self._beginning = asyncio.get_running_loop().call_later(ON_THE_WAY_SECONDS, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beginning.cancel()
        self._over.set()
        if self._posting is not None:
            await until_ended(self._posting)  # not cancelled: what is being posted would be posted again
            self._posting.result()

    def _begin(self) -> None:
        self._posting = asyncio.create_task(self._post())

    async def _post(self) -> None:
        for number in count(1):
            took = self._so_far() - self.posted_ms
            if took > 0:
                part = replace(self._hold, id=f"{self._hold.id}.{number}", amounts=Amounts(cpu_ms=took))
                self.posted_ms += took
                await _charge(self._ledger, part, self._bill, 0.0)
            with suppress(TimeoutError):
                async with asyncio.timeout(ON_THE_WAY_SECONDS):
                    await self._over.wait()
            if self._over.is_set():
                return


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


async def _charge(ledger: Ledger, hold: Hold, bill: HostTime, patience: float) -> None:
    """Post what a turn took without a hold. Where that cannot be, it goes on the tenant's bill."""
    try:
        settled = await settle(hold.id, lambda: ledger.charge(hold, patience=patience))
    except (BudgetError, AccountClosed, AccountUnknown) as error:  # it was limited, or ended, meanwhile
        log.info("what a turn took goes on the bill of its tenant: %s", error)
        settled = False
    if not settled:
        bill.owe(hold.amounts.cpu_ms / 1000)
