"""Search: where a pattern matches in the documents of a corpus. RE2 runs on the host, in time linear in the text.

RE2 is given a document as UTF-8, a piece at a time. Each piece comes with the character before it and the one after it,
so that `^`, `$`, `\\b`, `\\A` and `\\z` refer to the whole document. A piece overlaps the next by the longest match, so
that no match is cut between two. ASCII is UTF-8 as it stands. The other forms are rewritten, Latin-1 too, because in
RE2's own Latin-1 mode `(?i)` knows only the letters of ASCII.

Files are read, not mapped. That costs little and bounds the memory, and a failing disk is an error, not a signal.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import re2  # type: ignore[import-untyped]

from sandbox.corpora.corpus import Corpus
from sandbox.corpora.text import Form, Text

LONGEST_PATTERN = 1_000
"""Characters a pattern may have."""

LONGEST = 1 << 18
"""Characters of the longest match that is found for certain; one that would be longer may be cut short, or missed.

It is less for a pattern that is large with its repetitions written out: 2^26 divided by RE2's instructions for it, but
at least 1,024, which no pattern without repetitions exceeds.
"""

SHOWN_OF_PATTERN = 60
"""Characters of a pattern, or of the part of it that is at fault, that a refusal repeats."""

SHOWN = 1_000
"""Characters of a match that are returned."""

ALL_SHOWN = 2 << 20
"""Characters of all matches that are returned; after the match that reaches it no more are looked for."""

SEARCH_SECONDS = 30.0
"""How long a search may take that somebody waits for, its place in the line included."""

PIECE = 1 << 22
"""The most characters that RE2 searches at once."""

MIN_PIECE = 1 << 12
"""The fewest characters that RE2 searches at once, where the document has them."""

WORK = 1 << 28
"""Instructions times characters of one piece, at most: at RE2's slowest a second's work, which nothing can stop."""

MEMORY = 8 << 20
"""Bytes that RE2 may use for a pattern: with half, `.{0,1000}word.{0,1000}` takes a hundred times as long.

The largest patterns that fit are compiled in 0.13 s, in which no other thread of Python runs.
"""

RARE = 64
"""Matches of a literal in a piece up to which RE2 is faster than looking at every byte in turn."""

SLICE = 1 << 19
"""Bytes that are looked at in turn at once."""

CHECKED = 64
"""Matches of a piece after which the caller is asked whether to go on."""

READ_AHEAD = 1 << 16
"""Bytes read at once, at least, so that small documents share a read."""

REWRITTEN = 1 << 18
"""Characters rewritten as UTF-8 at once, in less than a millisecond, in which no other thread of Python runs."""

_LACKING = (
    ("lookaround", r"invalid perl operator: \(\?<?[=!]"),
    ("backreferences", r"invalid escape sequence: \\[1-9gk]|invalid perl operator: \(\?P$"),
    ("atomic groups or possessive repetition", r"invalid perl operator: \(\?>|bad repetition operator: .*\+$"),
)
_TOKEN = re.compile(r"\\Q.*?(?:\\E|\Z)|\\.", re.DOTALL)


class SearchTooLong(Exception):
    """A search was stopped before its end, at a limit that the message names."""

    def __init__(self) -> None:
        super().__init__(f"the search was stopped: it may take {SEARCH_SECONDS:g} s. Search fewer documents")


class PatternRefused(Exception):
    """A pattern is too long, or RE2 cannot compile it; the message says why."""


@dataclass(frozen=True, slots=True)
class Match:
    """Characters of a document from `start` up to, and without, `end`; `text` is the first 1,000 of them."""

    document: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """Matches in the order of the text, none overlapping another, and whether there may be more.

    `stopped` says that the search was, before its end and its limits.
    """

    matches: tuple[Match, ...]
    more: bool
    stopped: bool = field(default=False, compare=False)


def search(
    corpus: Corpus,
    pattern: str,
    documents: Iterable[int] | None,
    limit: int,
    *,
    after: tuple[int, int] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Found:
    """Return the first matches of a pattern, at most `limit`, in these documents or, with None, in all.

    Fewer come where their texts have `ALL_SHOWN` characters together. `after`, a document and a character of it, is
    where to begin: the matches before it are left out.

    Each search starts where the last match ended, or a character later if that was empty. `cancelled` is called about
    every second or more often. Once it returns True, the matches so far are returned.

    This blocks, so it belongs in a thread. It uses up to 50 MB whatever the size of the corpus.

    Raises:
        PatternRefused: the pattern is too long, or RE2 cannot compile it.
        IndexError: one of the documents does not exist; none is searched.
        CorpusDamaged: the index does not say where a document is.
        OSError: the file cannot be opened or read.
        EOFError: the file is too short.
    """
    regexp = compiled(pattern)
    numbers = numbered(corpus, documents)
    first, at = (0, 0) if after is None else after
    numbers = numbers[bisect_left(numbers, first) :]
    matches: list[Match] = []
    with corpus.names.opened() as fd:
        run = Run(regexp, Reader(fd), cancelled)
        matching = (
            Match(number, start, end, str(shown, "utf-8", "ignore")[:SHOWN])
            for number in numbers
            for start, end, shown in run.matches(corpus[number], at if number == first else 0)
        )
        shown = 0
        try:
            for match in islice(matching, limit):
                matches.append(match)
                shown += len(match.text)
                if shown >= ALL_SHOWN:
                    break
        except Stopped:
            return Found(tuple(matches), more=True, stopped=True)
    return Found(tuple(matches), more=len(matches) == limit or shown >= ALL_SHOWN)


def numbered(corpus: Corpus, documents: Iterable[int] | None) -> Sequence[int]:
    """Return the numbers of the documents to search, each once and in their order; None means all.

    Raises:
        IndexError: one of the documents does not exist.
    """
    numbers = range(len(corpus)) if documents is None else sorted(set(documents))
    for outermost in (*numbers[:1], *numbers[-1:]):
        _ = corpus[outermost]
    return numbers


def compiled(pattern: str, memory: int = MEMORY) -> Regexp:
    """Compile a pattern, for which RE2 may use so many bytes.

    Raises:
        PatternRefused: it is too long, or RE2 cannot compile it.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise PatternRefused(f"a pattern may have {LONGEST_PATTERN:,} characters, not {len(pattern):,}")
    if r"\C" in _TOKEN.findall(pattern):
        raise PatternRefused(r"a pattern may not hold \C: it matches a byte, and texts are searched by characters")
    options = re2.Options()
    options.max_mem = memory
    options.log_errors = False
    options.never_capture = True
    try:
        regexp: Regexp = re2.compile(pattern, options)
    except UnicodeEncodeError:
        raise PatternRefused("the pattern holds half a surrogate pair, which is no character") from None
    except re2.error as error:
        raise PatternRefused(_reason(error.args[0].decode(errors="replace"))) from None
    finally:
        re2.purge()  # or it would keep 128 patterns, with what their searches built
    return regexp


def _reason(message: str) -> str:
    """Say why RE2 refused a pattern, and whether it is for something that it lacks on purpose."""
    what, colon, part = message.partition(": ")
    shown = part if len(part) <= SHOWN_OF_PATTERN else part[:SHOWN_OF_PATTERN] + "…"
    reason = f"RE2 cannot compile the pattern: {what}{colon}{shown}"
    for lacking, sign in _LACKING:
        if re.match(sign, message):
            return f"{reason}; it has no {lacking}, by design: they cannot be found in time linear in the text"
    return reason


class Stopped(Exception):
    """The caller no longer wants the search."""


class _Spanned(Protocol):
    def span(self) -> tuple[int, int]: ...


class Regexp(Protocol):
    """The part used here of a pattern compiled by RE2, which has no types of its own. Positions are in bytes."""

    @property
    def programsize(self) -> int:
        """RE2's instructions."""

    def search(self, text: memoryview, pos: int, endpos: int) -> _Spanned | None:
        """Find the first match between two places."""


class Reader:
    """Reads characters as UTF-8 from the file of a corpus, through one buffer that holds the stretch last read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = 0
        self._size = 0
        self._buffer = memoryview(bytearray(READ_AHEAD))

    def utf8(self, text: Text, start: int, end: int) -> memoryview:
        """Return characters of a text as UTF-8. The view is valid until the next call.

        Raises:
            OSError: the file cannot be read.
            EOFError: the file is too short.
        """
        width = text.form.width
        if text.form is Form.ASCII:
            return self._bytes(text.offset + start, end - start)
        data = bytearray()
        for first in range(start, end, REWRITTEN):
            characters = min(REWRITTEN, end - first)
            data += str(self._bytes(text.offset + first * width, characters * width), text.form.codec).encode()
        return memoryview(data)

    def characters(self, text: Text, start: int, end: int) -> str:
        """Return characters of a text. It raises what `utf8` does."""
        width = text.form.width
        return str(self._bytes(text.offset + start * width, (end - start) * width), text.form.codec)

    def _bytes(self, offset: int, size: int) -> memoryview:
        if not self._start <= offset <= offset + size <= self._start + self._size:
            if size > len(self._buffer):
                self._buffer = memoryview(bytearray(size))
            self._start = offset
            self._size = os.preadv(self._fd, [self._buffer[: max(size, READ_AHEAD)]], offset)
            if self._size < size:
                raise EOFError(f"the file of a corpus ends {size - self._size} bytes too early")
        return self._buffer[offset - self._start : offset - self._start + size]


class Run:
    """One search: a pattern, and the file it is looked for in."""

    def __init__(self, regexp: Regexp, reader: Reader, cancelled: Callable[[], bool]) -> None:
        self._regexp = regexp
        self._reader = reader
        self._cancelled = cancelled
        self._piece = min(PIECE, max(MIN_PIECE, WORK // regexp.programsize))
        self._longest = min(LONGEST, self._piece // 4)

    def matches(self, text: Text, at: int = 0) -> Iterator[tuple[int, int, memoryview]]:
        """Yield where the pattern matches in a text from a character on.

        What it yields is the first character, the first after the match, and the first bytes of the match as UTF-8,
        valid until the next.

        Raises:
            Stopped: the caller said so.
        """
        while at <= text.characters:
            end = min(at + self._piece, text.characters)
            edge = end - self._longest if end < text.characters else end + 1
            for start, after, shown in self._in_piece(text, at, end, edge):
                yield start, after, shown
                at = max(after, start + 1)
            at = max(at, edge)

    def characters(self, text: Text, start: int, end: int) -> str:
        """Return characters of a text, to search them otherwise.

        Raises:
            Stopped: the caller said so.
        """
        self._check()
        return self._reader.characters(text, start, end)

    def occurrences(self, text: Text, start: int, end: int, literal: str) -> int:
        """Return how often the pattern, a literal that does not overlap itself, begins in these characters of a text.

        Raises:
            Stopped: the caller said so.
        """
        self._check()
        data = self._reader.utf8(text, start, min(end + len(literal) - 1, text.characters))
        count = place = 0
        while count < RARE:
            span = self._first(data, place, len(data))
            if span is None:
                return count
            count, place = count + 1, span[1]
        wanted = literal.encode()
        for at in range(place, len(data), SLICE):  # a little at a time: no other thread of Python runs meanwhile
            count += bytes(data[at : at + SLICE + len(wanted) - 1]).count(wanted)
        return count

    def _in_piece(self, text: Text, at: int, end: int, edge: int) -> Iterator[tuple[int, int, memoryview]]:
        """Yield the matches in characters `at` to `end` that start before character `edge`."""
        self._check()
        last = min(end + 1, text.characters)
        data = self._reader.utf8(text, max(at - 1, 0), last)
        size = len if text.form is Form.ASCII else _characters
        known = place = _boundary(data, 1) if at else 0  # the byte of character `at`; the byte to search from
        stop = len(data) - 1 if end < last else len(data)  # not all of it, if RE2 is not to take it for the text's end
        looks = 0
        while place <= stop:
            looks += 1
            if not looks % CHECKED:
                self._check()
            span = self._first(data, place, stop)
            if span is None:
                return
            first, after = span
            place = _boundary(data, first)
            if place > first:  # RE2 finds \B between the bytes of a character
                continue
            start = at + size(data[known:first])
            if start >= edge:
                return
            known, at = after, start + size(data[first:after])
            yield start, at, data[first : min(after, first + 4 * SHOWN)]
            place = max(after, first + 1)

    def _check(self) -> None:
        if self._cancelled():
            raise Stopped

    def _first(self, data: memoryview, place: int, stop: int) -> tuple[int, int] | None:
        match = self._regexp.search(data, place, stop)
        return None if match is None else match.span()


def _boundary(data: memoryview, byte: int) -> int:
    """Return the first place between two characters of UTF-8 from a byte on."""
    while byte < len(data) and data[byte] & 0xC0 == 0x80:
        byte += 1
    return byte


def _characters(data: memoryview) -> int:
    return len(str(data, "utf-8"))
