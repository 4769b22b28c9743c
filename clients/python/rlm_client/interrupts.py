"""Ctrl-C as something that is waited for, never something that strikes inside gRPC.

A KeyboardInterrupt raised in the middle of gRPC's own Python code can leave a lock half taken or a call unowned; the
command then hangs while it closes the channel. So calls that may take long run in a thread, and the main thread waits
for what they give or for a Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

_Given = tuple[tuple[Result, ...], BaseException | None]
"""What a thread gives: one result; or no result and the error it ended with, None where it came to its end."""

# Seconds between looks at whether Ctrl-C was pressed: a signal that arrives just before a wait begins does not end it.
_LOOK_SECONDS = 0.25


class Interrupts:
    """While this context lasts, Ctrl-C raises KeyboardInterrupt in `wait` and `stream` alone.

    Pressed at any other time it is kept, and raised by the next of them. For the main thread only.
    A wait that was interrupted leaves its thread to end with the connection it uses: close that inside this context.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def wait(self, work: Callable[[], Result]) -> Result:
        """Give what the work returns, or raise what it raises.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed first.
        """
        return next(self.stream(lambda: (work(),)))

    def stream(self, source: Callable[[], Iterable[Result]]) -> Iterator[Result]:
        """Give the items of what the source returns, as they come.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed before the next one.
        """
        queue: SimpleQueue[_Given[Result]] = SimpleQueue()
        threading.Thread(target=_feed, args=(source, queue), name="rlm-call", daemon=True).start()
        while True:
            self._check()
            try:
                items, error = queue.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            self._check()
            if error is not None:
                raise error
            if not items:
                return
            yield from items

    def _check(self) -> None:
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._pressed = True


def _feed(source: Callable[[], Iterable[Result]], given: SimpleQueue[_Given[Result]]) -> None:
    try:
        for item in source():
            given.put(((item,), None))
    except BaseException as error:  # raised again where it is waited for
        given.put(((), error))
    else:
        given.put(((), None))
