"""The caps on calls at once: never exceeded, fair, and patient until the deadline."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlm_server.broker.calls import Failure, ProviderError
from rlm_server.broker.concurrency import Gate, KeyedGates


def far() -> float:
    return time.monotonic() + 30


class Visitors:
    """Tasks that enter a gate, are recorded, and stay until they are let go."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    def arrive(self, tenant: str, name: str, deadline: float | None = None) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._visit(tenant, name, far() if deadline is None else deadline))

    async def next(self) -> str:
        return await asyncio.wait_for(self.entered.get(), 5)

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self.tasks[name]

    async def _visit(self, tenant: str, name: str, deadline: float) -> None:
        async with self.gate.slot(tenant, deadline=deadline):
            self.entered.put_nowait(name)
            await self._leave[name].wait()


async def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    visitors = Visitors(Gate(1))
    for tenant, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        visitors.arrive(tenant, name)
        await asyncio.sleep(0)
    for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
        assert await visitors.next() == name
        assert visitors.entered.empty()
        await visitors.leave(name)


async def test_no_more_than_the_cap_are_inside_and_all_get_in() -> None:
    gate, inside, most = Gate(3), 0, 0

    async def visit() -> None:
        nonlocal inside, most
        async with gate.slot("tenant", deadline=far()):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(visit() for _ in range(50)))
    assert (inside, most) == (0, 3)


async def test_who_waits_past_the_deadline_fails_and_takes_no_place() -> None:
    visitors = Visitors(Gate(1))
    visitors.arrive("a", "first")
    assert await visitors.next() == "first"
    with pytest.raises(ProviderError, match="queue") as caught:
        async with visitors.gate.slot("b", deadline=time.monotonic() + 0.01):
            pytest.fail("the gate is full")
    assert (caught.value.failure, caught.value.billed) == (Failure.TIMED_OUT, False)
    visitors.arrive("c", "last")
    await visitors.leave("first")
    assert await visitors.next() == "last"
    await visitors.leave("last")


async def test_a_place_handed_to_a_cancelled_task_goes_to_the_next() -> None:
    visitors = Visitors(Gate(1))
    for name in ("first", "gone", "next"):
        visitors.arrive("a", name)
        await asyncio.sleep(0)
    visitors._leave["first"].set()
    await asyncio.sleep(0)  # `first` leaves, and its place is handed to `gone`, which has not run yet
    visitors.tasks["gone"].cancel()
    assert [await visitors.next(), await visitors.next()] == ["first", "next"]
    await visitors.leave("next")
    async with visitors.gate.slot("b", deadline=far()):
        pass


async def test_keys_do_not_wait_for_each_other_and_leave_nothing_behind() -> None:
    gates = KeyedGates(1)
    async with gates.slot("run 1", deadline=far()), gates.slot("run 2", deadline=far()):
        with pytest.raises(ProviderError):
            async with gates.slot("run 1", deadline=time.monotonic() + 0.01):
                pytest.fail("the run is at its cap")
    async with gates.slot("run 1", deadline=far()):
        pass
    assert gates._gates == {}


def test_a_gate_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Gate(0)
