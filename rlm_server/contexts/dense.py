"""Dense matches: patterns that Python's own engine may count, where RE2 would be asked for each of millions of matches.

A call of RE2 costs microseconds, Python's engine a tenth of that for a match, and more for the text between matches. It
backtracks, and some of what it reads is not what RE2 reads. So a pattern is taken apart here, and put together again
from what means the same to both: characters, classes, alternatives, groups, and bounded repetitions in which few
choices can be made. What repeats without bound may only be a class at a match's end, where nothing follows that could
fail. So each place of the text costs a bounded number of steps.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

MOST_CHOICES = 32
"""Ways in which a pattern may be gone through at one place."""

MOST_CHARACTERS = 256
"""Characters that a match may have before what repeats without bound."""

MOST_WORK = 512
"""Ways times characters of a pattern, at most."""

SLICE = 1 << 13
"""The most characters that are searched at once: in a millisecond or two, in which no other thread of Python runs."""

WORK = 1 << 18
"""The most that is done at once, in ways times characters of the pattern times characters of the text."""

_FLAGS = re.compile(r"\(\?([ims]+)\)")
_GROUP = re.compile(r"\((?:\?:|\?P<[A-Za-z_]\w*>|(?!\?))", re.ASCII)
_REPEAT = re.compile(r"\{(\d{1,3})(?:,(\d{0,3}))?\}|[?*+]")
_LITERAL = re.compile(r"[^\\^$.|?*+()\[\]{}]", re.DOTALL)
_ESCAPED = re.compile(r"\\([^A-Za-z0-9\s_]|[dDwWsSntrf])")
_ELEMENT = re.compile(r"\\([^A-Za-z0-9\s_]|[dwsntrf])|([^\\\[\]^-])", re.DOTALL)
_SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\f\r "}
"""What RE2 takes these for, as parts of a class. Python takes a vertical tab for white space too."""
_CONTROLS = {"n": r"\n", "t": r"\t", "r": r"\r", "f": r"\f"}


class _OtherwiseRead(Exception):
    """The pattern has something that is not known to mean the same to both, or to cost little."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: as Python takes it, the fewest and most characters it takes, and the ways through it.

    `ends` says that it repeats without bound at its end: nothing may follow.
    """

    text: str
    least: int
    most: int
    choices: int = 1
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Dense:
    """A pattern for Python's engine, and the most characters of a match before what repeats without bound."""

    pattern: re.Pattern[str]
    most: int
    size: int
    """Characters to search at once."""
    ascii_only: bool
    """Whether it is the same to both in ASCII alone, because letters of any case match."""

    def fits(self, text: str) -> bool:
        """Whether both find the same in a text."""
        return not self.ascii_only or text.isascii()

    def counted(self, text: str, start: int, stop: int, *, whole: bool) -> tuple[int, int]:
        """Return how many matches begin from `start` on and before `stop`, and where the next search would begin.

        What comes before `start` in the text is looked at but not searched. Where the text goes on (not `whole`), it
        is to have `most` characters and one more from `stop` on, and a match that reaches its end is not counted: the
        next search begins with it.
        """
        kept = deque(enumerate(self.pattern.finditer(text, start), 1), maxlen=len(text) - stop + 2)
        begins = stop
        while kept:
            number, match = kept[-1]
            if match.start() < stop and (whole or match.end() < len(text)):
                return number, max(match.end(), begins)
            begins = min(begins, match.start())
            kept.pop()
        return 0, begins


def dense(pattern: str) -> Dense | None:
    """Return a pattern that RE2 has compiled for Python's engine, or None where it is not known to be the same there.

    No match of one that is returned is empty.
    """
    flags = _FLAGS.match(pattern)
    letters = flags[1] if flags is not None else ""
    reader = _Reader(pattern, flags.end() if flags is not None else 0, multiline="m" in letters, dot_all="s" in letters)
    try:
        part = reader.alternatives()
    except _OtherwiseRead:
        return None
    work = part.most * part.choices
    if reader.at < len(pattern) or not part.least or work > MOST_WORK or ("i" in letters and not pattern.isascii()):
        return None
    options = re.ASCII
    for letter, option in (("i", re.IGNORECASE), ("m", re.MULTILINE), ("s", re.DOTALL)):
        options |= option if letter in letters else 0
    return Dense(re.compile(part.text, options), part.most, min(SLICE, WORK // work), "i" in letters)


class _Reader:
    """Reads a pattern from a place on, once."""

    def __init__(self, pattern: str, at: int, *, multiline: bool, dot_all: bool) -> None:
        self.pattern, self.at = pattern, at
        self._multiline, self._dot_all = multiline, dot_all

    def alternatives(self) -> _Part:
        """Read up to the end, or to a bracket that closes."""
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return _Part(
            "|".join(part.text for part in parts),
            min(part.least for part in parts),
            max(part.most for part in parts),
            _few(sum(part.choices for part in parts)),
            any(part.ends for part in parts),
        )

    def _sequence(self) -> _Part:
        text, least, most, choices, ends = "", 0, 0, 1, False
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            if ends:
                if text.endswith(_ANY_OF_LINE) and self._multiline and self._take("$"):
                    continue  # which is so where a line's characters have all been taken
                raise _OtherwiseRead
            part = self._repeated(self._atom())
            text, least, most = text + part.text, least + part.least, most + part.most
            choices, ends = _few(choices * part.choices), part.ends
            if most > MOST_CHARACTERS:  # said before it is multiplied any further
                raise _OtherwiseRead
        return _Part(text, least, most, choices, ends)

    def _take(self, text: str) -> bool:
        taken = self.pattern.startswith(text, self.at)
        self.at += len(text) if taken else 0
        return taken

    def _matched(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        match = expression.match(self.pattern, self.at)
        self.at = match.end() if match is not None else self.at
        return match

    def _atom(self) -> _Part:
        if (literal := self._matched(_LITERAL)) is not None:
            return _Part(re.escape(literal[0]), 1, 1)
        if self._take("."):
            return _Part("." if self._dot_all else r"[^\n]", 1, 1)
        if self._take(r"\b"):
            return _Part(r"\b", 0, 0)
        if self._multiline and (self._take("^") or self._take("$")):
            return _Part(self.pattern[self.at - 1], 0, 0)
        if (escaped := self._matched(_ESCAPED)) is not None:
            return _Part(_one(escaped[1]), 1, 1)
        if self._matched(_GROUP) is not None:
            inner = self.alternatives()
            if not self._take(")"):
                raise _OtherwiseRead
            return _Part(f"(?:{inner.text})", inner.least, inner.most, inner.choices, inner.ends)
        if self._take("["):
            return _Part(self._class(), 1, 1)
        raise _OtherwiseRead

    def _class(self) -> str:
        negated, inside = self._take("^"), ""
        while not inside or not self._take("]"):
            first = self._element()
            if len(first) == 1 and self._range():
                last = self._element()
                if len(last) != 1 or last < first:
                    raise _OtherwiseRead
                inside += f"{re.escape(first)}-{re.escape(last)}"
            else:
                inside += re.escape(first) if len(first) == 1 else first
        return f"[{'^' if negated else ''}{inside}]"

    def _range(self) -> bool:
        return not self.pattern.startswith("-]", self.at) and self._take("-")

    def _element(self) -> str:
        """Return a character of a class, or several as they are written in one. A bracket is none, anywhere."""
        if self.pattern.startswith("-]", self.at) and self._take("-"):
            return "-"
        element = self._matched(_ELEMENT)
        if element is None:
            raise _OtherwiseRead
        if element[2] is not None:
            return element[2]
        return _SETS.get(element[1], _CONTROLS.get(element[1], element[1]))

    def _repeated(self, part: _Part) -> _Part:
        repeat = self._matched(_REPEAT)
        if repeat is None:
            return part
        if not part.most or part.ends or self._matched(_REPEAT) is not None:  # lazy, or twice: seldom
            raise _OtherwiseRead
        least = {"?": 0, "*": 0, "+": 1}.get(repeat[0], int(repeat[1] or 0))
        if repeat[0] in ("*", "+") or repeat[2] == "":
            if part.text.startswith("(") or part.least != part.most:
                raise _OtherwiseRead
            return _Part(part.text + repeat[0], least, least, ends=True)
        most = 1 if repeat[0] == "?" else int(repeat[2] or least)
        if most < least or not most:
            raise _OtherwiseRead
        ways = 1
        for _ in range(most):
            ways = _few(ways * part.choices)
        return _Part(part.text + repeat[0], part.least * least, part.most * most, _few(ways * (most - least + 1)))


_ANY_OF_LINE = (r"[^\n]*", r"[^\n]+")


def _one(escaped: str) -> str:
    """Return what stands for one character, after a backslash, as Python takes it."""
    if escaped.lower() in _SETS:
        return f"[{'^' if escaped.isupper() else ''}{_SETS[escaped.lower()]}]"
    return _CONTROLS.get(escaped, re.escape(escaped))


def _few(choices: int) -> int:
    if choices > MOST_CHOICES:
        raise _OtherwiseRead
    return choices
