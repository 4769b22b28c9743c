"""The memory of a run's, or a session's, answers: an identical call is free, for as long as its answer is kept."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rlm_server.broker.outputs import Outputs
from rlm_server.shares.held import Held, TooMuchHeld

ENTRY_BYTES = 512
"""Counted for an answer besides its text."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer, and the model that gave it: another than the one asked where a fallback did."""

    text: str
    model: str

    @property
    def size(self) -> int:
        """Bytes of memory that keeping it takes."""
        return sys.getsizeof(self.text) + ENTRY_BYTES


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Memo:
    """Keeps answers by the digest of what was asked, in `most` bytes at most, which `held` counts for the tenant.

    The oldest go first, also where the tenant may have no more of the server's memory.
    """

    def __init__(self, tenant: str, most: int, held: Held) -> None:
        self._tenant, self._most, self._held = tenant, most, held
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._turns: dict[bytes, _Turn] = {}
        self._outputs: dict[str, Outputs] = {}
        self.size = 0
        """Bytes that are kept."""

    def outputs(self, model: str) -> Outputs:
        """Return how long the answers of a model have been, which is one of those that there are."""
        return self._outputs.setdefault(model, Outputs())

    @asynccontextmanager
    async def turn(self, key: bytes) -> AsyncIterator[None]:
        """Hold the turn in which a key's call is made, so that an identical one waits for its answer."""
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    def get(self, key: bytes) -> CachedAnswer | None:
        """Return a known answer."""
        return self._answers.get(key)

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, and forget the oldest until it has room. One that never has room is not kept."""
        if key in self._answers or answer.size > self._most:
            return
        while self.size + answer.size > self._most:
            self._forget_oldest()
        while not self._hold(answer.size):
            if not self._answers:
                return
            self._forget_oldest()
        self._answers[key] = answer
        self.size += answer.size

    def close(self) -> None:
        """Forget every answer."""
        while self._answers:
            self._forget_oldest()

    def _hold(self, size: int) -> bool:
        try:
            self._held.take(self._tenant, size, "the memory of answers")
        except TooMuchHeld:
            return False
        return True

    def _forget_oldest(self) -> None:
        _, oldest = self._answers.popitem(last=False)
        self.size -= oldest.size
        self._held.give_back(self._tenant, oldest.size)
