"""The guards of a node: turns without code, turns that fail one after another, and turns that repeat an earlier one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rlm_server.repl.limits import RunLimits
from rlm_server.runs.events import Guard
from rlm_server.runs.state import NodeEnded, RunState
from rlm_server.runs.told import notes as told
from sandbox.turn import Turn

NEAR = 3
"""Turns that may still fail when the model is told how many have."""


class Guards:
    """Looks at the turns of one node, one after another. `emit` is told of what the guards notice."""

    def __init__(self, limits: RunLimits, emit: Callable[[Guard], None]) -> None:
        self._limits = limits
        self._emit = emit
        self._errors = 0
        """Turns that failed, since the last that did not."""
        self._seen: Counter[bytes] = Counter()
        """Turns with code, by the digest of that and of what came of it."""

    @property
    def standing(self) -> tuple[int, dict[str, int]]:
        """How many turns have failed in a row, and how often each turn came, by its digest in hex digits."""
        return self._errors, {digest.hex(): count for digest, count in self._seen.items()}

    def restore(self, errors: int, seen: Mapping[str, int]) -> None:
        """Go on from a standing."""
        self._errors, self._seen = errors, Counter({bytes.fromhex(digest): count for digest, count in seen.items()})

    def look(self, blocks: Sequence[str], results: Sequence[Turn], nothing: Guard | None = None) -> list[str]:
        """Look at a turn, its code blocks and what came of those that ran, and return what the model is to be told.

        `nothing` says why there are no blocks.

        Raises:
            NodeEnded: too many turns failed in a row, or were the same.
        """
        if nothing is not None:
            self._emit(nothing)
        notes = self._repeats(blocks, results) if blocks else []
        failed = not blocks or results[-1].error is not None
        self._errors = self._errors + 1 if failed else 0
        if self._errors >= self._limits.errors_in_a_row:
            raise NodeEnded(RunState.EXHAUSTED, f"errors_in_a_row: {self._errors} turns in a row failed")
        if self._errors > 1 and self._errors + NEAR >= self._limits.errors_in_a_row:
            notes.append(told.failing(self._errors, self._limits.errors_in_a_row))
        return notes

    def _repeats(self, blocks: Sequence[str], results: Sequence[Turn]) -> list[str]:
        outcomes = ((turn.status, turn.stdout, turn.error and turn.error.message) for turn in results)
        turn = hashlib.sha256(repr((tuple(blocks), *outcomes)).encode("utf-8", "replace")).digest()
        self._seen[turn] += 1
        times = self._seen[turn]
        if times == 1:
            return []
        self._emit(Guard("repeated", "the code and what came of it are those of an earlier turn"))
        if times >= self._limits.repeats:
            raise NodeEnded(RunState.EXHAUSTED, f"no progress: the same code gave the same result {times} times")
        return [told.repeated(times, self._limits.repeats)]
