"""A turn's requests under way: waiting for one of them, waiting for whichever ends next, and stopping all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Protocol

from sandbox.door import DoorRefusal, Json, Reply, check_reply, granted, refused
from sandbox.vm.chance import Noted

log = logging.getLogger(__name__)

Pending = Future[Json] | Future[Reply]

NO_REPLIES = Reply(b'{"ok":[]}')

TOLD_AT_ONCE = 1 << 20
"""Bytes of replies: where there are more, others are told the next time. One that is larger is told alone."""
AROUND = 64
"""Bytes that stand around a reply, or several, in a frame."""


class Pausable(Protocol):
    """A turn that other threads can keep waiting."""

    @property
    def pausable(self) -> bool:
        """Whether this system can do that at all."""
        ...

    def pause(self) -> bool:
        """Have it wait at its next loop, which is not running time. Return False where it cannot just now."""
        ...

    def resume(self) -> None:
        """Let it go on, if it was to wait."""
        ...


class Waiting(Protocol):
    """How a guest waits."""

    def until(self, done: Callable[[], bool], seconds: float | None) -> float:
        """Wait until `done()`, or so long. Return for how many seconds the guest then waited in line to go on."""
        ...

    def wake(self) -> None:
        """Have the waiting threads check again whether they are done. May be called from any thread."""
        ...

    def tick(self, turn: Pausable) -> None:
        """Do what must be done at intervals while the guest runs. Called by another thread, and must not block it."""
        ...


class ThreadWaiter:
    """Waits for what other threads do."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def until(self, done: Callable[[], bool], seconds: float | None) -> float:
        """Wait until `done()`, or so long."""
        with self._changed:
            self._changed.wait_for(done, seconds)
        return 0.0

    def wake(self) -> None:
        """Have the waiting threads check again whether they are done."""
        with self._changed:
            self._changed.notify_all()

    def tick(self, turn: Pausable) -> None:
        """Do nothing."""


class Requests:
    """Requests under way. Each reply may have `most_bytes` bytes. One thread waits; any other may call `stop`."""

    def __init__(self, waiting: Waiting, most_bytes: int = 32 << 20) -> None:
        self._waiting = waiting
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._under_way: dict[int, Pending] = {}
        self._last = 0
        self._ended: dict[int, None] = {}  # in the order in which they ended
        self.stopped = False

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, pending: Pending) -> int:
        """Add a request that will be waited for later, and return its number."""
        number = self._take(pending)

        def ended(_: object) -> None:
            self._ended[number] = None
            self._waiting.wake()

        pending.add_done_callback(ended)
        return number

    def only(self, pending: Pending) -> Json | Reply:
        """Wait for one request and return its reply.

        Raises:
            CancelledError: it was cancelled, or all were stopped.
            Exception: what the request ended with.
        """
        number = self._take(pending)  # whether it has ended or not: what numbers others have must not depend on that
        if not pending.done():
            pending.add_done_callback(lambda _: self._waiting.wake())
            self._waiting.until(pending.done, None)
        self._remove(number)
        return pending.result()

    def next(self, seconds: float | None, noted: Noted | None = None) -> Reply:
        """Wait until a request has ended, at most so many seconds. Return those ended, as a reply of [number, reply].

        Where `noted` says which are due, wait until these have ended, however long that takes, and return these.

        Raises:
            CancelledError: one was cancelled, or all were stopped.
        """
        due = noted.due(self._under_way) if noted is not None else None
        if due is None:
            self._waiting.until(lambda: bool(self._ended) or self.stopped, seconds)
        else:
            self._waiting.until(lambda: self.stopped or all(number in self._ended for number in due), None)
        ended: list[bytes] = []
        brought: list[int] = []
        size = 0
        for number in list(self._ended) if due is None else due:
            if self.stopped:
                raise CancelledError
            reply = b"[%d,%b]" % (number, self._written(self._under_way[number]))
            size += len(reply) + 1
            if ended and size > min(TOLD_AT_ONCE, self._most_bytes - AROUND):
                break
            del self._ended[number]
            self._remove(number)
            ended.append(reply)
            brought.append(number)
        if self.stopped:
            raise CancelledError
        if noted is not None:
            noted.brought(tuple(brought))
        return Reply(b'{"ok":[' + b",".join(ended) + b"]}")

    def _written(self, pending: Pending) -> bytes:
        try:
            value = pending.result()
            reply = value if isinstance(value, Reply) else granted(value)
            check_reply(len(reply), self._most_bytes, AROUND)
        except CancelledError:
            raise
        except DoorRefusal as refusal:
            return refusal.reply()
        except Exception:
            log.exception("a host call failed")
            return refused("RuntimeError", "the host could not answer; this is a fault of the server's")
        return reply

    def _take(self, pending: Pending) -> int:
        with self._lock:
            self._last += 1
            number = self._last
            self._under_way[number] = pending
        if self.stopped:
            pending.cancel()
        return number

    def _remove(self, number: int) -> None:
        with self._lock:
            self._under_way.pop(number, None)

    def stop(self) -> None:
        """Cancel all requests under way and all later ones."""
        self.stopped = True
        with self._lock:
            pending = list(self._under_way.values())
        for request in pending:
            request.cancel()
        self._waiting.wake()
