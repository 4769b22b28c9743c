"""The places of runs at work: how many go at once, and which goes next. A place is for a turn of a root at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from rlm_server.shares.gate import Gate, Load


class Place:
    """A run's place, which it has or waits for."""

    def __init__(self, gate: Gate, tenant: str, held: AsyncExitStack) -> None:
        self._gate, self._tenant, self._held = gate, tenant, held

    async def take(self, *, first: bool = False) -> None:
        """Wait for a place and take it; `first`, before all others of its tenant that wait."""
        slot = self._gate.slot(self._tenant, self._tenant, deadline=None, first=first)
        await self._held.enter_async_context(slot)

    @property
    def owed(self) -> bool:
        """Whether another tenant's run waits that has a better right to the place."""
        return self._gate.outdone(self._tenant)

    async def renew(self) -> None:
        """Give the place back, and wait for one again."""
        await self._held.aclose()
        await self.take(first=True)


class Places:
    """Lets so many runs be at work at once, of one tenant at most `of_tenant`; tenants share them by their weights."""

    def __init__(self, most: int, of_tenant: Callable[[str], int], weights: Mapping[str, float]) -> None:
        self._gate = Gate(calls=most, tenant_calls=of_tenant, weights=weights)

    def in_line(self, tenant: str) -> int:
        """Return how many of a tenant's runs would be before a new one; none where it could begin at once."""
        return 0 if self._gate.has_room(tenant) else 1 + self.load(tenant).waiting

    def load(self, tenant: str) -> Load:
        """Return how many of a tenant's runs are at work, and how many wait."""
        return self._gate.load_of(tenant)

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[Place]:
        """Wait for a place, and hold it or one that follows it. Cancelling gives up the waiting."""
        async with AsyncExitStack() as held:
            place = Place(self._gate, tenant, held)
            await place.take()
            yield place
