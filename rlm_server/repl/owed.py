"""What calls cost, while it is being written into the books and whoever made the calls already goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

log = logging.getLogger(__name__)

PATIENCE = 0.005
"""Seconds that the cost of a call of code waits for another write: the next call's hold is one, and they share a
commit."""


class Owed:
    """The costs of one payer's calls that are not in the books yet. `hurry` has what waits there written at once."""

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._wanted = 0
        """How many wait for all to be in the books."""
        self._under_way: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any], told: tuple[type[Exception], ...] = ()) -> None:
        """Count what writes a cost, or waits for that. Whoever wants what it finds is `told` of such failures."""
        self._under_way.add(task)
        task.add_done_callback(partial(self._ended, told))

    def _ended(self, told: tuple[type[Exception], ...], task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, told):
            log.error("what a call cost could not be written into the books", exc_info=error)

    def patience(self) -> float:
        """Say how many seconds a cost may wait for another write."""
        return 0.0 if self._wanted else PATIENCE

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._under_way)

    async def settled(self) -> None:
        """Wait until all are in the books, or cannot be."""
        if not self._under_way:
            return
        self._wanted += 1
        try:
            self._hurry()
            await asyncio.wait(self._under_way)
        finally:
            self._wanted -= 1
