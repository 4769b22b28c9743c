"""Work in threads that somebody outside can ask for: a pool for each purpose, in which tenants take turns.

Nothing of this kind runs in asyncio's own pool, where one tenant's work would keep everybody else's waiting.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from rlm_server.shares import host_time
from rlm_server.shares.gate import Gate, Load
from rlm_server.shares.pace import Pace
from sandbox.cancellation import until_ended
from sandbox.thread_time import ThreadTime

_T = TypeVar("_T")

Cancelled = Callable[[], bool]
"""Tells work that it is to end soon: it was given up, its deadline passed, or its host time is used up."""


class Purpose(StrEnum):
    """What a thread is for."""

    SEARCH = "search"
    LINEAGE = "lineage"
    INDEXING = "indexing"
    COVERAGE = "coverage"
    READING = "reading"
    UPLOADS = "uploads"
    EXPORTS = "exports"
    SCHEMAS = "schemas"


@dataclass(frozen=True, slots=True)
class PoolSize:
    """Threads of a purpose, and how many of them one tenant may have at once."""

    threads: int
    of_tenant: int


SIZES: Mapping[Purpose, PoolSize] = {
    Purpose.SEARCH: PoolSize(4, 2),
    Purpose.LINEAGE: PoolSize(3, 1),
    Purpose.INDEXING: PoolSize(2, 1),  # 200 MiB of memory each
    Purpose.COVERAGE: PoolSize(3, 1),
    Purpose.READING: PoolSize(4, 2),
    Purpose.UPLOADS: PoolSize(16, 8),
    Purpose.EXPORTS: PoolSize(3, 1),
    Purpose.SCHEMAS: PoolSize(3, 1),
}


class Threads:
    """The pools. `weights` are tenants' shares in the lines, or 1. The server's own upkeep is the work of tenant "".

    With a `pace`, a tenant's work begins at it.
    """

    def __init__(
        self,
        *,
        sizes: Mapping[Purpose, PoolSize] = SIZES,
        weights: Mapping[str, float] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace
        self._gates = {
            purpose: Gate(calls=size.threads, tenant_calls=size.of_tenant, weights=weights, reserved=size.threads // 4)
            for purpose, size in sizes.items()
        }
        self._executors = {
            purpose: ThreadPoolExecutor(size.threads, thread_name_prefix=purpose) for purpose, size in sizes.items()
        }

        self._jobs: set[_Job[Any]] = set()

    def charge(self) -> None:
        """Charge what work that is under way took so far: a step of it may take a second, as a search's may."""
        for job in self._jobs:
            job.charge()

    def close(self) -> None:
        """End the threads. No work may be under way."""
        for executor in self._executors.values():
            executor.shutdown()

    def loads(self) -> dict[Purpose, Load]:
        """Return how much of each purpose is under way, and waits."""
        return {purpose: gate.load for purpose, gate in self._gates.items()}

    async def run(
        self, purpose: Purpose, tenant: str, work: Callable[[Cancelled], _T], *, deadline: float | None = None
    ) -> _T:
        """Run work in a thread, in the tenant's turn, and return what it returns. Its processor time is charged.

        `deadline` is on the clock of `time.monotonic()`. Where this is cancelled, the work is told so, and waited for.

        Raises:
            WaitedTooLong: the deadline passed in the line.
            Exception: what the work raises.
        """
        async with self._gates[purpose].slot(tenant, tenant, deadline=deadline):
            if self._pace is not None and tenant:
                await self._pace.wait(tenant)
            given_up = threading.Event()
            job = _Job(work, given_up, host_time.current(), deadline)
            self._jobs.add(job)
            future = asyncio.get_running_loop().run_in_executor(self._executors[purpose], job)
            future.add_done_callback(lambda _: self._jobs.discard(job))
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                given_up.set()
                await until_ended(future)
                raise


class _Job(Generic[_T]):
    """Work as a thread runs it: measured, and told when it is to end."""

    def __init__(
        self,
        work: Callable[[Cancelled], _T],
        given_up: threading.Event,
        charged_to: host_time.HostTime | None,
        deadline: float | None,
    ) -> None:
        self._work, self._given_up, self._charged_to, self._deadline = work, given_up, charged_to, deadline
        self._time = ThreadTime(self._spend)

    def __call__(self) -> _T:
        with self._time.counted():
            return self._work(self._cancelled)

    def _cancelled(self) -> bool:
        self.charge()  # long work is not to be free until its end
        return (
            self._given_up.is_set()
            or (self._deadline is not None and time.monotonic() >= self._deadline)
            or (self._charged_to is not None and self._charged_to.over())
        )

    def charge(self) -> None:
        """Charge what it took since it was charged last. Any thread may say so."""
        self._time.charge()

    def _spend(self, seconds: float) -> None:
        if self._charged_to is not None:
            self._charged_to.spend(seconds)
