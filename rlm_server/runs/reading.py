"""What a node has to read, and how much of it has been looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from sandbox import coverage
from sandbox.corpus import Corpus
from sandbox.coverage import Range

MOST_RANGES = 1000
"""Of a coverage that is told."""

Origin = Callable[[int], tuple[int, int]]
"""Of a document of a node's text: which document of the run's context it is part of, and from which character on."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a text has been looked at, to its blocks: the part of its characters, from 0 to 1, and which."""

    fraction: float = 0.0
    documents: int = 0
    """How many were looked at, at least in part."""
    ranges: tuple[Range, ...] = ()
    more: bool = False
    """Whether there are more ranges than these."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A text a node reads. `origin` is None where it is not part of the run's context."""

    corpus: Corpus
    origin: Origin | None = None


def whole(corpus: Corpus) -> Reading:
    """Return the run's context as what its root reads."""
    return Reading(corpus, lambda document: (document, 0))


def summary(corpus: Corpus, blocks: int) -> Coverage:
    """Sum up which blocks of a corpus have been looked at."""
    found = coverage.ranges(corpus, blocks)
    told = tuple(islice(found, MOST_RANGES))
    rest = list(found)
    characters = sum(one.end - one.start for one in (*told, *rest))
    every = corpus.characters
    documents = len({one.document for one in (*told, *rest)})
    return Coverage(characters / every if every else 1.0, documents, told, bool(rest))


def traced_back(reading: Reading, blocks: int) -> Iterable[Range]:
    """Yield the ranges of the run's context that blocks of a node's text are."""
    if reading.origin is None:
        return
    for found in coverage.ranges(reading.corpus, blocks):
        document, start = reading.origin(found.document)
        yield Range(document, start + found.start, start + found.end)
