"""The broker: what a call costs, whatever happens to it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import pytest

from rlm_server.broker.broker import Backoff, Broker, CallFailed
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import FREE, Prices
from rlm_server.broker.provider import Failure, Message, ModelRequest, ProviderError
from rlm_server.broker.routes import Route, Routes, UnknownModel
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, BudgetBusy, BudgetExceeded, Limit, Payer, Usage
from tests.broker.books import AT_ONCE, PAYER, Books
from tests.broker.stage import (
    BUSY,
    COST,
    HELD,
    PRICE,
    PROMPT,
    Play,
    Reporting,
    Until,
    answered,
    broker_of,
    soon,
)


async def test_a_call_costs_what_the_provider_counted(books: Books) -> None:
    play = Play([answered])
    completion = await broker_of(books, play).complete(PROMPT, PAYER, deadline=soon())
    assert (completion.reply.text, completion.provider, completion.attempts) == ("answered", "scripted", 1)
    assert completion.spent == COST
    assert await books.costs() == {f"{completion.call_id}.1": COST}
    assert play.started.get_nowait() == replace(PROMPT, model="upstream")


async def test_an_answer_that_is_wanted_ahead_of_the_books_comes_before_them_and_costs_the_same(books: Books) -> None:
    completion = await broker_of(books, Play([answered])).complete(PROMPT, PAYER, deadline=soon(), ahead=lambda: 0.0)
    assert (completion.reply.text, completion.spent) == ("answered", COST)
    assert books.orders == [(AT_ONCE, f"{completion.call_id}.1")]
    assert completion.settling is not None
    assert not completion.settling.done()
    assert await completion.settling
    assert await books.costs() == {f"{completion.call_id}.1": COST}


@pytest.mark.parametrize("short", [False, True])
async def test_a_request_leaves_only_after_its_worst_case_is_reserved_and_its_dispatch_is_written(
    books: Books, short: bool
) -> None:
    seen: list[str] = []
    if short:
        await books.short(PAYER, HELD)

    async def look(request: ModelRequest) -> str:
        seen.extend(order for order, _ in books.orders)
        return "answered"

    completion = await broker_of(books, Play([look])).complete(PROMPT, PAYER, deadline=soon())
    assert seen == ([AT_ONCE, "reserve", "dispatch"] if short else [AT_ONCE])
    assert books.orders[-1] == ("post", f"{completion.call_id}.1")
    assert set(books.held) == {HELD}


async def test_a_hold_carries_who_pays_and_which_prices_it_was_computed_with(books: Books) -> None:
    await broker_of(books, Play([answered])).complete(PROMPT, PAYER, deadline=soon())
    (entry,) = await books.chargeback()
    hold = entry.hold
    assert (hold.tenant, hold.run, hold.node, hold.account) == (PAYER.tenant, PAYER.run, PAYER.node, PAYER.account)
    assert (hold.model, hold.price_version) == ("small", Prices.load().version)
    assert entry.usage == Usage(input=100, output=2)


async def test_a_busy_provider_is_asked_again_under_a_new_hold_each_time(books: Books) -> None:
    overloaded = ProviderError(Failure.OVERLOADED, "the provider is overloaded", billed=False)
    completion = await broker_of(books, Play([BUSY, overloaded, answered])).complete(PROMPT, PAYER, deadline=soon())
    assert completion.attempts == 3
    ids = [f"{completion.call_id}.{attempt}" for attempt in (1, 2, 3)]
    assert books.ends == {ids[0]: "void", ids[1]: "void", ids[2]: "post"}
    assert await books.costs() == {ids[2]: COST}


@pytest.mark.parametrize("failure", sorted(set(Failure) - {Failure.RATE_LIMITED, Failure.OVERLOADED}))
async def test_other_failures_are_final_and_cost_nothing_where_they_are_not_billed(
    books: Books, failure: Failure
) -> None:
    play = Play([ProviderError(failure, "words", billed=False), answered])
    with pytest.raises(CallFailed, match="words") as caught:
        await broker_of(books, play).complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent, caught.value.attempts) == (failure, Amounts(), 1)
    assert books.ends == {f"{caught.value.call_id}.1": "void"}


@pytest.mark.parametrize("failure", Failure)
async def test_a_failure_that_may_be_billed_costs_the_whole_hold_and_is_not_tried_again(
    books: Books, failure: Failure
) -> None:
    play = Play([ProviderError(failure, "words", billed=True), answered])
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, play).complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.spent, caught.value.attempts) == (HELD, 1)
    assert await books.costs() == {f"{caught.value.call_id}.1": HELD}


async def test_a_wait_that_ends_after_the_deadline_is_not_begun(books: Books) -> None:
    later = ProviderError(Failure.RATE_LIMITED, "words", billed=False, retry_after=3600)
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, Play([later])).complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.retry_after) == (Failure.RATE_LIMITED, 3600)


def test_a_pause_doubles_to_its_most_and_is_never_shorter_than_asked() -> None:
    backoff = Backoff(first=1, most=4)
    for attempts, most in [(1, 1), (2, 2), (3, 4), (4, 4), (10_000, 4)]:
        assert most / 2 <= backoff.pause(attempts, None) <= most
    assert 30 <= backoff.pause(1, 30) <= 31


async def test_no_answer_before_the_deadline_costs_the_whole_hold(books: Books) -> None:
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, Play([Until()])).complete(PROMPT, PAYER, deadline=time.monotonic() + 0.5)
    assert (caught.value.failure, caught.value.spent) == (Failure.TIMED_OUT, HELD)
    assert list((await books.costs()).values()) == [HELD]


async def test_cancelling_a_call_in_flight_costs_the_whole_hold(books: Books) -> None:
    play = Play([Until()])
    task = asyncio.create_task(broker_of(books, play).complete(PROMPT, PAYER, deadline=soon()))
    await play.started.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((await books.costs()).values()) == [HELD]


@pytest.mark.parametrize(
    ("order", "cost"),
    [(AT_ONCE, []), ("reserve", []), ("dispatch", []), ("post", [COST]), ("post_in_full", [HELD]), ("void", [])],
)
async def test_cancelling_at_any_order_to_the_ledger_leaves_no_hold_unresolved(
    books: Books, order: str, cost: list[Amounts]
) -> None:
    acts = {"post_in_full": ProviderError(Failure.GONE, "words", billed=True), "void": BUSY}
    broker = broker_of(books, Play([acts.get(order, answered)]))
    if order in ("reserve", "dispatch"):
        await books.short(PAYER, HELD)
    task = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    books.before[order] = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await books.balance(PAYER.account)).pending == Amounts()
    assert list((await books.costs()).values()) == cost


async def test_a_request_that_cannot_be_paid_for_never_leaves(books: Books) -> None:
    play = Play([answered])
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd - 1))
    with pytest.raises(BudgetExceeded):
        await broker_of(books, play).complete(PROMPT, PAYER, deadline=soon())
    assert play.started.empty()


async def test_calls_wait_for_money_that_others_hold_and_fail_when_it_stays_away(books: Books) -> None:
    until = Until()
    play = Play([until, answered])
    broker = broker_of(books, play)
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd + COST.nano_usd))
    first = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await play.started.get()
    with pytest.raises(BudgetBusy):
        await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + 0.05)
    second = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    until.event.set()
    assert (await first).spent == (await second).spent == COST


async def test_a_tenant_short_of_money_keeps_no_other_tenant_from_the_provider(books: Books) -> None:
    until = Until()
    play = Play([until, answered])
    broker = broker_of(books, play, limits=CallLimits(provider_calls=2))
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd))
    mine = [asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon())) for _ in range(5)]
    await play.started.get()
    other = await books.open(Payer(account="run-2", tenant="globex", run="run-2", node="0"))
    assert (await broker.complete(PROMPT, other, deadline=soon())).spent == COST
    for task in mine:
        task.cancel()
    await asyncio.gather(*mine, return_exceptions=True)


@pytest.mark.parametrize("cap", ["provider_calls", "tenant_calls", "run_calls"])
async def test_calls_over_a_cap_queue_and_all_are_answered(books: Books, cap: str) -> None:
    inside = most = 0
    two_at_once = asyncio.Event()

    async def count(request: ModelRequest) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 2:
            two_at_once.set()
        await two_at_once.wait()
        await asyncio.sleep(0)
        inside -= 1
        return "answered"

    broker = broker_of(books, Play([count]), limits=CallLimits(**{cap: 2}))
    await asyncio.gather(*(broker.complete(PROMPT, PAYER, deadline=soon()) for _ in range(9)))
    assert most == 2
    assert len(await books.costs()) == 9


@pytest.mark.parametrize("cap", ["provider_calls", "tenant_calls", "run_calls"])
async def test_a_call_that_queues_to_its_deadline_costs_nothing(books: Books, cap: str) -> None:
    until = Until()
    play = Play([until])
    broker = broker_of(books, play, limits=CallLimits(**{cap: 1}))
    first = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await play.started.get()
    with pytest.raises(CallFailed, match="queue") as caught:
        await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + 0.5)
    assert (caught.value.failure, caught.value.spent) == (Failure.TIMED_OUT, Amounts())
    until.event.set()
    await first
    assert list((await books.costs()).values()) == [COST]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        Usage(input=-1, output=1),
        Usage(input=1, output=1, cache_read=1, cache_write=1),
        Usage(input=10**30, output=1),
    ],
)
async def test_an_answer_whose_usage_is_missing_or_absurd_is_kept_and_costs_the_whole_hold(
    books: Books, usage: Usage | None
) -> None:
    routes = Routes({"small": Route("odd", Reporting(usage), "upstream", PRICE)})
    completion = await Broker(books, routes, Prices.load()).complete(PROMPT, PAYER, deadline=soon())
    assert (completion.reply.text, completion.reply.usage, completion.spent) == ("answered", None, HELD)
    assert list((await books.costs()).values()) == [HELD]


async def test_a_cost_above_the_hold_is_posted_truthfully_and_counted(books: Books) -> None:
    usage = Usage(input=HELD.tokens, output=1_000)
    routes = Routes({"small": Route("odd", Reporting(usage), "upstream", PRICE)})
    broker = Broker(books, routes, Prices.load())
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert completion.spent.nano_usd == PRICE.cost(usage) > HELD.nano_usd
    assert list((await books.costs()).values()) == [completion.spent]
    assert broker.counters.overruns == 1


async def test_a_defect_in_a_provider_costs_the_whole_hold_and_shows(books: Books) -> None:
    with pytest.raises(ZeroDivisionError):
        await broker_of(books, Play([ZeroDivisionError()])).complete(PROMPT, PAYER, deadline=soon())
    assert list((await books.costs()).values()) == [HELD]


async def test_an_unknown_model_is_told_which_models_there_are(books: Books) -> None:
    with pytest.raises(UnknownModel, match=r"'large'.*small"):
        await broker_of(books, Play([answered])).complete(replace(PROMPT, model="large"), PAYER, deadline=soon())
    assert books.orders == []


@pytest.mark.parametrize(
    "request_",
    [
        replace(PROMPT, max_tokens=0),
        replace(PROMPT, max_tokens=-(10**9)),
        replace(PROMPT, max_tokens=10**18),
        replace(PROMPT, messages=(Message("user", "\ud800"),)),
        replace(PROMPT, system="\udfff"),
    ],
)
async def test_a_request_that_cannot_be_bounded_is_refused(books: Books, request_: ModelRequest) -> None:
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, Play([answered])).complete(request_, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.attempts, books.orders) == (Failure.BAD_REQUEST, 0, [])


def test_the_input_is_bounded_by_its_bytes_not_its_characters() -> None:
    latin = worst_case(replace(PROMPT, messages=(Message("user", "a" * 100),)), PRICE)
    wide = worst_case(replace(PROMPT, messages=(Message("user", "漢" * 100),)), PRICE)
    assert wide.tokens - latin.tokens == 200
    assert worst_case(PROMPT, FREE) == replace(HELD, nano_usd=0)


async def test_what_happened_is_counted(books: Books) -> None:
    broker = broker_of(books, Play([BUSY, answered, ProviderError(Failure.REFUSED, "words", billed=False)]))
    await broker.complete(PROMPT, PAYER, deadline=soon())
    with pytest.raises(CallFailed):
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (broker.counters.calls, broker.counters.attempts) == (2, 3)
    assert broker.counters.failures == {Failure.REFUSED: 1}


async def test_closing_closes_every_provider_once(books: Books) -> None:
    closed: list[object] = []

    @dataclass
    class Closing(Reporting):
        async def close(self) -> None:
            closed.append(self)

    one, two = Closing(None), Closing(None)
    routes = Routes(
        {name: Route("p", provider, name, FREE) for name, provider in zip("abc", (one, one, two), strict=True)}
    )
    assert routes.models == ("a", "b", "c")
    await Broker(books, routes, Prices.load()).close()
    assert [id(provider) for provider in closed] == [id(one), id(two)]
