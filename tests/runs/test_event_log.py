"""Whoever watches a run, from whichever number and however slowly, gets every event once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.repl.events import Printed
from rlm_server.runs import event_log
from rlm_server.runs.event_log import OUTPUT_PATIENCE, EventLog, Quota, WatchBroken, replay
from rlm_server.runs.events import Body, Event, TurnStarted, WrittenEvent
from rlm_server.runs.journal import PATIENCE, Journal
from rlm_server.runs.state import RunState
from tests.runs.stage import AMPLE, END, ROOT, a_run
from tests.system.stage import eventually


def printed(text: str = "text") -> Printed:
    return Printed("stdout", text)


async def numbers(watched: AsyncIterator[list[Event]]) -> list[int]:
    return [event.sequence async for events in watched for event in events]


@dataclass
class MemoryJournal:
    """A journal in memory. Each order to it takes as many steps of the event loop as `pauses` says, in turn."""

    pauses: Sequence[int] = (0,)
    kept: list[Event] = field(default_factory=list)
    orders: int = 0

    async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
        await self._pause()
        self.kept += [written.event for written in events]
        return 0

    def hurry(self, patience: float) -> None:
        pass

    async def events(self, run: str, from_sequence: int, most: int) -> list[Event]:
        await self._pause()
        return [event for event in self.kept if event.sequence >= from_sequence][:most]

    async def _pause(self) -> None:
        self.orders += 1
        for _ in range(self.pauses[self.orders % len(self.pauses)]):
            await asyncio.sleep(0)


def a_log(journal: MemoryJournal) -> EventLog:
    there: Any = journal
    return EventLog(there, "run", AMPLE)


@dataclass
class Watcher:
    """Takes an event whenever it is let."""

    log: EventLog
    from_sequence: int
    may: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    seen: list[int] = field(default_factory=list)

    async def watch(self) -> None:
        async for events in self.log.watch(self.from_sequence):
            for event in events:
                await self.may.acquire()
                self.seen.append(event.sequence)


EMIT, STEP = "emit", "step"
acts = (
    st.just(EMIT)
    | st.just(STEP)
    | st.tuples(st.just("watch"), st.integers(-1, 12))
    | st.tuples(st.just("take"), st.integers(0, 3))
)


async def play(history: list[Any], journal: MemoryJournal) -> tuple[EventLog, list[Watcher]]:
    """Let happen what a history says, and then the end of the run."""
    log, watchers = a_log(journal), list[Watcher]()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        for act in history:
            match act:
                case "emit":
                    log.emit(ROOT, printed())
                case "step":
                    await asyncio.sleep(0)
                case ("watch", from_sequence):
                    watchers.append(Watcher(log, from_sequence))
                    group.create_task(watchers[-1].watch())
                case ("take", number) if watchers:
                    watchers[number % len(watchers)].may.release()
        log.emit(ROOT, END)
        for watcher in watchers:
            for _ in range(log.last):
                watcher.may.release()
    return log, watchers


@given(st.lists(acts, max_size=40), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_every_watcher_gets_every_number_once_and_in_order(history: list[Any], pauses: list[int]) -> None:
    async def check() -> None:
        journal = MemoryJournal(pauses)
        log, watchers = await play(history, journal)
        everything = list(range(1, history.count(EMIT) + 2))
        assert [event.sequence for event in journal.kept] == everything
        assert log.last == everything[-1]
        for watcher in watchers:
            assert watcher.seen == everything[max(0, watcher.from_sequence - 1) :]
        for from_sequence in range(-1, log.last + 3):
            rest = everything[max(0, from_sequence - 1) :]
            assert await numbers(log.watch(from_sequence)) == rest
            there: Any = journal
            assert await numbers(replay(there, "run", from_sequence)) == rest

    with patch.object(event_log, "_MAX_AT_ONCE", 3):
        asyncio.run(check())


async def test_an_event_is_told_only_once_it_is_kept() -> None:
    let = asyncio.Event()

    class Slow(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            await let.wait()
            return await super().append(run, events, patience=patience)

    log = a_log(Slow())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        watcher = Watcher(log, 1, asyncio.Semaphore(10))
        group.create_task(watcher.watch())
        log.emit(ROOT, printed())
        log.emit(ROOT, END)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (watcher.seen, log.last) == ([], 2)
        let.set()
    assert watcher.seen == [1, 2]


async def test_events_that_happen_while_others_are_written_are_written_together_afterwards() -> None:
    batches: list[int] = []

    class Counting(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            batches.append(len(events))
            if len(batches) == 1:
                for _ in range(5):
                    log.emit(ROOT, printed())
                log.emit(ROOT, END)
            return await super().append(run, events, patience=patience)

    log = a_log(Counting())
    log.emit(ROOT, printed())
    async with asyncio.timeout(60):
        await log.serve()
    assert batches == [1, 6]


@pytest.mark.parametrize(
    ("body", "patience"),
    [(TurnStarted(1), PATIENCE), (printed(), OUTPUT_PATIENCE), (END, 0.0)],
    ids=lambda one: str(one)[:12],
)
async def test_an_event_that_nobody_waits_for_waits_to_be_kept_with_other_writes_and_others_hurry_it(
    body: Body, patience: float
) -> None:
    asked: list[tuple[int, float]] = []
    hurried: list[float] = []
    let = asyncio.Event()

    class Slow(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            asked.append((len(events), patience))
            await let.wait()
            return await super().append(run, events, patience=patience)

        def hurry(self, patience: float) -> None:
            hurried.append(patience)

    log = a_log(Slow())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        log.emit(ROOT, TurnStarted(1))
        await eventually(lambda: asked)
        log.emit(ROOT, body)
        assert hurried == ([] if patience == PATIENCE else [patience])
        log.emit(ROOT, TurnStarted(2))
        let.set()
        await eventually(lambda: len(asked) == 2)
        assert asked == [(1, PATIENCE), (2, patience)]
        log.emit(ROOT, END)


async def test_a_watcher_who_takes_nothing_holds_up_nobody() -> None:
    log = a_log(MemoryJournal())
    idle, awake = Watcher(log, 1), Watcher(log, 1, asyncio.Semaphore(1000))
    async with asyncio.timeout(60):
        serving, waiting = asyncio.create_task(log.serve()), asyncio.create_task(idle.watch())
        watching = asyncio.create_task(awake.watch())
        for _ in range(999):
            log.emit(ROOT, printed())
        log.emit(ROOT, END)
        await serving
        await watching
        assert (len(awake.seen), idle.seen) == (1000, [])
        for _ in range(1000):
            idle.may.release()
        await waiting
    assert idle.seen == awake.seen


@dataclass
class ReadJournal(MemoryJournal):
    """A journal that remembers from which numbers on events were read."""

    read: list[int] = field(default_factory=list)

    async def events(self, run: str, from_sequence: int, most: int) -> list[Event]:
        self.read.append(from_sequence)
        return await super().events(run, from_sequence, most)


async def test_a_watcher_who_keeps_up_is_told_from_memory_and_who_falls_behind_has_events_read() -> None:
    journal = ReadJournal()
    log = a_log(journal)
    quick, slow = Watcher(log, 1, asyncio.Semaphore(1000)), Watcher(log, 1, asyncio.Semaphore(1))
    text = "x" * (event_log.RECENT_BYTES // 4)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for watcher in (quick, slow):
            group.create_task(watcher.watch())
        group.create_task(log.serve())
        for number in range(1, 11):
            log.emit(ROOT, printed(text))
            await eventually(lambda: quick.seen[-1:] == [number])  # noqa: B023
        assert (journal.read, slow.seen) == ([], [1])
        for _ in range(10):
            slow.may.release()
        log.emit(ROOT, END)
    assert quick.seen == slow.seen == list(range(1, 12))
    assert journal.read == [3]  # the second was on its way


async def test_what_code_prints_is_told_at_once_and_what_nobody_waits_for_with_what_follows_it() -> None:
    log = a_log(MemoryJournal())
    told: list[list[int]] = []

    async def watch() -> None:
        async for events in log.watch(1):
            told[-1] += [event.sequence for event in events]

    with patch.object(event_log, "GATHER_SECONDS", 3600.0):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(watch())
            group.create_task(log.serve())
            for body in (TurnStarted(1), TurnStarted(2), printed(), TurnStarted(3), END):
                told.append([])
                log.emit(ROOT, body)
                for _ in range(20):
                    await asyncio.sleep(0)
    assert told == [[], [], [1, 2, 3], [], [4, 5]]


async def test_events_are_read_from_the_database_at_the_pace_of_whoever_watches() -> None:
    journal = ReadJournal()
    log, there = a_log(journal), cast("Any", journal)
    may = asyncio.Semaphore(0)

    async def pace() -> None:
        await may.acquire()

    for body in (printed(), printed(), END):
        log.emit(ROOT, body)
    await log.serve()
    with patch.object(event_log, "_MAX_AT_ONCE", 2):
        for watched, needs in ((log.watch(1, pace), 2), (replay(there, "run", 1, pace), 3)):
            watching = asyncio.create_task(numbers(watched))
            for read in range(needs):
                for _ in range(20):
                    await asyncio.sleep(0)
                assert len(journal.read) == read
                may.release()
            assert await asyncio.wait_for(watching, 60) == [1, 2, 3]
            journal.read.clear()


async def test_nothing_is_held_of_a_run_that_nobody_watches_any_more() -> None:
    journal = ReadJournal()
    log = a_log(journal)
    serving = asyncio.create_task(log.serve())
    async with asyncio.timeout(60):
        first = log.watch(1)
        log.emit(ROOT, printed())
        assert [event.sequence for event in await anext(first)] == [1]
        await first.aclose()
        second = log.watch(1)
        assert [event.sequence for event in await anext(second)] == [1]
        await second.aclose()
        log.emit(ROOT, END)
        await serving
    assert journal.read == [1]


async def test_when_events_can_be_kept_no_more_watchers_get_those_that_are_and_do_not_wait() -> None:
    first_kept = asyncio.Event()

    class Failing(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            if self.kept:
                raise OSError("the disk is full")
            kept = await super().append(run, events)
            first_kept.set()
            return kept

    log = a_log(Failing())
    log.emit(ROOT, printed())
    async with asyncio.timeout(60):
        serving, watching = asyncio.create_task(log.serve()), asyncio.create_task(numbers(log.watch(1)))
        await first_kept.wait()
        log.emit(ROOT, printed("lost"))
        with pytest.raises(OSError, match="the disk is full"):
            await serving
        with pytest.raises(WatchBroken):
            await watching
        watched = log.watch(1)
        assert [event.sequence for event in await anext(watched)] == [1]
        with pytest.raises(WatchBroken):
            await anext(watched)


async def test_when_the_keeping_is_stopped_watchers_do_not_wait() -> None:
    log = a_log(MemoryJournal())
    async with asyncio.timeout(60):
        serving, watching = asyncio.create_task(log.serve()), asyncio.create_task(numbers(log.watch(1)))
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(WatchBroken):
            await watching


async def test_a_log_goes_on_counting_where_another_ended(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    first = EventLog(journal, "run", AMPLE)
    first.emit(ROOT, printed("one"))
    serving = asyncio.create_task(first.serve())
    async with asyncio.timeout(60):
        assert [event.sequence for event in await anext(first.watch(1))] == [1]
        serving.cancel()
        await asyncio.wait([serving])
        second = EventLog(journal, "run", AMPLE, await journal.last_sequence("run"))
        second.emit(ROOT, END)
        await second.serve()
    assert second.last == 2
    assert await numbers(second.watch(1)) == await numbers(replay(journal, "run", 1)) == [1, 2]


# ---- bounds ----------------------------------------------------------------------------------------------------------


async def test_while_the_database_stands_still_so_much_waits_and_no_more() -> None:
    let = asyncio.Event()

    class Stalled(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            await let.wait()
            return await super().append(run, events, patience=patience)

    log, text, done = a_log(Stalled()), "x" * 10_000, 0

    async def produce() -> None:
        nonlocal done
        for _ in range(1_000):
            await log.room()
            log.emit(ROOT, printed(text))
            done += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        producer = group.create_task(produce())
        for _ in range(3_000):
            await asyncio.sleep(0)
        assert event_log.WAITING_BYTES < log.waiting_bytes < event_log.WAITING_BYTES + 2 * len(text)
        assert done < 200
        let.set()
        await producer
        log.emit(ROOT, END)
    assert (done, log.waiting_bytes) == (1_000, 0)


async def test_events_are_kept_in_transactions_of_bounded_size() -> None:
    batches: list[int] = []

    class Measuring(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            batches.append(sum(event.size for event in events))
            return await super().append(run, events, patience=patience)

    log = a_log(Measuring())
    for _ in range(100):
        log.emit(ROOT, printed("x" * 10_000))
    log.emit(ROOT, END)
    await log.serve()
    assert len(batches) > 3
    assert max(batches) <= event_log.MAX_BATCH_BYTES


async def test_long_output_becomes_several_events() -> None:
    journal = MemoryJournal()
    log = a_log(journal)
    log.emit(ROOT, printed("x" * 200_000))
    log.emit(ROOT, END)
    await log.serve()
    *parts, _ = [event.body for event in journal.kept]
    assert "".join(part.text for part in parts if isinstance(part, Printed)) == "x" * 200_000
    assert len(parts) == 4


@pytest.mark.parametrize(
    ("quota", "kept", "reason"),
    [
        (Quota(5_000, 1 << 40), 0, "event_bytes: a run's events may have 5000 bytes"),
        (Quota(1 << 40, 50), 60, "tenant_kept_bytes: 60 of 50 bytes are kept of this tenant's runs: delete runs"),
    ],
    ids=["of the run", "of the tenant"],
)
async def test_a_quota_that_is_reached_ends_the_nodes_and_there_is_room_for_how_they_end(
    quota: Quota, kept: int, reason: str
) -> None:
    class Counting(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            await super().append(run, events)
            return kept

    journal: Any = Counting()
    log = EventLog(journal, "run", quota)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        log.emit(ROOT, printed("x" * 6_000))
        ended = await log.closed
        log.emit(ROOT, END)
    assert (ended.state, str(ended).startswith(reason)) == (RunState.EXHAUSTED, True)
    assert [event.sequence for event in journal.kept] == [1, 2]


async def test_where_nothing_can_be_kept_the_nodes_end_and_nothing_waits_in_memory() -> None:
    class Failing(MemoryJournal):
        async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
            raise OSError("the disk is full")

    log = a_log(Failing())
    log.emit(ROOT, printed())
    with pytest.raises(OSError, match="the disk is full"):
        await log.serve()
    assert (await log.closed).state is RunState.FAILED
    waiting = log.waiting_bytes
    for _ in range(100):
        await log.room()
        log.emit(ROOT, printed("x" * 60_000))
    assert log.waiting_bytes == waiting
