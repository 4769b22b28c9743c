"""A load of model calls by many tenants at a provider at which everything goes wrong now and then.

A third of the tenants have less money than their calls cost. Calls are paid by runs, and by children carved from
a run's account; some are cancelled at random moments.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from benchmarks.money.broker import MODELS, PRICE, ask, broker_at, within
from benchmarks.money.provider import Bills, bills, provider
from benchmarks.progress import Progress
from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.broker.provider import Failure, ModelRequest
from rlm_server.broker.worst_case import worst_case
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.ledger import NANO, BudgetBusy, BudgetExceeded, Ledger, Limit, Payer

TENANTS = 50
AT_ONCE = 500
FAULT_RATE = 0.1
FAULTS = (
    *("429", "429", "429-hint", "429-hint", "529", "529", "503", "503", "500", "502", "504", "slow", "error-inside"),
    *("stall", "stall-inside", "hang-up", "reset", "cut", "cut-event", "cut-before-usage", "cut-after-usage"),
    *("missing-usage", "usage-negative", "usage-string", "usage-float", "usage-huge", "usage-cache-above-input"),
    *("nonsense", "html", "empty"),
)
CANCELLED = 0.02
"""Of the calls."""
STREAMED = 0.1
STREAMED_TOKENS = 10_000
CALL_SECONDS = 120.0
SPENDING = 100_000
"""What a poor tenant has for each of its calls, in nano-US-dollars; without faults a call costs about twice that."""
LATENCY = 0.05
AGAIN = "~"
"""Between a call's id and the number of the try in the ids that the broker is given."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the load. It is cancelled after `cancel_after` seconds, or not at all where that is None."""

    id: str
    payer: Payer
    request: ModelRequest
    cancel_after: float | None

    @property
    def prompt(self) -> str:
        return self.request.messages[0].content


@dataclass(slots=True)
class Loaded:
    """What became of a load: every call, how it ended, what the provider billed."""

    calls: list[Call]
    ends: dict[str, str] = field(default_factory=dict)
    bills: Bills = field(default_factory=dict)
    most_over: int = 0
    """The most, in nano-US-dollars, that any account was seen above its limit by at any moment of the load."""
    most_in_flight: int = 0
    put_off: int = 0
    """How often a call found its model left alone, and was made again later."""

    def counts(self) -> Counter[str]:
        """Return how many calls ended in which way."""
        return Counter(self.ends.values())


async def loaded(database: Database, calls: int, seed: int, attempt_seconds: float, progress: Progress) -> Loaded:
    """Make `calls` calls, 500 at a time, and return once every hold should be settled and every account is closed.

    The same `seed` makes the same calls, and draws the same faults; which of the calls meets which is up to chance.
    """
    ledger = Ledger(database)
    rng = random.Random(seed)
    payers = await _payers(ledger, calls // TENANTS)
    load = Loaded(list(_calls(payers, calls, rng)))
    async with (
        provider(latency=LATENCY, fault_rate=FAULT_RATE, seed=seed, faults=FAULTS) as url,
        broker_at(url, ledger, provider_calls=AT_ONCE, attempt_seconds=attempt_seconds) as broker,
    ):
        watching = asyncio.create_task(_watch(database, broker, load, progress))
        line = iter(load.calls)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(_work(broker, line, load))
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        load.bills = await bills(url)
    for payer in reversed(payers):  # a child's comes after its parent's
        await ledger.close_account(payer.account)
    load.most_over = max(load.most_over, await database.read(most_over))
    return load


async def _payers(ledger: Ledger, calls: int) -> list[Payer]:
    """Open the accounts: a tenant has two runs, and one of them two children with money of their own."""
    payers: list[Payer] = []
    whole_hold = worst_case(ask("x" * 60), PRICE).nano_usd
    for number in range(TENANTS):
        tenant = f"tenant-{number}"
        usd = 2 * whole_hold + SPENDING * calls if number % 3 == 0 else 100_000 * NANO
        await ledger.open_account(tenant, tenant=tenant, parent=None, limit=Limit(nano_usd=usd))
        for run in (f"{tenant}-run-0", f"{tenant}-run-1"):
            await ledger.open_account(run, tenant=tenant, parent=tenant, limit=Limit(nano_usd=usd))
            payers.append(Payer(run, tenant, run, run))
        for child in (f"{tenant}-child-0", f"{tenant}-child-1"):
            await ledger.open_account(child, tenant=tenant, parent=run, limit=Limit(nano_usd=usd // 4), carve=True)
            payers.append(Payer(child, tenant, run, child))
    return payers


def _calls(payers: list[Payer], calls: int, rng: random.Random) -> Iterator[Call]:
    for number in range(calls):
        tokens = STREAMED_TOKENS if rng.random() < STREAMED else 256
        cancel_after = rng.uniform(0.0, 2.0) if rng.random() < CANCELLED else None
        # What each asks is its own, so that the provider's bill can be read by it.
        request = ask(f"the question of call {number}", rng.choice(MODELS), tokens)
        yield Call(f"call-{number}", rng.choice(payers), request, cancel_after)


async def _work(broker: Broker, line: Iterator[Call], load: Loaded) -> None:
    for call in line:
        load.ends[call.id] = await _ended(broker, call, load)


async def _ended(broker: Broker, call: Call, load: Loaded) -> str:
    """Make a call and return how it ended."""
    task = asyncio.create_task(_answered(broker, call, load))
    await asyncio.wait([task], timeout=call.cancel_after)
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return "cancelled"
    match task.exception():
        case None:
            return "answered"
        case BudgetExceeded():
            return "refused: spent"
        case BudgetBusy():
            return "refused: held"
        case CallFailed() as error:
            return f"failed: {error.failure}"
        case error:
            raise error


async def _answered(broker: Broker, call: Call, load: Loaded) -> None:
    """Make a call. Make it anew, as another call, while its model's breaker is open and nothing was sent."""
    deadline = within(CALL_SECONDS)
    for again in count():
        try:
            await broker.complete(call.request, call.payer, deadline=deadline, call_id=f"{call.id}{AGAIN}{again}")
        except CallFailed as error:
            pause = error.retry_after or 0.0
            if error.failure is not Failure.UNAVAILABLE or time.monotonic() + pause > deadline:
                raise
        else:
            return
        load.put_off += 1
        await asyncio.sleep(pause)


async def _watch(database: Database, broker: Broker, load: Loaded, progress: Progress) -> None:
    shown = 0
    while True:
        load.most_over = max(load.most_over, await database.read(most_over))
        in_flight = sum(provider.inside for provider in broker.loads().values())
        load.most_in_flight = max(load.most_in_flight, in_flight)
        tenths = 10 * len(load.ends) // len(load.calls)
        if tenths >= shown + 2:
            shown = tenths
            progress(f"{len(load.ends):,} of {len(load.calls):,} calls have ended")
        await asyncio.sleep(0.25)


_MAX_OVER = """
SELECT coalesce(max(posted_nano_usd + overrun_nano_usd - limit_nano_usd), 0),
       coalesce(max(posted_nano_usd + pending_nano_usd + carved_nano_usd - limit_nano_usd), 0)
FROM account WHERE limit_nano_usd IS NOT NULL
"""


def most_over(connection: Connection) -> int:
    """Return the most that any account is above its limit by now, in nano-US-dollars; 0 where none is."""
    over: list[int] = [*connection.execute(_MAX_OVER).fetchone()]
    return max(0, *over)
