"""How many calls go at once, and who goes next. Whoever is over a cap waits in line until its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rlm_server.broker.calls import DeadlinePassed


@dataclass(frozen=True, slots=True)
class Load:
    """Calls that hold a slot, and calls that wait for one."""

    inside: int
    waiting: int


class Gate:
    """Lets in at most `calls` at once, of one tenant at most `tenant_calls`, of one run at most `run_calls`.

    None is no cap. The tenant with the fewest calls inside for its weight goes next; among equals, they take turns in
    the proportion of their weights. A weight is 1 where `weights` has none. In the same way a tenant's runs share what
    it gets; a run's calls enter in the order they came.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tenant_calls: int | None = None,
        run_calls: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if any(cap is not None and cap < 1 for cap in (calls, tenant_calls, run_calls)):
            raise ValueError("a gate lets at least one call through")
        self._weights = dict(weights or {})
        if any(weight <= 0 for weight in self._weights.values()):
            raise ValueError("a weight is above 0")
        self._tenant_calls, self._run_calls = tenant_calls, run_calls
        self._all = _Share(calls)

    @property
    def load(self) -> Load:
        """How many calls are here now."""
        return Load(self._all.inside, self._all.waiting)

    @asynccontextmanager
    async def slot(self, tenant: str, run: str, *, deadline: float | None) -> AsyncIterator[None]:
        """Hold a slot. `deadline` is on the clock of `time.monotonic()`; without one it is waited for for ever.

        Raises:
            DeadlinePassed: it was still waiting in line; not billed.
        """
        share = self._share(tenant, run)
        await self._enter(share, deadline)
        try:
            yield
        finally:
            self._leave(share)

    def _share(self, tenant: str, run: str) -> _Share:
        of_tenant = self._all.part(tenant, self._tenant_calls, self._weights.get(tenant, 1.0))
        return of_tenant.part(run, self._run_calls, 1.0)

    async def _enter(self, share: _Share, deadline: float | None) -> None:
        # While there is room for one that waits, none waits: it was let in when the room came.
        if not any(level.full for level in share.levels):
            share.let_in()
            return
        place = asyncio.get_running_loop().create_future()
        share.join(place)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await place
        except (asyncio.CancelledError, TimeoutError) as error:
            if place.done() and not place.cancelled():
                self._leave(share)  # the slot was handed over in the same moment
            else:
                share.quit(place)
            if isinstance(error, TimeoutError):
                raise DeadlinePassed("other calls were ahead in the queue until the deadline", billed=False) from None
            raise

    def _leave(self, share: _Share) -> None:
        share.let_out()
        while (following := self._all.next()) is not None and not following.hand_over():
            pass


class _Share:
    """A gate's slots, or what a tenant or a run has of them. Its `parts` are those in use; the line is before a run's.

    Among shares that have equally much, the one of the lowest `turn` goes next. Each entry adds to it, the less the
    greater the weight; a share that comes anew begins at `now`, the turn of the part that went last.
    """

    def __init__(self, cap: int | None, weight: float = 1.0, above: _Share | None = None, key: str = "") -> None:
        self.cap, self.weight, self.above, self.key = cap, weight, above, key
        self.levels: tuple[_Share, ...] = (self, *(above.levels if above else ()))
        self.inside = self.waiting = 0
        self.now = 0.0
        self.turn = above.now if above else 0.0
        self.parts: dict[str, _Share] = {}
        self.line: dict[asyncio.Future[None], None] = {}  # a dict for its order, and because one may leave the middle

    @property
    def full(self) -> bool:
        return self.cap is not None and self.inside >= self.cap

    def part(self, key: str, cap: int | None, weight: float = 1.0) -> _Share:
        """The share of a tenant, or of one of its runs, within this one."""
        if key not in self.parts:
            self.parts[key] = _Share(cap, weight, self, key)
        return self.parts[key]

    def next(self) -> _Share | None:
        """The run whose first call enters next, if any may."""
        if self.full or self.line:
            return None if self.full else self
        waiting = [part for part in self.parts.values() if part.waiting]
        for part in sorted(waiting, key=lambda part: (part.inside / part.weight, part.turn)):
            if (found := part.next()) is not None:
                return found
        return None

    def let_in(self) -> None:
        """Count a call of this run in."""
        for share in self.levels:
            share.inside += 1
            if share.above is not None:
                share.above.now = max(share.above.now, share.turn)
                share.turn = share.above.now + 1 / share.weight

    def let_out(self) -> None:
        """Count a call of this run out."""
        for share in self.levels:
            share.inside -= 1
            share._forget()

    def join(self, place: asyncio.Future[None]) -> None:
        """Go to the end of this run's line."""
        self.line[place] = None
        for share in self.levels:
            share.waiting += 1

    def quit(self, place: asyncio.Future[None]) -> None:
        """Leave this run's line, if still in it."""
        if place in self.line:
            del self.line[place]
            for share in self.levels:
                share.waiting -= 1
                share._forget()

    def hand_over(self) -> bool:
        """Give a free slot to the first of this run's line; False where that one has given up meanwhile."""
        place = next(iter(self.line))
        if place.done():
            self.quit(place)
            return False
        self.let_in()
        self.quit(place)
        place.set_result(None)
        return True

    def _forget(self) -> None:
        if self.above is not None and not self.inside and not self.waiting:
            del self.above.parts[self.key]
