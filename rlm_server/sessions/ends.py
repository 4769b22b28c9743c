"""When a limit of time ends a session."""

from __future__ import annotations

from collections.abc import Iterable

from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.session_table import SessionRow
from rlm_server.sessions.state import End, EndReason

LOOK_SECONDS = 30.0
"""At least so often the sessions are looked at."""

SOON_SECONDS = 1.0
"""A session whose time is over is ended within so many seconds, and at once where somebody asks for it."""


class Ends:
    """The limits of time on every session.

    A session may exist for `life_seconds`, and be without a turn for `idle_seconds`, or for less where it was made so.
    """

    def __init__(self, *, idle_seconds: float, life_seconds: float) -> None:
        self.idle_ms, self.life_ms = round(idle_seconds * 1000), round(life_seconds * 1000)

    def idle_of(self, row: SessionRow) -> int:
        """Return for how many milliseconds a session may be without a turn."""
        return self.idle_ms if row.idle_ms is None else min(row.idle_ms, self.idle_ms)

    def life_of(self, row: SessionRow) -> int:
        """Return for how many milliseconds a session may exist."""
        return self.life_ms if row.life_ms is None else min(row.life_ms, self.life_ms)

    def due(self, session: ReplSession, at: int) -> End | None:
        """Return how a session ends that has reached a limit by a time (Unix milliseconds); None where it has not."""
        life, idle = self.life_of(session.row), self.idle_of(session.row)
        if at >= session.row.created_at + life:
            limit = f"{life / 1000:g} s ({'life_time' if life < self.life_ms else 'session_seconds'})"
            return End(EndReason.LIFE_TIME, f"the session was ended: it may exist for {limit}", at)
        if not session.busy and at >= session.used_at + idle:
            limit = f"{idle / 1000:g} s ({'idle_time' if idle < self.idle_ms else 'session_idle_seconds'})"
            return End(EndReason.IDLE_TIME, f"the session was ended: it may be without a turn for {limit}", at)
        return None

    def pause(self, sessions: Iterable[ReplSession], at: int) -> float:
        """Return the seconds from a time on until one of some sessions may have reached a limit."""
        soonest = min((self.soonest(session) - at for session in sessions), default=self.life_ms) / 1000
        usual = min(LOOK_SECONDS, self.idle_ms / 1000, self.life_ms / 1000)
        return min(usual, max(soonest, min(SOON_SECONDS, usual)))

    def soonest(self, session: ReplSession) -> int:
        """Return when a session may reach a limit, in Unix milliseconds."""
        row = session.row
        return min(row.created_at + self.life_of(row), session.used_at + self.idle_of(row))
