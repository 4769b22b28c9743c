"""The bytes that the server holds for one owner's guests: requests that are being answered, and replies not yet sent.

What is large is read and written in the door's own threads, a piece at a time, with a pause after each: neither the
event loop nor another thread waits for longer than a piece takes. Each owner has one request or reply there at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from sandbox.cancellation import until_ended
from sandbox.door import ByChance, Step
from sandbox.limits import PoolLimits
from sandbox.thread_time import ThreadTime

THREADS = ThreadPoolExecutor(2, "door")
"""The door's, for the whole process. No owner has more than one of them at a time."""
PAUSE_SECONDS = 50e-6
"""After so much work, so that a thread that waits to run does."""
PAUSE_EVERY = 1 << 17
"""Bytes."""

_T = TypeVar("_T")


class Held:
    """What is held for one owner, against a limit. Any thread may count."""

    def __init__(self, limit: int = PoolLimits().held_bytes) -> None:
        self.limit = limit
        self.bytes = 0
        self.turn = asyncio.Lock()
        """The owner's turn in the door's threads."""
        self._seconds = 0.0
        self._working: ThreadTime | None = None
        self._lock = threading.Lock()

    def count(self, change: int, unsent: int = 0) -> None:
        """Count so many bytes more, or fewer. `unsent` bytes are held beside what is counted.

        Raises:
            ByChance: there would be more than the limit; nothing is counted.
        """
        with self._lock:
            held = self.bytes + unsent + change
            if change > 0 and held > self.limit:
                raise ByChance(
                    "LimitExceeded",
                    f"{held} bytes of requests and replies held at once, the limit held_bytes is {self.limit}",
                )
            self.bytes += change

    def spend(self, seconds: float) -> None:
        """Count processor time that the door's threads took."""
        with self._lock:
            self._seconds += seconds

    def timed(self, work: Callable[[], _T]) -> _T:
        """Do work in the owner's turn, and count the processor time that it takes."""
        self._working = ThreadTime(self.spend)
        with self._working.counted():
            return work()

    def take_seconds(self) -> float:
        """Return the processor time that the door's threads took since the last call, in seconds."""
        if self._working is not None:
            self._working.charge()
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
            return seconds


class Share:
    """What one request holds of an owner's bytes. A context manager: leaving it gives all back."""

    def __init__(self, held: Held, unsent: Callable[[], int]) -> None:
        self._held, self._unsent = held, unsent
        self.bytes = 0

    def count(self, change: int) -> None:
        """Count so many bytes more, or fewer. Raises `ByChance` as `Held.count`."""
        self._held.count(change, self._unsent() if change > 0 else 0)
        self.bytes += change

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.count(-self.bytes)
        self.bytes = 0

    async def in_pieces(self, work: Callable[[Step], _T]) -> _T:
        """Have `work` done in one of the door's threads. It calls its argument between pieces, with what it holds.

        Cancelling this ends the work after a piece, and then goes on.
        """
        async with self._held.turn:
            given_up = threading.Event()
            worked = 0

            def step(change: int) -> None:
                nonlocal worked
                if given_up.is_set():
                    raise _GivenUp
                self.count(change)
                worked += abs(change)
                if worked >= PAUSE_EVERY or not change:
                    worked = 0
                    time.sleep(PAUSE_SECONDS)

            began = THREADS.submit(self._held.timed, lambda: work(step))
            done = asyncio.wrap_future(began)
            try:
                return await asyncio.shield(done)
            except asyncio.CancelledError:
                given_up.set()
                began.cancel()
                await until_ended(done)
                raise


class _GivenUp(Exception):
    """Nobody waits for the work any more."""
