"""Which contents are in use, and when each context was last used."""

from __future__ import annotations

from collections import Counter

from rlm_server.clock import now


class Pins:
    """Counts the users of each content. The files of one that has users stay, even where it is no context's any more.

    The times at which contexts were used, in Unix milliseconds, are kept here until they are recorded in their rows.
    """

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._readers: Counter[str] = Counter()  # of contexts
        self._used_at: dict[str, int] = {}

    def pin(self, context_id: str, content_id: str) -> None:
        """Add a user of a content, by one of its contexts."""
        self._users[content_id] += 1
        self._readers[context_id] += 1

    def unpin(self, context_id: str, content_id: str) -> None:
        """Take a user away."""
        self.touch(context_id)
        _take_one(self._users, content_id)
        _take_one(self._readers, context_id)

    def users(self, content_id: str) -> int:
        """Return how many use a content."""
        return self._users[content_id]

    def touch(self, context_id: str) -> None:
        """Note that a context is used now."""
        self._used_at[context_id] = now()

    def used_at(self, context_id: str, recorded: int) -> int:
        """Return when a context was last used: the unrecorded time, or else the one in its row."""
        return self._used_at.get(context_id, recorded)

    def unrecorded(self) -> dict[str, int]:
        """Return the times of use that rows do not have yet. A pinned context counts as used now."""
        return {**self._used_at, **dict.fromkeys(self._readers, now())}

    def recorded(self, used: dict[str, int]) -> None:
        """Forget times of use that rows have now, unless a later one came meanwhile."""
        for context_id, at in used.items():
            if self._used_at.get(context_id) == at:
                del self._used_at[context_id]


def _take_one(counter: Counter[str], of: str) -> None:
    counter[of] -= 1
    if not counter[of]:
        del counter[of]
