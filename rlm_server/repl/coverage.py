"""How much of a text has been looked at."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import islice

from sandbox.corpora import coverage
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.coverage import Range

MAX_RANGES = 1000
"""Ranges that are told of what was looked at."""


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


def summary(corpus: Corpus, blocks: int) -> Coverage:
    """Sum up which blocks of a corpus have been looked at."""
    looked = Looked(corpus)
    looked.add(blocks)
    return looked.coverage()
