"""What calls cost, while it is being written into the books and whoever made the calls already goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from rlm_server.database.engine import DatabaseError

log = logging.getLogger(__name__)

PATIENCE = 0.005
"""Seconds that the cost of a call of code waits for another write: the next call's hold is one, and they share a
commit."""


class Owed:
    """The costs of one payer's calls that are not in the books yet. `hurry` has what waits there written at once."""

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._under_way: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any]) -> None:
        """Count what writes a cost, or waits for that."""
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, DatabaseError):  # of that, whoever wants what it found is told
            log.error("what a call cost could not be written into the books", exc_info=error)

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._under_way)

    async def settled(self) -> None:
        """Wait until all are in the books, or cannot be."""
        if self._under_way:
            self._hurry()
            await asyncio.wait(self._under_way)
