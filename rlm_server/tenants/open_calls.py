"""The calls that are under way, by the keys they were made with, so that they end when their key does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from rlm_server.clock import now
from rlm_server.tenants.keys import Holder

_LONGEST = 86_400.0
"""Seconds for which a clock of the event loop is set: a call that goes on for longer is looked at again."""


NOT_VALID = "the key is not valid"
"""What is said of a key that is unknown, revoked or expired: the same of each."""


class KeyLapsed(Exception):
    """The key of a call was revoked, or has expired, while the call was under way."""


class OpenCalls:
    """The calls that are under way."""

    def __init__(self) -> None:
        self._open: dict[str, set[asyncio.Timeout]] = {}
        self._ended: set[str] = set()
        self._emptied: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def call(self, holder: Holder) -> AsyncIterator[None]:
        """Have what is within end when its key does. It must be left in the task that entered it.

        Raises:
            KeyLapsed: the key was revoked, or has expired.
        """
        if not self._ended.isdisjoint((holder.key, _of(holder.tenant))):  # it was so after it was looked up
            raise KeyLapsed(NOT_VALID)
        left = None if holder.expires_at is None else max(0.0, (holder.expires_at - now()) / 1000)
        timeout = asyncio.timeout(None if left is None or left > _LONGEST else left)
        try:
            async with timeout:
                with self._counted(holder.key, timeout), self._counted(_of(holder.tenant), timeout):
                    yield
        except TimeoutError:
            if timeout.expired():
                raise KeyLapsed(NOT_VALID) from None
            raise

    def end(self, *, keys: Iterable[str] = (), tenants: Iterable[str] = ()) -> None:
        """End the calls that were made with these keys, by their ids, or for these tenants, also those that are looked
        up already and still to begin."""
        at = asyncio.get_running_loop().time()
        for name in (*keys, *map(_of, tenants)):
            self._ended.add(name)
            for timeout in self._open.get(name, ()):
                if not timeout.expired():
                    timeout.reschedule(at)

    async def ended(self, tenant: str) -> None:
        """Wait until no call of a tenant is under way."""
        while _of(tenant) in self._open:
            await self._emptied.setdefault(_of(tenant), asyncio.Event()).wait()

    @contextmanager
    def _counted(self, name: str, timeout: asyncio.Timeout) -> Iterator[None]:
        calls = self._open.setdefault(name, set())
        calls.add(timeout)
        try:
            yield
        finally:
            calls.discard(timeout)
            if not calls:
                del self._open[name]
                if name in self._emptied:
                    self._emptied.pop(name).set()


def _of(tenant: str | None) -> str:
    """What a tenant's calls are kept by; no key has such an id."""
    return f"tenant:{tenant or ''}"
