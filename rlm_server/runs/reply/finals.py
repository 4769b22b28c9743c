"""`FINAL(...)` and `FINAL_VAR(...)` in prose: an answer only as a statement of its own, at the end of what is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_STATEMENT = re.compile(r"^[ \t]{0,3}(FINAL|FINAL_VAR)[ \t]*+\(", re.MULTILINE)
_MENTION = re.compile(r"\bFINAL(?:_VAR)?\b")
_TAIL = re.compile(r"\s*+\.?+(?:\s++|`{3,}+|~{3,}+|</?(?:answer|final_answer|final|response|output)>)*+\Z")
_NEXT = re.compile(r"[()\"']")
_STRING = {
    '"""': re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*+"""', re.DOTALL),
    "'''": re.compile(r"'''(?:[^'\\]|\\.|'(?!''))*+'''", re.DOTALL),
    '"': re.compile(r'"(?:[^"\\\n]|\\.)*+"', re.DOTALL),
    "'": re.compile(r"'(?:[^'\\\n]|\\.)*+'", re.DOTALL),
}
_PREFIXED = re.compile(r"(?<!\w)(?:[rbuftRBUFT]{1,2})?+\Z")
_STEPS = 8
"""How often each character may be read, in all: a reply may open brackets again and again and close none."""


@dataclass(frozen=True, slots=True)
class Final:
    """An answer in prose: the text in the brackets of `FINAL`, or the name in those of `FINAL_VAR`."""

    name: Literal["FINAL", "FINAL_VAR"]
    argument: str


@dataclass(frozen=True, slots=True)
class Finals:
    """What prose has of FINAL: the answer it gives, or else why what looks like one is none (`amiss`).

    `stated` says that there is one where a statement would stand.
    """

    final: Final | None = None
    stated: bool = False
    amiss: str = ""


def find(prose: str) -> Finals:
    """Find the answer that prose gives: the last statement, where nothing follows it."""
    found, statement, steps, at = None, _STATEMENT.search(prose), _STEPS * len(prose), 0
    first = statement
    while statement is not None and steps > 0:
        end, read = _end(prose, statement.end())
        steps -= read
        if end is not None:
            found, at = (statement, end), end
        else:
            at = statement.end()
        statement = _STATEMENT.search(prose, at)
    if found is None or statement is not None:
        return Finals(stated=first is not None, amiss=_amiss(prose, first is not None))
    begun, end = found
    if not _TAIL.match(prose, end):
        return Finals(stated=True, amiss="other text follows it. Let it be the last thing in your reply")
    name: Literal["FINAL", "FINAL_VAR"] = "FINAL_VAR" if begun[1] == "FINAL_VAR" else "FINAL"
    return Finals(Final(name, prose[begun.end() : end - 1].strip()), stated=True)


def _amiss(prose: str, stated: bool) -> str:
    if stated:
        return "its brackets do not close"
    return "it does not stand at the beginning of a line with its brackets" if _MENTION.search(prose) else ""


def _end(text: str, at: int) -> tuple[int | None, int]:
    """Return where the bracket that opened before a position closes, and how many characters were read.

    Brackets in quotes do not count. Quotes are those of Python where they can be; an apostrophe is none.
    """
    begin, deep, read = at, 1, 0
    while deep:
        found = _NEXT.search(text, at)
        if found is None:
            return None, read + len(text) - begin
        at = found.end()
        if found[0] == "(":
            deep += 1
        elif found[0] == ")":
            deep -= 1
        else:
            string, cost = _string(text, at - 1)
            read += cost
            at = at if string is None else string
    return at, read + at - begin


def _string(text: str, at: int) -> tuple[int | None, int]:
    """Return the end of the string of Python that begins at a quote, if one does, and the characters read."""
    if not _PREFIXED.search(text[max(0, at - 3) : at]):
        return None, 1
    quote = text[at : at + 3] if text[at : at + 3] in _STRING else text[at]
    found = _STRING[quote].match(text, at)
    if found is not None:
        return found.end(), 1
    line = text.find("\n", at) if len(quote) == 1 else -1
    return None, (len(text) if line < 0 else line) - at
