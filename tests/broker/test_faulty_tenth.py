"""Many calls at once of which a tenth meets a fault: nearly all are answered, and none is refused for the others."""

from __future__ import annotations

import asyncio
import time

from rlm_server.broker.broker import Broker, CallFailed, Completion
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Failure
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts
from tests.broker.books import PAYER, Books
from tests.broker.conftest import APIS
from tests.broker.priced import PRICE, ask, billed
from tests.fake_provider.server import FakeProvider, Fault, chance

CALLS, AT_ONCE = 1_500, 500

AMONG = [
    *(Fault.RATE_LIMITED, Fault.RATE_LIMITED_WITH_HINT, Fault.UNAVAILABLE, Fault.OVERLOADED),  # which are tried again
    *(Fault.BAD_KEY, Fault.FORBIDDEN, Fault.BAD_REQUEST, Fault.NO_SUCH_MODEL),  # which are not, and are not billed
]


async def test_nearly_all_of_many_calls_are_answered_where_a_tenth_of_the_requests_fails(
    books: Books, fake: FakeProvider
) -> None:
    fake.forgets, fake.chance, fake.latency = True, chance(0.1, 7, AMONG), 0.02
    provider = APIS["compatible"](fake.url)
    routes = Routes({"small": Route("fake", provider, "fake-model", PRICE)})
    limits = CallLimits(provider_calls=AT_ONCE, tenant_calls=AT_ONCE, run_calls=AT_ONCE)
    broker = Broker(books, routes, Prices.load(), limits=limits)
    try:
        calls = (broker.complete(ask(), PAYER, deadline=time.monotonic() + 300) for _ in range(CALLS))
        ends = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        await provider.close()
    answered = sum(isinstance(end, Completion) for end in ends)
    failed = [end for end in ends if isinstance(end, CallFailed)]
    assert answered + len(failed) == CALLS
    assert not [end for end in failed if end.failure is Failure.UNAVAILABLE]
    assert answered / CALLS >= 0.93
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted) == (Amounts(), billed(fake))
