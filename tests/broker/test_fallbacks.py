"""Another model may answer where a tenant allows it: under its own name, at its own price, and never after a bill."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rlm_server.broker.breaker import BreakerConfig, State
from rlm_server.broker.broker import Backoff, Broker, CallFailed, Completion
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, BudgetExceeded, Entry, Limit, Payer
from rlm_server.tenants.policy import Policy
from tests.broker.books import PAYER, TENANT, Books
from tests.broker.stage import BUSY, COST, HELD, PRICE, PROMPT, Play, Until, answered, soon

DEAR = Price(Rates(input=7_000_000_000, output=9_000_000_000))
DEAR_COST = Amounts(nano_usd=100 * 7_000 + 2 * 9_000, tokens=102, calls=1)
"""What PROMPT costs with the answer "answered"."""

ALL = Policy(fallbacks=None)
GIVING_WAY = [Failure.RATE_LIMITED, Failure.OVERLOADED, Failure.GONE, Failure.AUTH, Failure.TIMED_OUT]
OTHERS = [Failure.TOO_LONG, Failure.REFUSED, Failure.BAD_REQUEST]


def failing(failure: Failure, *, billed: bool = False) -> ProviderError:
    return ProviderError(failure, f"words of {failure}", billed=billed)


def broker_of(
    books: Books,
    small: Play,
    *,
    large: Play | None = None,
    huge: Play | None = None,
    policies: Mapping[str, Policy] | None = None,
    **options: Any,
) -> Broker:
    """A broker whose "small" falls back to "large", then to "huge"; those are as dear as each other."""
    plays = {"small": small, "large": large or Play([answered]), "huge": huge or Play([answered])}
    routes = {
        name: Route(
            f"provider of {name}", ScriptedProvider({"upstream": play}), "upstream", PRICE if play is small else DEAR
        )
        for name, play in plays.items()
    }
    routes["small"] = replace(routes["small"], fallbacks=("large", "huge"))
    return Broker(
        books,
        Routes(routes),
        Prices.load(),
        backoff=Backoff(first=0.001, tries=3),
        policies={TENANT: ALL} if policies is None else policies,
        **options,
    )


@pytest.mark.parametrize("failure", GIVING_WAY)
async def test_a_fallback_answers_under_its_own_name_and_at_its_own_price(books: Books, failure: Failure) -> None:
    broker = broker_of(books, Play([failing(failure)]))
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (completion.model, completion.provider) == ("large", "provider of large")
    assert (completion.reply.text, completion.spent) == ("answered", DEAR_COST)
    (entry,) = await books.chargeback()
    assert (entry.hold.id, entry.hold.model) == (f"{completion.call_id}.{completion.attempts}", "large")
    assert (entry.hold.amounts, entry.actual) == (worst_case(PROMPT, DEAR), DEAR_COST)
    assert (await books.balance(PAYER.account)).pending == Amounts()
    assert await broker.cost(completion.call_id) == DEAR_COST
    assert broker.counters.fallbacks == 1


async def test_a_busy_model_is_asked_again_before_another_is(books: Books) -> None:
    small = Play([BUSY])
    broker = broker_of(books, small)
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (small.started.qsize(), completion.model, completion.attempts) == (3, "large", 4)
    assert (broker.counters.attempts, broker.counters.retries) == (4, 2)
    assert broker.counters.failed_attempts == {Failure.RATE_LIMITED: 3}
    assert broker.counters.failures == {}
    assert list(books.ends.values()) == ["void", "void", "void", "post"]


async def test_a_model_that_asks_to_wait_beyond_the_deadline_gives_way_at_once(books: Books) -> None:
    later = ProviderError(Failure.RATE_LIMITED, "words", billed=False, retry_after=3600)
    completion = await broker_of(books, Play([later])).complete(PROMPT, PAYER, deadline=soon())
    assert (completion.model, completion.attempts) == ("large", 2)


@pytest.mark.parametrize(
    ("policy", "model"),
    [
        (Policy(), None),
        (Policy(fallbacks=frozenset({"huge"})), "huge"),
        (Policy(fallbacks=frozenset({"elsewhere"})), None),
        (ALL, "large"),
    ],
    ids=["none", "some", "another", "all"],
)
async def test_only_what_the_tenant_allows_may_answer(books: Books, policy: Policy, model: str | None) -> None:
    broker = broker_of(books, Play([failing(Failure.GONE)]), policies={TENANT: policy})
    if model is None:
        with pytest.raises(CallFailed, match="words of gone"):
            await broker.complete(PROMPT, PAYER, deadline=soon())
    else:
        assert (await broker.complete(PROMPT, PAYER, deadline=soon())).model == model


async def test_a_tenant_that_has_said_nothing_allows_none(books: Books) -> None:
    broker = broker_of(books, Play([failing(Failure.GONE)]), policies={"another": ALL})
    with pytest.raises(CallFailed, match="words of gone"):
        await broker.complete(PROMPT, PAYER, deadline=soon())


@pytest.mark.parametrize("failure", Failure)
async def test_no_other_model_is_asked_after_a_failure_that_may_be_billed(books: Books, failure: Failure) -> None:
    large = Play([answered])
    broker = broker_of(books, Play([failing(failure, billed=True)]), large=large)
    with pytest.raises(CallFailed) as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent, caught.value.attempts) == (failure, HELD, 1)
    assert large.started.empty()


@pytest.mark.parametrize("failure", OTHERS)
async def test_what_is_the_callers_own_fault_is_not_asked_elsewhere(books: Books, failure: Failure) -> None:
    large = Play([answered])
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, Play([failing(failure)]), large=large).complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent) == (failure, Amounts())
    assert large.started.empty()


@pytest.mark.parametrize("failure", [*GIVING_WAY, *OTHERS])
async def test_a_fallback_that_fails_is_followed_by_the_next(books: Books, failure: Failure) -> None:
    broker = broker_of(books, Play([failing(Failure.AUTH)]), large=Play([failing(failure)]))
    assert (await broker.complete(PROMPT, PAYER, deadline=soon())).model == "huge"


async def test_where_all_fail_it_is_told_how_the_model_asked_for_failed(books: Books) -> None:
    gone, busy = Play([failing(Failure.GONE)]), Play([ProviderError(Failure.OVERLOADED, "", billed=False)])
    broker = broker_of(books, Play([failing(Failure.AUTH)]), large=gone, huge=busy)
    with pytest.raises(CallFailed, match="words of auth") as caught:
        await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + 0.2)
    assert (caught.value.failure, caught.value.spent) == (Failure.AUTH, Amounts())
    assert set(books.ends.values()) == {"void"}
    assert broker.counters.failures == {Failure.AUTH: 1}


async def test_a_fallback_that_fails_and_may_be_billed_ends_the_call_at_its_own_worst_case(books: Books) -> None:
    huge = Play([answered])
    large = Play([failing(Failure.GONE, billed=True)])
    broker = broker_of(books, Play([failing(Failure.AUTH)]), large=large, huge=huge)
    with pytest.raises(CallFailed, match="words of gone") as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert caught.value.spent == worst_case(PROMPT, DEAR) == await broker.cost(caught.value.call_id)
    assert huge.started.empty()


async def test_a_fallback_that_cannot_be_paid_for_is_none(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=worst_case(PROMPT, DEAR).nano_usd - 1))
    large = Play([answered])
    with pytest.raises(CallFailed, match="words of auth"):
        await broker_of(books, Play([failing(Failure.AUTH)]), large=large).complete(PROMPT, PAYER, deadline=soon())
    assert large.started.empty()


async def test_a_model_that_cannot_be_paid_for_is_not_replaced(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd - 1))
    with pytest.raises(BudgetExceeded):
        await broker_of(books, Play([answered])).complete(PROMPT, PAYER, deadline=soon())


async def test_a_call_whose_deadline_passed_in_line_is_not_asked_elsewhere(books: Books) -> None:
    until = Until()
    small, large = Play([until]), Play([answered])
    broker = broker_of(books, small, large=large, limits=CallLimits(provider_calls=1))
    first = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await small.started.get()
    orders = list(books.orders)
    with pytest.raises(CallFailed, match="queue"):
        await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + 0.05)
    assert books.orders == orders
    until.event.set()
    assert (await first).spent == COST


async def test_a_route_that_is_left_alone_gives_way_without_being_asked(books: Books) -> None:
    small = Play([failing(Failure.AUTH)])
    broker = broker_of(books, small)
    for _ in range(BreakerConfig().calls):
        assert (await broker.complete(PROMPT, PAYER, deadline=soon())).attempts == 2
    assert broker.states() == {"small": State.OPEN, "large": State.CLOSED, "huge": State.CLOSED}
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (completion.model, completion.attempts) == ("large", 1)
    assert small.started.qsize() == BreakerConfig().calls


async def test_cancelling_while_a_fallback_is_asked_costs_its_whole_hold(books: Books) -> None:
    large = Play([Until()])
    broker = broker_of(books, Play([failing(Failure.GONE)]), large=large)
    task = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon(), call_id="call"))
    await large.started.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await broker.cost("call") == worst_case(PROMPT, DEAR)
    assert books.ends == {"call.1": "void", "call.2": "post_in_full"}


async def test_a_fallback_is_paid_by_who_pays_for_the_call(books: Books) -> None:
    payer = await books.open(Payer(account="run-2", tenant=TENANT, run="run-2", node="7"))
    await broker_of(books, Play([failing(Failure.GONE)])).complete(PROMPT, payer, deadline=soon())
    (entry,) = await books.chargeback()
    assert (entry.hold.account, entry.hold.run, entry.hold.node) == ("run-2", "run-2", "7")


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_fails_a_call_pays_for_one_attempt_at_most_and_the_books_agree_with_what_callers_are_told(
    books: Books, seed: int
) -> None:
    chance = random.Random(seed)

    async def by_chance(request: ModelRequest) -> str:
        await asyncio.sleep(0)
        if chance.random() < 0.6:
            raise failing(chance.choice([*GIVING_WAY, *OTHERS]), billed=chance.random() < 0.2)
        return "answered"

    breaker = BreakerConfig(calls=10_000, tenants=10_000)
    broker = broker_of(books, Play([by_chance]), large=Play([by_chance]), huge=Play([by_chance]), breaker=breaker)
    names = [f"call-{number}" for number in range(600)]
    calls = (broker.complete(PROMPT, PAYER, deadline=soon(), call_id=name) for name in names)
    results = dict(zip(names, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    posted: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in await books.chargeback():
        posted[entry.hold.id.partition(".")[0]].append(entry)
    for name, result in results.items():
        assert isinstance(result, Completion | CallFailed)
        assert [entry.actual for entry in posted[name]] == ([result.spent] if result.spent != Amounts() else [])
        if isinstance(result, Completion):
            assert [entry.hold.model for entry in posted[name]] == [result.model]
    total = sum((result.spent for result in results.values()), Amounts())  # type: ignore[union-attr]
    balance = await books.balance(PAYER.account)
    assert (balance.posted, balance.pending, await books.unresolved()) == (total, Amounts(), 0)
    models = Counter(result.model for result in results.values() if isinstance(result, Completion))
    assert set(models) == {"small", "large", "huge"}
    assert broker.counters.fallbacks == models["large"] + models["huge"]
