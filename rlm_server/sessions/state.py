"""The states of a session, the moves between them, and why sessions end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SessionState(StrEnum):
    """Where a session is. `paused`: it is stored and has no memory until its next turn."""

    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"


MOVES: dict[SessionState, frozenset[SessionState]] = {
    SessionState.ACTIVE: frozenset({SessionState.PAUSED, SessionState.ENDED}),
    SessionState.PAUSED: frozenset({SessionState.ACTIVE, SessionState.ENDED}),
    SessionState.ENDED: frozenset(),
}


class EndReason(StrEnum):
    """Why a session ended. `restart`: the server restarted, and had not stored it."""

    DELETED = "deleted"
    IDLE_TIME = "idle_time"
    LIFE_TIME = "life_time"
    RESTART = "restart"
    STATE_LOST = "state_lost"


@dataclass(frozen=True, slots=True)
class End:
    """How a session ended: why, in words too, and when (Unix milliseconds)."""

    reason: EndReason
    message: str
    at: int


class SessionEnded(Exception):
    """The session takes no more turns. `end` says how it ended."""

    def __init__(self, session: str, end: End) -> None:
        super().__init__(end.message)
        self.session, self.end = session, end


def move(before: SessionState, after: SessionState) -> SessionState:
    """Return the state after a move.

    Raises:
        ValueError: the state before does not allow it.
    """
    if after not in MOVES[before]:
        raise ValueError(f"a session that is {before} does not become {after}")
    return after
