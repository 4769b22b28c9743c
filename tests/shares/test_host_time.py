"""Processor time of the server's own process is charged to whom it is spent for, through tasks and threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import process_time, thread_time
from unittest.mock import patch

import pytest

from rlm_server.shares import host_time
from rlm_server.shares.host_time import (
    MESSAGE_BYTES,
    MOST_A_MESSAGE,
    MOST_A_SECOND,
    STEP_SECONDS,
    HostTime,
    HostTimes,
    Unclaimed,
    charged,
    current,
    measured,
    measured_tasks,
)
from rlm_server.shares.threads import Cancelled, Purpose, Threads


def work(seconds: float) -> None:
    """Keep the processor busy for so many seconds of this thread's time."""
    end = thread_time() + seconds
    while thread_time() < end:
        pass


@asynccontextmanager
async def measuring() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(measured_tasks)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def step(seconds: float) -> str:
    work(seconds)
    await asyncio.sleep(0)
    work(seconds)
    return "done"


async def test_what_a_task_and_the_tasks_it_begins_spend_is_charged_and_waiting_is_not() -> None:
    async def outer() -> str:
        async with asyncio.TaskGroup() as group:
            inner = group.create_task(step(0.01))
        await asyncio.sleep(0.05)
        return inner.result()

    async with measuring():
        spent = HostTime()
        with charged(spent):
            task = asyncio.create_task(outer())
        assert await task == "done"
        assert 0.02 <= spent.seconds < 0.05


async def test_a_task_begun_outside_is_charged_to_nobody() -> None:
    async with measuring():
        spent = HostTime()
        with charged(spent):
            assert current() is spent
        await asyncio.create_task(step(0.01))
        assert current() is None
        assert spent.seconds == 0


async def test_a_cancelled_task_is_charged_for_what_it_does_at_its_end() -> None:
    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            work(0.01)

    async with measuring():
        spent = HostTime()
        with charged(spent):
            task = asyncio.create_task(slow_to_end())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert spent.seconds >= 0.01


async def test_work_of_the_present_task_is_charged_where_it_is_measured() -> None:
    spent = HostTime()
    assert await measured(step(0.01), spent) == "done"
    assert spent.seconds >= 0.02


@dataclass
class Clock:
    """A thread's time, which passes as work says."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("fails", [False, True])
async def test_work_within_other_work_is_charged_once_and_to_its_own(*, fails: bool) -> None:
    clock, own, innermost, around = Clock(), HostTime(), HostTime(), HostTime()

    async def last() -> None:
        clock.work(100)
        await asyncio.sleep(0)
        clock.work(200)
        if fails:
            raise LookupError

    async def within() -> None:
        clock.work(1)
        await asyncio.sleep(0)
        clock.work(2)
        with suppress(LookupError):
            await measured(last(), innermost)
        clock.work(4)

    async def outer() -> None:
        clock.work(10)
        await measured(within(), own)
        clock.work(20)
        await measured(within(), own)
        await asyncio.sleep(0)
        clock.work(40)

    with patch.object(host_time, "thread_time", clock):
        await measured(outer(), around)
    assert around.seconds - 70 == pytest.approx(6 * STEP_SECONDS)
    assert own.seconds - 14 == pytest.approx(6 * STEP_SECONDS)
    assert innermost.seconds - 600 == pytest.approx(4 * STEP_SECONDS)


async def test_a_step_is_charged_what_the_loop_takes_for_it_however_small_it_is() -> None:
    async def steps(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    many, few = HostTime(), HostTime()
    await measured(steps(10_000), many)
    await measured(steps(1), few)
    assert many.seconds - few.seconds >= 9_000 * STEP_SECONDS


async def test_an_exception_passes_through_and_its_work_is_charged() -> None:
    async def fails() -> None:
        work(0.01)
        raise ValueError("as it was")

    spent = HostTime()
    with pytest.raises(ValueError, match="as it was"):
        await measured(fails(), spent)
    assert spent.seconds >= 0.01


async def test_work_in_a_thread_is_charged_and_ends_when_its_host_time_is_used_up() -> None:
    def for_ever(cancelled: Cancelled) -> str:
        while not cancelled():
            work(0.001)
        return "told to end"

    threads, spent = Threads(), HostTime(limit=0.05)
    with charged(spent):
        assert await threads.run(Purpose.SEARCH, "tenant", for_ever) == "told to end"
    assert spent.over()
    threads.close()


def test_taking_what_was_spent_begins_anew() -> None:
    spent = HostTime()
    spent.spend(1.5)
    assert (spent.take(), spent.seconds) == (1.5, 0.0)


def test_what_was_not_measured_is_shared_by_messages_and_a_message_is_never_dear() -> None:
    times = HostTimes()
    for tenant in ("ann", "ann", "ann", "bob"):
        times.message(tenant)
    began = process_time()
    while process_time() < began + 0.05:  # as gRPC would in threads of its own
        pass
    times.of("carl").spend(0.001)
    times.share_out()
    assert times.of("ann").seconds == pytest.approx(3 * MOST_A_MESSAGE)
    assert times.of("bob").seconds == pytest.approx(MOST_A_MESSAGE)
    assert times.of("carl").seconds == pytest.approx(0.001 * (1 + MOST_A_SECOND))


def test_who_sends_messages_does_not_pay_for_what_others_work_made() -> None:
    times = HostTimes()
    for _ in range(50):
        times.message("ann")
    times.of("bob").spend(0.05)
    began = process_time()
    while process_time() < began + 0.09:
        pass
    times.share_out()
    assert times.of("ann").seconds < 0.02
    assert times.of("bob").seconds > 0.07


def test_what_no_message_made_is_shared_by_what_was_measured() -> None:
    times = HostTimes()
    times.of("ann").spend(0.03)
    times.of_turn("bob", 10).spend(0.01)
    began = process_time()
    while process_time() < began + 0.06:
        pass
    times.share_out()
    assert times.total("ann") == pytest.approx(3 * times.total("bob"))
    assert times.total("ann") + times.total("bob") == pytest.approx(0.06, rel=0.2)


def test_what_was_measured_is_not_shared_a_second_time() -> None:
    times = HostTimes()
    times.message("ann")
    times.of_turn("ann", 10).spend(3600)
    times.share_out()
    assert times.of("ann").seconds == 0


def test_what_was_shared_before_it_was_measured_is_shared_no_more() -> None:
    times = HostTimes()

    def share_out() -> None:
        times.message("ann", 1_000 * MESSAGE_BYTES)
        times.share_out()

    began = process_time()
    work(0.05)  # a step that goes on
    share_out()
    times.of("ann").spend(0.05)  # it has ended, and is charged
    share_out()
    work(0.05)
    share_out()
    assert times.total("ann") == pytest.approx(process_time() - began, rel=0.2)


def test_what_is_under_way_is_charged_before_the_rest_is_shared() -> None:
    times = HostTimes()
    times.message("bob")
    began = process_time()
    work(0.05)
    times.under_way.append(lambda: times.of("ann").spend(process_time() - began))
    times.share_out()
    assert times.of("ann").seconds >= 0.05
    assert times.of("bob").seconds < MOST_A_MESSAGE / 10


async def test_what_a_call_took_before_it_was_known_whose_it_is_is_charged_with_the_rest() -> None:
    spent, unclaimed = HostTime(), Unclaimed()

    async def call() -> None:
        work(0.02)
        await asyncio.sleep(0)
        assert (spent.seconds, unclaimed.seconds >= 0.02) == (0.0, True)
        unclaimed.claim(spent)
        await measured(step(0.01), spent)
        work(0.02)

    began = thread_time()
    await measured(call(), unclaimed)
    assert spent.seconds >= 0.06
    assert spent.seconds <= thread_time() - began + 10 * STEP_SECONDS
    assert unclaimed.seconds == 0


def test_what_nobody_claims_is_nobodys() -> None:
    times, unclaimed = HostTimes(), Unclaimed()
    unclaimed.spend(0.5)
    times.share_out()
    assert times.tenants() == []


def test_what_a_turn_spends_is_its_tenants() -> None:
    times = HostTimes()
    of_turns = [times.of_turn("ann", 10) for _ in range(3)]
    for one in of_turns:
        one.spend(0.5)
    assert {one.tenant for one in (*of_turns, times.of("ann"))} == {"ann"}
    assert times.total("ann") == pytest.approx(1.5)
    assert times.of("ann").seconds == 0
