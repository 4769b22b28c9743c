"""The threads of a worker. They run turns, and one thread at a time reads the frames from the server.

Waking a thread on another processor takes longer than many turns do. So the reader is a thread that has nothing else to
do: one without a turn, or one whose guest waits for a reply or sleeps. A thread that reads a request for a turn runs
the turn itself. It wakes another thread to read only when the turn has lasted a tick.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from sandbox.wire.frames import Channel, Frame

Work = Callable[[], None]


class LeaderFollowers:
    """Threads that serve a channel. `take` handles a frame at once, or returns the turn that the frame asks for."""

    def __init__(self, channel: Channel, take: Callable[[Frame], Work | None]) -> None:
        self._channel = channel
        self._take = take
        self._lock = threading.Lock()  # of all below
        self._changed = threading.Condition(self._lock)  # for threads that wait in a turn
        self._wanted = threading.Condition(self._lock)  # for threads without work
        self._reading = False
        self._waiting = 0
        self._idle = 0  # without work, and not called
        self._called = 0  # and not there yet
        self._queue: deque[Work] = deque()
        self._started = False  # until then only the warm-up uses the channel

    def start(self) -> None:
        """Start serving."""
        with self._lock:
            self._started = True
            self._call_one()

    def _call_one(self) -> None:
        """Call a thread that has no work, or start one. Each call brings one thread, however late that comes."""
        self._called += 1
        if self._idle:
            self._idle -= 1
            self._wanted.notify()
        else:
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            with self._lock:
                self._called -= 1
            while True:
                self._next()()
        except BaseException:
            try:
                traceback.print_exc()
            finally:
                os._exit(1)

    def _next(self) -> Work:
        """Return a turn to run: one that another thread left, or the next that is read from the channel."""
        with self._lock:
            while self._reading and not self._queue:
                self._idle += 1
                self._wanted.wait()
                self._called -= 1
            if self._queue:
                return self._queue.popleft()
            self._reading = True
        try:
            while True:
                work = self._read(None)
                if work:
                    return work
        finally:
            self._read_no_more()

    def _read(self, seconds: float | None) -> Work | None:
        """Wait for a frame, at most so many seconds, and handle it. If the server is gone, the worker ends."""
        try:
            frame = self._channel.receive(seconds)
        except (EOFError, ConnectionResetError):
            os._exit(0)
        return self._take(frame) if frame else None

    def _read_no_more(self) -> None:
        with self._lock:
            self._reading = False
            if self._waiting:
                self._changed.notify_all()

    def call(self, work: Work) -> bool:
        """Have a thread without a turn do something soon. Return False before the start: there is none yet."""
        with self._lock:
            if self._started:
                self._queue.append(work)
                self._call_one()
            return self._started

    # ---- while turns run -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Make sure that another thread reads while a turn goes on."""
        with self._lock:
            if self._started and not (self._reading or self._waiting or self._called):
                self._call_one()

    def until(self, done: Callable[[], bool], seconds: float | None) -> None:
        """Wait until `done()`, or so many seconds. Meanwhile read frames where no other thread does."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._may_read(done, end):
            try:
                self._read_until(done, end)
            finally:
                self._read_no_more()

    def _may_read(self, done: Callable[[], bool], end: float | None) -> bool:
        """Wait until this thread may read, and return True: then it must. Return False where the wait is over."""
        with self._lock:
            while True:
                left = None if end is None else end - time.monotonic()
                if done() or (left is not None and left <= 0):
                    return False
                if not self._reading:
                    self._reading = True
                    return True
                self._waiting += 1
                self._changed.wait(left)
                self._waiting -= 1

    def _read_until(self, done: Callable[[], bool], end: float | None) -> None:
        while not done():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            work = self._read(left)
            if work:
                self.call(work)

    def wake(self) -> None:
        """Have the waiting threads check again whether they are done."""
        with self._lock:
            if self._waiting:
                self._changed.notify_all()
