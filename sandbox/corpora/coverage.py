"""Which parts of a corpus have been looked at: sets of blocks, as the bits of an integer, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sandbox.corpora.corpus import BLOCK, Corpus
from sandbox.memory.memory import PAGE


@dataclass(frozen=True, slots=True)
class Range:
    """Characters of a document, from `start` up to and without `end`."""

    document: int
    start: int
    end: int


def runs(blocks: int) -> Iterator[tuple[int, int]]:
    """Yield runs of blocks that follow each other, each as (first, how many)."""
    bits = bin(blocks)[:1:-1]
    at = bits.find("1")
    while at >= 0:
        end = bits.find("0", at)
        end = len(bits) if end < 0 else end
        yield at, end - at
        at = bits.find("1", end)


def of_range(corpus: Corpus, found: Range) -> int:
    """Return the set of blocks that a range is in, wholly or in part."""
    blocks = _blocks(corpus, found)
    return (1 << blocks.stop) - (1 << blocks.start)


def of_ranges(corpus: Corpus, found: Iterable[Range]) -> int:
    """Return the set of blocks that ranges are in. The work is linear in the blocks, however many ranges there are."""
    bits = bytearray(corpus.blocks // 8 + 1)
    for one in found:
        for block in _blocks(corpus, one):
            bits[block >> 3] |= 1 << (block & 7)
    return int.from_bytes(bits, "little")


def _blocks(corpus: Corpus, found: Range) -> range:
    text, first = corpus[found.document], corpus.first_block(found.document)
    if found.start >= found.end:
        return range(first, first)
    if corpus.copied(found.document):
        return range(first, first + 1)
    skipped, width = text.offset % PAGE, text.form.width
    start, end = ((skipped + at * width) // BLOCK for at in (found.start, found.end - 1))
    return range(first + start, first + end + 1)


def ranges(corpus: Corpus, blocks: int) -> Iterator[Range]:
    """Yield the ranges of a corpus that its blocks make up, in order."""
    for first, count in runs(blocks):
        block, end = first, min(first + count, corpus.blocks)
        while block < end:
            document = corpus.document_of(block)
            after = corpus.first_block(document + 1)
            characters = _characters(corpus, document, block, min(end, after))
            if characters.start < characters.end:
                yield characters
            block = after


def fraction(corpus: Corpus, blocks: int) -> float:
    """Return the part of a corpus's characters that has been looked at, from 0 to 1; 1 where there are none."""
    every = corpus.characters
    return sum(found.end - found.start for found in ranges(corpus, blocks)) / every if every else 1.0


def _characters(corpus: Corpus, document: int, block: int, end: int) -> Range:
    text, first = corpus[document], corpus.first_block(document)
    if corpus.copied(document):
        return Range(document, 0, text.characters)
    skipped, width = text.offset % PAGE, text.form.width
    start = max(0, (block - first) * BLOCK - skipped) // width
    return Range(
        document, min(start, text.characters), min(((end - first) * BLOCK - skipped) // width, text.characters)
    )
