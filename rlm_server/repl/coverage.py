"""How much of a text has been looked at."""

from __future__ import annotations

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


def summary(corpus: Corpus, blocks: int) -> Coverage:
    """Sum up which blocks of a corpus have been looked at."""
    ranges = coverage.ranges(corpus, blocks)
    first, rest = tuple(islice(ranges, MAX_RANGES)), list(ranges)
    characters = sum(one.end - one.start for one in (*first, *rest))
    documents = len({one.document for one in (*first, *rest)})
    every = corpus.characters
    return Coverage(characters / every if every else 1.0, documents, first, bool(rest))
