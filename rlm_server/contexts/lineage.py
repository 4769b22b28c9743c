"""Lineage: which ranges of which documents of a corpus stand word for word in a prompt.

A window is `WINDOW` characters in a row. `Lineage.find` promises that every window of the prompt that stands in a
document lies in one of the passages, unless `more` says that not all places were looked at. So every verbatim part of
at least `WINDOW` characters is covered. A window that is found is not looked for again, so that not every place has to
be looked at of a part that stands in many.

A candidate is the place of a sample that has the same hash as some characters of the prompt. A few characters to both
sides of it are compared first, which rules out most candidates. The others are joined where they continue each other,
and extended as far as the texts agree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlm_server.contexts.fingerprints import (
    GRAM,
    STEP,
    WINDOW,
    Characters,
    Codes,
    Documents,
    Fingerprints,
    FingerprintsUnusable,
    Integers,
    build,
    grams,
    hashes,
)
from rlm_server.contexts.parts import Flags, Parts
from rlm_server.contexts.passages import Passage, Traced
from sandbox.corpora.corpus import Corpus

MAX_PASSAGES = 1_000
MAX_CANDIDATES = 4_000_000
CANDIDATES, CANDIDATES_A_CHARACTER = 100_000, 4
"""Candidates looked at for one prompt: so many, and so many more for each of its characters, up to `MAX_CANDIDATES`.

A million takes about a second.
"""

COMPARED, COMPARED_A_CHARACTER = 1 << 27, 64
"""Pairs of characters compared for one prompt: so many, and so many more for each of its characters."""

SLICE = 1 << 18
"""Characters of a prompt that are looked up at once."""

_CHUNK = 1 << 14
"""Candidates that are compared at once."""

_COMPARED_AT_ONCE = 1 << 20
"""Pairs of characters that are compared at once."""


class Lineage:
    """Finds where a prompt's parts are from. Any number of threads may ask at once.

    The files stay mapped for as long as anything refers to this. There is nothing to close.
    """

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        """Open the fingerprints that are in a folder, and map the corpus.

        Raises:
            FingerprintsUnusable: there are none, or damaged ones, or those of another version or corpus.
            OSError: a file cannot be read.
        """
        self._corpus = corpus
        self._fingerprints = Fingerprints(corpus, folder)
        self._characters = Characters(corpus)

    @classmethod
    def open(cls, corpus: Corpus, folder: Path, cancelled: Callable[[], bool] = lambda: False) -> Lineage:
        """Open the fingerprints that are in a folder, or build them there: seconds for each GiB.

        Raises:
            BuildCancelled, OSError, ValueError: as `build` does.
        """
        try:
            return cls(corpus, folder)
        except FingerprintsUnusable:
            build(corpus, folder, cancelled)
            return cls(corpus, folder)

    def find(self, prompt: str, cancelled: Callable[[], bool] = lambda: False) -> Traced:
        """Find the parts of the prompt that stand in the corpus. Blocks for milliseconds, or seconds for 10 MB.

        `cancelled` is called about every millisecond. Once it returns True, what was found so far is returned.

        Each passage has at least `WINDOW` characters and was compared character by character. It cannot be extended at
        either end. The passages are the fewest that hold all windows found. None lies within another, and there are at
        most the first `MAX_PASSAGES`. Where a part has several places, the one in the first document is preferred.

        Raises:
            FingerprintsUnusable: the fingerprints are of another corpus.
        """
        search = _Search(_codes(prompt), self._fingerprints, self._characters, cancelled)
        search.run()
        return Traced(tuple(self._passages(search.fewest())), search.more)

    def _passages(self, parts: Parts) -> list[Passage]:
        documents = self._fingerprints.documents
        passages = []
        for row, start, prompt, size in zip(*(column.tolist() for column in parts.columns), strict=True):
            number, width = int(documents.number[row]), int(documents.width[row])
            text = self._corpus[number]
            described = int(documents.at[row]) * width, width, int(documents.characters[row])
            if described != (text.offset, text.form.width, text.characters):
                raise FingerprintsUnusable("the fingerprints are of another corpus")
            passages.append(Passage(number, start, start + size, prompt))
        return passages


def _codes(prompt: str) -> Codes:
    codes = np.empty(len(prompt), "<u4")
    for start in range(0, len(prompt), SLICE):  # as no other thread runs meanwhile
        part = prompt[start : start + SLICE].encode("utf-32-le", "surrogatepass")
        codes[start : start + SLICE] = np.frombuffer(part, "<u4")
    return codes


class _Exhausted(Exception):
    """A slice of the prompt has used up its share of the work."""


class _Allowance:
    """How much work may be done for a prompt. What a slice leaves of its share goes to the slices after it.

    There is none left once `cancelled` says so.
    """

    def __init__(self, left: int, cancelled: Callable[[], bool]) -> None:
        self._left, self._cancelled = left, cancelled
        self._share = 0

    def share(self, slices: int) -> None:
        """Begin the first of so many slices that are left."""
        self._share = self._left // slices

    def spend(self, amount: int) -> None:
        """Take from the slice's share.

        Raises:
            _Exhausted: less than that is left.
        """
        if amount > self._share or self._cancelled():
            raise _Exhausted
        self._share -= amount
        self._left -= amount


class _Search:
    """The search for one prompt's parts."""

    def __init__(
        self, prompt: Codes, fingerprints: Fingerprints, characters: Characters, cancelled: Callable[[], bool]
    ) -> None:
        self.more = False
        self._cancelled = cancelled
        self._prompt = prompt
        self._fingerprints = fingerprints
        self._documents: Documents = fingerprints.documents
        self._characters = characters
        self._candidates = _Allowance(min(CANDIDATES + CANDIDATES_A_CHARACTER * len(prompt), MAX_CANDIDATES), cancelled)
        self._compared = _Allowance(COMPARED + COMPARED_A_CHARACTER * len(prompt), cancelled)
        self._found = Parts.none()
        """As long as they can be, none within another, in the order of the prompt."""
        self._windows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        """The first windows and the last windows of what is found, where it is without gaps."""

    def run(self) -> None:
        """Search the whole prompt, slice by slice."""
        if len(self._prompt) < WINDOW or not self._documents.samples:
            return
        places = len(self._prompt) - GRAM + 1
        starts = range(0, places, SLICE)
        for number, start in enumerate(starts):
            if self._cancelled() or (len(self._found) > MAX_PASSAGES and len(self.fewest()) == MAX_PASSAGES):
                self.more = True  # what is found from here on comes after these
                return
            for allowance in (self._candidates, self._compared):
                allowance.share(len(starts) - number)
            try:
                self._look_up(start, min(start + SLICE, places))
            except _Exhausted:
                self.more = True

    def fewest(self) -> Parts:
        """Return the fewest parts that hold all windows found, and at most `MAX_PASSAGES`."""
        start = self._found.prompt
        last = self._found.end - WINDOW
        chosen: list[int] = []
        number = 0
        while number < len(start):
            if len(chosen) == MAX_PASSAGES:
                self.more = True
                break
            chosen.append(number)
            next_number = int(np.searchsorted(start, last[number] + 1, "right")) - 1
            number = next_number if next_number > number else number + 1
        return self._found.chosen(np.array(chosen, np.int64))

    def _look_up(self, start: int, end: int) -> None:
        """Look up the windows that begin in a slice of the prompt: first one place for each, then more and more."""
        at = np.arange(start, end)
        wanted = self._wanted(at)
        if not len(wanted):
            return
        present, entry, count = self._fingerprints.look_up(hashes(grams(self._prompt)[start:end])[wanted])
        at = at[wanted[present]]
        rarest_first = np.lexsort((at, count))
        at, entry, count = at[rarest_first], entry[rarest_first], count[rarest_first]
        seen, step = 0, 1
        while len(at):
            for chunk in range(0, len(at), max(1, _CHUNK // step)):
                now = slice(chunk, chunk + max(1, _CHUNK // step))
                chosen = self._wanted(at[now]) + chunk
                places = np.minimum(count[chosen] - seen, step)
                self._candidates.spend(int(places.sum()))
                within = np.arange(places.sum()) - np.repeat(places.cumsum() - places, places)
                self._compare(np.repeat(at[chosen], places), np.repeat(entry[chosen] + seen, places) + within)
            seen += step
            step = min(3 * seen, _CHUNK)
            left = np.flatnonzero(count > seen)
            left = left[self._wanted(at[left])]
            at, entry, count = at[left], entry[left], count[left]

    def _wanted(self, at: Integers) -> Integers:
        """Return the places in the prompt where a sample of a window that was not found yet may stand."""
        first, last = np.maximum(at - STEP + 1, 0), np.minimum(at, len(self._prompt) - WINDOW)
        return np.flatnonzero(~self._are_found(first, last))

    def _are_found(self, first: Integers, last: Integers) -> Flags:
        """Tell for each range of windows whether all of them are found."""
        firsts, lasts = self._windows
        if not len(firsts):
            return np.zeros(len(first), np.bool_)
        range_of = np.searchsorted(firsts, first, "right") - 1
        return (range_of >= 0) & (last <= lasts[range_of])

    def _compare(self, at: Integers, entries: Integers) -> None:
        """Look at candidates: entries, each for a place in the prompt."""
        sound, (row, start) = self._fingerprints.places(entries)
        parts = Parts(row, start, at[sound], np.zeros(len(sound), np.int64))
        parts = self._longer(parts, forwards=WINDOW)
        parts = self._longer(parts.chosen(np.flatnonzero(parts.size >= GRAM)), backwards=STEP - 1)
        parts = parts.chosen(np.flatnonzero(parts.size >= WINDOW))
        known = self._are_found(parts.prompt, parts.end - WINDOW)
        self._extend(parts.chosen(np.flatnonzero(~known)).joined())

    def _extend(self, parts: Parts) -> None:
        """Extend parts as far as possible. A few that lie far apart come first, because these may hold the others."""
        extended, limit, several = Parts.none(), len(self._prompt), 1
        try:
            while len(parts):
                longer = self._longer(parts.chosen(parts.spread(several)), forwards=limit, backwards=limit)
                extended = extended.with_all(longer).outermost()
                parts = parts.chosen(np.flatnonzero(~parts.within(extended)))
                several *= 4
        finally:
            self._add(extended)

    def _add(self, extended: Parts) -> None:
        self._found = self._found.with_all(extended).outermost()
        if len(self._found):
            start, last = self._found.prompt, self._found.end - WINDOW
            gaps = np.flatnonzero(start[1:] > last[:-1] + 1)
            self._windows = start[np.insert(gaps + 1, 0, 0)], last[np.append(gaps, -1)]

    def _longer(self, parts: Parts, *, forwards: int = 0, backwards: int = 0) -> Parts:
        """Extend parts over what is the same, by so many characters at most."""
        row, start, prompt, size = parts.columns
        limit = np.minimum(self._documents.characters[row] - start - size, len(self._prompt) - prompt - size)
        size = size + self._same(row, start + size, prompt + size, np.minimum(limit, forwards), 1)
        back = self._same(row, start - 1, prompt - 1, np.minimum(np.minimum(start, prompt), backwards), -1)
        return Parts(row, start - back, prompt - back, size + back)

    def _same(self, row: Integers, start: Integers, prompt: Integers, limit: Integers, step: int) -> Integers:
        """Count how many characters agree from a start on, forwards (step 1) or backwards (-1), up to a limit."""
        same = np.zeros(len(row), np.int64)
        place, width_of = self._documents.at[row] + start, self._documents.width[row]
        for width, text in self._characters.width.items():
            going, size = np.flatnonzero((width_of == width) & (limit > 0)), 16
            while len(going):
                size = min(size, max(16, _COMPARED_AT_ONCE // len(going)))
                self._compared.spend(size * len(going))
                ahead = np.arange(size)
                done = same[going]
                offset = step * (done[:, None] + ahead)
                equal = text.take(place[going, None] + offset, mode="clip") == self._prompt.take(
                    prompt[going, None] + offset, mode="clip"
                )
                equal &= ahead < (limit[going] - done)[:, None]
                ends = ~equal.all(axis=1)
                same[going] += np.where(ends, equal.argmin(axis=1), size)
                going = going[~ends & (same[going] < limit[going])]
                size *= 2
        return same
