"""A stream of server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from collections.abc import Iterator


class EventStream:
    """Reads the events of a stream that comes in parts. One that the stream's end cuts off is none."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._ended_by_cr = False  # the last line, which an LF may follow in the next part
        self._name = ""
        self._data: list[str] = []

    def read(self, part: bytes) -> Iterator[tuple[str, str]]:
        """Take the next part, and yield the events that it ends: their names, empty where they have none, and data.

        All parts together take time in proportion to their length.

        Raises:
            ValueError: a line is no UTF-8.
        """
        for line in self._lines(part):
            field, _, value = line.decode().partition(":")
            if field == "event":
                self._name = value.removeprefix(" ")
            elif field == "data":
                self._data.append(value.removeprefix(" "))
            elif not line:
                name, data = self._name, self._data
                self._name, self._data = "", []
                if name or data:
                    yield name, "\n".join(data)

    def _lines(self, part: bytes) -> list[bytes]:
        """Return the lines that a part ends: by CR, LF or both."""
        if self._ended_by_cr and part:
            part = part.removeprefix(b"\n")
            self._ended_by_cr = False
        self._begun.append(part)
        if b"\n" not in part and b"\r" not in part:
            return []
        self._ended_by_cr = part.endswith(b"\r")
        lines = b"".join(self._begun).splitlines(keepends=True)
        self._begun = [] if lines[-1].endswith((b"\n", b"\r")) else [lines.pop()]
        return [line.rstrip(b"\r\n") for line in lines]
