"""Which contexts are in use, and when each was last used."""

from __future__ import annotations

from collections import Counter

from rlm_server.clock import now


class Pins:
    """Counts the users of each context. The files of one that has users stay, even where it is deleted.

    The times of use, in Unix milliseconds, are kept here until they are recorded in the contexts' rows.
    """

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._used_at: dict[str, int] = {}

    def pin(self, context_id: str) -> None:
        """Add a user."""
        self._users[context_id] += 1

    def unpin(self, context_id: str) -> None:
        """Take a user away."""
        self.touch(context_id)
        self._users[context_id] -= 1
        if not self._users[context_id]:
            del self._users[context_id]

    def users(self, context_id: str) -> int:
        """Return how many use a context."""
        return self._users[context_id]

    def touch(self, context_id: str) -> None:
        """Note that a context is used now."""
        self._used_at[context_id] = now()

    def used_at(self, context_id: str, recorded: int) -> int:
        """Return when a context was last used: the unrecorded time, or else the one in its row."""
        return self._used_at.get(context_id, recorded)

    def unrecorded(self) -> dict[str, int]:
        """Return the times of use that rows do not have yet. A pinned context counts as used now."""
        return {**self._used_at, **dict.fromkeys(self._users, now())}

    def recorded(self, used: dict[str, int]) -> None:
        """Forget times of use that rows have now, unless a later one came meanwhile."""
        for context_id, at in used.items():
            if self._used_at.get(context_id) == at:
                del self._used_at[context_id]

    def forget(self, context_id: str) -> None:
        """Forget when a removed context was used."""
        self._used_at.pop(context_id, None)
