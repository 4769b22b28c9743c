"""A broker as the server has it, with one model of each interface, both priced and both at the fake provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rlm_server.broker.broker import Broker
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.providers.anthropic import AnthropicProvider
from rlm_server.broker.providers.openai import OpenAIProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Ledger

PRICE = Price(Rates(input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000, cache_write=3_750_000_000))
MODELS = ("by-anthropic", "by-openai")
KEY = "no-key-is-needed"


@asynccontextmanager
async def broker_at(
    url: str, ledger: Ledger, *, provider_calls: int, attempt_seconds: float = 180.0
) -> AsyncIterator[Broker]:
    """Make a broker whose models are at the fake provider of this URL; the rest is as a server has it."""
    routes = Routes(
        {
            "by-anthropic": Route("anthropic", AnthropicProvider(api_key=KEY, base_url=url), "fake", PRICE),
            "by-openai": Route("openai", OpenAIProvider(api_key=KEY, base_url=f"{url}/v1"), "fake", PRICE),
        }
    )
    broker = Broker(
        ledger,
        routes,
        Prices.load(),
        limits=CallLimits(provider_calls=provider_calls, call_seconds=attempt_seconds),
    )
    try:
        yield broker
    finally:
        await broker.close()


def ask(prompt: str, model: str = MODELS[0], max_tokens: int = 256) -> ModelRequest:
    """Make a request of one message."""
    return ModelRequest(model, (Message("user", prompt),), max_tokens=max_tokens)


def within(seconds: float) -> float:
    """Return a deadline."""
    return time.monotonic() + seconds
