"""The requests of a turn that are under way: waiting for one, or for the next of many, and stopping all."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress

from sandbox.door import DoorRefusal, Json, Reply, granted, refused

Pending = Future[Json] | Future[Reply]


class Requests:
    """Requests under way. One thread waits; any other may `stop` it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[int, Pending] = {}
        self._last = 0
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.stopped = False

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, pending: Pending) -> int:
        """Take a request that is to be waited for later, and return its number."""
        with self._lock:
            self._last += 1
            number = self._last
            self._under_way[number] = pending
        pending.add_done_callback(lambda _: self._ended.put(number))
        if self.stopped:
            pending.cancel()
        return number

    def only(self, pending: Pending) -> Json | Reply:
        """Wait for one request and return its reply.

        Raises:
            CancelledError: it was cancelled, or all were stopped.
            Exception: what the request ended with.
        """
        if not pending.done():
            number = self.add(pending)
            try:
                return pending.result()
            finally:
                self._remove(number)
        return pending.result()

    def next(self, seconds: float | None) -> Reply:
        """Wait until a request has ended, or so long; return all that have, as a reply of [number, reply].

        Raises:
            CancelledError: one was cancelled, or all were stopped.
        """
        numbers: list[int] = []
        with suppress(queue.Empty):
            numbers.append(self._ended.get(timeout=seconds))
            while True:
                numbers.append(self._ended.get_nowait())
        found = []
        for number in numbers:
            pending = self._remove(number)
            if pending is not None:
                found.append(b"[%d,%b]" % (number, _written(pending)))
        if self.stopped:
            raise CancelledError
        return Reply(b'{"ok":[' + b",".join(found) + b"]}")

    def _remove(self, number: int) -> Pending | None:
        with self._lock:
            return self._under_way.pop(number, None)

    def stop(self) -> None:
        """Cancel all that are under way, and all that come."""
        self.stopped = True
        self._ended.put(0)
        with self._lock:
            pending = list(self._under_way.values())
        for request in pending:
            request.cancel()


def _written(pending: Pending) -> bytes:
    try:
        value = pending.result()
        return value if isinstance(value, Reply) else granted(value)
    except DoorRefusal as refusal:
        return refused(refusal.type, str(refusal))
