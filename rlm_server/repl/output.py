"""Gathers what code prints into events of a sensible size."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Literal

from rlm_server.repl.events import Printed, TurnRestarted

EVERY_SECONDS = 0.1
"""How long output is gathered before it is told."""

_NAMES: dict[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}


class OutputBatcher:
    """Gathers the output of one turn. A context manager: leaving it tells what is left.

    What is told has the order of what was printed; parts of one stream that follow each other are told as one.
    Characters whose bytes come in pieces are put together; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, emit: Callable[[Printed | TurnRestarted], None]) -> None:
        self._emit = emit
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _NAMES}
        self._parts: list[tuple[int, str]] = []

    def take(self, stream: int, data: bytes) -> None:
        """Take what was printed to a stream: 1 is stdout, 2 is stderr."""
        self._parts.append((stream, self._decoders[stream].decode(data)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._flush)

    def restarted(self, reason: str) -> None:
        """Drop what was printed and is not emitted yet, and say that the rest of it is void: the turn begins again."""
        self._call_off()
        self._begin()
        self._emit(TurnRestarted(reason))

    def _call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        self._timer = None
        parts, self._parts = [part for part in self._parts if part[1]], []
        for stream, same in groupby(parts, itemgetter(0)):
            self._emit(Printed(_NAMES[stream], "".join(text for _, text in same)))

    def __enter__(self) -> OutputBatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._call_off()
        self._parts += [(stream, decoder.decode(b"", True)) for stream, decoder in self._decoders.items()]
        self._flush()
