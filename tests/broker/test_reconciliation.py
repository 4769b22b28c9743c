"""What the ledger posted against what the provider billed, over real HTTP, for every fault."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlm_server.broker.broker import Backoff, Broker, CallFailed, worst_case
from rlm_server.broker.calls import Failure, Message, ModelRequest, Provider
from rlm_server.broker.prices import Price, Prices, Rates
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts
from tests.broker.books import PAYER, Books
from tests.fake_provider.server import FakeProvider, Fault

PRICE = Price(Rates(input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000, cache_write=3_750_000_000))

AMBIGUOUS = frozenset(
    {
        Fault.SERVER_ERROR,
        Fault.CUT,
        Fault.ENDS_EARLY,
        Fault.ERROR_INSIDE,
        Fault.NONSENSE,
        Fault.MISSING_USAGE,
        Fault.STALL,
    }
)
"""Nobody but the provider can know what these cost, so the whole hold is posted. Every other fault is exact."""

RETRIED = frozenset({Fault.RATE_LIMITED, Fault.RATE_LIMITED_WITH_HINT, Fault.OVERLOADED, Fault.UNAVAILABLE})


def ask(max_tokens: int) -> ModelRequest:
    return ModelRequest("small", (Message("user", "what is the answer? 漢字"),), "be brief", max_tokens)


@pytest.fixture
def broker(books: Books, provider: Provider) -> Broker:
    routes = Routes({"small": Route("fake", provider, "fake-model", PRICE)})
    return Broker(books, routes, Prices.load(), backoff=Backoff(first=0.001))


def billed(fake: FakeProvider) -> Amounts:
    total = Amounts()
    for bill in fake.billed:
        total += Amounts(PRICE.cost(bill.usage), bill.usage.input + bill.usage.output, 1)
    return total


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_what_is_posted_covers_what_was_billed_and_equals_it_where_that_can_be_known(
    books: Books, broker: Broker, fake: FakeProvider, max_tokens: int, fault: Fault | None
) -> None:
    fake.faults.extend([fault] if fault else [])
    deadline = time.monotonic() + (1 if fault is Fault.STALL else 10)
    try:
        attempts = (await broker.complete(ask(max_tokens), PAYER, deadline=deadline)).attempts
    except CallFailed as error:
        attempts = error.attempts
    balance = await books.balance(PAYER.account)
    assert balance.pending == Amounts()
    if fault in AMBIGUOUS:
        assert balance.posted == worst_case(ask(max_tokens), PRICE)
        assert balance.posted.nano_usd >= billed(fake).nano_usd
    else:
        assert balance.posted == billed(fake)
    assert attempts == fake.received.qsize() == (2 if fault in RETRIED else 1)
    assert broker.counters.overruns == 0


async def test_many_calls_at_once_with_faults_among_them_are_all_accounted_for(
    books: Books, broker: Broker, fake: FakeProvider
) -> None:
    fake.faults.extend([Fault.SLOW, Fault.OVERLOADED, Fault.BAD_REQUEST, Fault.RATE_LIMITED_WITH_HINT] * 5)
    calls = (broker.complete(ask(100), PAYER, deadline=time.monotonic() + 20) for _ in range(20))
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [result.failure for result in results if isinstance(result, CallFailed)]
    assert failed == [Failure.BAD_REQUEST] * 5
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted) == (Amounts(), billed(fake))
    assert balance.posted.calls == 15


async def test_a_request_abandoned_in_flight_is_paid_for(books: Books, broker: Broker, fake: FakeProvider) -> None:
    fake.faults.append(Fault.STALL)
    task = asyncio.create_task(broker.complete(ask(100), PAYER, deadline=time.monotonic() + 10))
    await fake.received.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted) == (Amounts(), worst_case(ask(100), PRICE))
