"""The events of a live run: numbered as they happen, kept in that order, and told to watchers once they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from rlm_server.clock import now
from rlm_server.runs.events import Body, Event, EventOrigin, RunFinished
from rlm_server.runs.journal import Journal

_MAX_AT_ONCE = 256


class EventLog:
    """Numbers and keeps the events of one run. `serve` must run as a task as long as the run does."""

    def __init__(self, journal: Journal, run: str, last: int = 0) -> None:
        self._journal = journal
        self._run = run
        self._last = last
        self._waiting: list[Event] = []
        self._news = asyncio.Event()
        self._kept = asyncio.Condition()
        self._kept_number = last
        self._over = False

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._last

    def emit(self, origin: EventOrigin, body: Body) -> None:
        """Give an event the next number; it is kept soon after, in order."""
        self._last += 1
        self._waiting.append(Event(self._last, now(), origin, body))
        self._news.set()

    async def serve(self) -> None:
        """Keep events until the last one of the run."""
        try:
            await self._keep_all()
        finally:
            async with self._kept:
                self._over = True
                self._kept.notify_all()

    async def _keep_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            events, self._waiting = self._waiting, []
            await self._journal.append(self._run, events)
            async with self._kept:
                self._kept_number = events[-1].sequence
                self._kept.notify_all()
            if any(isinstance(event.body, RunFinished) for event in events):
                return

    async def watch(self, from_sequence: int) -> AsyncIterator[Event]:
        """Yield every event from a number on, those to come included, until the run's last."""
        wanted = max(1, from_sequence)
        while True:
            over = self._over
            events = await self._journal.events(self._run, wanted, _MAX_AT_ONCE)
            for event in events:
                yield event
                if isinstance(event.body, RunFinished):
                    return
            if over and not events:
                return
            wanted += len(events)
            await self._until_kept(wanted)

    async def _until_kept(self, number: int) -> None:
        async with self._kept:
            await self._kept.wait_for(lambda: self._over or self._kept_number >= number)


async def replay(journal: Journal, run: str, from_sequence: int) -> AsyncIterator[Event]:
    """Yield the kept events of a run that has ended, from a number on."""
    wanted = max(1, from_sequence)
    while events := await journal.events(run, wanted, _MAX_AT_ONCE):
        for event in events:
            yield event
        wanted += len(events)
