"""Requests that may come twice at once: the second waits for what the first is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from rlm_server.database.requests import Request


class OneAtATime:
    """Lets one request of the same tenant and id at a time through. Those without an id wait for nobody."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, request: Request | None) -> AsyncIterator[None]:
        """Wait until no other of them is under way, and keep others waiting meanwhile."""
        if request is None:
            yield
            return
        lock = self._locks.setdefault((request.tenant, request.id), asyncio.Lock())
        async with lock:
            yield
