"""The pace of each tenant: who works this process more than is its share waits a little, while others use it too.

All tenants share one event loop. Whatever one has under way, others find it busy for no longer than a burst of work.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from rlm_server.shares.host_time import HostTimes

CAPACITY = 0.8
"""Of this process's time, what tenants that use it at once share in equal parts."""

BURST_SECONDS = 0.02
"""Work that a tenant may have done at once without waiting."""

ACTIVE_SECONDS = 1.0
"""Who asked for nothing for so long is not counted among those who share."""

BRIEF_WAIT = 0.25
"""Seconds that what ends things waits at most."""

LONGEST_WAIT = 0.5
"""Seconds after which a waiting tenant's share is looked at again."""


@dataclass(slots=True)
class _Bucket:
    """What a tenant's work comes to beyond its share, which flows off as time passes."""

    seen: float
    """Of all that its work has ever taken, what is in here already."""
    at: float
    level: float = 0.0
    line: asyncio.Lock = field(default_factory=asyncio.Lock)


class Pace:
    """Lets work begin at each tenant's pace."""

    def __init__(self, host_times: HostTimes) -> None:
        self._host_times = host_times
        self._buckets: dict[str, _Bucket] = {}

    async def wait_briefly(self, tenant: str) -> None:
        """Wait as `wait` does, but not long: for what ends things."""
        over = self._over(tenant, self._bucket(tenant))
        if over > 0:
            await asyncio.sleep(min(over, BRIEF_WAIT))

    async def wait(self, tenant: str) -> None:
        """Wait until a tenant's work may begin. Those of one tenant that wait go one after another."""
        bucket = self._bucket(tenant)
        if not bucket.line.locked() and self._over(tenant, bucket) <= 0:
            return
        async with bucket.line:
            while (over := self._over(tenant, bucket)) > 0:  # noqa: ASYNC110 - there is nothing to be told of
                await asyncio.sleep(min(over, LONGEST_WAIT))
            await asyncio.sleep(0)  # its first step is counted before the next one's turn

    def _bucket(self, tenant: str) -> _Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(self._host_times.total(tenant), time.monotonic())
        return bucket

    def _over(self, tenant: str, bucket: _Bucket) -> float:
        """Return the seconds until a tenant's work is within its share again."""
        now, total = time.monotonic(), self._host_times.total(tenant)
        share = CAPACITY / max(1, self._active(now, bucket))
        bucket.level = max(0.0, bucket.level - (now - bucket.at) * share) + total - bucket.seen
        bucket.at, bucket.seen = now, total
        if share == CAPACITY:  # nobody else is there
            bucket.level = min(bucket.level, BURST_SECONDS)
        return (bucket.level - BURST_SECONDS) / share

    def _active(self, now: float, mine: _Bucket) -> int:
        """Count those who share; those who are long gone are forgotten."""
        gone = [
            tenant
            for tenant, bucket in self._buckets.items()
            if now - bucket.at > ACTIVE_SECONDS and bucket is not mine and not bucket.line.locked()
        ]
        for tenant in gone:
            del self._buckets[tenant]
        return len(self._buckets)
