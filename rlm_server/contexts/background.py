"""Work in the background of calls: tasks that end with the server, and work that is repeated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

UPKEEP_SECONDS = 300.0
"""Between two rounds of upkeep, at most."""


class Background:
    """Background tasks. An async context manager: tasks that are left at its end are cancelled and waited for."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def keep_up(what: str, work: Callable[[], Awaitable[object]], pause_seconds: float | Callable[[], float]) -> None:
    """Repeat work until cancelled, pausing after each round. A round that fails is logged, and the next follows.

    `what` names the work in the log.
    """
    while True:
        try:
            await work()
        except Exception:
            log.exception("the %s could not be kept up; it is tried again later", what)
        pause = pause_seconds() if callable(pause_seconds) else pause_seconds
        await asyncio.sleep(min(pause, UPKEEP_SECONDS))
