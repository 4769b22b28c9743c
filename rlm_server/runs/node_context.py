"""What a node has to read, and where in the run's context it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandbox.corpora import coverage
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.coverage import Range

Origin = Callable[[int], tuple[int, int]]
"""Tells of a document of a node's text which document of the run's context it is part of, and where it begins there."""


@dataclass(frozen=True, slots=True)
class NodeContext:
    """A text a node reads. `origin` is None where it is not part of the run's context."""

    corpus: Corpus
    origin: Origin | None = None


def whole_context(corpus: Corpus) -> NodeContext:
    """Return the run's context as what its root reads."""
    return NodeContext(corpus, lambda document: (document, 0))


def blocks_of(context: Corpus, node_context: NodeContext, blocks: int) -> int:
    """Return the blocks of the run's context that blocks of a node's text are in. The work is linear in these."""
    if node_context.corpus is context:
        return blocks
    return coverage.of_ranges(context, traced_back(node_context, blocks))


def traced_back(node_context: NodeContext, blocks: int) -> Iterable[Range]:
    """Yield the ranges of the run's context that blocks of a node's text are."""
    if node_context.origin is None:
        return
    for part in coverage.ranges(node_context.corpus, blocks):
        document, start = node_context.origin(part.document)
        yield Range(document, start + part.start, start + part.end)
