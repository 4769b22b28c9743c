"""The caps on calls at once: never exceeded, shared fairly, and patient until the deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.shares.gate import Gate, Load, WaitedTooLong


def far() -> float:
    return time.monotonic() + 30


class Visitors:
    """Tasks that enter a gate, are recorded, and stay until they are let go."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def arrive(self, tenant: str, name: str, run: str = "run") -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._visit(tenant, run, name))
        await asyncio.sleep(0)

    async def next(self) -> str:
        return await asyncio.wait_for(self.entered.get(), 5)

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self.tasks[name]

    async def order(self) -> list[str]:
        """Who enters, in which order, where each leaves before the next comes in."""
        order = []
        while not all(task.done() for task in self.tasks.values()):
            order.append(await self.next())
            assert self.entered.empty()
            await self.leave(order[-1])
        return order

    async def _visit(self, tenant: str, run: str, name: str) -> None:
        async with self.gate.slot(tenant, run, deadline=far()):
            self.entered.put_nowait(name)
            await self._leave[name].wait()


async def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    visitors = Visitors(Gate(calls=1))
    for tenant, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        await visitors.arrive(tenant, name)
    assert await visitors.order() == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_a_tenants_runs_take_turns_and_each_is_served_in_order() -> None:
    visitors = Visitors(Gate(calls=1))
    for run, name in [("1", "1a"), ("1", "1b"), ("1", "1c"), ("1", "1d"), ("2", "2a"), ("3", "3a"), ("2", "2b")]:
        await visitors.arrive("tenant", name, run)
    assert await visitors.order() == ["1a", "2a", "3a", "1b", "2b", "1c", "1d"]


async def test_many_runs_do_not_make_a_tenants_part_greater() -> None:
    visitors = Visitors(Gate(calls=1))
    await visitors.arrive("a", "a0", "run 0")
    for number in range(1, 5):
        await visitors.arrive("a", f"a{number}", f"run {number}")
    for number in range(3):
        await visitors.arrive("b", f"b{number}")
    assert await visitors.order() == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "a4"]


async def test_turns_are_in_the_proportion_of_the_weights() -> None:
    visitors = Visitors(Gate(calls=1, weights={"heavy": 3.0}))
    for number in range(60):
        await visitors.arrive("heavy", f"heavy {number}")
    for number in range(20):
        await visitors.arrive("light", f"light {number}")
    order = (name.partition(" ")[0] for name in await visitors.order())
    for _ in range(10):
        assert Counter(islice(order, 8)) == {"heavy": 6, "light": 2}


async def test_slots_are_held_in_the_proportion_of_the_weights_however_long_calls_take() -> None:
    visitors = Visitors(Gate(calls=8, weights={"heavy": 3.0}))
    for number in range(20):
        await visitors.arrive("light", f"light {number}")
    for number in range(20):
        await visitors.arrive("heavy", f"heavy {number}")
    inside = [await visitors.next() for _ in range(8)]
    assert {name.partition(" ")[0] for name in inside} == {"light"}
    for name in inside[:6]:
        await visitors.leave(name)
        inside.append(await visitors.next())
    assert Counter(name.partition(" ")[0] for name in inside[6:]) == {"heavy": 6, "light": 2}


async def test_a_tenant_that_comes_anew_goes_next_and_has_no_turns_saved_up() -> None:
    visitors = Visitors(Gate(calls=1))
    for number in range(6):
        await visitors.arrive("old", f"old {number}")
    for number in range(3):
        assert await visitors.next() == f"old {number}"
        if number < 2:
            await visitors.leave(f"old {number}")
    for number in range(3):
        await visitors.arrive("new", f"new {number}")
    await visitors.leave("old 2")
    assert await visitors.order() == ["new 0", "old 3", "new 1", "old 4", "new 2", "old 5"]


async def test_a_tenant_that_was_inside_while_others_took_turns_has_none_saved_up() -> None:
    visitors = Visitors(Gate(calls=2, tenant_calls=1))
    await visitors.arrive("long", "long")
    for number in range(40):
        await visitors.arrive("short", f"short {number}")
    assert await visitors.next() == "long"
    for number in range(20):
        assert await visitors.next() == f"short {number}"
        await visitors.leave(f"short {number}")
    inside = ["long", await visitors.next()]
    for number in range(20):
        for tenant in ("other", "long"):
            await visitors.arrive(tenant, f"{tenant} {number}")
    entered = []
    for _ in range(30):
        await visitors.leave(inside.pop(0))
        entered.append(await visitors.next())
        inside.append(entered[-1])
    turns = Counter(name.partition(" ")[0] for name in entered)
    assert max(turns.values()) - min(turns.values()) <= 2, turns
    for task in visitors.tasks.values():
        task.cancel()
    await asyncio.gather(*visitors.tasks.values(), return_exceptions=True)


async def test_a_tenant_at_its_cap_and_a_run_at_its_cap_keep_no_other_out() -> None:
    visitors = Visitors(Gate(tenant_calls=2, run_calls=1))
    for tenant, run, name in [
        ("a", "1", "a1"),
        ("a", "1", "a1 again"),
        ("a", "2", "a2"),
        ("a", "3", "a3"),
        ("b", "1", "b1"),
    ]:
        await visitors.arrive(tenant, name, run)
    assert [await visitors.next() for _ in range(3)] == ["a1", "a2", "b1"]
    assert visitors.gate.load == Load(inside=3, waiting=2)
    await visitors.leave("a2")
    assert await visitors.next() == "a3"
    assert visitors.entered.empty()
    await visitors.leave("a1")
    assert await visitors.next() == "a1 again"
    for name in ("a1 again", "a3", "b1"):
        await visitors.leave(name)
    assert visitors.gate.load == Load(inside=0, waiting=0)


async def test_who_waits_past_the_deadline_fails_and_takes_no_place() -> None:
    visitors = Visitors(Gate(calls=1))
    await visitors.arrive("a", "first")
    assert await visitors.next() == "first"
    with pytest.raises(WaitedTooLong, match="queue"):
        async with visitors.gate.slot("b", "run", deadline=time.monotonic() + 0.01):
            pytest.fail("the gate is full")
    assert visitors.gate.load == Load(inside=1, waiting=0)
    await visitors.arrive("c", "last")
    await visitors.leave("first")
    assert await visitors.next() == "last"
    await visitors.leave("last")


async def test_a_place_handed_to_a_cancelled_task_goes_to_the_next() -> None:
    visitors = Visitors(Gate(calls=1))
    for name in ("first", "gone", "next"):
        await visitors.arrive("a", name)
    visitors._leave["first"].set()
    await asyncio.sleep(0)  # `first` leaves, and its place is handed to `gone`, which has not run yet
    visitors.tasks["gone"].cancel()
    assert [await visitors.next(), await visitors.next()] == ["first", "next"]
    await visitors.leave("next")
    async with visitors.gate.slot("b", "run", deadline=far()):
        pass


async def test_a_place_is_not_handed_to_a_task_that_was_cancelled_in_the_same_moment() -> None:
    visitors = Visitors(Gate(calls=1))
    for name in ("first", "gone", "next"):
        await visitors.arrive("a", name)
    visitors.tasks["gone"].cancel()  # it stands in line until it runs
    visitors._leave["first"].set()
    assert [await visitors.next(), await visitors.next()] == ["first", "next"]
    await visitors.leave("next")
    assert visitors.gate.load == Load(inside=0, waiting=0)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    caps=st.tuples(*[st.none() | st.integers(1, 4)] * 3),
    weights=st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 7.0])),
)
def test_whatever_happens_no_cap_is_exceeded_nobody_waits_in_vain_and_nothing_stays_behind(
    seed: int, caps: tuple[int | None, int | None, int | None], weights: dict[str, float]
) -> None:
    calls, tenant_calls, run_calls = caps
    gate = Gate(calls=calls, tenant_calls=tenant_calls, run_calls=run_calls, weights=weights)
    asyncio.run(_history(gate, random.Random(seed), caps))
    assert gate.load == Load(0, 0)
    assert gate._all.parts == {}


async def _history(gate: Gate, chance: random.Random, caps: tuple[int | None, int | None, int | None]) -> None:
    calls, tenant_calls, run_calls = (cap or 1_000 for cap in caps)
    inside: Counter[tuple[str, str]] = Counter()
    present: dict[asyncio.Task[None], tuple[tuple[str, str], asyncio.Event]] = {}

    async def visit(who: tuple[str, str], leave: asyncio.Event) -> None:
        async with gate.slot(*who, deadline=far()):
            inside[who] += 1
            try:
                await leave.wait()
            finally:
                inside[who] -= 1

    def room(who: tuple[str, str]) -> bool:
        of_tenant = sum(count for (tenant, _), count in inside.items() if tenant == who[0])
        return inside.total() < calls and of_tenant < tenant_calls and inside[who] < run_calls

    for _ in range(60):
        for _ in range(chance.randint(1, 3)):
            if not present or chance.random() < 0.5:
                who, leave = (chance.choice("abc"), chance.choice("12")), asyncio.Event()
                present[asyncio.create_task(visit(who, leave))] = who, leave
                await asyncio.sleep(0)
            else:
                task = chance.choice(list(present))
                task.cancel() if chance.random() < 0.4 else present[task][1].set()
        for _ in range(3 * len(present)):  # one that leaves at once hands its place on, and so may all
            await asyncio.sleep(0)
        present = {task: kept for task, kept in present.items() if not task.done()}
        waiting = Counter(who for who, _ in present.values())
        waiting.subtract(inside)
        assert inside.total() <= calls
        assert not [who for who in waiting if inside[who] > run_calls]
        assert not [who for who, count in waiting.items() if count > 0 and room(who)]
        assert gate.load == Load(inside.total(), waiting.total())
    for task in present:
        task.cancel()
    await asyncio.gather(*present, return_exceptions=True)


@pytest.mark.parametrize("cap", ["calls", "tenant_calls", "run_calls"])
def test_a_gate_that_lets_nothing_through_is_refused(cap: str) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Gate(**{cap: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Gate(weights={"tenant": weight})


async def test_a_tenant_with_more_than_its_share_is_outdone_by_one_that_waits_with_less() -> None:
    visitors = Visitors(Gate(calls=2))
    await visitors.arrive("a", "a1")
    await visitors.arrive("a", "a2")
    assert not visitors.gate.outdone("a")
    await visitors.arrive("b", "b1")
    assert visitors.gate.outdone("a")
    assert (visitors.gate.load_of("a"), visitors.gate.load_of("b")) == (Load(2, 0), Load(0, 1))
    await visitors.leave("a1")
    await visitors.arrive("b", "b2")
    assert not visitors.gate.outdone("a")
    for name in ("a2", "b1", "b2"):
        await visitors.leave(name)


async def test_one_that_comes_first_enters_before_all_others_of_its_tenant() -> None:
    gate, order = Gate(calls=1), list[str]()

    async def visit(name: str, *, first: bool = False) -> None:
        async with gate.slot("a", "run", deadline=far(), first=first):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name in ("one", "two", "three"):
            group.create_task(visit(name))
        group.create_task(visit("first", first=True))
    assert order == ["one", "first", "two", "three"]
    assert not gate.has_room("a") or gate.load == Load(0, 0)


async def test_reserved_slots_are_for_tenants_that_have_few() -> None:
    visitors = Visitors(Gate(calls=4, reserved=1))
    for name in ("a1", "a2", "a3", "a4"):
        await visitors.arrive("a", name)
    assert visitors.gate.load == Load(inside=3, waiting=1)
    await visitors.arrive("b", "b1")
    assert visitors.gate.load == Load(inside=4, waiting=1)
    await visitors.leave("b1")
    assert visitors.gate.load == Load(inside=3, waiting=1)
    await visitors.leave("a1")
    assert visitors.gate.load == Load(inside=3, waiting=0)
    for name in ("a2", "a3", "a4"):
        await visitors.leave(name)


async def test_a_gate_that_is_made_wider_lets_in_who_waits_and_one_made_narrower_waits_for_those_inside() -> None:
    visitors = Visitors(Gate(calls=1))
    for name in "abcd":
        await visitors.arrive("a", name)
    assert await visitors.next() == "a"
    visitors.gate.resize(3)
    assert [await visitors.next(), await visitors.next()] == ["b", "c"]
    visitors.gate.resize(1)
    await visitors.leave("a")
    await visitors.leave("b")
    assert visitors.entered.empty()
    await visitors.leave("c")
    assert await visitors.next() == "d"
    await visitors.leave("d")
