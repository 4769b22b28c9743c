"""Tenants share the places of runs: none waits for longer than a turn of others, nor is refused for their sake."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from rlm_server.runs.places import Place, Places


class Runs:
    """Runs that take a place, and renew it between turns when they are told to."""

    def __init__(self, most: int, of_tenant: int, weights: Mapping[str, float] | None = None) -> None:
        self.places = Places(most, lambda _: of_tenant, weights or {})
        self.at_work: Counter[str] = Counter()
        self.turns: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, tenant: str, number: int) -> None:
        for _ in range(number):
            name = f"{tenant}{len(self.tasks)}"
            self.turns[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(tenant, name))
        await self.settle()

    async def _run(self, tenant: str, name: str) -> None:
        async with self.places.place(tenant) as place:
            while True:
                self.at_work[tenant] += 1
                try:
                    await self.turns[name].wait()
                finally:
                    self.at_work[tenant] -= 1
                self.turns[name].clear()
                await self._renew(place)

    async def _renew(self, place: Place) -> None:
        if place.owed:
            await place.renew()

    async def turn(self, tenant: str) -> None:
        """Let every run of a tenant that works end its turn, one after another."""
        for name, turn in self.turns.items():
            if name.startswith(tenant):
                turn.set()
                await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.wait(self.tasks.values())


async def test_a_tenant_has_at_most_its_own_number_of_runs_at_work() -> None:
    runs = Runs(most=10, of_tenant=6)
    await runs.start("a", 20)
    assert runs.at_work == {"a": 6}
    await runs.start("b", 2)
    assert runs.at_work == {"a": 6, "b": 2}, "the others are free for other tenants at once"
    await runs.stop()


async def test_a_new_tenant_gets_a_place_when_a_turn_of_another_ends_and_its_share_when_all_did() -> None:
    runs = Runs(most=4, of_tenant=4)
    await runs.start("a", 8)
    await runs.start("b", 8)
    assert runs.at_work == {"a": 4}
    runs.turns["a0"].set()
    await runs.settle()
    assert runs.at_work == {"a": 3, "b": 1}
    await runs.turn("a")
    assert runs.at_work == {"a": 2, "b": 2}
    for _ in range(3):
        await runs.turn("a")
        await runs.turn("b")
    assert runs.at_work == {"a": 2, "b": 2}, "who has its share gives none of it up"
    await runs.stop()


async def test_a_weight_is_a_share_of_the_places() -> None:
    runs = Runs(most=4, of_tenant=4, weights={"a": 3.0})
    await runs.start("a", 8)
    await runs.start("b", 8)
    for _ in range(3):
        await runs.turn("a")
        await runs.turn("b")
    assert runs.at_work == {"a": 3, "b": 1}
    await runs.stop()


async def test_a_run_that_gave_its_place_is_the_first_of_its_tenant_to_have_one_again() -> None:
    runs = Runs(most=2, of_tenant=2)
    await runs.start("a", 3)
    await runs.start("b", 1)
    runs.turns["a0"].set()
    await runs.settle()
    assert runs.at_work == {"a": 1, "b": 1}
    runs.tasks["b3"].cancel()
    await runs.settle()
    assert runs.at_work == {"a": 2, "b": 0}
    runs.turns["a0"].set()
    await runs.settle()
    assert not runs.turns["a0"].is_set(), "it works again, and ends its turns"
    await runs.stop()


async def test_one_that_waits_gives_up_at_once_and_takes_nothing_with_it() -> None:
    runs = Runs(most=1, of_tenant=1)
    await runs.start("a", 3)
    assert runs.places.in_line("a") == 3
    runs.tasks["a1"].cancel()
    await asyncio.wait([runs.tasks["a1"]])
    assert runs.places.in_line("a") == 2
    runs.tasks["a0"].cancel()
    await runs.settle()
    assert runs.at_work == {"a": 1}
    await runs.stop()
    assert runs.places.in_line("a") == 0
