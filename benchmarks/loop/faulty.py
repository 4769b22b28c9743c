"""How many calls are answered where a tenth of what the provider says is an error that it does not bill."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from benchmarks.money.broker import ask, broker_at, within
from benchmarks.money.provider import provider
from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import NANO, Ledger, Limit, Payer

CALLS = 3_000
AT_ONCE = 500
FAULT_RATE = 0.1
FAULTS = ("500", "503", "429")
LATENCY = 0.3
CALL_SECONDS = 60.0


async def answered(folder: Path, calls: int = CALLS) -> float:
    """Return the share of so many calls that were answered, `AT_ONCE` in flight."""
    async with (
        await Database.open(folder / "rlm.sqlite", MIGRATIONS) as database,
        provider(latency=LATENCY, fault_rate=FAULT_RATE, seed=1, faults=FAULTS) as url,
    ):
        ledger = Ledger(database)
        await ledger.open_account("tenant", tenant="tenant", parent=None, limit=Limit(nano_usd=10_000 * NANO))
        async with broker_at(url, ledger, provider_calls=AT_ONCE) as broker, asyncio.TaskGroup() as group:
            line = iter(range(calls))
            working = [group.create_task(_work(broker, line)) for _ in range(AT_ONCE)]
    return sum(worker.result() for worker in working) / calls


async def _work(broker: Broker, line: Iterator[int]) -> int:
    """Make one call after another; return how many were answered."""
    count, payer = 0, Payer("tenant", "tenant", "tenant", "tenant")
    for number in line:
        try:
            await broker.complete(ask(f"question {number}"), payer, deadline=within(CALL_SECONDS))
        except CallFailed:
            continue
        count += 1
    return count
