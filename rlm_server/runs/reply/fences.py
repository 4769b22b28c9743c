"""Fences of Markdown, as CommonMark has them: what opens a block, what closes it, and what its first line says."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

REPL = "repl"
PYTHON = frozenset({"python", "py", "python3", "py3", "ipython", "ipython3"})
"""Other words for code, where a reply has no block marked `repl`."""

_ITEMS = re.compile(r"(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)*+")
_OPENING = re.compile(r"(`{3,}+)([^`]*+)$|(~{3,}+)(.*+)$")
_CLOSING = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+$")
_WORD = re.compile(r"[{\s.]*+([\w+-]*+)(.*+)$")
_ATTRIBUTES = re.compile(r"(?:[\s,}]++|\{[^{}]*+\}?|[\w.:#/+-]++(?:=(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'(),}]++)?+)?+)*+$")
_MARKDOWN_CELL = "code-cell"


@dataclass(frozen=True, slots=True)
class Opening:
    """A fence that opens a block.

    `column` is where it stands, `base` where the list item around it has its text. `word` is the language, in lower
    case; `code` is what stands on the fence's own line behind it and is no attribute.
    """

    fence: str
    column: int
    base: int
    word: str
    code: str

    def closes(self, closing: Closing) -> bool:
        """Say whether a fence closes this block."""
        return (
            closing.fence[0] == self.fence[0]
            and len(closing.fence) >= len(self.fence)
            and closing.column <= self.base + 3
        )

    @property
    def runs(self) -> bool:
        """Whether the block is marked as code that may run."""
        return self.word == REPL or self.word in PYTHON


@dataclass(frozen=True, slots=True)
class Closing:
    """A line with nothing but a fence. It closes a block of its kind."""

    fence: str
    column: int


class Containers:
    """The list items around a line of prose, each by the column of its text."""

    def __init__(self) -> None:
        self._columns: list[int] = []

    def opening(self, line: str, at: int) -> Opening | None:
        """Go on to a line, from a position in it, and return the fence that opens a block there."""
        text = at
        while text < len(line) and line[text] in " \t":
            text += 1
        if text == len(line):
            return None
        column = width(line[at:text])
        while self._columns and column < self._columns[-1]:
            self._columns.pop()
        if column > self._base + 3:  # code by indentation, or the text of a paragraph
            return None
        items = _ITEMS.match(line, text)
        if items is not None and items.end() > text:
            self._columns.append(column + width(line[text : items.end()]))
            column, text = self._columns[-1], items.end()
        found = _OPENING.match(line, text)
        if found is None:
            return None
        word, code = _info(found[2] if found[1] else found[4])
        return Opening(found[1] or found[3], column, self._base, word, code)

    @property
    def _base(self) -> int:
        return self._columns[-1] if self._columns else 0


def closing(line: str) -> Closing | None:
    """Read a line that may close a block."""
    found = _CLOSING.match(line)
    return None if found is None else Closing(found[2], width(found[1]))


def width(indentation: str) -> int:
    """Return how many columns a text takes; tabs stop at every fourth."""
    return len(indentation.expandtabs(4))


def outdented(line: str, columns: int) -> str:
    """Take up to so many columns of indentation off a line."""
    taken = at = 0
    while at < len(line) and taken < columns and line[at] in " \t":
        taken += 1 if line[at] == " " else 4 - taken % 4
        at += 1
    return " " * (taken - columns) + line[at:]


def _info(info: str) -> tuple[str, str]:
    """Read what stands behind a fence: the language, and code that was written on its line."""
    found = _WORD.match(info)
    word, rest = (found[1].lower(), found[2]) if found is not None else ("", "")
    if word == _MARKDOWN_CELL:
        return _info(rest.lstrip("}"))
    if not rest[:1].isspace():
        return word, ""
    first = re.match(r"\s*+(\w*+)", rest)
    if _ATTRIBUTES.match(rest) and not (first is not None and keyword.iskeyword(first[1])):
        return word, ""
    return word, rest.strip()
