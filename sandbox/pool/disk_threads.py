"""The threads that write and read stored sessions. Owners take turns, and the processor time of each is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sandbox.cancellation import run_to_completion

THREADS = 4
"""Sessions that are written or read at once."""
OF_ONE_OWNER = 2
"""And of them, those of one owner."""

_T = TypeVar("_T")


class Abandoned(Exception):
    """Work was given up before it was done."""


class Going:
    """Whether work is still wanted. The work looks between its pieces."""

    def __init__(self) -> None:
        self._given_up = threading.Event()
        self.dropped: Callable[[], None] | None = None
        """Called when the work is given up."""

    def give_up(self) -> None:
        """Have the work stop after the piece it is at, or never begin."""
        self._given_up.set()
        if self.dropped is not None:
            self.dropped()

    def check(self) -> None:
        """Go on with the next piece.

        Raises:
            Abandoned: the work was given up.
        """
        if self._given_up.is_set():
            raise Abandoned


@dataclass(eq=False, slots=True)
class _Work:
    run: Callable[[], Any]
    ended: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class DiskThreads:
    """Runs the work of many owners in `THREADS` threads of this name. To be used from one event loop."""

    def __init__(self, name: str = "store") -> None:
        self._threads = ThreadPoolExecutor(THREADS, name)
        self._lines: dict[str, deque[_Work]] = {}  # of each owner that waits; whose turn it is comes first
        self._running: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}  # of processor time, by owner

    async def run(self, owner: str, going: Going, work: Callable[[], _T]) -> _T:
        """Run an owner's work, which looks at `going`, and return its value. A cancellation gives it up.

        Raises:
            Abandoned: it was given up.
            Exception: what the work raised.
        """
        mine = _Work(work)
        self._lines.setdefault(owner, deque()).append(mine)
        self._start()
        going.dropped = lambda: self._drop(owner, mine)
        try:
            await asyncio.wait([mine.ended])
        except asyncio.CancelledError:
            going.give_up()
            await run_to_completion(asyncio.wait([mine.ended]))
            raise
        finally:
            going.dropped = None
            mine.ended.exception()  # marks it as retrieved
        return mine.ended.result()  # type: ignore[no-any-return]

    def take_host_seconds(self, owner: str) -> float:
        """Return the processor time, in seconds, that was spent for an owner since this was last asked."""
        return self._seconds.pop(owner, 0.0)

    def close(self) -> None:
        """End the threads. No work may be under way."""
        self._threads.shutdown()

    def _drop(self, owner: str, work: _Work) -> None:
        """Take work out of its line, if it has not begun."""
        line = self._lines.get(owner, deque())
        if work in line:
            line.remove(work)
            if not line:
                del self._lines[owner]
            work.ended.set_exception(Abandoned())

    def _start(self) -> None:
        while self._running.total() < THREADS:
            owner = next((one for one in self._lines if self._running[one] < OF_ONE_OWNER), None)
            if owner is None:
                return
            line = self._lines.pop(owner)
            work = line.popleft()
            if line:
                self._lines[owner] = line  # last: the others come first
            self._running[owner] += 1
            under_way = asyncio.get_running_loop().run_in_executor(self._threads, _measured, work.run)
            under_way.add_done_callback(partial(self._ended, owner, work))

    def _ended(self, owner: str, work: _Work, done: asyncio.Future[tuple[Any, Exception | None, float]]) -> None:
        value, error, seconds = done.result()
        self._seconds[owner] = self._seconds.get(owner, 0.0) + seconds
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        if error is not None:
            work.ended.set_exception(error)
        else:
            work.ended.set_result(value)
        self._start()


def _measured(work: Callable[[], Any]) -> tuple[Any, Exception | None, float]:
    """Return the work's value or what it raised, and the seconds of processor time that it took."""
    began = time.thread_time()
    try:
        return work(), None, time.thread_time() - began
    except Exception as error:
        return None, error, time.thread_time() - began
