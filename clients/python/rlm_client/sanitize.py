"""Text from guests and models, made safe to show: no character of it can move a cursor or start a line."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 400
"""Characters of one line that are shown; no terminal is that wide."""

# Invisible and commanding characters: controls, formats (bidirectional overrides), surrogates, private, unassigned,
# line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # scripts and emoji need them, and they move nothing


class _Escapes(dict[int, str]):
    """A table for `str.translate`, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        shown = character
        if unicodedata.category(character) in _UNSAFE and character not in _JOINERS:
            shown = character.encode("unicode_escape").decode("ascii")
        self[code] = shown
        return shown


_IN_LINE = _Escapes({ord("\t"): "    "})
_IN_BLOCK = _Escapes({ord("\t"): "    ", ord("\n"): "\n"})


def sanitize(text: str) -> str:
    """Escape all that commands a terminal, as Python would write it (`\\x1b`); lines stay lines, tabs four spaces."""
    return text.replace("\r\n", "\n").translate(_IN_BLOCK)


def sanitize_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Escape as `sanitize` does, line ends too, and cut what is longer than `longest` characters."""
    shown = text[: longest + 1].translate(_IN_LINE)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
