"""What a worker writes to its standard error. It is kept apart from the server's own, bounded, and logged at the end.

A healthy worker writes nothing there. A worker that fails leaves a traceback, or a message of the runtime below it. A
worker that was taken over may write anything, so the text is only ever shown as one escaped line.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self

MAX_BYTES = 16 << 10
"""Kept of what a worker writes. What comes after cannot be written: nobody reads it."""


class LastWords:
    """The reading end of a worker's standard error. `writing` is the other end, to be closed once the worker has it."""

    def __init__(self) -> None:
        """Make the pipe, and start reading from it.

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
        """Close the worker's end in this process, which must not keep it."""
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
        """Return what the worker wrote, and stop reading. Call it once the worker is gone; a second call returns ""."""
        if self._reading >= 0:
            self._read()
        self._close()
        text, self._kept = self._kept.decode("utf-8", "backslashreplace"), bytearray()
        return text
