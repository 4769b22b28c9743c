"""The line before the writer: each owner's writes in their order, and the owners in turn by what their writes took."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One owner's writes that wait."""

    tag: float
    """Where the owner is in its use of the writer, in seconds: whoever has the lowest goes next."""
    writes: deque[T] = field(default_factory=deque)

    def __lt__(self, other: _Lane[T]) -> bool:
        return self.tag < other.tag


class Line(Generic[T]):
    """Writes that wait, put by any thread and taken by one. A start-time fair queue.

    Who comes anew begins where the one is that went last, so that nobody has turns saved up. What a write takes is
    counted once it has been done, in seconds: many small writes and a few large ones are alike.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._lanes: dict[str, _Lane[T]] = {}
        """Of all whose writes were taken since the line was last empty."""
        self._turns: list[_Lane[T]] = []
        """A heap of the lanes in which writes wait, without the one that a write was taken from."""
        self._taken: _Lane[T] | None = None
        self._passed = 0.0
        """The tag of the lane that went last."""
        self.waiting = 0
        """How many writes wait."""
        self._due: float | None = None
        """When the first of those that wait is due, on the clock of `time.monotonic()`."""
        self._closed = False

    def put(self, owner: str, write: T, due: float) -> None:
        """Put a write behind its owner's others. It is due at a time, and may be taken before."""
        with self._changed:
            lane = self._lanes.get(owner)
            if lane is None:
                lane = self._lanes[owner] = _Lane(self._passed)
            if not lane.writes and lane is not self._taken:
                lane.tag = max(lane.tag, self._passed)
                heapq.heappush(self._turns, lane)
            lane.writes.append(write)
            self.waiting += 1
            self._be_due(due)

    def hurry(self, due: float) -> None:
        """Have whatever waits be due at a time at the latest."""
        with self._changed:
            if self.waiting:
                self._be_due(due)

    def close(self) -> None:
        """Have whatever waits be due; nothing more may be put."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def wait(self, many: int) -> bool:
        """Wait until a write is due, or `many` wait; False where the line is closed and nothing waits."""
        with self._changed:
            while not self._closed and self.waiting < many:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return self.waiting > 0

    def take(self) -> T | None:
        """Take the write whose turn it is; None where none waits. What it took is to be told before the next."""
        with self._changed:
            if not self._turns:
                return None
            lane = self._taken = heapq.heappop(self._turns)
            self._passed = lane.tag
            self.waiting -= 1
            if not self.waiting:
                self._due = None
            return lane.writes.popleft()

    def took(self, seconds: float) -> None:
        """Count what the last write that was taken took."""
        with self._changed:
            lane, self._taken = self._taken, None
            if lane is None:
                return
            lane.tag += seconds
            if lane.writes:
                heapq.heappush(self._turns, lane)
            elif not self._turns:
                self._lanes.clear()  # nobody waited for anybody

    def _be_due(self, due: float) -> None:
        if self._due is None or due < self._due:
            self._due = due
            self._changed.notify()
