"""A turn's hold is settled whatever becomes of the turn, and never for more than was held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Ledger, Limit, Payer, Query
from rlm_server.repl import metering
from rlm_server.repl.metering import check_host_time, metered
from rlm_server.shares.host_time import HostTimes, current
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal
from sandbox.limits import Limits
from sandbox.pool.worker_turn import TURN_SLACK_SECONDS
from sandbox.turn import Status, Turn

LIMITS = Limits(turn_seconds=2)
WORST = int((2 + TURN_SLACK_SECONDS) * 1000)
PAYER = Payer("acme", "acme", "run", "node")


HELD, FREE = Limit(cpu_ms=100_000), Limit()


@pytest.fixture(params=[HELD, FREE], ids=["held", "nothing limits it"])
def limit(request: pytest.FixtureRequest) -> Limit:
    found: Limit = request.param
    return found


@pytest.fixture
async def ledger(tmp_path: Path, limit: Limit) -> AsyncIterator[Ledger]:
    async with await Database.open(tmp_path / "rlm.sqlite", MIGRATIONS) as database:
        made = Ledger(database)
        await made.open_account("acme", tenant="acme", parent=None, limit=limit)
        yield made


async def check_settled(ledger: Ledger, least: int, most: int) -> None:
    balance = await ledger.balance("acme")
    assert (balance.pending, balance.overrun) == (Amounts(), Amounts())
    assert least <= balance.posted.cpu_ms <= most


async def of_a_turn(
    ledger: Ledger,
    execute: Callable[[], Awaitable[Turn]],
    bills: HostTimes | None = None,
    *,
    patience: float | None = 0.001,
) -> tuple[Turn, Amounts]:
    done = await metered(
        ledger,
        PAYER,
        LIMITS,
        execute,
        deadline=time.monotonic() + 30,
        host_seconds=1.0,
        host_times=bills or HostTimes(),
        patience=patience,
    )
    await run_to_completion(asyncio.wait([done.booked]))
    return done.turn, done.spent


def turn(seconds: Any) -> Turn:
    return Turn(Status.OK, "", "", 0, False, seconds, 0)


@pytest.mark.parametrize(
    ("seconds", "posted"),
    [
        (0.0, 0), (0.0001, 1), (1.5, 1500), (11.9999, 12_000), (12.5, WORST), (1e300, WORST), (-1.0, WORST),
        (float("nan"), WORST), (float("inf"), WORST), (float("-inf"), WORST), (-1e-300, WORST),
    ],
)  # fmt: skip
async def test_a_turn_costs_what_it_ran_and_at_most_its_hold(ledger: Ledger, seconds: float, posted: int) -> None:
    async def execute() -> Turn:
        return turn(seconds)

    _, spent = await of_a_turn(ledger, execute)
    assert spent == Amounts(cpu_ms=posted)
    await check_settled(ledger, posted, posted)


async def test_it_is_held_only_where_something_limits_it_and_is_an_entry_in_any_case(
    ledger: Ledger, limit: Limit
) -> None:
    async def execute() -> Turn:
        held = (await ledger.balance("acme")).pending.cpu_ms
        assert held == (WORST if limit is HELD else 0)
        return turn(1.5)

    _, spent = await of_a_turn(ledger, execute)
    (entry,) = await ledger.entries(Query("acme"))
    assert (entry.actual, entry.hold.node, entry.hold.model) == (spent, "node", "")
    assert spent.cpu_ms >= 1500


async def test_it_is_held_in_any_case_where_its_cost_may_not_wait(ledger: Ledger) -> None:
    async def execute() -> Turn:
        assert (await ledger.balance("acme")).pending.cpu_ms == WORST
        return turn(1.5)

    await of_a_turn(ledger, execute, patience=None)
    await check_settled(ledger, 1500, WORST)


@pytest.mark.parametrize("limit", [FREE], ids=["nothing limits it"])
async def test_what_was_not_held_and_has_no_room_any_more_is_on_the_tenants_bill(ledger: Ledger, limit: Limit) -> None:
    async def execute() -> Turn:
        await ledger.set_limit("acme", Limit(cpu_ms=100))
        return turn(1.5)

    bills = HostTimes()
    _, spent = await of_a_turn(ledger, execute, bills)
    await check_settled(ledger, 0, 0)
    assert bills.of("acme").seconds >= spent.cpu_ms / 1000 >= 1.5


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_a_turn_that_raises_costs_the_time_that_passed(ledger: Ledger, error: type[BaseException]) -> None:
    async def execute() -> Turn:
        raise error

    with pytest.raises(error):
        await of_a_turn(ledger, execute)
    await check_settled(ledger, 0, WORST)


@pytest.mark.parametrize("result", [None, turn("1"), turn(None), turn([])])
async def test_what_is_no_turn_costs_the_time_that_passed(ledger: Ledger, result: Any) -> None:
    async def execute() -> Turn:
        return result  # type: ignore[no-any-return]

    with pytest.raises((TypeError, AttributeError)):
        await of_a_turn(ledger, execute)
    await check_settled(ledger, 0, WORST)


async def test_a_cancellation_while_it_is_settled_does_not_stop_that(
    ledger: Ledger, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "post" if limit is HELD else "charge"
    posting, go_on, post = asyncio.Event(), asyncio.Event(), getattr(Ledger, name)

    async def slowly(*arguments: Any, **options: Any) -> None:
        posting.set()
        await go_on.wait()
        await post(*arguments, **options)

    async def execute() -> Turn:
        return turn(1.0)

    monkeypatch.setattr(Ledger, name, slowly)
    task = asyncio.create_task(of_a_turn(ledger, execute))
    await posting.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_settled(ledger, 1000, 1000)


async def test_what_the_server_works_for_a_turn_is_paid_with_it(ledger: Ledger) -> None:
    async def execute() -> Turn:
        host_time = current()
        assert host_time is not None
        host_time.spend(0.5)
        check_host_time()
        return turn(1.0)

    _, spent = await of_a_turn(ledger, execute)
    assert 1500 <= spent.cpu_ms < 2000
    await check_settled(ledger, 1500, 2000)


async def test_a_turn_for_which_the_server_worked_as_long_as_it_may_is_refused_more(ledger: Ledger) -> None:
    async def execute() -> Turn:
        host_time = current()
        assert host_time is not None
        host_time.spend(1.001)
        with pytest.raises(DoorRefusal, match=r"1 s for this turn, the limit \(host_seconds\)"):
            check_host_time()
        return turn(0.0)

    await of_a_turn(ledger, execute)


async def test_what_the_server_worked_beyond_the_hold_is_on_the_tenants_bill(ledger: Ledger) -> None:
    async def execute() -> Turn:
        host_time = current()
        assert host_time is not None
        host_time.spend(WORST / 1000)
        return turn(2.0)

    bills = HostTimes()
    await of_a_turn(ledger, execute, bills)
    await check_settled(ledger, WORST, WORST)
    assert bills.of("acme").seconds >= 2.0


@pytest.mark.parametrize("limit", [FREE], ids=["nothing limits it"])
async def test_what_a_long_turn_takes_without_a_hold_is_posted_on_the_way_and_only_once(
    ledger: Ledger, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "ON_THE_WAY_SECONDS", 0.01)
    seconds = 0.0
    seen: list[int] = []

    async def execute() -> Turn:
        nonlocal seconds
        for seconds in (0.5, 1.25):
            while (posted := (await ledger.balance("acme")).posted.cpu_ms) < seconds * 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            seen.append(posted)
        return turn(1.5)

    done = await metered(
        ledger, PAYER, LIMITS, execute, deadline=time.monotonic() + 30, host_seconds=1.0, host_times=HostTimes(),
        patience=0.001, ran=lambda: seconds,
    )  # fmt: skip
    await done.booked
    assert 500 <= seen[0] < 1250 <= seen[1] < 1500 + 1000, "what its code ran, and what this process did for it"
    assert done.spent.cpu_ms == (await ledger.balance("acme")).posted.cpu_ms >= 1500
    assert len(await ledger.entries(Query("acme", node="node"))) >= 3


@pytest.mark.parametrize("limit", [FREE], ids=["nothing limits it"])
async def test_a_turn_never_costs_less_than_was_posted_on_the_way(
    ledger: Ledger, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "ON_THE_WAY_SECONDS", 0.01)

    async def execute() -> Turn:
        while (await ledger.balance("acme")).posted.cpu_ms < 1000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return turn(0.2)  # it was run again in another worker, where it took less

    done = await metered(
        ledger, PAYER, LIMITS, execute, deadline=time.monotonic() + 30, host_seconds=1.0, host_times=HostTimes(),
        patience=0.001, ran=lambda: 1.0,
    )  # fmt: skip
    await done.booked
    assert done.spent.cpu_ms == (await ledger.balance("acme")).posted.cpu_ms
