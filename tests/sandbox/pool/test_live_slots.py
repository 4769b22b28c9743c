"""Slots are shared: nobody is kept from what it is entitled to, and nobody who waits is forgotten."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.pool.disk_threads import Abandoned
from sandbox.pool.live_sessions import LiveSessions, PoolFull
from sandbox.pool.live_slots import Slots
from sandbox.pool.worker_session import WorkerSession


class Member:
    """A session as the slots know it. It is idle until a turn begins."""

    def __init__(self, stage: Stage, owner: str) -> None:
        self.stage, self.owner, self.idle = stage, owner, True

    async def hibernate(self) -> None:
        self.idle = False
        await asyncio.sleep(0)
        self.idle = True
        self.stage.live.left(cast("WorkerSession", self))
        self.stage.inside.discard(self)


class Stage:
    """Live sessions without a pool."""

    def __init__(self, most: int, reserved: int, seconds: float = 60) -> None:
        self.slots = Slots(most, reserved)
        self.live = LiveSessions(self.slots, seconds, stores=True)
        self.inside: set[Member] = set()
        self.waiting: dict[Member, asyncio.Task[None]] = {}

    async def _enter(self, member: Member) -> None:
        await self.live.enter(cast("WorkerSession", member))
        self.inside.add(member)
        del self.waiting[member]
        self.live.make_room()  # as at the end of every turn

    async def ask(self, owner: str, *, busy: bool) -> Member:
        member = Member(self, owner)
        member.idle = not busy
        self.waiting[member] = asyncio.create_task(self._enter(member))
        await self.settle()
        return member

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0)

    async def rest(self, member: Member) -> None:
        member.idle = True
        self.live.make_room()
        await self.settle()

    async def end(self, member: Member) -> None:
        self.live.left(cast("WorkerSession", member))
        self.inside.discard(member)
        await self.settle()

    async def withdraw(self, member: Member) -> None:
        task = self.waiting.pop(member)
        task.cancel()
        await asyncio.wait([task])
        await self.settle()

    def count(self, owner: str) -> int:
        return sum(member.owner == owner for member in self.inside)

    def check(self) -> None:
        assert len(self.live) == len(self.inside) == self.slots.taken <= self.slots.most
        for waiter in self.waiting:
            own = self.count(waiter.owner)
            for member in self.inside:
                if member.idle:
                    assert member.owner != waiter.owner, "an idle session of its own is in the way"
                    above = self.count(member.owner) > self.slots.entitlement
                    assert not (above and own < self.slots.entitlement), "what it is entitled to is held by another"


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask busy", "ask idle", "rest", "work", "end", "withdraw"]), st.integers(0, 40)),
    max_size=60,
)


@settings(max_examples=150)
@given(st.integers(1, 40), st.integers(0, 4), STEPS)
def test_whatever_happens_nobody_is_kept_out_by_one_above_its_share(
    most: int, reserved: int, steps: list[tuple[str, int]]
) -> None:
    async def history() -> None:
        stage = Stage(most, reserved)
        for kind, number in steps:
            inside = sorted(stage.inside, key=id)
            if kind.startswith("ask"):
                await stage.ask("abcd"[number % 4 if number % 3 else 0], busy=kind == "ask busy")
            elif kind == "withdraw" and stage.waiting:
                await stage.withdraw(list(stage.waiting)[number % len(stage.waiting)])
            elif inside and kind == "rest":
                await stage.rest(inside[number % len(inside)])
            elif inside and kind == "work":
                inside[number % len(inside)].idle = False
            elif inside and kind == "end":
                await stage.end(inside[number % len(inside)])
            stage.check()
        while stage.waiting:  # once others leave, every one in line has its turn
            before = len(stage.waiting)
            for member in list(stage.inside):
                await stage.end(member)
                stage.check()
            assert len(stage.waiting) < before
        for member in list(stage.inside):
            await stage.end(member)
        assert (stage.slots.taken, stage.slots.waiting) == (0, 0)
        await stage.live.close()

    asyncio.run(history())


async def test_an_owner_alone_leaves_a_reserve_that_owners_with_few_may_enter() -> None:
    stage = Stage(32, 2)
    for _ in range(32):
        await stage.ask("a", busy=True)
    assert (stage.count("a"), len(stage.waiting)) == (30, 2)
    await stage.ask("b", busy=True)
    assert stage.count("b") == 1
    await stage.ask("c", busy=True)
    assert stage.count("c") == 1
    member = next(member for member in stage.inside if member.owner == "a")
    await stage.end(member)
    assert (stage.count("a"), stage.slots.taken) == (29, 31), "the reserve is filled again before others enter"
    await stage.ask("d", busy=True)
    assert stage.count("d") == 1


async def test_a_slot_that_is_freed_goes_to_who_has_fewest() -> None:
    stage = Stage(3, 0)
    first = [await stage.ask("a", busy=True) for _ in range(3)]
    for owner in "aab":
        await stage.ask(owner, busy=True)
    await stage.end(first[0])
    assert (stage.count("a"), stage.count("b")) == (2, 1)


async def test_room_is_made_by_the_owner_with_most_not_by_a_neighbour_below_its_share() -> None:
    stage = Stage(6, 0)
    small = await stage.ask("b", busy=False)
    for _ in range(5):
        await stage.ask("a", busy=False)
    await stage.ask("c", busy=False)
    assert (stage.count("a"), stage.count("b"), stage.count("c")) == (4, 1, 1)
    for _ in range(3):
        await stage.ask("a", busy=True)
    assert small in stage.inside
    assert (stage.count("a"), stage.count("c")) == (4, 1)


async def test_who_waits_too_long_is_told_the_limit_and_forgotten() -> None:
    stage = Stage(1, 0, seconds=0.05)
    await stage.ask("a", busy=True)
    with pytest.raises(PoolFull, match="at most 1 sessions at once"):
        await stage.live.enter(cast("WorkerSession", Member(stage, "b")))
    assert stage.slots.waiting == 0


async def test_who_gives_up_waits_no_longer() -> None:
    stage = Stage(1, 0)
    await stage.ask("a", busy=True)
    member = await stage.ask("b", busy=True)
    stage.live.give_up(cast("WorkerSession", member))
    with pytest.raises(Abandoned):
        await stage.waiting[member]
    assert stage.slots.waiting == 0
