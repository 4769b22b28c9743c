"""Long output, shown as its first and last lines while it streams."""

from __future__ import annotations

from collections import deque

from rlm_client.sanitize import LONGEST_LINE, sanitize_line

HEAD_LINES = 12
TAIL_LINES = 4

Line = tuple[int, str]
"""The stream a line came on (`OutputStream`), and its neutralised text."""


class Excerpt:
    """Takes output in pieces of any size; gives the lines to show at once, and at the end those it held back.

    It never holds more than a few lines, however much is fed.
    """

    def __init__(self) -> None:
        self._stream = 0
        self._partial = ""
        self._shown = 0
        self._skipped = 0
        self._tail: deque[Line] = deque(maxlen=TAIL_LINES)

    def feed(self, stream: int, text: str) -> list[Line]:
        """Take a piece of output; gives the finished lines among the first `HEAD_LINES`."""
        ready: list[Line] = []
        if stream != self._stream:
            ready += self._end_partial()
            self._stream = stream
        *finished, rest = text.split("\n")
        for line in finished:
            ready += self._take(self._partial + line)
            self._partial = ""
        self._partial = (self._partial + rest)[: LONGEST_LINE + 1]
        return ready

    def finish(self) -> list[Line]:
        """End the output; gives its last lines, after one that counts what was left out between."""
        ready = self._end_partial()
        if self._skipped:
            ready.append((0, f"… {self._skipped:,} lines not shown …"))
        return [*ready, *self._tail]

    def _end_partial(self) -> list[Line]:
        partial, self._partial = self._partial, ""
        return self._take(partial) if partial else []

    def _take(self, text: str) -> list[Line]:
        line = (self._stream, sanitize_line(text.removesuffix("\r")))
        if self._shown < HEAD_LINES:
            self._shown += 1
            return [line]
        if len(self._tail) == TAIL_LINES:
            self._skipped += 1
        self._tail.append(line)
        return []
