"""How many holds a ledger takes through their whole life in a second, each step durable before the next."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from statistics import median

from benchmarks.money.broker import within
from rlm_server.database.database import Database
from rlm_server.ledger import NANO, Amounts, Hold, Ledger, Limit, Usage

TASKS = 500
TENANTS = 50
WORST, ACTUAL = Amounts(5_000_000, 4_500, 1), Amounts(1_000_000, 700, 1)
USAGE = Usage(input=600, output=100)
STEPS = ("reserve", "dispatch", "post")


@dataclass(slots=True)
class Held:
    """What was measured. Latencies are in milliseconds."""

    holds: int
    seconds: float = 0.0
    taken: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})

    @property
    def per_second(self) -> float:
        return self.holds / self.seconds

    def latencies(self) -> dict[str, float]:
        """Return the median of each step."""
        return {step: median(taken) * 1e3 for step, taken in self.taken.items()}


async def held(database: Database, holds: int) -> Held:
    """Take holds through reserve, dispatch and post: 500 tasks, 50 tenants with a run each.

    Raises:
        RuntimeError: the accounts do not add up to what was posted.
    """
    ledger, measured, numbers = Ledger(database), Held(holds), iter(range(holds))
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    for tenant in tenants:
        await ledger.open_account(tenant, tenant=tenant, parent=None, limit=Limit(nano_usd=1_000_000 * NANO))
        await ledger.open_account(f"{tenant}-run", tenant=tenant, parent=tenant, limit=Limit(nano_usd=100_000 * NANO))

    async def work() -> None:
        for number in numbers:
            tenant = tenants[number % TENANTS]
            await _live(ledger, Hold(f"hold-{number}", f"{tenant}-run", WORST, "model", "prices", tenant, "run", "0"))

    async def _live(ledger: Ledger, hold: Hold) -> None:
        times = [time.perf_counter()]
        await ledger.reserve(hold, deadline=within(60))
        times.append(time.perf_counter())
        await ledger.dispatch(hold.id)
        times.append(time.perf_counter())
        await ledger.post(hold.id, ACTUAL, USAGE)
        times.append(time.perf_counter())
        for step, before, after in zip(STEPS, times, times[1:], strict=False):
            measured.taken[step].append(after - before)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(work())
    measured.seconds = time.perf_counter() - started
    posted = sum([(await ledger.balance(tenant)).posted.calls for tenant in tenants])
    if posted != holds or await ledger.unresolved():
        raise RuntimeError(f"{posted} of {holds} holds were posted")
    return measured
