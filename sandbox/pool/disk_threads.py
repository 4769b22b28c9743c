"""The threads that write and read stored sessions. Owners take turns, and the processor time of each is counted."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sandbox.cancellation import run_to_completion
from sandbox.thread_time import ThreadTime

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
    time: ThreadTime
    ended: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class DiskThreads:
    """Runs the work of many owners in `THREADS` threads of this name. To be used from one event loop."""

    def __init__(self, name: str = "store") -> None:
        self._threads = ThreadPoolExecutor(THREADS, name)
        self._lines: dict[str, deque[_Work]] = {}  # of each owner that waits; whose turn it is comes first
        self._running: Counter[str] = Counter()
        self._under_way: set[_Work] = set()
        self._seconds: dict[str, float] = {}  # of processor time, by owner
        self._counting = threading.Lock()

    async def run(self, owner: str, going: Going, work: Callable[[], _T]) -> _T:
        """Run an owner's work, which looks at `going`, and return its value. A cancellation gives it up.

        Raises:
            Abandoned: it was given up.
            Exception: what the work raised.
        """
        mine = _Work(work, ThreadTime(partial(self._spend, owner)))
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

    def take_host_seconds(self) -> Mapping[str, float]:
        """Return the processor time, in seconds, that was spent for each owner since this was last asked."""
        for work in self._under_way:
            work.time.charge()
        with self._counting:
            taken, self._seconds = self._seconds, {}
        return taken

    def _spend(self, owner: str, seconds: float) -> None:
        with self._counting:
            self._seconds[owner] = self._seconds.get(owner, 0.0) + seconds

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
            self._under_way.add(work)
            under_way = asyncio.get_running_loop().run_in_executor(self._threads, _done, work)
            under_way.add_done_callback(partial(self._ended, owner, work))

    def _ended(self, owner: str, work: _Work, done: asyncio.Future[tuple[Any, Exception | None]]) -> None:
        value, error = done.result()
        self._under_way.discard(work)
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        if error is not None:
            work.ended.set_exception(error)
        else:
            work.ended.set_result(value)
        self._start()


def _done(work: _Work) -> tuple[Any, Exception | None]:
    """Return the work's value, or what it raised."""
    try:
        with work.time.counted():
            return work.run(), None
    except Exception as error:
        return None, error
