"""How much of a text has been looked at."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from rlm_server.contexts.passages import Passage
from sandbox.corpora import coverage
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.coverage import Range

MAX_RANGES = 1000
"""Ranges that are told of what was looked at."""

MAX_SENT_RANGES = 100_000
"""Parts of a text, apart from each other, that are remembered as sent. Further ones are not counted."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a text has been looked at, in whole blocks."""

    fraction: float = 0.0
    """Of its characters, from 0 to 1; 1 where it has none."""
    documents: int = 0
    """How many documents were looked at, at least in part."""
    ranges: tuple[Range, ...] = ()
    """What was looked at, from the start of the text on."""
    more: bool = False
    """Whether there are more ranges than these."""


class Looked:
    """What has been looked at of a corpus, summed up as it grows. May be used from several threads."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._characters = self._documents = 0
        self._seen = bytearray(len(corpus))
        """1 for each document that was looked at."""
        self._summary: Coverage | None = None
        self._one_at_a_time = threading.Lock()
        self.blocks = 0

    def add(self, blocks: int) -> None:
        """Add blocks that were looked at. The work is that of those that are new."""
        with self._one_at_a_time:
            new = blocks & ~self.blocks
            if not new:
                return
            for one in coverage.ranges(self._corpus, new):
                self._characters += one.end - one.start
                self._documents += not self._seen[one.document]
                self._seen[one.document] = 1
            self.blocks |= new
            self._summary = None

    @property
    def known(self) -> Coverage | None:
        """The sum where it was made since the last blocks came."""
        return self._summary

    def coverage(self) -> Coverage:
        """Return the sum. The work is that of the ranges it tells."""
        with self._one_at_a_time:
            if self._summary is None:
                first = tuple(islice(coverage.ranges(self._corpus, self.blocks), MAX_RANGES + 1))
                every = self._corpus.characters
                fraction = self._characters / every if every else 1.0
                self._summary = Coverage(fraction, self._documents, first[:MAX_RANGES], len(first) > MAX_RANGES)
            return self._summary


class SentText:
    """How much of a text stood in prompts that were sent, each character counted once."""

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[list[int], list[int]]] = {}
        """Of each document the starts and the ends of what was sent, apart from each other, in order."""
        self._number = 0
        self.characters = 0
        self.more = False
        """Whether it may have been more than this."""

    def add(self, passages: Iterable[Passage], *, more: bool = False) -> None:
        """Add what stood in a prompt; `more` says that this may not be all that did."""
        self.more = self.more or more
        for one in passages:
            if self._number >= MAX_SENT_RANGES:
                self.more = True
                return
            self._add(one.document, one.start, one.end)

    @property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """What was sent, apart from each other: of each part the document, its start and its end."""
        return tuple(
            (document, start, end)
            for document, (starts, ends) in self._ranges.items()
            for start, end in zip(starts, ends, strict=True)
        )

    def restore(self, ranges: Iterable[tuple[int, int, int]], *, more: bool) -> None:
        """Go on from what was sent earlier."""
        for document, start, end in ranges:
            self._add(document, start, end)
        self.more = self.more or more

    def _add(self, document: int, start: int, end: int) -> None:
        starts, ends = self._ranges.setdefault(document, ([], []))
        first, last = bisect_left(ends, start), bisect_right(starts, end)
        if first < last:  # it touches those from `first` up to `last`, and becomes one with them
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        self.characters += end - start - (sum(ends[first:last]) - sum(starts[first:last]))
        self._number += 1 - (last - first)
        starts[first:last], ends[first:last] = [start], [end]


def summary(corpus: Corpus, blocks: int) -> Coverage:
    """Sum up which blocks of a corpus have been looked at."""
    looked = Looked(corpus)
    looked.add(blocks)
    return looked.coverage()
