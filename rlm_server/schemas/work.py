"""What looking at a value by a schema takes: counted, and ended at a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rlm_server.contexts.search import PatternRefused, Regexp, compiled
from rlm_server.schemas.values import counted

MAX_STEPS = 1_000_000
"""Steps of work for which a value is looked at: about one for each keyword of a schema at each value. Some 4 s."""

ERROR_STEPS = 50
"""Steps that something which is wrong counts as, as it takes memory until all is looked at."""

PATTERN_STEP = 1 << 10
"""Instructions of RE2 times bytes of a text that are a step."""

PATTERN_MEMORY = 1 << 20
"""Bytes that RE2 may use for one pattern of a schema."""

COMPILING = 50
"""Steps that compiling a pattern counts as, beside its instructions."""

COMPILING_STEP = 1 << 4
"""Instructions of RE2 that are a step as they are compiled."""

_KEPT = 32
"""Compiled patterns that are kept."""

_LOOK_EVERY = 256
"""Steps after which other threads have their turn, and it is asked whether to go on."""


class TooMuchWork(Exception):
    """A value takes more steps than there may be, or it was stopped; the message says which."""


class Work:
    """Counts steps, and keeps the patterns that were compiled. `cancelled` says that it is to stop."""

    def __init__(self, cancelled: Callable[[], bool] = lambda: False, most: int = MAX_STEPS) -> None:
        self._cancelled, self._most = cancelled, most
        self._left, self._look_at = most, most - _LOOK_EVERY
        self._patterns: dict[str, Regexp] = {}
        self._weights: dict[int, int] = {}

    def spend(self, steps: int) -> None:
        """Count steps before they are taken.

        Raises:
            TooMuchWork: there are no more.
        """
        self._left -= steps
        if self._left < 0:
            raise TooMuchWork(f"looking at it takes more than {self._most} steps")
        if self._left < self._look_at:
            self._look_at = self._left - _LOOK_EVERY
            time.sleep(0)
            if self._cancelled():
                raise TooMuchWork("looking at it was stopped")

    def weight(self, of_schema: Any) -> int:
        """Return how many values there are in a part of a schema, which stays where it is."""
        known = self._weights.get(id(of_schema))
        if known is None:
            known = self._weights[id(of_schema)] = counted(of_schema)
        return known

    def matches(self, pattern: str, text: str) -> bool:
        """Say whether a pattern is found in a text, in time linear in that.

        Raises:
            PatternRefused: RE2 cannot compile it.
            TooMuchWork: there are no more steps.
        """
        known = self._compiled(pattern)
        data = text.encode("utf-8", "replace")
        self.spend(1 + len(data) * known.programsize // PATTERN_STEP)
        return known.search(memoryview(data), 0, len(data)) is not None

    def refusal_of(self, pattern: str) -> str | None:
        """Say why a pattern cannot be looked for in linear time, or None.

        Raises:
            TooMuchWork: there are no more steps.
        """
        try:
            self._compiled(pattern)
        except PatternRefused as error:
            return str(error)
        return None

    def _compiled(self, pattern: str) -> Regexp:
        known = self._patterns.get(pattern)
        if known is None:
            self.spend(COMPILING)
            known = compiled(pattern, PATTERN_MEMORY)
            self.spend(known.programsize // COMPILING_STEP)
            if len(self._patterns) >= _KEPT:
                self._patterns.clear()
            self._patterns[pattern] = known
        return known
