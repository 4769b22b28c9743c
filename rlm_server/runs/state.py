"""The states of a run and of each node of its tree, and the moves between them."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is. `exhausted`: a limit ended it, and the reason names that limit."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXHAUSTED = "exhausted"

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return not MOVES[self]


_ENDS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.EXHAUSTED})

MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.FAILED, RunState.CANCELLED}),
    RunState.RUNNING: _ENDS,
    **{end: frozenset() for end in _ENDS},
}


class EndReason(StrEnum):
    """Why a run, or a node of one, ended without its answer."""

    CANCELLED = "cancelled"
    TURNS = "max_turns"
    WALL_TIME = "wall_seconds"
    BUDGET_NANO_USD = "budget.nano_usd"
    BUDGET_TOKENS = "budget.tokens"
    BUDGET_CALLS = "budget.calls"
    BUDGET_CPU_TIME = "budget.cpu_ms"
    ERRORS_IN_A_ROW = "errors_in_a_row"
    NO_PROGRESS = "no progress"
    EVENT_BYTES = "event_bytes"
    KEPT_BYTES = "tenant_kept_bytes"
    MODEL_FAILED = "the model"
    SERVER_STOPPED = "the server stopped"
    ANSWER_SCHEMA = "answer_schema"
    FAILED = "failed"

    @classmethod
    def of(cls, state: RunState, reason: str) -> EndReason | None:
        """Return what a reason in words says, or None where the state needs none. A reason begins with its value."""
        match state:
            case RunState.CANCELLED:
                return cls.CANCELLED
            case RunState.EXHAUSTED | RunState.FAILED:
                said = (one for one in cls if reason.startswith(one))
                return next(said, cls.FAILED)
        return None


_OTHERS_WORDS = (EndReason.MODEL_FAILED, EndReason.FAILED)
"""Where these are the reason, what follows may be in the words of others."""


def own_words(reason: str) -> str:
    """Return what of a reason is surely in the server's own words: all of one that names a limit.

    Where a model did not answer, what kind of failure it was is among them. A reason keeps its `EndReason`.
    """
    named = next((one for one in EndReason if reason.startswith(one)), EndReason.FAILED)
    if not reason or named not in _OTHERS_WORDS:
        return reason
    return ": ".join(reason.split(": ")[:2]) if named is EndReason.MODEL_FAILED else EndReason.FAILED.value


class NodeEnded(Exception):
    """A node's work ends without an answer, in this state; the message is the reason."""

    def __init__(self, state: RunState, reason: str) -> None:
        super().__init__(reason)
        self.state = state


def move(now: RunState, then: RunState) -> RunState:
    """Return `then`.

    Raises:
        ValueError: that move is not in the table.
    """
    if then not in MOVES[now]:
        raise ValueError(f"a run that is {now} cannot become {then}")
    return then
