"""A server for one scenario: its own process, data directory, database, tenants and limit of memory."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.neighbours.client import Client
from benchmarks.neighbours.memory_limit import MemoryLimit
from benchmarks.neighbours.processes import Gone, Spoken
from benchmarks.neighbours.sampling import Sampler, sampled
from benchmarks.neighbours.scenario import RICH, USD, Scenario
from tests.databases import postgres_database

START_SECONDS = 300.0
"""Where the guest's image has to be built first, a start takes minutes."""
STOP_SECONDS = 30.0
"""A server that has not ended so long after SIGTERM is killed."""
GRACE_SECONDS = 0.2
CONTEXT_QUOTA = 256 << 20
"""Of the attacker: what its contexts may take on the disk."""
VICTIM, ATTACKER = "victim", "attacker"

_WORKER_LOST = re.compile(r"worker (\d+) (?:was killed|died)")


class NotHere(Exception):
    """This machine cannot play the scenario; the message says why."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where the databases of servers are: at a server of Postgres, or in SQLite's files where that is empty."""

    postgres: str = ""

    @contextmanager
    def new(self) -> Iterator[str]:
        """Yield the URL of a new database, or "" for SQLite."""
        if not self.postgres:
            yield ""
            return
        with postgres_database(self.postgres) as url:
            yield url


@dataclass(frozen=True, slots=True)
class Looked:
    """What a server held at a moment. Memory and disk in MB of a million bytes, processor time in seconds."""

    rss_mb: float
    cpu_s: float
    workers: dict[int, float]
    """Processor time of each worker there ever was."""
    texts_mb: float
    """On the disk: contexts and uploads, which have a quota."""
    disk_mb: float
    """The rest on the disk, and the database."""


@dataclass(slots=True)
class Server:
    """A server that runs."""

    process: Spoken
    address: str
    keys: dict[str, str]
    sampler: Sampler
    folder: Path
    log: Path
    url: str

    def client(self, tenant: str) -> Client:
        """Return a client of a tenant."""
        return Client(self.address, self.keys[tenant])

    def look(self) -> Looked:
        """Look at it now."""
        self.sampler.look()
        sampler = self.sampler
        texts = sum(_size(self.folder / name) for name in ("contexts", "uploads"))
        rest = _size(self.folder) - texts
        if self.url:
            with psycopg.connect(self.url, autocommit=True) as connection:
                row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
                rest += row[0] if row is not None else 0
        return Looked(sampler.rss_mb, sampler.cpu_s, dict(sampler.workers), texts / 1e6, rest / 1e6)

    async def stop(self) -> float:
        """Stop it by SIGTERM and return the seconds that took."""
        started = time.monotonic()
        await self.process.stop(STOP_SECONDS)
        return time.monotonic() - started

    def lost_workers(self) -> list[int]:
        """Return the workers that the log tells the loss of."""
        return [int(pid) for pid in _WORKER_LOST.findall(self.log.read_text(errors="replace"))]

    def tracebacks(self) -> int:
        """Return how many tracebacks the log has."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")


def _end_of(log: Path) -> str:
    """Return the last line of a log."""
    return log.read_text(errors="replace").rstrip().rpartition("\n")[2]


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


@contextmanager
def _disk(parent: Path | None, megabytes: int) -> Iterator[Path]:
    """Yield a new folder, on a disk of its own where that is to have so many MB."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="bench-neighbours-") as name:
        if not megabytes:
            yield Path(name)
            return
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", name],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            raise NotHere("no small disk can be mounted")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@asynccontextmanager
async def serving(
    scenario: Scenario, database: Database, limit: MemoryLimit, folder: Path | None = None
) -> AsyncIterator[Server]:
    """Start a server for a scenario; whatever happens, it is gone in the end.

    Raises:
        NotHere: this machine cannot play the scenario.
        Gone: the server did not start.
    """
    with ExitStack() as stack:
        data = stack.enter_context(_disk(folder, scenario.disk_mb))
        url = stack.enter_context(database.new())
        log = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix="bench-neighbours-log-")).name)
        with log.open("wb") as errors:  # noqa: ASYNC230
            process = await Spoken.started("benchmarks.neighbours.serve", log=errors)
        try:
            limit.hold(process.pid)
            settings = {
                "data_dir": str(data), "listen": "127.0.0.1:0", "database_url": url,
                "drain_seconds": 0, "grace_seconds": GRACE_SECONDS,
                "tenants": {ATTACKER: {"context_bytes": CONTEXT_QUOTA}}, **scenario.settings,
            }  # fmt: skip
            tenants = {VICTIM: {"nano_usd": 1_000 * USD}, ATTACKER: dict(scenario.limit or RICH)}
            process.tell(settings=settings, tenants=tenants)
            try:
                said = await process.heard(START_SECONDS)
            except Gone as error:
                raise Gone(f"the server did not start: {_end_of(log)}") from error
            with sampled(process.pid, limit.release) as sampler:
                yield Server(process, said["address"], said["keys"], sampler, data, log, url)
        finally:
            await asyncio.shield(process.kill())
