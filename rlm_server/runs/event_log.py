"""The events of a live run: numbered as they happen, kept in that order, and told to watchers once they are kept."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from rlm_server.clock import now
from rlm_server.repl.events import Printed
from rlm_server.runs.cuts import pieces
from rlm_server.runs.events import Body, Event, EventOrigin, RunFinished, WrittenEvent, written
from rlm_server.runs.journal import PATIENCE, Journal
from rlm_server.runs.redaction import UNREDACTED, RunRedaction
from rlm_server.runs.state import NodeEnded, RunState

_MAX_AT_ONCE = 64
"""Events that a watcher reads and has in memory at once."""
MAX_BATCH_BYTES = 256 << 10
"""Of events that are kept in one transaction, so that other writes get their turn."""
WAITING_BYTES = 1 << 20
"""Of events that wait to be kept: above it, a run's nodes wait before they go on."""

RECENT_BYTES = 128 << 10
"""Of events that were kept last, which watchers are told from memory: those who are further behind have them read."""

GATHER_SECONDS = 0.01
"""For how long after an event is kept others are gathered, to be told with it. Output and the end are told at once."""

OUTPUT_PATIENCE = 0.003
"""Seconds that what the code prints waits to be kept with another write: somebody may be watching for it. Other events
wait for `PATIENCE`."""


Pace = Callable[[], Awaitable[None]]
"""Waits until whoever watches may have work done."""


async def at_once() -> None:
    """Wait for nothing."""


@dataclass(frozen=True, slots=True)
class Quota:
    """How many bytes of events a run may have, and how many its tenant's runs may have together of all that is kept."""

    event_bytes: int
    tenant_kept_bytes: int


class WatchBroken(Exception):
    """What happens in the run is not kept at present, and goes on later."""

    def __init__(self) -> None:
        super().__init__("the run goes on later: watch again from the last number seen")


class _Recent:
    """The events that were kept last. None are held while nobody watches."""

    def __init__(self) -> None:
        self._events: deque[WrittenEvent] = deque()
        self._bytes = 0
        self._watchers = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hold events that are kept from now on."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._events.clear()
                self._bytes = 0

    def add(self, events: list[WrittenEvent]) -> None:
        """Add events that follow those before."""
        if not self._watchers:
            return
        self._events += events
        self._bytes += sum(event.size for event in events)
        while self._bytes > RECENT_BYTES:
            self._bytes -= self._events.popleft().size

    def since(self, number: int) -> list[Event]:
        """Return events from a number on, where that one is here."""
        first = self._events[0].event.sequence if self._events else number + 1
        if number < first:
            return []
        return [written.event for written in islice(self._events, number - first, number - first + _MAX_AT_ONCE)]


class EventLog:
    """Numbers and keeps the events of one run. `serve` must run as a task as long as the run does."""

    def __init__(
        self,
        journal: Journal,
        run: str,
        quota: Quota,
        last: int = 0,
        redaction: RunRedaction = UNREDACTED,
        *,
        before: Callable[[WrittenEvent], None] = lambda _: None,
        size: int = 0,
    ) -> None:
        """Begin after event number `last`; those up to it have `size` bytes. Each is told `before` it waits."""
        self._journal = journal
        self.before = before
        self._run = run
        self._quota = quota
        self._redaction = redaction
        self._last = last
        self._bytes = size
        self._waiting: deque[WrittenEvent] = deque()
        self._waiting_bytes = 0
        self._patience = PATIENCE
        """Of the most urgent event that waits."""
        self._keeping: float | None = None
        """The patience of what is being kept, where something is."""
        self._news = asyncio.Event()
        self._kept = asyncio.Event()
        """Set for a moment each time that events were kept, and at the end."""
        self._kept_number = self._urgent_number = last
        """Of the last event that is kept, and of the last among them that is to be told at once."""
        self._recent = _Recent()
        self._over = self._stopping = self._finished = False
        self.closed: asyncio.Future[NodeEnded] = asyncio.get_running_loop().create_future()
        """Done when a quota is reached or nothing can be kept any more, with how the nodes are to end. Events of that
        are taken all the same, so that there is room for them."""

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._last

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of events wait to be kept."""
        return self._waiting_bytes

    def emit(self, origin: EventOrigin, body: Body) -> None:
        """Give an event the next number; it is kept soon after, in order. Long output becomes several."""
        if isinstance(body, Printed):
            for piece in pieces(body.text):
                self._take(origin, Printed(body.stream, piece))
        else:
            self._take(origin, body)

    def _take(self, origin: EventOrigin, body: Body) -> None:
        if self._over:  # nobody keeps it, and a watcher is told only of what is kept
            return
        self._last += 1
        event = written(Event(self._last, now(), origin, body), self._redaction)
        self.before(event)
        self._waiting.append(event)
        self._waiting_bytes += event.size
        self._bytes += event.size
        crowded = self._waiting_bytes > MAX_BATCH_BYTES
        self._patience = min(self._patience, 0.0 if crowded else _patience(body))
        if self._keeping is not None and self._patience < self._keeping:
            self._keeping = self._patience
            self._journal.hurry(self._patience)
        self._news.set()
        if self._bytes >= self._quota.event_bytes:
            self._close(RunState.EXHAUSTED, f"event_bytes: a run's events may have {self._quota.event_bytes} bytes")

    def _close(self, state: RunState, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(NodeEnded(state, reason))

    async def room(self) -> None:
        """Wait until few enough events wait to be kept. What makes events calls it before it makes more."""
        while self._waiting_bytes > WAITING_BYTES and not self._over:
            await self._kept.wait()

    def stop(self) -> None:
        """Have what waits kept, and take no more, though the run has not ended."""
        self._stopping = True
        self._news.set()

    async def flushed(self) -> bool:
        """Wait until all events so far are kept; False where they cannot be."""
        while self._kept_number < self._last and not self._over:
            await self._kept.wait()
        return not self._over

    async def serve(self) -> None:
        """Keep events until the last one of the run, or until the log is stopped."""
        try:
            await self._keep_all()
        finally:
            self._close(RunState.FAILED, "what happens in the run can no longer be kept")
            self._over = True
            self._wake()

    async def _keep_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                events = self._batch()
                kept = await self._append(events)
                if kept >= self._quota.tenant_kept_bytes:
                    reason = f"tenant_kept_bytes: {used_up(kept, self._quota.tenant_kept_bytes)}"
                    self._close(RunState.EXHAUSTED, reason)
                self._note_kept(events)
                if isinstance(events[-1].event.body, RunFinished):
                    self._finished = True
                    return
            if self._stopping:
                return

    def _note_kept(self, events: list[WrittenEvent]) -> None:
        self._waiting_bytes -= sum(event.size for event in events)
        self._recent.add(events)
        self._kept_number = events[-1].event.sequence
        for event in events:
            if _patience(event.event.body) < PATIENCE:
                self._urgent_number = event.event.sequence
        self._wake()

    def _wake(self) -> None:
        self._kept.set()
        self._kept.clear()

    async def _append(self, events: list[WrittenEvent]) -> int:
        self._keeping = 0.0 if self._waiting else self._patience
        if not self._waiting:
            self._patience = PATIENCE
        try:
            return await self._journal.append(self._run, events, patience=self._keeping)
        finally:
            self._keeping = None

    def _batch(self) -> list[WrittenEvent]:
        events, size = [self._waiting.popleft()], 0
        while self._waiting and (size := size + events[-1].size) + self._waiting[0].size <= MAX_BATCH_BYTES:
            events.append(self._waiting.popleft())
        return events

    async def watch(self, from_sequence: int, pace: Pace = at_once) -> AsyncGenerator[list[Event], None]:
        """Yield every event from a number on, those to come included, until the run's last: as many as are there.

        `pace` is awaited before events are read from the database.
        """
        wanted = max(1, from_sequence)
        with self._recent.watched():
            while True:
                over = self._over
                events = await self._there(wanted, pace)
                if events:
                    yield events
                if _ends(events):
                    return
                if over and not events:
                    if not self._finished:
                        raise WatchBroken
                    return
                wanted += len(events)
                await self._until_worth_telling(wanted)

    async def _there(self, wanted: int, pace: Pace) -> list[Event]:
        """Return the kept events from a number on, or the first of them."""
        if wanted > self._kept_number and not self._over:
            return []
        recent = self._recent.since(wanted)
        if recent:
            return recent
        await pace()
        return await self._journal.events(self._run, wanted, _MAX_AT_ONCE)

    async def _until_worth_telling(self, number: int) -> None:
        """Wait until an event of this number is kept, and, where it is not urgent, a moment for those that follow."""
        while self._kept_number < number and not self._over:
            await self._kept.wait()
            if self._urgent_number < number:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GATHER_SECONDS):
                        while self._urgent_number < number and not self._over:
                            await self._kept.wait()


def _patience(body: Body) -> float:
    if isinstance(body, RunFinished):
        return 0.0
    return OUTPUT_PATIENCE if isinstance(body, Printed) else PATIENCE


def _ends(events: list[Event]) -> bool:
    return bool(events) and isinstance(events[-1].body, RunFinished)


async def replay(
    journal: Journal, run: str, from_sequence: int, pace: Pace = at_once
) -> AsyncGenerator[list[Event], None]:
    """Yield the kept events of a run that has ended, from a number on, some at a time.

    `pace` is awaited before they are read.
    """
    wanted = max(1, from_sequence)
    while True:
        await pace()
        events = await journal.events(run, wanted, _MAX_AT_ONCE)
        if not events:
            return
        yield events
        wanted += len(events)


def used_up(kept: int, most: int) -> str:
    """Say that a tenant's runs have as many bytes as they may, and what to do."""
    return f"{kept} of {most} bytes are kept of this tenant's runs: delete runs that have ended"
