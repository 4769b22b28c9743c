"""Calls to a route that fails again and again end at once, unbilled and with words; a busy one is waited for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from rlm_server.broker.breaker import BreakerConfig, State
from rlm_server.broker.broker import Broker, CallFailed, Completion
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Failure, Message, ModelRequest, Provider, ProviderError
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts, Payer
from tests.broker.books import PAYER, Books
from tests.broker.stage import BACKOFF, COST, HELD, PRICE, PROMPT, Play, Until, answered, broker_of, soon, until
from tests.fake_provider.server import FakeProvider, Fault

QUICK = BreakerConfig(calls=3, tenants=2, cooldown=0.2, max_cooldown=0.2)
LONG = BreakerConfig(calls=3, tenants=2, cooldown=3600, max_cooldown=3600)

REVOKED = ProviderError(Failure.AUTH, "the provider does not accept this server's key", billed=False)
OVERLOADED = ProviderError(Failure.OVERLOADED, "the provider is overloaded", billed=False)


def failing(failure: Failure) -> ProviderError:
    return ProviderError(failure, f"words of {failure}", billed=failure is not Failure.AUTH)


async def outcome(call: Awaitable[Completion]) -> Failure | None:
    """How a call failed; None where it was answered."""
    try:
        await call
    except CallFailed as error:
        return error.failure
    return None


@pytest.mark.parametrize("failure", [Failure.GONE, Failure.TIMED_OUT, Failure.AUTH])
async def test_calls_to_a_route_that_failed_again_and_again_fail_at_once_and_cost_nothing(
    books: Books, failure: Failure
) -> None:
    play = Play([failing(failure)])
    broker = broker_of(books, play, breaker=LONG)
    for _ in range(3):
        assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is failure
    orders = list(books.orders)
    with pytest.raises(CallFailed, match=f"failed again and again and is left alone.*words of {failure}") as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    error = caught.value
    assert (error.failure, error.spent, error.attempts) == (Failure.UNAVAILABLE, Amounts(), 0)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 3600
    assert (play.started.qsize(), books.orders) == (3, orders)
    assert broker.states() == {"small": State.OPEN}
    assert broker.counters.failures == {failure: 3, Failure.UNAVAILABLE: 1}


async def test_a_route_that_works_again_is_used_again(books: Books) -> None:
    broker = broker_of(books, Play([REVOKED, REVOKED, REVOKED, answered]), breaker=QUICK)
    failures = [await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) for _ in range(3)]
    assert failures == [Failure.AUTH] * 3
    with pytest.raises(CallFailed) as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    await asyncio.sleep(caught.value.retry_after or 0)
    assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is None
    assert broker.states() == {"small": State.CLOSED}
    assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is None


async def test_calls_that_stand_in_line_when_the_route_breaks_fail_as_they_come_up(books: Books) -> None:
    first = Until()

    async def revoked_then(request: ModelRequest) -> str:
        await first(request)
        raise REVOKED

    play = Play([revoked_then])
    broker = broker_of(books, play, breaker=LONG, limits=CallLimits(run_calls=3))
    calls = [asyncio.create_task(outcome(broker.complete(PROMPT, PAYER, deadline=soon()))) for _ in range(500)]
    await until(lambda: play.started.qsize() == 3)
    assert broker.waiting == 497
    first.event.set()
    assert Counter(await asyncio.gather(*calls)) == {Failure.AUTH: 3, Failure.UNAVAILABLE: 497}
    assert play.started.qsize() == 3
    assert (await books.balance(PAYER.account)).pending == Amounts()


async def test_a_call_does_not_wait_for_its_turn_only_to_be_refused(books: Books) -> None:
    slow = Until()
    play = Play([slow, REVOKED])
    broker = broker_of(books, play, breaker=LONG, limits=CallLimits(run_calls=1))
    first = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await play.started.get()
    second_run = await books.open(Payer(account="run-2", tenant=PAYER.tenant, run="run-2", node="0"))
    for _ in range(3):
        assert await outcome(broker.complete(PROMPT, second_run, deadline=soon())) is Failure.AUTH
    assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is Failure.UNAVAILABLE
    slow.event.set()
    assert (await first).spent == COST


async def test_a_route_that_breaks_while_a_call_waits_for_its_provider_is_not_asked_by_it(books: Books) -> None:
    until_told = Until()

    async def late(request: ModelRequest) -> str:
        await until_told(request)
        raise REVOKED

    play = Play([REVOKED, REVOKED, late])
    broker = broker_of(books, play, breaker=LONG, limits=CallLimits(provider_calls=1))
    for _ in range(2):
        assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is Failure.AUTH
    third, fourth = (
        asyncio.create_task(outcome(broker.complete(PROMPT, PAYER, deadline=soon(), call_id=name)))
        for name in ("third", "fourth")
    )
    await until(lambda: broker.loads()["scripted"].waiting == 1)
    until_told.event.set()
    assert (await third, await fourth) == (Failure.AUTH, Failure.UNAVAILABLE)
    assert play.started.qsize() == 3
    assert "fourth.1" not in {hold for _, hold in books.orders}


async def test_a_busy_route_is_waited_for_and_asked_by_one_call_at_a_time(books: Books) -> None:
    play = Play([OVERLOADED] * 12 + [answered])  # type: ignore[arg-type]
    broker = broker_of(books, play, breaker=QUICK)
    calls = (broker.complete(PROMPT, PAYER, deadline=soon()) for _ in range(8))
    completions = await asyncio.gather(*calls)
    assert {completion.spent for completion in completions} == {COST}
    assert sum(completion.attempts for completion in completions) >= play.started.qsize() == 12 + 8
    assert broker.states() == {"small": State.CLOSED}
    assert broker.counters.failed_attempts[Failure.OVERLOADED] == 12


async def test_a_busy_route_that_is_left_alone_beyond_the_deadline_is_not_waited_for(books: Books) -> None:
    broker = broker_of(books, Play([OVERLOADED]), breaker=LONG)
    for _ in range(2):
        with pytest.raises(CallFailed, match="overloaded") as caught:
            await broker.complete(PROMPT, PAYER, deadline=soon())
        assert caught.value.failure is Failure.UNAVAILABLE
        assert caught.value.retry_after == pytest.approx(3600, abs=30)


async def test_a_callers_own_haste_is_not_held_against_the_route(books: Books) -> None:
    play, haste = Play([Until()]), 0.05
    broker = broker_of(books, play, breaker=LONG)
    while (sent := play.started.qsize()) < 5:
        with pytest.raises(CallFailed, match="the deadline") as caught:
            await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + haste)
        if play.started.qsize() > sent:
            assert "before the deadline" in str(caught.value)
            assert (caught.value.failure, caught.value.spent) == (Failure.TIMED_OUT, HELD)
        else:  # that was too little even to send the request, on a machine as busy as this one
            haste *= 2
    assert broker.states() == {"small": State.CLOSED}


async def test_a_route_that_does_not_answer_in_the_time_an_attempt_has_is_left_alone(books: Books) -> None:
    broker = broker_of(books, Play([Until()]), breaker=LONG, limits=CallLimits(call_seconds=0.01))
    for _ in range(3):
        with pytest.raises(CallFailed, match=r"within 0\.01 s"):
            await broker.complete(PROMPT, PAYER, deadline=soon())
    assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is Failure.UNAVAILABLE


async def test_a_prompt_that_breaks_the_provider_shuts_out_its_own_tenant_alone(books: Books) -> None:
    async def reply(request: ModelRequest) -> str:
        if request.messages[0].content == "poison":
            raise failing(Failure.GONE)
        return "answered"

    broker = broker_of(books, Play([reply]), breaker=LONG)
    poison = ModelRequest("small", (Message("user", "poison"),), max_tokens=100)
    for _ in range(20):
        await outcome(broker.complete(poison, PAYER, deadline=soon()))
    assert await outcome(broker.complete(PROMPT, PAYER, deadline=soon())) is Failure.UNAVAILABLE
    other = await books.open(Payer(account="run-2", tenant="globex", run="run-2", node="0"))
    assert await outcome(broker.complete(PROMPT, other, deadline=soon())) is None


@pytest.fixture
def real(books: Books, provider: Provider) -> Broker:
    routes = Routes({"small": Route("fake", provider, "fake-model", PRICE)})
    return Broker(books, routes, Prices.load(), backoff=BACKOFF, breaker=LONG, limits=CallLimits(run_calls=5))


async def test_a_key_that_is_revoked_during_a_run_ends_every_call_in_clear_words(
    books: Books, real: Broker, fake: FakeProvider
) -> None:
    def revoked_after(requests: int) -> Callable[[], Fault | None]:
        return lambda: Fault.BAD_KEY if fake.requests > requests else None

    fake.chance = revoked_after(20)
    calls = [asyncio.create_task(real.complete(PROMPT, PAYER, deadline=soon())) for _ in range(200)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    answers = [result for result in results if isinstance(result, Completion)]
    errors = [result for result in results if isinstance(result, CallFailed)]
    assert (len(answers), len(answers) + len(errors)) == (20, 200)
    assert {error.failure for error in errors} == {Failure.AUTH, Failure.UNAVAILABLE}
    assert all("does not accept this server's key" in str(error) for error in errors)
    assert {(error.spent, error.billed) for error in errors} == {(Amounts(), False)}
    # Seven of ten that were sent within the last seconds have failed by then, or nearly all of the last few. Of the
    # five that are under way at once, the other four count as not failed.
    assert fake.requests <= (20 + 4) * 10 / 3 + 1 + 5
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted.calls) == (Amounts(), 20)
