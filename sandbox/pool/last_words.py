"""What a worker writes to its standard error: kept away from the server's own, bounded, and told in the log at its end.

A worker in good order writes nothing there. One that fails leaves a traceback, or what the runtime below it says. One
that was taken over may write anything: it is never shown but as one escaped line.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self

MAX_BYTES = 16 << 10
"""Kept of what a worker writes. What comes after cannot be written: nobody reads it."""


class LastWords:
    """The reading end of a worker's standard error. `writing` is the other, to be closed once the worker has it."""

    def __init__(self) -> None:
        """Make the pipe, and read what comes from now on.

        Raises:
            OSError: no descriptors are left.
        """
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)
        self._kept = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the end that is the worker's; this process must not have it."""
        os.close(self.writing)

    def _read(self) -> None:
        try:
            piece = os.read(self._reading, MAX_BYTES - len(self._kept))
        except BlockingIOError:
            return
        self._kept += piece
        if not piece or len(self._kept) == MAX_BYTES:
            self._close()

    def _close(self) -> None:
        if self._reading >= 0:
            self._loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def finish(self) -> str:
        """Return what was written, as it is now that the worker is gone, and read no more; empty the second time."""
        if self._reading >= 0:
            self._read()
        self._close()
        text, self._kept = self._kept.decode("utf-8", "backslashreplace"), bytearray()
        return text
