"""Counting: how often a pattern matches in the documents of a corpus, however often that is.

What is counted is what a search finds from the first document's first character on. It is counted in two parts at once.
Where the first part's last match reaches into the second, the count goes on from its end until it meets a match of the
second part: from there on both find the same. A literal that does not overlap itself is counted without looking at
each match, and where matches are dense and the pattern plain, they are counted as `dense` says.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlm_server.contexts.dense import Dense, dense
from rlm_server.contexts.search import PIECE, Reader, Regexp, Run, Stopped, compiled, numbered
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.text import Text

DIVIDED_FROM = 1 << 24
"""Characters from which on a text is counted in two parts."""

KEPT = 10_000
"""Matches of the second part that are kept, for the first to meet."""

LOOKED = 64
"""Matches after which it is seen how dense they are."""

APART = 2048
"""Characters from a match to the next on average, below which they are dense: RE2 reads as many while it is called."""

_LITERAL = re.compile(r"(?:[^\\^$.|?*+()\[\]{}]|\\[^A-Za-z0-9\s])+")


@dataclass(frozen=True, slots=True)
class Part:
    """Documents by their numbers, without what comes before character `start` of the first, and from `end` of the last.

    A match is of the part in which it begins.
    """

    numbers: Sequence[int]
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Matches of a part. `stopped` says that it was, before its end."""

    matches: int
    of_first: int = 0
    """Of its first document."""
    at: int = 0
    """Where the next search would have begun in its last document."""
    first: tuple[tuple[int, int], ...] = ()
    """The first matches of its first document, at most `KEPT`: the first character, and the first after it."""
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """A count of a pattern: its parts, which may be counted at once in threads, and then joined.

    All of its functions block. They use up to 50 MB each. Once `cancelled` returns True, they stop.
    """

    corpus: Corpus
    regexp: Regexp
    literal: str | None
    dense: Dense | None
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, corpus: Corpus, pattern: str, documents: Iterable[int] | None) -> Count:
        """Divide a count in these documents or, with None, in all. The pattern is compiled once.

        Raises:
            PatternRefused: the pattern is too long, or RE2 cannot compile it.
            IndexError: one of the documents does not exist.
            CorpusDamaged: as `search` does.
        """
        regexp, parts = compiled(pattern), _divided(corpus, numbered(corpus, documents))
        return cls(corpus, regexp, _literal(pattern), dense(pattern), parts)

    def tally(self, place: int, cancelled: Callable[[], bool] = lambda: False) -> Tally:
        """Count the matches of the part at a place.

        Raises:
            CorpusDamaged, OSError, EOFError: as `search` does.
        """
        part, matches, of_first, at, first = self.parts[place], 0, 0, 0, list[tuple[int, int]]()
        last = len(part.numbers) - 1
        try:
            with self.corpus.names.opened() as fd:
                run = Run(self.regexp, Reader(fd), cancelled)
                for index, number in enumerate(part.numbers):
                    text = self.corpus[number]
                    start = part.start if not index else 0
                    end = part.end if index == last and part.end is not None else text.characters + 1
                    if self.literal is not None:
                        found, at = _occurrences(run, text, self.literal, start, end), end
                    else:
                        found, at = self._found(run, text, start, end, first if place and not index else None)
                    matches += found
                    of_first = of_first if index else found
        except Stopped:
            return Tally(matches, stopped=True)
        return Tally(matches, of_first, at, tuple(first))

    def _found(self, run: Run, text: Text, at: int, end: int, first: list[tuple[int, int]] | None) -> tuple[int, int]:
        """Return how many matches begin in a text from `at` up to `end`, and where the next search would begin.

        With `first`, the first of them are put into it. Each way goes on for a piece at least, as changing costs one.
        """
        matches, at = self._one_by_one(run, text, at, end, first, at)
        while self.dense is not None and at < end:
            more, at = self._many(run, text, self.dense, at, end)
            matches += more
            if at < end:
                more, at = self._one_by_one(run, text, at, end, None, at + PIECE)
                matches += more
        return matches, at

    def _one_by_one(
        self, run: Run, text: Text, at: int, end: int, first: list[tuple[int, int]] | None, willing_from: int
    ) -> tuple[int, int]:
        """Do what `_found` does, up to where matches are dense from `willing_from` on, if they are."""
        matches, looked_from = 0, at
        for start, after, _ in run.matches(text, at):
            if start >= end:
                break
            matches, at = matches + 1, max(after, start + 1)
            if first is not None and matches <= KEPT:
                first.append((start, after))
            elif not matches % LOOKED:
                if self.dense is not None and willing_from <= at < looked_from + LOOKED * APART:
                    return matches, at
                looked_from = at
        return matches, end if at < end else at

    def _many(self, run: Run, text: Text, pattern: Dense, at: int, end: int) -> tuple[int, int]:
        """Do what `_found` does, up to where matches are no longer dense, or RE2 is needed for one."""
        total = matches = 0
        looked_from = at
        while at < end:
            begin, stop = max(at - 1, 0), min(at + pattern.size, end)
            last = min(stop + pattern.most + 1, text.characters)
            characters = run.characters(text, begin, last)
            if not pattern.fits(characters):
                break
            found, place = pattern.counted(characters, at - begin, stop - begin, whole=last == text.characters)
            total, matches = total + found, matches + found
            if begin + place == at:
                break
            at = begin + place
            if at - looked_from >= PIECE:
                if matches * APART < at - looked_from:
                    break
                matches, looked_from = 0, at
        return total, at

    def joined(self, tallies: Sequence[Tally], cancelled: Callable[[], bool] = lambda: False) -> Tally:
        """Return the tally of all parts. It raises what `tally` does."""
        if any(tally.stopped for tally in tallies):
            return Tally(0, stopped=True)
        total = sum(tally.matches for tally in tallies)
        if len(tallies) < 2 or tallies[0].at <= self.parts[1].start or not tallies[1].of_first:
            return Tally(total)
        known = {match: place for place, match in enumerate(tallies[1].first)}
        text, more = self.corpus[self.parts[1].numbers[0]], 0
        try:
            with self.corpus.names.opened() as fd:
                for start, after, _ in Run(self.regexp, Reader(fd), cancelled).matches(text, tallies[0].at):
                    if (start, after) in known:
                        return Tally(total + more - known[start, after])
                    more += 1
        except Stopped:
            return Tally(0, stopped=True)
        return Tally(total + more - tallies[1].of_first)


def _divided(corpus: Corpus, numbers: Sequence[int]) -> tuple[Part, ...]:
    """Return one part, or two that meet in the middle of what they take of the file. It looks at few documents."""
    if not numbers:
        return ()
    first, last = corpus[numbers[0]], corpus[numbers[-1]]
    if last.offset + last.size - first.offset < DIVIDED_FROM:
        return (Part(numbers),)
    middle = (first.offset + last.offset + last.size) // 2
    place = bisect_right(numbers, middle, key=lambda number: corpus[number].offset) - 1
    text = corpus[numbers[place]]
    at = min((middle - text.offset) // text.form.width, text.characters)
    return Part(numbers[: place + 1], end=at), Part(numbers[place:], start=at)


def _literal(pattern: str) -> str | None:
    """Return what a pattern without operators stands for, where no two matches of it could overlap."""
    if _LITERAL.fullmatch(pattern) is None:
        return None
    text = re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL)
    overlaps = any(text.startswith(text[-size:]) for size in range(1, len(text)))
    return None if overlaps else text


def _occurrences(run: Run, text: Text, literal: str, start: int, end: int) -> int:
    """Return how often a literal that does not overlap itself begins in a text from `start` up to `end`."""
    end = min(end, text.characters)
    starts = range(start, max(end, start + 1), PIECE)  # one at least, which may be stopped
    return sum(run.occurrences(text, at, min(at + PIECE, end), literal) for at in starts)
