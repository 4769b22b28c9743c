"""A soft limit that is crossed is an event, once, written with the posting that crossed it; it refuses nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlm_server.ledger import (
    Amounts,
    BudgetEvent,
    Delivery,
    EventFilter,
    Limit,
    ModelLimit,
    Scope,
    SoftLimit,
    Span,
    account_lifecycle,
)
from rlm_server.ledger.customers import Customer
from tests.ledger.accounting import CENT, at_most, cents
from tests.ledger.test_customers import MINUTE, Stage
from tests.ledger.test_customers import stage as stage  # a fixture
from tests.ledger.test_model_limits import spent

WHOLE, DAY = Scope(None), Scope(Span.DAY)
DAY_MS = 24 * 60 * MINUTE


async def events(stage: Stage, **asked: object) -> list[BudgetEvent]:
    return await stage.ledger.events(EventFilter("acme", **asked), 0, 100)  # type: ignore[arg-type]


async def told(stage: Stage) -> list[tuple[str, str, str, int, int]]:
    """Of each event the account, its window, its unit, the threshold and what was spent."""
    return [
        (one.account.rpartition(":")[2], one.label, one.unit, one.threshold, one.used) for one in await events(stage)
    ]


async def test_each_threshold_is_told_once_with_what_was_spent(stage: Stage) -> None:
    soft = (SoftLimit(WHOLE, 50), SoftLimit(WHOLE, 80), SoftLimit(WHOLE, amount=Limit(calls=2)))
    await stage.customer("ann", at_most(10), soft_limits=soft)
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", cents(4), "m")
    assert await told(stage) == []
    for amounts in (cents(1), cents(1), Amounts(calls=1), Amounts(calls=1), cents(2)):
        await spent(stage.ledger, "run_1", amounts, "m")
    expected = [("nano_usd", 5, 5), ("calls", 2, 2), ("nano_usd", 8, 8)]
    scale = {"nano_usd": CENT, "calls": 1}
    assert await told(stage) == [("ann", "", unit, at * scale[unit], by * scale[unit]) for unit, at, by in expected]
    first, calls, _ = await events(stage)
    assert (first.percent, first.limited, first.delivery, first.at) == (50, 10 * CENT, Delivery.NONE, stage.clock.now)
    assert (calls.percent, calls.limited) == (None, None)


async def test_one_posting_that_crosses_all_thresholds_at_every_level_tells_of_each(stage: Stage) -> None:
    await stage.customer("top", at_most(10), soft_limits=(SoftLimit(WHOLE, 50), SoftLimit(WHOLE, 90)))
    await stage.customer("under", at_most(20), parent="top", soft_limits=(SoftLimit(WHOLE, 45),))
    await stage.run("run_1", "under")
    await spent(stage.ledger, "run_1", cents(9), "m")
    assert sorted((account, at // CENT) for account, _, _, at, _ in await told(stage)) == [
        ("top", 5), ("top", 9), ("under", 9),
    ]  # fmt: skip
    assert [one.account for one in await events(stage, customer="top/under")] == ["customer:acme:under"]
    assert len(await events(stage, customer="top")) == 3
    assert await events(stage, own=True) == []


async def test_a_windows_threshold_is_told_in_every_window_and_needs_no_limit(stage: Stage) -> None:
    await stage.customer("ann", soft_limits=(SoftLimit(DAY, amount=at_most(3)),))
    await stage.run("run_1", "ann")
    for _ in range(3):
        for _ in range(4):
            await spent(stage.ledger, "run_1", cents(2), "m")
        stage.clock.now += DAY_MS
    days = [(label, at // CENT, used // CENT) for _, label, _, at, used in await told(stage)]
    assert days == [("2026-11-27", 3, 4), ("2026-11-28", 3, 4), ("2026-11-29", 3, 4)]


async def test_a_window_that_is_reset_is_told_of_anew(stage: Stage) -> None:
    await stage.customer("ann", windows={Span.DAY: at_most(10)}, soft_limits=(SoftLimit(DAY, 50),))
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", cents(6), "m")
    await stage.book.update("acme", "ann", lambda now: now, [Span.DAY])
    await spent(stage.ledger, "run_1", cents(4), "m")
    assert len(await told(stage)) == 1
    await spent(stage.ledger, "run_1", cents(1), "m")
    first, second = await events(stage)
    assert (first.threshold, second.threshold, first.id != second.id) == (5 * CENT, 5 * CENT, True)


async def test_a_models_threshold_counts_its_calls_alone(stage: Stage) -> None:
    opus = Scope(None, "opus-*")
    limits = (ModelLimit(opus, Limit(calls=4)),)
    await stage.customer("ann", model_limits=limits, soft_limits=(SoftLimit(opus, 50),))
    await stage.run("run_1", "ann")
    for model in ("haiku", "opus-1", "haiku", "", "opus-2"):
        await spent(stage.ledger, "run_1", Amounts(calls=1), model)
    (event,) = await events(stage)
    assert (event.scope, event.unit, event.threshold, event.used) == (opus, "calls", 2, 2)


async def test_what_is_set_below_what_was_spent_is_told_when_it_is_set_and_not_again(stage: Stage) -> None:
    await stage.customer("ann", at_most(100), soft_limits=(SoftLimit(WHOLE, 50),))
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", cents(10), "m")
    assert await told(stage) == []
    await stage.limit("ann", at_most(20))
    assert await told(stage) == [("ann", "", "nano_usd", 10 * CENT, 10 * CENT)]
    await stage.limit("ann", at_most(20))
    await spent(stage.ledger, "run_1", cents(1), "m")
    await stage.limit("ann", at_most(40))
    await spent(stage.ledger, "run_1", cents(9), "m")
    assert [at // CENT for *_, at, _ in await told(stage)] == [10, 20]


async def test_a_hold_that_is_only_held_or_void_crosses_nothing(stage: Stage) -> None:
    await stage.customer("ann", at_most(10), soft_limits=(SoftLimit(WHOLE, 50),))
    await stage.run("run_1", "ann")
    held = await stage.books.sent("run_1", cents(9))
    assert await told(stage) == []
    await stage.ledger.void(held)
    assert await told(stage) == []


async def test_an_event_is_there_after_a_death_and_a_posting_that_recovery_makes_is_told_of(stage: Stage) -> None:
    await stage.customer("ann", at_most(10), soft_limits=(SoftLimit(WHOLE, 50), SoftLimit(WHOLE, 90)))
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", cents(5), "m")
    before = await events(stage)
    await stage.books.sent("run_1", cents(4))
    async with stage.books.taken_over() as ledger:
        await ledger.recover()
        after = await ledger.events(EventFilter("acme"), 0, 100)
        assert after[:1] == before
        assert [one.threshold // CENT for one in after] == [5, 9]
        assert await ledger.events(EventFilter("acme", since=before[0].at, until=before[0].at + 1), 0, 9) == before
        assert await ledger.events(EventFilter("acme", since=before[0].at + 1, until=before[0].at + 1), 0, 9) == []
        assert await ledger.events(EventFilter("acme"), after[0].number, 9) == after[1:]


async def test_soft_limits_are_kept_shown_and_taken_back(stage: Stage) -> None:
    soft = (
        SoftLimit(WHOLE, 50),
        SoftLimit(WHOLE, amount=Limit(calls=2)),
        SoftLimit(DAY, 80),
        SoftLimit(Scope(None, "a*"), 10),
    )
    await stage.customer("default", at_most(10), windows={Span.DAY: at_most(5)}, soft_limits=soft)
    await stage.run("run_1", "new")
    kept = await stage.book.get("acme", "new")
    assert sorted(kept.soft_limits, key=repr) == sorted(soft, key=repr)
    assert (kept.windows, kept.model_limits) == ({Span.DAY: at_most(5)}, ())
    await stage.book.update("acme", "new", lambda now: replace(now, soft_limits=()))
    bare = await stage.book.get("acme", "new")
    assert (bare.soft_limits, bare.windows, bare.limit) == ((), {Span.DAY: at_most(5)}, at_most(10))
    await spent(stage.ledger, "run_1", cents(5), "m")
    assert await told(stage) == []


async def test_a_tenants_windows_that_are_limited_anew_keep_their_soft_limits(stage: Stage) -> None:
    await stage.books.run("run_1", Limit())
    wanted, soft = {DAY: at_most(10)}, (SoftLimit(DAY, 50),)
    await stage.ledger.change("acme", lambda db, at: account_lifecycle.set_limits(db, "acme", wanted, at, soft))
    await stage.ledger.set_window("acme", Span.DAY, at_most(20))
    await spent(stage.ledger, "run_1", cents(9), "m")
    assert await told(stage) == []
    await spent(stage.ledger, "run_1", cents(1), "m")
    assert await told(stage) == [("acme", "2026-11-27", "nano_usd", 10 * CENT, 10 * CENT)]


@pytest.mark.parametrize("amounts", [Amounts(nano_usd=1), Amounts(tokens=1), Amounts(calls=1), Amounts(cpu_ms=1)])
async def test_every_unit_has_soft_limits(stage: Stage, amounts: Amounts) -> None:
    limit = Limit(nano_usd=2, tokens=2, calls=2, cpu_ms=2)
    await stage.book.create(Customer("acme", "ann", limit=limit, soft_limits=(SoftLimit(WHOLE, 50),)))
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", amounts, "")
    (event,) = await events(stage)
    assert (getattr(amounts, event.unit), event.threshold) == (1, 1)
