"""How the model calls of a turn are counted and told: what cost something singly, what was free up to a bound.

Every call that a model answered, or that may have been billed, is told as it starts and as it ends. Of those that were
answered from memory, and of those that failed for nothing, the first `TOLD_SINGLY` of a turn are. The others are only
counted, and the result of the turn says how many they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlm_server.ledger import Amounts
from rlm_server.repl.bounds import MAX_ERROR, cut
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, FinishedCall, UntoldCalls

TOLD_SINGLY = 100
"""Calls of a turn answered from memory, and as many that failed for nothing, that have events of their own."""

MAX_NOTES = 8
"""Notes of a turn that differ."""

Report = Callable[[CallStarted | CallFinished | CallTraced], None]
"""Told of calls as they start and end."""


@dataclass(slots=True)
class Failures:
    """How many calls of a whole run, or session, have failed."""

    count: int = 0


@dataclass(slots=True)
class Call:
    """A call. `told` says whether its start was told, and so its end must be. `held` says whether it ever had a hold,
    and so may have cost something."""

    id: str
    model: str
    prompt_characters: int
    told: bool = False
    held: bool = False


class Tally:
    """Counts and tells the calls of one turn."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.failed = 0
        """Calls that failed, and requests that were refused because none of theirs could have been made."""
        self.notes: dict[str, int] = {}
        """What the model that wrote the code is to be told of its calls, and of how many."""
        self._memory_told = self._failures_told = 0
        self._memory_untold = self._failures_untold = 0

    @property
    def untold(self) -> UntoldCalls:
        """How many calls so far have no events of their own."""
        return UntoldCalls(self._memory_untold, self._failures_untold)

    def started(self, call: Call) -> None:
        """A call starts."""
        if self._failures_told < TOLD_SINGLY:
            self._tell_start(call)

    def answered(self, call: Call, model: str, spent: Amounts, reply_characters: int) -> None:
        """A model answered a call: `model` did."""
        self._tell_start(call)
        self._report(CallFinished(FinishedCall(call.id, model, spent), reply_characters))

    def ended(self, call: Call, spent: Amounts, error: str) -> None:
        """A call ended without an answer: it failed, or was given up."""
        if not call.told and spent == Amounts():
            self._failures_untold += 1
            return
        self._failures_told += spent == Amounts()
        self._tell_start(call)
        self._report(CallFinished(FinishedCall(call.id, call.model, spent, error=cut(error, MAX_ERROR)), 0))

    def from_memory(self, call: Call, model: str, reply_characters: int) -> None:
        """A call was answered from memory, for nothing: `model` had answered."""
        if self._memory_told == TOLD_SINGLY:
            self._memory_untold += 1
            return
        self._memory_told += 1
        self._tell_start(call)
        self._report(CallFinished(FinishedCall(call.id, model, Amounts(), memo=True), reply_characters))

    def note(self, text: str, calls: int) -> None:
        """So many calls had something that the model which wrote the code is to be told."""
        if text in self.notes or len(self.notes) < MAX_NOTES:
            self.notes[text] = self.notes.get(text, 0) + calls

    def not_made(self, count: int) -> None:
        """So many calls were not made, because of what became of others."""
        self._failures_untold += count

    def _tell_start(self, call: Call) -> None:
        if not call.told:
            call.told = True
            self._report(CallStarted(call.id, call.model, call.prompt_characters))
