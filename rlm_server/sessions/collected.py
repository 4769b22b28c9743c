"""What came of a turn whose caller wants its result alone."""

from __future__ import annotations

from rlm_server.ledger import Amounts
from rlm_server.repl.events import CallFinished, CodeFinished, FinishedCall, UntoldCalls
from rlm_server.sessions.happenings import Happening
from sandbox.turn import Turn

COLLECTED_CALLS = 100
"""Model calls of a turn that are told one by one."""


class Collected:
    """The result of one turn with its output, its first model calls, and what all of them cost."""

    gathers_output = False

    def __init__(self) -> None:
        self.calls: list[FinishedCall] = []
        self.more_calls = 0
        self.spent = Amounts()
        self.remembered = False
        """Whether this is the result of a request that had run before, which has neither output nor calls."""
        self._result: Turn | None = None
        self._error: BaseException | None = None

    @property
    def result(self) -> Turn:
        """How the turn ended."""
        if self._result is None:
            raise RuntimeError("the turn has not ended")
        return self._result

    def put(self, happening: Happening) -> None:
        """Take what has happened."""
        match happening:
            case CallFinished(call=call):
                self.spent += call.spent
                if len(self.calls) < COLLECTED_CALLS:
                    self.calls.append(call)
                else:
                    self.more_calls += 1
            case UntoldCalls(from_memory=from_memory, failed=failed):
                self.more_calls += from_memory + failed
            case CodeFinished(result=result):
                self._result = result

    def end(self, error: BaseException | None = None) -> None:
        """Hear that no more happens."""
        self._error = error

    def check(self) -> None:
        """Raise why the turn could not be run, or not to its end."""
        if self._error is not None:
            raise self._error
