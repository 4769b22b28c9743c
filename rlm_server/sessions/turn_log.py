"""What happens in a detached turn, kept for whoever watches it, and whenever: the newest of it, bounded in bytes."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from rlm_server.repl.events import CodeFinished
from rlm_server.sessions.happenings import EVENT_BYTES, Happening, LeftOut, size_of, without_output
from rlm_server.shares.held import Held, TooMuchHeld

LOG_BYTES = 4 << 20
"""Bytes that are kept of what happens in one detached turn."""


@dataclass(frozen=True, slots=True)
class Told:
    """What happened in a turn, and its number in a detached turn, from 1; 0 in another. None: nothing for a while."""

    happening: Happening | None
    sequence: int = 0


class TurnLog:
    """The newest happenings of one turn, numbered from 1. What is kept is counted in `held` until `close`.

    Where the tenant may have no more of the server's memory, the oldest are let go, too.
    """

    gathers_output = True

    def __init__(self, tenant: str, held: Held, code: str) -> None:
        """Begin a log, and count the turn's code with it, which nobody else holds.

        Raises:
            TooMuchHeld: the tenant may have no more of the server's memory.
        """
        self._tenant, self._held = tenant, held
        self._overhead = EVENT_BYTES + sys.getsizeof(code)
        held.take(tenant, self._overhead, "a detached turn")
        self._kept: deque[tuple[Happening, int]] = deque()
        self._size = 0
        self._last = 0
        """The number of the newest."""
        self._error: BaseException | None = None
        self._ended = False
        self._news: asyncio.Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the turn could not be run, or not to its end."""
        return self._error is not None

    @property
    def _first(self) -> int:
        """The number of the oldest that is kept."""
        return self._last - len(self._kept) + 1

    def put(self, happening: Happening) -> None:
        """Take what has happened."""
        if isinstance(happening, CodeFinished):
            happening = without_output(happening)
        size = size_of(happening)
        self._last += 1
        self._kept.append((happening, 0))
        while self._size + size > LOG_BYTES and len(self._kept) > 1:
            self._let_go()
        if self._count(size):
            self._kept[-1] = (happening, size)
        elif not isinstance(happening, CodeFinished):  # the result always comes
            self._kept.clear()
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more happens; with an error that the turn could not be run, or not to its end."""
        self._ended, self._error = True, error
        self._tell()

    def close(self) -> None:
        """Let go of all but the result. Nobody is told that."""
        while self._kept and not isinstance(self._kept[0][0], CodeFinished):
            self._let_go()
        self._held.give_back(self._tenant, self._overhead + self._size)
        self._overhead = self._size = 0

    async def each(self, first: int, quiet_seconds: float) -> AsyncGenerator[Told, None]:
        """Yield what happens from a number on until the end, and None whenever nothing has for so long.

        Raises:
            Exception: why the turn could not be run, or not to its end.
        """
        following = max(1, first)
        while True:
            if following < self._first:
                yield Told(LeftOut(self._first - following, 0), self._first - 1)
                following = self._first
            elif following <= self._last:
                happening, _ = self._kept[following - self._first]
                yield Told(happening, following)
                following += 1
            elif self._ended:
                break
            elif not await self._wait(quiet_seconds):
                yield Told(None)
        if self._error is not None:
            raise self._error

    async def _wait(self, seconds: float) -> bool:
        """Wait for news; say whether they came within so many seconds."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return bool((await asyncio.wait([self._news], timeout=seconds))[0])

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def _count(self, size: int) -> bool:
        """Count bytes; let go of older ones where the tenant may have no more."""
        while True:
            try:
                self._held.take(self._tenant, size, "what happened in a turn")
            except TooMuchHeld:
                if len(self._kept) < 2:
                    return False
                self._let_go()
            else:
                self._size += size
                return True

    def _let_go(self) -> None:
        _, size = self._kept.popleft()
        self._size -= size
        self._held.give_back(self._tenant, size)
