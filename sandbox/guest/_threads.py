"""Threads, thread pools and conditions, without threads. Runs inside the sandbox.

A pool starts functions that ask the host without waiting, so that many requests are under way at once. Any other
function runs in the caller when it is submitted. A thread runs to its end when it is started.
"""

import collections
import concurrent.futures.thread
import contextvars
import functools
import sys
import threading
from concurrent.futures import _base

import _requests
import _runner


class Future(_base.Future):
    """A future that looks for replies when it is asked whether it is done."""

    def done(self):
        """Return True if the future was cancelled or finished executing."""
        _requests.poll()
        return super().done()

    def running(self):
        """Return True if the future is currently executing."""
        _requests.poll()
        return super().running()


class ThreadPoolExecutor(_base.Executor):
    """A pool without threads.

    A submitted function that asks the host (one made by `_requests.asking`) is started without waiting. At most
    `max_workers` are under way at a time; by default as many as the host allows. Any other function runs in the caller
    when it is submitted.
    """

    def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=()):  # noqa: ARG002
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers or _requests.AT_ONCE
        self._initialize = None if initializer is None else functools.partial(initializer, *initargs)
        self._held = collections.deque()
        self._under_way = 0
        self._shutdown = False

    def submit(self, fn, /, *args, **kwargs):
        """Start a call, and return a future of its value."""
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._initialize is not None:
            initialize, self._initialize = self._initialize, None
            initialize()
        future = Future()
        try:
            request = _requests.made(fn, args, kwargs)
        except Exception as error:
            future.set_exception(error)
            return future
        if request is None:
            future.set_running_or_notify_cancel()
            _settle(future, fn, *args, **kwargs)
        else:
            self._held.append((future, request))
            self._start()
        return future

    def _start(self):
        while self._held and self._under_way < self._max_workers:
            future, request = self._held.popleft()
            if future.set_running_or_notify_cancel():
                self._under_way += 1
                _requests.begin(request, functools.partial(self._ended, future, request))

    def _ended(self, future, request, reply):
        self._under_way -= 1
        if reply is _requests.LOST:  # it ended with its turn, and so do the calls queued behind it
            lost, self._held = self._held, collections.deque()
            for other, _ in lost:
                if other.set_running_or_notify_cancel():
                    _settle(other, request.value, reply)
        try:
            _settle(future, request.value, reply)
        finally:
            self._start()

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more calls. Wait for those under way, and cancel those not begun if that is asked for."""
        self._shutdown = True
        if cancel_futures:
            for future, _ in self._held:
                future.cancel()
            self._held.clear()
        if wait:
            _requests.wait_until(lambda: not (self._under_way or self._held))


def _settle(future, function, *args, **kwargs):
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)


class ProcessPoolExecutor(_base.Executor):
    """There are no processes: making a pool of them fails."""

    def __init__(self, *args, **kwargs):  # noqa: ARG002
        raise RuntimeError("there are no processes here; a ThreadPoolExecutor has requests to the host run in parallel")


def _wait(self, timeout=None):
    """Wait until notified or until a timeout occurs. Replies of the host are taken meanwhile, and may notify."""
    if not self._is_owned():
        raise RuntimeError("cannot wait on un-acquired lock")
    waiter = threading.Lock()
    waiter.acquire()
    self._waiters.append(waiter)
    saved = self._release_save()
    try:
        return _requests.wait_until(lambda: not waiter.locked(), timeout)
    finally:
        self._acquire_restore(saved)
        if waiter.locked():
            self._waiters.remove(waiter)


_running = []
"""Threads that run: each was started by the one before it."""


def _start_thread(self):
    """Run the thread's function to its end, in the caller. A timer waits until it is joined, or is cancelled."""
    if not self._initialized:
        raise RuntimeError("thread.__init__() not called")
    if self._started.is_set():
        raise RuntimeError("threads can only be started once")
    self._ident = threading.get_ident()
    self._started.set()
    if not isinstance(self, threading.Timer):
        _run(self)


def _run(thread):
    here = threading.get_ident()
    outer, threading._active[here] = threading._active.get(here), thread
    _running.append(thread)
    try:
        contextvars.copy_context().run(thread.run)
    except BaseException:
        thread._invoke_excepthook(thread)
    finally:
        _running.remove(thread)
        threading._active[here] = outer


def _join_thread(self, timeout=None):  # noqa: ARG001
    """Return at once: a thread that was started has ended. Only a timer runs now, after its time."""
    if not self._initialized:
        raise RuntimeError("Thread.__init__() not called")
    if not self._started.is_set():
        raise RuntimeError("cannot join thread before it is started")
    if self in _running:
        raise RuntimeError("cannot join current thread")
    if _is_alive(self):
        _run(self)


def _is_alive(self):
    """Return whether the thread is running, or is a timer that waits."""
    waits = isinstance(self, threading.Timer) and self._started.is_set() and not self.finished.is_set()
    return waits or self in _running


def _failed(failure):
    """Say how a thread failed, with the frames of the program's own code."""
    if failure.exc_type is not SystemExit:
        shown = _runner.describe(failure.exc_value)["traceback"]
        print(f"Exception in thread {failure.thread.name}:\n{shown}", end="", file=sys.stderr)


threading.excepthook = _failed
threading.Thread.start, threading.Thread.join, threading.Thread.is_alive = _start_thread, _join_thread, _is_alive

# Everything that waits in `threading`, `queue` and `concurrent.futures` waits on a condition. The original would block
# the only thread there is, which would end the interpreter.
threading.Condition.wait = _wait

concurrent.futures.thread.ThreadPoolExecutor = concurrent.futures.ThreadPoolExecutor = ThreadPoolExecutor
concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor
