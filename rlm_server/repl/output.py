"""Gathers what code prints into events of a sensible size and number."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Iterable
from itertools import groupby, islice
from operator import itemgetter
from typing import Literal

from rlm_server.repl.bounds import MAX_EVENT_TEXT, MAX_REASON, cut
from rlm_server.repl.events import Printed, TurnRestarted

EVERY_SECONDS = 0.1
"""For how long after a telling output is gathered before there is another, at first."""

SLOWER_AFTER = 500
"""Each time a turn has so many events of output, the next ones are gathered for twice as long."""

CHANGES = 16
"""Of the stream, within one gathering, that are told in their order. What follows is told as one text for each."""

_CHARACTERS = MAX_EVENT_TEXT // 4
"""Of one event: as many as never have more than `MAX_EVENT_TEXT` bytes of UTF-8."""

_NAMES: dict[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}


class OutputBatcher:
    """Gathers the output of one turn. A context manager: leaving it tells what is left.

    What comes after a silence is told at once; what follows it is gathered until the next telling is due.
    What is told has the order of what was printed; parts of one stream that follow each other are told as one. Where
    the streams take turns more than `CHANGES` times between two tellings, the order of the rest is given up, but that
    of each stream. So a turn that is told n times has at most 18 n events, besides one for each 16 Ki characters.
    Characters whose bytes come in pieces are put together; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, emit: Callable[[Printed | TurnRestarted], None]) -> None:
        self._emit = emit
        self._timer: asyncio.Handle | None = None
        self._told = 0
        self._begin()

    def _begin(self) -> None:
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in _NAMES}
        self._parts: list[tuple[int, str]] = []

    def take(self, stream: int, data: bytes) -> None:
        """Take what was printed to a stream: 1 is stdout, 2 is stderr."""
        self._parts.append((stream, self._decoders[stream].decode(data)))
        if self._timer is None:  # soon, and not here: what came with it is told with it
            self._timer = asyncio.get_running_loop().call_soon(self._due)

    def restarted(self, reason: str) -> None:
        """Drop what was printed and is not emitted yet, and say that the rest of it is void: the turn begins again."""
        self._call_off()
        self._begin()
        self._emit(TurnRestarted(cut(reason, MAX_REASON)))

    def _call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        """Tell what was gathered, and gather anew; after a time without output, what comes next is due at once."""
        self._timer = None
        if self._parts:
            self._flush()
            pause = EVERY_SECONDS * 2.0 ** (self._told // SLOWER_AFTER)
            self._timer = asyncio.get_running_loop().call_later(pause, self._due)

    def _flush(self) -> None:
        parts, self._parts = [part for part in self._parts if part[1]], []
        runs = groupby(parts, itemgetter(0))
        for stream, same in islice(runs, CHANGES):
            self._tell(stream, (text for _, text in same))
        rest: dict[int, list[str]] = {stream: [] for stream in _NAMES}
        for stream, same in runs:
            rest[stream] += (text for _, text in same)
        for stream, texts in rest.items():
            self._tell(stream, texts)

    def _tell(self, stream: int, texts: Iterable[str]) -> None:
        text = "".join(texts)
        for start in range(0, len(text), _CHARACTERS):
            self._told += 1
            self._emit(Printed(_NAMES[stream], text[start : start + _CHARACTERS]))

    def __enter__(self) -> OutputBatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._call_off()
        self._parts += [(stream, decoder.decode(b"", True)) for stream, decoder in self._decoders.items()]
        self._flush()
