"""Which variables of a node are news to its model: those that a turn made or changed, and that hold something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sandbox.turn import Variable

MOST = 40
"""Variables that are told of after a turn: the newest."""

_NOT_HELD = frozenset({"module", "function", "type", "builtin_function_or_method", "method", "partial"})
"""Types of what code has to work with, and not as a result."""

_OURS = frozenset({"answer", "context", "printed", "kept"})

_TARGETS = re.compile(
    r"^[ \t]*+([A-Za-z_]\w*+(?:[ \t]*+,[ \t]*+[A-Za-z_]\w*+)*+)[ \t]*+"
    r"(?::[^=\n]*+)?(?:[-+*/%&|^@]|\*\*|//|<<|>>)?=(?!=)",
    re.MULTILINE,
)
"""What a line of code assigns to: names, with commas between them."""

_LOOPS = re.compile(r"^[ \t]*+(?:async[ \t]++)?for\b([^\n:]*+)", re.MULTILINE)
"""What a loop assigns to, and goes over. (Comprehensions leave nothing.)"""

_NAME = re.compile(r"[A-Za-z_]\w*+")


class Variables:
    """Tells the variables of one node, after each of its turns. Only the names and types of them are known here."""

    def __init__(self) -> None:
        self._told: dict[str, Variable] = {}
        self._loops: set[str] = set()
        self._assigned: set[str] = set()

    @property
    def standing(self) -> tuple[tuple[Variable, ...], tuple[str, ...], tuple[str, ...]]:
        """The variables that were told, the names that loops assign to, and those that other code does."""
        return tuple(self._told.values()), tuple(sorted(self._loops)), tuple(sorted(self._assigned))

    def restore(self, told: Iterable[Variable], loops: Iterable[str], assigned: Iterable[str]) -> None:
        """Go on from a standing."""
        self._told = {one.name: one for one in told}
        self._loops, self._assigned = set(loops), set(assigned)

    def news(self, blocks: Iterable[str], now: Sequence[Variable]) -> str:
        """Say which variables are new, or changed, after code ran; `now` has all there are.

        One is changed where its type or length is another, or where the code assigns to it. One that only loops
        assigned to is left over from them, and left out.
        """
        assigned = {name for code in blocks for name in self._read(code)}
        leftovers = self._loops - self._assigned
        held = [one for one in now if not (one.type in _NOT_HELD or one.name in _OURS or one.name in leftovers)]
        news = [one for one in held if one.name in assigned or self._told.get(one.name) != one]
        self._told = {one.name: one for one in held}
        if not news:
            return "none"
        more = f", and {len(news) - MOST} more" if len(news) > MOST else ""
        return ", ".join(map(_named, news[-MOST:])) + more

    def _read(self, code: str) -> set[str]:
        """Note what code assigns to, and return that, without what its loops do."""
        for loop in _LOOPS.findall(code[:_MOST_CODE]):
            self._loops.update(_NAME.findall(loop.partition(" in ")[0]))
        assigned = {name for targets in _TARGETS.findall(code[:_MOST_CODE]) for name in _NAME.findall(targets)}
        self._assigned |= assigned
        return assigned


_MOST_CODE = 100_000
"""Characters of a block that are looked at."""


def _named(one: Variable) -> str:
    return f"{one.name}: {one.type}" + (f"[{one.length:,}]" if one.length >= 0 else "")
