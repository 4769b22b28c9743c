"""How long one tenant's single call takes while another has thousands in line before the same provider."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.money.broker import ask, broker_at, within
from benchmarks.money.provider import provider
from benchmarks.progress import Progress
from rlm_server.broker.broker import Broker
from rlm_server.database.database import Database
from rlm_server.ledger import NANO, Ledger, Limit, Payer

LATENCY = 0.05
AT_ONCE = 64
RUNS = 80
"""Those in line are of so many runs."""
PATIENCE_SECONDS = 600.0
SINGLE = Payer("modest-run", "modest", "modest-run", "0")


@dataclass(frozen=True, slots=True)
class Fairness:
    """Medians in milliseconds; `queued` is the least that were in line or in flight at any try."""

    alone_ms: float
    beside_ms: float
    queued: int

    @property
    def ratio(self) -> float:
        return self.beside_ms / self.alone_ms


async def fairness(database: Database, queue: int, tries: int, progress: Progress) -> Fairness:
    """Time single calls alone, and then beside a tenant that always has `queue` calls under way."""
    ledger = Ledger(database)
    greedy = [Payer(f"greedy-run-{number}", "greedy", f"greedy-run-{number}", "0") for number in range(RUNS)]
    for tenant in ("greedy", "modest"):
        await ledger.open_account(tenant, tenant=tenant, parent=None, limit=Limit(nano_usd=1_000_000 * NANO))
    for payer in (SINGLE, *greedy):
        limit = Limit(nano_usd=10_000 * NANO)
        await ledger.open_account(payer.account, tenant=payer.tenant, parent=payer.tenant, limit=limit)
    async with provider(latency=LATENCY) as url, broker_at(url, ledger, provider_calls=AT_ONCE) as broker:
        await _tried(broker, 1, "to open a connection")
        progress(f"{tries} single calls alone")
        alone = await _tried(broker, tries, "alone")
        progress(f"{queue:,} calls of another tenant get in line")
        endless = [asyncio.create_task(_endless(broker, greedy[n % RUNS], n)) for n in range(queue)]
        try:
            await _in_line(broker, queue, endless)
            progress(f"{tries} single calls beside them")
            beside: list[float] = []
            least = queue
            for number in range(tries):
                least = min(least, _under_way(broker))
                beside += await _tried(broker, 1, f"beside {number}")
            _refuse_if_ended(endless)
        finally:
            for task in endless:
                task.cancel()
            await asyncio.gather(*endless, return_exceptions=True)
    return Fairness(median(alone) * 1e3, median(beside) * 1e3, least)


async def _tried(broker: Broker, tries: int, prompt: str) -> list[float]:
    seconds = []
    for number in range(tries):
        started = time.perf_counter()
        await broker.complete(ask(f"{prompt} {number}"), SINGLE, deadline=within(PATIENCE_SECONDS))
        seconds.append(time.perf_counter() - started)
    return seconds


async def _endless(broker: Broker, payer: Payer, number: int) -> None:
    """Make one call after another, so that there are always as many in line."""
    while True:
        await broker.complete(ask(f"of many, {number}"), payer, deadline=within(PATIENCE_SECONDS))


async def _in_line(broker: Broker, queue: int, endless: list[asyncio.Task[None]]) -> None:
    """Wait until all are in line, and some have been answered: what begins with them is over then."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while _under_way(broker) < queue or broker.counters.attempts < queue // 5:
            _refuse_if_ended(endless)
            await asyncio.sleep(0.05)


def _under_way(broker: Broker) -> int:
    """Return how many calls are in line or in flight."""
    return broker.waiting + sum(load.inside + load.waiting for load in broker.loads().values())


def _refuse_if_ended(endless: list[asyncio.Task[None]]) -> None:
    for task in endless:
        if task.done():
            task.result()
