"""Work in threads: a tenant has a share of each pool, what is given up ends, and nothing outlives its caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from rlm_server.shares.gate import WaitedTooLong
from rlm_server.shares.host_time import charged
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import SIZES, Cancelled, Purpose, Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.close()


def until_cancelled(cancelled: Cancelled) -> None:
    while not cancelled():
        time.sleep(0.001)


@pytest.mark.parametrize("purpose", Purpose)
async def test_a_tenant_with_any_amount_of_work_leaves_a_thread_to_others(threads: Threads, purpose: Purpose) -> None:
    hogging = [asyncio.create_task(threads.run(purpose, "hog", until_cancelled)) for _ in range(100)]
    await asyncio.sleep(0)
    assert await threads.run(purpose, "other", lambda _: "served") == "served"
    assert threads.loads()[purpose].inside == SIZES[purpose].of_tenant
    for task in hogging:
        task.cancel()
    await asyncio.wait(hogging)
    assert threads.loads()[purpose].inside == 0


async def test_one_purpose_never_waits_for_another(threads: Threads) -> None:
    hogging = [asyncio.create_task(threads.run(Purpose.SEARCH, "hog", until_cancelled)) for _ in range(10)]
    await asyncio.sleep(0)
    assert await threads.run(Purpose.READING, "hog", lambda _: "read") == "read"
    for task in hogging:
        task.cancel()
    await asyncio.wait(hogging)


async def test_who_gives_up_ends_the_work_and_waits_for_its_end(threads: Threads) -> None:
    ended = threading.Event()

    def job(cancelled: Cancelled) -> None:
        until_cancelled(cancelled)
        ended.set()

    task = asyncio.create_task(threads.run(Purpose.SEARCH, "tenant", job))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_work_is_told_of_its_deadline_and_one_in_the_line_is_refused_by_it(threads: Threads) -> None:
    soon = time.monotonic() + 0.05
    of_tenant = SIZES[Purpose.LINEAGE].of_tenant
    inside = [
        asyncio.create_task(threads.run(Purpose.LINEAGE, "tenant", until_cancelled, deadline=soon + 0.2))
        for _ in range(of_tenant)
    ]
    await asyncio.sleep(0)
    with pytest.raises(WaitedTooLong):
        await threads.run(Purpose.LINEAGE, "tenant", until_cancelled, deadline=soon)
    await asyncio.gather(*inside)


async def test_what_a_step_of_work_in_a_thread_takes_is_charged_before_it_ends() -> None:
    shares, seen = Shares.of(), threading.Event()

    def work(_: Cancelled) -> None:  # which does not ask whether it is to end
        while not seen.is_set():
            pass

    async def search() -> None:
        with charged(shares.host_times.of("ann")):
            await shares.threads.run(Purpose.SEARCH, "ann", work)

    searching = asyncio.create_task(search())
    try:
        async with asyncio.timeout(60):
            while shares.host_times.total("ann") < 0.05:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        seen.set()
        await searching
        shares.close()
