"""A broker with one priced model, "small", at a provider; and what the fake provider billed, in money."""

from __future__ import annotations

import time

from rlm_server.broker.breaker import BreakerConfig
from rlm_server.broker.broker import Backoff, Broker
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.provider import Message, ModelRequest, Provider
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts
from tests.broker.books import Books
from tests.fake_provider.server import Bill, FakeProvider

PRICE = Price(Rates(input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000, cache_write=3_750_000_000))
PROMPT = "what is the answer? 漢字"


def ask(max_tokens: int = 500, prompt: str = PROMPT) -> ModelRequest:
    return ModelRequest("small", (Message("user", prompt),), "be brief", max_tokens)


def broker_of(books: Books, provider: Provider, *, attempt_seconds: float = 10.0, calls: int = 64) -> Broker:
    """A broker that lets so many calls go at once, and does not give up on a provider that fails."""
    routes = Routes({"small": Route("fake", provider, "fake-model", PRICE)})
    return Broker(
        books,
        routes,
        Prices.load(),
        limits=CallLimits(provider_calls=calls, tenant_calls=calls, run_calls=calls, call_seconds=attempt_seconds),
        backoff=Backoff(first=0.001),
        breaker=BreakerConfig(calls=1_000_000),
    )


def soon() -> float:
    return time.monotonic() + 10


def cost(bill: Bill) -> Amounts:
    return Amounts(PRICE.cost(bill.usage), bill.usage.input + bill.usage.output, 1)


def billed(fake: FakeProvider) -> Amounts:
    return sum(map(cost, fake.billed), Amounts())
