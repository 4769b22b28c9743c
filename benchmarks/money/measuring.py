"""Everything that is measured on one kind of database, in order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.money.databases import Databases
from benchmarks.money.fairness import fairness
from benchmarks.money.findings import Findings
from benchmarks.money.holds import held
from benchmarks.money.load import loaded
from benchmarks.money.reconciled import reconciled
from benchmarks.money.server import measured
from benchmarks.progress import Progress


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done on each database."""

    calls: int = 20_000
    """Of the load."""
    holds: int = 10_000
    sequential: int = 200
    batch: int = 1_000
    queue: int = 5_000
    tries: int = 20
    seed: int = 1
    attempt_seconds: float = 10.0
    """What a stalled attempt of the load costs: far more than an answer takes on a busy machine."""


async def measure(places: Databases, kind: str, sizes: Sizes, findings: Findings, progress: Progress) -> None:
    """Measure everything on one kind of database.

    Raises:
        RuntimeError: something did not work at all.
    """

    def step(text: str) -> None:
        progress(f"{kind}: {text}")

    step(f"{sizes.holds:,} holds")
    async with places.ledgers(kind) as database:
        findings.holds[kind] = await held(database, sizes.holds)
    step(f"{sizes.calls:,} calls at a provider at which everything goes wrong")
    async with places.ledgers(kind) as database:
        began = time.perf_counter()
        load = await loaded(database, sizes.calls, sizes.seed, sizes.attempt_seconds, step)
        findings.loads[kind], findings.load_seconds[kind] = load, time.perf_counter() - began
        findings.books[kind] = await reconciled(database, load)
    async with places.ledgers(kind) as database:
        findings.fairness[kind] = await fairness(database, sizes.queue, sizes.tries, step)
    with places.place(kind) as at:
        folder = at.parent if isinstance(at, Path) else places.folder / "server"
        findings.guests[kind] = await measured(folder, at, sizes.sequential, sizes.batch, step)
