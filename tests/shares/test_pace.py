"""The pace of tenants: nobody waits alone, and who does more than a share leaves others theirs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from rlm_server.shares.host_time import HostTimes
from rlm_server.shares.pace import BURST_SECONDS, CAPACITY, Pace, _Parts


class Stage:
    """Tenants that work: each piece of work is paced, and charged."""

    def __init__(self) -> None:
        self.times = HostTimes()
        self.pace = Pace(self.times)
        self.done: list[tuple[str, float]] = []
        self.began = time.monotonic()

    async def work(self, tenant: str, pieces: int, seconds: float) -> None:
        for _ in range(pieces):
            await self.pace.wait(tenant)
            self.times.of(tenant).spend(seconds)
            self.done.append((tenant, time.monotonic() - self.began))

    def seconds(self, tenant: str) -> float:
        """When the last piece of a tenant's was done."""
        return max(at for name, at in self.done if name == tenant)


async def test_a_tenant_that_is_alone_never_waits() -> None:
    stage = Stage()
    await stage.work("ann", 1_000, 0.01)
    assert stage.seconds("ann") < 5  # of 10 s of work


async def test_who_works_more_than_a_share_waits_while_another_works_as_much() -> None:
    stage = Stage()
    await stage.pace.wait("ann")
    await stage.pace.wait("bob")
    await asyncio.gather(*(stage.work(name, 10, 0.04) for name in ("ann", "bob")))
    assert max(stage.seconds("ann"), stage.seconds("bob")) >= (0.72 - 2 * BURST_SECONDS) / CAPACITY * 0.6


async def test_what_one_leaves_of_its_share_is_for_the_other() -> None:
    stage = Stage()
    hog = asyncio.create_task(stage.work("ann", 20, 0.04))
    while not hog.done():
        await stage.pace.wait("bob")
        stage.times.of("bob").spend(0.001)
        await asyncio.sleep(0.05)
    await hog
    assert stage.pace._parts.of(stage.pace._buckets["ann"]) > CAPACITY * 0.8


@pytest.mark.parametrize(
    ("uses", "even"),
    [
        ([], CAPACITY),
        ([9.0], CAPACITY),
        ([9.0, 9.0], CAPACITY / 2),
        ([0.1, 9.0], CAPACITY - 0.1),
        ([0.1, 0.2, 9.0, 9.0], (CAPACITY - 0.3) / 2),
        ([0.0, 0.0], CAPACITY / 2),
    ],
)
def test_the_capacity_is_shared_evenly_among_those_who_want_more_than_that(uses: list[float], even: float) -> None:
    assert _Parts.among(uses, 0.0).even == pytest.approx(even)


async def test_who_works_little_never_waits_beside_one_who_works_much() -> None:
    stage = Stage()
    hog = asyncio.create_task(stage.work("ann", 1_000, 0.05))
    for _ in range(20):
        began = time.monotonic()
        await stage.pace.wait("bob")
        stage.times.of("bob").spend(0.001)
        assert not stage.pace._buckets["bob"].line.locked()
        stage.done.append(("bob", time.monotonic() - began))
        await asyncio.sleep(0.01)
    hog.cancel()
    await asyncio.wait([hog])
    assert sum(1 for name, _ in stage.done if name == "ann") < 20


async def test_many_that_wait_go_one_after_another_and_each_may_give_up() -> None:
    stage = Stage()
    await stage.pace.wait("bob")
    stage.times.of("ann").spend(0.0)
    waiting = [asyncio.create_task(stage.work("ann", 1, 0.03)) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert len(stage.done) < 6
    for task in waiting[1::2]:
        task.cancel()
    await stage.pace.wait("bob")
    await asyncio.wait(waiting)
    assert {name for name, _ in stage.done} == {"ann"}
    assert len(stage.done) == sum(not task.cancelled() for task in waiting)


async def test_who_has_begun_much_beside_another_begins_one_piece_in_a_round_of_the_loop() -> None:
    stage, rounds = Stage(), list[int]()
    await stage.pace.wait("ann")
    await stage.pace.wait("bob")
    stage.times.of("bob").spend(BURST_SECONDS / 2)  # so little that nobody waits for it to flow off
    round_of_the_loop = 0

    async def work() -> None:
        await stage.pace.wait("bob")
        rounds.append(round_of_the_loop)

    working = [asyncio.create_task(work()) for _ in range(50)]
    while not all(task.done() for task in working):
        await asyncio.sleep(0)
        round_of_the_loop += 1
    assert max(Counter(rounds).values()) <= 2
    assert len(rounds) == 50


async def test_who_is_alone_begins_as_many_pieces_in_a_round_of_the_loop_as_there_are() -> None:
    stage, done = Stage(), list[int]()
    await stage.pace.wait("bob")
    stage.times.of("bob").spend(BURST_SECONDS / 2)

    async def work(number: int) -> None:
        await stage.pace.wait("bob")
        done.append(number)

    working = [asyncio.create_task(work(number)) for number in range(50)]
    await asyncio.sleep(0)
    assert done == list(range(50))
    await asyncio.wait(working)
