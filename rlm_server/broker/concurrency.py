"""How many calls go at once. Whoever is over a cap waits in line, and is never refused before its deadline."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rlm_server.broker.calls import Failure, ProviderError


class Gate:
    """At most `capacity` calls at once. Tenants take turns to enter; within a tenant, first come, first served."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a gate lets at least one call through")
        self._free = capacity
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, tenant: str, *, deadline: float) -> AsyncIterator[None]:
        """Hold a slot. `deadline` is on the clock of `time.monotonic()`.

        Raises:
            ProviderError: the deadline passed while waiting in line (TIMED_OUT, not billed).
        """
        await self._enter(tenant, deadline)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, tenant: str, deadline: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await turn
        except (asyncio.CancelledError, TimeoutError) as error:
            if turn.done() and not turn.cancelled():
                self._leave()  # the slot was handed over in the same moment
            else:
                self._forget(tenant, turn)
            if isinstance(error, TimeoutError):
                words = "other calls were ahead in the queue until the deadline"
                raise ProviderError(Failure.TIMED_OUT, words, billed=False) from None
            raise

    def _leave(self) -> None:
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[tenant]


class KeyedGates:
    """A gate for every key in use, such as every run; a key nobody is at takes no memory."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._gates: dict[str, tuple[Gate, int]] = {}

    @asynccontextmanager
    async def slot(self, key: str, *, deadline: float) -> AsyncIterator[None]:
        """Hold a slot of the key's gate, first come, first served.

        Raises:
            ProviderError: the deadline passed while waiting in line (TIMED_OUT, not billed).
        """
        gate, users = self._gates.get(key) or (Gate(self._capacity), 0)
        self._gates[key] = gate, users + 1
        try:
            async with gate.slot(key, deadline=deadline):
                yield
        finally:
            gate, users = self._gates.pop(key)
            if users > 1:
                self._gates[key] = gate, users - 1
