"""Requests that are under way at the host, and the delivery of their replies. Runs inside the sandbox.

There are no threads here. Whatever waits (an event loop, a pool, a condition) takes the replies for all.
"""

import collections
import contextvars
import functools
import time

import _door
import _runner

AT_ONCE = 500
"""Requests under way at once, half of what the host allows unless told: more are held back until some have ended."""

POLL_SECONDS = 0.01
"""At least so long passes between two looks for replies that do not wait: a turn has so many door calls."""

LONGEST_WAIT = 86_400.0


class Request:
    """A request to the host: `op` with its arguments, and `finish`, which turns the host's answer into the value."""

    def __init__(self, op, finish, **arguments):
        self.op, self.finish, self.arguments = op, finish, arguments

    def answer(self):
        """Ask, wait for the reply, and return its value."""
        return self.finish(_door.call(self.op, **self.arguments))

    def value(self, reply):
        """Return the value of a reply, or raise the error in it."""
        return self.finish(_door.value(reply))


def asking(make):
    """Turn a function that makes a request into one that asks it and returns the value.

    Pools can start such a function without waiting.
    """

    @functools.wraps(make)
    def ask(*args, **named):
        return make(*args, **named).answer()

    ask.__request__ = make
    return ask


def made(function, args, named):
    """Return the request that a call would make, or None where the function is not one that `asking` made."""
    while not hasattr(function, "__request__"):
        if isinstance(function, functools.partial):
            if functools.Placeholder in function.args:
                return None
            args, named = (*function.args, *args), {**function.keywords, **named}
            function = function.func
        elif args and isinstance(getattr(function, "__self__", None), contextvars.Context):  # as asyncio.to_thread does
            function, *args = args
        else:
            return None
    return function.__request__(*args, **named)


class Begun:
    """A request that is under way or held back. `ended` is called with its reply, unless it is forgotten."""

    __slots__ = ("ended", "request")

    def __init__(self, request, ended):
        self.request, self.ended = request, ended

    def forget(self):
        """Drop the reply. A request that is held back is never sent; the host may finish one that is under way."""
        self.ended = None


under_way = {}
"""What has begun, by the number the host gave it."""

held = collections.deque()
"""What is yet to begin, in order."""

arrived = collections.deque()
"""What has ended and was not told yet, with its reply."""

LOST = {"error": {"type": "RuntimeError", "message": "the turn that asked for this ended before the answer came"}}
NOTHING = "nothing is under way that could end this wait, and there are no other threads"


def begin(request, ended):
    """Start a request now, or as soon as the host takes it. Returns at once; `ended` is called with the reply."""
    if lose not in _runner.leftovers:
        _runner.leftovers.append(lose)
    begun = Begun(request, ended)
    held.append(begun)
    _start()
    return begun


def _start():
    while held and len(under_way) < AT_ONCE:
        begun = held.popleft()
        if begun.ended is None:
            continue
        try:
            under_way[_door.start(begun.request.op, **begun.request.arguments)] = begun
        except Exception as error:
            if under_way and isinstance(error, _door.LimitExceeded):  # the host may take it when another has ended
                held.appendleft(begun)
                return
            arrived.append((begun, {"error": {"type": type(error).__name__, "message": str(error)}}))


def wait(seconds=None):
    """Take the replies there are. Where there are none, wait for one, at most so many seconds.

    Raises:
        RuntimeError: nothing is under way, so a wait without a time limit would never end.
    """
    if not arrived:
        if under_way:
            _take(_door.wait(seconds))
        elif seconds is None:
            raise RuntimeError(NOTHING)
        elif seconds > 0:
            time.sleep(seconds)
    _tell()


def wait_until(done, seconds=None):
    """Take replies until `done()`, at most so many seconds. Return whether it is done. Raises as `wait` does."""
    end = None if seconds is None else time.monotonic() + seconds
    while not done():
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        wait(left and min(left, LONGEST_WAIT))
    return True


def poll():
    """Take the replies there are, unless that was done a moment ago or is being done."""
    if _telling or not (arrived or under_way):
        return
    now = time.monotonic()
    if arrived or now - _polled[0] >= POLL_SECONDS:
        _polled[0] = now
        wait(0)


_polled = [0.0]
_telling = []


def _take(replies):
    for number, reply in replies:
        begun = under_way.pop(number, None)
        if begun is not None:
            arrived.append((begun, reply))
    _start()


def _tell():
    _telling.append(True)
    try:
        while arrived:
            begun, reply = arrived.popleft()
            if begun.ended is not None:
                begun.ended(reply)
    finally:
        _telling.pop()


def lose():
    """Drop the requests that an earlier turn left under way. They ended with it; their waiters are told so."""
    arrived.extend((begun, LOST) for begun in (*under_way.values(), *held))
    under_way.clear()
    held.clear()
    _telling.clear()
    _polled[0] = 0.0
