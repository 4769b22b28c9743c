"""Bytes that the server holds in memory, counted for the tenant they are held for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TooMuchHeld(Exception):
    """A tenant has as much of the server's memory as it may; the message names the limit."""

    def __init__(self, what: str, limit: int, used: int, asked: int) -> None:
        super().__init__(
            f"{what}: {asked} bytes more than the {used} that this server holds for the tenant; "
            f"the limit is {limit} (tenant_held_bytes)"
        )
        self.unit = "held_bytes"
        self.limit, self.used, self.asked = limit, used, asked


class Held:
    """Counts what is held for each tenant. `most` returns how many bytes that may be."""

    def __init__(self, most: Callable[[str], int]) -> None:
        self._most = most
        self._bytes: Counter[str] = Counter()

    def of(self, tenant: str) -> int:
        """Return how many bytes are held for a tenant."""
        return self._bytes.get(tenant, 0)

    def room(self, tenant: str) -> int:
        """Return how many bytes more may be held for a tenant."""
        return max(0, self._most(tenant) - self.of(tenant))

    def take(self, tenant: str, size: int, what: str) -> None:
        """Count bytes before they are held; `what` says for what, in the refusal.

        Raises:
            TooMuchHeld: that would be more than the tenant may have. Nothing is counted.
        """
        limit, used = self._most(tenant), self.of(tenant)
        if size > 0 and used + size > limit:
            raise TooMuchHeld(what, limit, used, size)
        self._bytes[tenant] += size

    def give_back(self, tenant: str, size: int) -> None:
        """Count bytes that are held no more."""
        self._bytes[tenant] -= size
        if not self._bytes[tenant]:
            del self._bytes[tenant]

    @contextmanager
    def holding(self, tenant: str, size: int, what: str) -> Iterator[None]:
        """Count bytes for as long as the context is open; raises as `take` does."""
        self.take(tenant, size, what)
        try:
            yield
        finally:
            self.give_back(tenant, size)
