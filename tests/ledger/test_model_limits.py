"""What may be spent with some models is limited by itself, and the calls of other models go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from rlm_server.ledger import (
    Amounts,
    BudgetBusy,
    BudgetError,
    BudgetExceeded,
    Hold,
    Ledger,
    Limit,
    ModelLimit,
    Scope,
    Span,
    windows,
)
from tests.ledger.accounting import a_hold, at_most, at_once, cents, soon
from tests.ledger.test_customers import MINUTE, NOON, Stage
from tests.ledger.test_customers import stage as stage  # a fixture

CALL = Amounts(calls=1)


def of(account: str, amounts: Amounts, model: str) -> Hold:
    return replace(a_hold(account, amounts), model=model)


async def spent(ledger: Ledger, account: str, amounts: Amounts, model: str) -> None:
    hold = of(account, amounts, model)
    await ledger.reserve(hold, deadline=at_once(), dispatch=True)
    await ledger.post(hold.id, amounts, None)


def limited(model: str, limit: Limit, span: Span | None = None) -> tuple[ModelLimit, ...]:
    return (ModelLimit(Scope(span, model), limit),)


async def refused(stage: Stage, model: str, amounts: Amounts = CALL) -> BudgetError:
    with pytest.raises(BudgetExceeded) as caught:
        await spent(stage.ledger, "run_1", amounts, model)
    return caught.value


async def test_a_limit_on_a_model_refuses_its_calls_by_name_and_lets_others_go_on(stage: Stage) -> None:
    account = await stage.customer("ann", model_limits=limited("opus-*", at_most(5)))
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", cents(3), "opus-1")
    error = await refused(stage, "opus-2", cents(3))
    assert "limit of $0.05 of account 'ann' for models 'opus-*' is already spent" in str(error)
    assert windows.parts(error.account) == windows.WindowName(Scope(None, "opus-*"), "", account)
    await spent(stage.ledger, "run_1", cents(2), "opus-1")
    await spent(stage.ledger, "run_1", cents(900), "haiku")
    await spent(stage.ledger, "run_1", cents(50), "")
    assert await stage.ledger.left("run_1") == at_most(1_000 - 955)


async def test_a_tenants_limit_on_a_model_holds_for_all_its_customers_together(stage: Stage) -> None:
    await stage.customer("ann")
    await stage.customer("bob")
    await stage.run("run_1", "ann")
    await stage.run("run_2", "bob")
    await stage.ledger.set_window("acme", Span.DAY, Limit(calls=2), "opus")
    await spent(stage.ledger, "run_1", CALL, "opus")
    await spent(stage.ledger, "run_2", CALL, "opus")
    error = await refused(stage, "opus")
    assert "account 'acme' for models 'opus' for the day 2026-11-27 (UTC)" in str(error)
    stage.clock.now += 24 * 60 * MINUTE
    await spent(stage.ledger, "run_1", CALL, "opus")


async def test_a_limit_that_is_set_late_counts_what_was_spent_with_the_model_before(stage: Stage) -> None:
    await stage.customer("ann")
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", CALL, "opus-1")
    await spent(stage.ledger, "run_1", CALL, "haiku")
    under_way = of("run_1", CALL, "opus-2")
    await stage.ledger.reserve(under_way, deadline=at_once())
    await stage.book.update("acme", "ann", lambda now: replace(now, model_limits=limited("opus-*", Limit(calls=3))))
    (window,) = await stage.ledger.windows("customer:acme:ann")
    assert (window.balance.posted, window.balance.pending, window.span, window.model) == (CALL, CALL, None, "opus-*")
    await spent(stage.ledger, "run_1", CALL, "opus-1")
    await refused_or_busy(stage, "opus-1")
    await stage.ledger.void(under_way.id)
    await spent(stage.ledger, "run_1", CALL, "opus-1")
    await refused(stage, "opus-1")


async def refused_or_busy(stage: Stage, model: str) -> None:
    with pytest.raises(BudgetBusy):
        await spent(stage.ledger, "run_1", CALL, model)


async def test_a_models_minute_has_its_calls_wait_and_no_others_of_the_same_run(stage: Stage) -> None:
    await stage.customer("ann", model_limits=limited("opus", Limit(calls=1), Span.MINUTE))
    await stage.run("run_1", "ann", Limit(calls=100))
    await spent(stage.ledger, "run_1", CALL, "opus")
    stage.clock.now += MINUTE - 20
    waiting = asyncio.create_task(stage.ledger.reserve(of("run_1", CALL, "opus"), deadline=soon()))
    await stage.books.settled()
    assert not waiting.done()
    await spent(stage.ledger, "run_1", CALL, "haiku")
    stage.clock.now += 20  # nothing else happens that would have the line judged again
    await waiting


async def test_one_that_waits_for_its_models_minute_keeps_none_of_another_model_from_room_that_is_freed(
    stage: Stage,
) -> None:
    await stage.customer("ann", model_limits=limited("opus", Limit(calls=1), Span.MINUTE))
    await stage.run("run_1", "ann", Limit(tokens=10))
    await spent(stage.ledger, "run_1", CALL, "opus")
    held = await stage.books.held("run_1", Amounts(tokens=10))
    paced = asyncio.create_task(stage.ledger.reserve(of("run_1", CALL, "opus"), deadline=soon()))
    await stage.books.settled()
    other = asyncio.create_task(stage.ledger.reserve(of("run_1", Amounts(tokens=5), "haiku"), deadline=soon()))
    await stage.books.settled()
    assert not other.done()
    await stage.ledger.void(held)
    await other
    assert not paced.done()
    paced.cancel()


async def test_a_tenant_has_a_minutes_pace_of_its_own(stage: Stage) -> None:
    await stage.books.run("run_1", Limit())
    await stage.ledger.set_window("acme", Span.MINUTE, Limit(calls=1))
    await spent(stage.ledger, "run_1", CALL, "opus")
    await refused_or_busy(stage, "opus")
    stage.clock.now = NOON + MINUTE
    await spent(stage.ledger, "run_1", CALL, "opus")


async def test_resetting_a_span_begins_its_windows_of_models_anew_and_no_others(stage: Stage) -> None:
    limits = (*limited("opus", Limit(calls=1), Span.DAY), *limited("*", Limit(calls=2)))
    await stage.customer("ann", model_limits=limits)
    await stage.run("run_1", "ann")
    await spent(stage.ledger, "run_1", CALL, "opus")
    await refused(stage, "opus")
    await stage.book.update("acme", "ann", lambda now: now, [Span.DAY])
    await spent(stage.ledger, "run_1", CALL, "opus")
    assert "for models '*'" in str(await refused(stage, "haiku"))


async def test_customers_that_were_never_made_get_the_templates_limits_on_models(stage: Stage) -> None:
    await stage.customer("default", model_limits=limited("opus", Limit(calls=1)))
    await stage.run("run_1", "new")
    await spent(stage.ledger, "run_1", CALL, "opus")
    await refused(stage, "opus")
    assert (await stage.book.get("acme", "new")).model_limits == limited("opus", Limit(calls=1))


async def test_a_limit_on_a_model_is_looked_at_before_a_call_is_asked_for(stage: Stage) -> None:
    await stage.books.run("run_1", Limit())
    await stage.ledger.set_window("acme", None, Limit(calls=1), "opus")
    with pytest.raises(BudgetExceeded):
        await stage.ledger.check("run_1", Amounts(calls=2), "opus")
    await stage.ledger.check("run_1", Amounts(calls=2), "haiku")
