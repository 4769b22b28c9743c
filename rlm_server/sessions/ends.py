"""When a limit of time ends a session, and why sessions ended that one has ended."""

from __future__ import annotations

import time
from collections import OrderedDict

from rlm_server.sessions.session import ReplSession

REMEMBERED_ENDS = 10_000
"""Of sessions that a limit ended; the oldest are forgotten first."""

LOOK_SECONDS = 30.0
"""At least so often the sessions are looked at."""


class SessionEnded(Exception):
    """The session is no longer there: it was deleted, or a limit ended it, which the message names."""


class Ends:
    """The limits of time on every session, in seconds, and the ends they brought about.

    A session may exist for `life_seconds`, and be without a turn for `idle_seconds`.
    """

    def __init__(self, *, idle_seconds: float, life_seconds: float) -> None:
        self._idle_seconds, self._life_seconds = idle_seconds, life_seconds
        self._reasons: OrderedDict[tuple[str, str], str] = OrderedDict()  # by tenant and session

    @property
    def look_seconds(self) -> float:
        """How long to wait from one look at the sessions to the next."""
        return min(LOOK_SECONDS, self._idle_seconds, self._life_seconds)

    def due(self, session: ReplSession) -> str:
        """Name the limit that a session has reached; nothing where it has reached none."""
        now = time.monotonic()
        if now - session.began_at > self._life_seconds:
            return f"the session was ended: it may exist for {self._life_seconds:g} s (session_seconds)"
        if not session.running and now - session.used_at > self._idle_seconds:
            limit = f"{self._idle_seconds:g} s (session_idle_seconds)"
            return f"the session was ended: it may be without a turn for {limit}"
        return ""

    def remember(self, session: ReplSession, reason: str) -> None:
        """Keep why a session ended."""
        self._reasons[session.asked.tenant, session.id] = reason
        while len(self._reasons) > REMEMBERED_ENDS:
            self._reasons.popitem(last=False)

    def check(self, tenant: str, session_id: str) -> None:
        """Tell a tenant why its session ended, where a limit ended it.

        Raises:
            SessionEnded: a limit did.
        """
        if (tenant, session_id) in self._reasons:
            raise SessionEnded(self._reasons[tenant, session_id])
