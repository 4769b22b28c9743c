"""How much of a text has been looked at."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from sandbox.corpora import coverage
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.coverage import Range

MAX_RANGES = 1000
"""Of a coverage that is told."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a text has been looked at, to its blocks: the part of its characters, from 0 to 1, and which."""

    fraction: float = 0.0
    documents: int = 0
    """How many were looked at, at least in part."""
    ranges: tuple[Range, ...] = ()
    more: bool = False
    """Whether there are more ranges than these."""


def summary(corpus: Corpus, blocks: int) -> Coverage:
    """Sum up which blocks of a corpus have been looked at."""
    found = coverage.ranges(corpus, blocks)
    told = tuple(islice(found, MAX_RANGES))
    rest = list(found)
    characters = sum(one.end - one.start for one in (*told, *rest))
    every = corpus.characters
    documents = len({one.document for one in (*told, *rest)})
    return Coverage(characters / every if every else 1.0, documents, told, bool(rest))
