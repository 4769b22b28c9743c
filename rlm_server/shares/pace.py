"""The pace of each tenant: who works this process more than is its share waits a little, while others need it.

All tenants share one event loop. Whatever one has under way, others find it busy for no longer than a burst of work.
What some leave of their even parts is for those who want more, so that nobody waits for a process that is idle.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from math import exp

from rlm_server.shares.host_time import HostTimes

CAPACITY = 1.0
"""Of this process's time, what tenants that use it at once share."""

BURST_SECONDS = 0.05
"""Work that a tenant may have done at once without waiting."""

CALM_SECONDS = 0.005
"""Whoever has more in the bucket begins one piece of work in a round of the event loop: a hundred that begin together
are as long as one of a burst, however short each is."""

RECENT_SECONDS = 0.25
"""Work counts as use for about so long."""

FEW_PIECES = 4
"""With no more of late, nothing is expected of the next one."""

ACTIVE_SECONDS = 1.0
UNUSED = 0.01
"""Who asked for nothing for so long, and uses less than this, is not counted among those who share."""

SHARING_SECONDS = 0.02
SHARING_SECONDS_A_TENANT = 0.0001
"""How old the shares may be: so much, and as much more for each tenant that is counted."""

BRIEF_WAIT = 0.25
"""Seconds that what ends things waits at most."""

LONGEST_WAIT = 0.05
"""Seconds after which a waiting tenant's share is looked at again."""


@dataclass(slots=True)
class _Bucket:
    """What a tenant's work comes to beyond its share, which flows off as time passes."""

    seen: float
    """Of all that its work has ever taken, what is in here already."""
    at: float
    asked: float
    level: float = 0.0
    use: float = 0.0
    """Seconds of work a second, lately."""
    pieces: float = 0.0
    """Of work that were begun lately, and their seconds."""
    piece_seconds: float = 0.0
    expected: float = 0.0
    """What is in the level of work that was begun and has not been seen yet."""
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: bool = False
    """A piece was begun in this round of the event loop, beside others."""

    def begin(self) -> None:
        """Count a piece of work that begins, as what others came to lately: many may begin before one is seen."""
        seconds = min(self.piece_seconds / self.pieces, BURST_SECONDS) if self.pieces > FEW_PIECES else 0.0
        self.pieces += 1
        self.expected += seconds
        self.level += seconds

    def end_round(self) -> None:
        """Let the next piece begin: others have had their turn."""
        self.begun = False

    def fill(self, total: float, now: float, share: float) -> None:
        """Note that all its work ever has come to `total`; what is its share has flown off."""
        worked, passed = total - self.seen, now - self.at
        fading = exp(-passed / RECENT_SECONDS)
        self.use = self.use * fading + worked / RECENT_SECONDS
        self.pieces, self.piece_seconds = self.pieces * fading, self.piece_seconds * fading + worked
        expected, self.expected = self.expected, max(0.0, self.expected * fading - worked)
        self.level = max(0.0, self.level - passed * share - (expected - self.expected)) + worked
        self.seen, self.at = total, now

    def gone(self, now: float) -> bool:
        """Say whether its tenant needs nothing at present."""
        return now - self.asked > ACTIVE_SECONDS and self.use < UNUSED and not self.line.locked()


@dataclass(frozen=True, slots=True)
class _Parts:
    """How the capacity is shared, until some moment. Of `used` seconds a second, each may have an `even` part."""

    until: float
    tenants: int
    used: float
    even: float

    @classmethod
    def among(cls, uses: list[float], until: float) -> _Parts:
        """Share between tenants that have used so much lately: what some leave of even parts is for the others."""
        left, sharing = CAPACITY, len(uses)
        for use in sorted(uses):
            if use * sharing >= left:
                break
            left, sharing = left - use, sharing - 1
        even = left / sharing if sharing else CAPACITY / max(1, len(uses))
        return cls(until, len(uses), sum(uses), even)

    def of(self, bucket: _Bucket) -> float:
        """Return what a tenant may use: an even part, or all that the others leave."""
        return max(self.even, CAPACITY - (self.used - bucket.use))


class Pace:
    """Lets work begin at each tenant's pace."""

    def __init__(self, host_times: HostTimes) -> None:
        self._host_times = host_times
        self._buckets: dict[str, _Bucket] = {}
        self._parts = _Parts.among([], 0.0)

    async def wait_briefly(self, tenant: str) -> None:
        """Wait as `wait` does, but not long: for what ends things."""
        over = self._over(tenant, self._bucket(tenant))
        if over > 0:
            await asyncio.sleep(min(over, BRIEF_WAIT))

    async def wait(self, tenant: str) -> None:
        """Wait until a tenant's work may begin. Those of one tenant that wait go one after another."""
        bucket = self._bucket(tenant)
        if not bucket.line.locked() and self._over(tenant, bucket) <= 0 and not bucket.begun:
            self._begin(bucket)
            return
        async with bucket.line:
            while (over := self._over(tenant, bucket)) > 0:  # noqa: ASYNC110 - there is nothing to be told of
                await asyncio.sleep(min(over, LONGEST_WAIT))
            self._begin(bucket)
            await asyncio.sleep(0)  # its first step is counted before the next one's turn

    def _begin(self, bucket: _Bucket) -> None:
        bucket.begin()
        if bucket.level > CALM_SECONDS and self._parts.tenants > 1 and not bucket.begun:
            bucket.begun = True
            asyncio.get_running_loop().call_soon(bucket.end_round)

    def _bucket(self, tenant: str) -> _Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            now = time.monotonic()
            bucket = self._buckets[tenant] = _Bucket(self._host_times.total(tenant), now, now)
            self._share(now)
        return bucket

    def _over(self, tenant: str, bucket: _Bucket) -> float:
        """Return the seconds until a tenant's work is within its share again."""
        now = bucket.asked = time.monotonic()
        if now >= self._parts.until:
            self._share(now)
        share = self._parts.of(bucket)
        bucket.fill(self._host_times.total(tenant), now, share)
        if self._parts.tenants == 1:  # nobody else is there
            bucket.level = min(bucket.level, BURST_SECONDS)
        return (bucket.level - BURST_SECONDS) / share

    def _share(self, now: float) -> None:
        """Share among the tenants that are there; those who are long gone are forgotten."""
        for tenant, bucket in list(self._buckets.items()):
            bucket.fill(self._host_times.total(tenant), now, self._parts.of(bucket))
            if bucket.gone(now):
                del self._buckets[tenant]
        uses = [bucket.use for bucket in self._buckets.values()]
        self._parts = _Parts.among(uses, now + SHARING_SECONDS + len(uses) * SHARING_SECONDS_A_TENANT)
