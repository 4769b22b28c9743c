"""What the broker's tests play with: a scripted model, its price, and what one call of it holds and costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rlm_server.broker.broker import Backoff, Broker
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.provider import Failure, Message, ModelReply, ModelRequest, ProviderError
from rlm_server.broker.providers.scripted import NAME, ScriptedProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, Usage
from tests.broker.books import Books

PRICE = Price(Rates(input=1_000_000_000, output=5_000_000_000))
"""A dollar and five for a million tokens: 1,000 and 5,000 nano-dollars a token."""

PROMPT = ModelRequest("small", (Message("user", "x" * 400),), max_tokens=100)
HELD = worst_case(PROMPT, PRICE)
COST = Amounts(nano_usd=100 * 1_000 + 2 * 5_000, tokens=102, calls=1)
"""What PROMPT costs with the answer "answered": 400 bytes in and 8 out, at four to a token."""

BUSY = ProviderError(Failure.RATE_LIMITED, "the provider's rate limit is reached", billed=False)


async def answered(request: ModelRequest) -> str:
    return "answered"


@dataclass
class Play:
    """A script that does one thing after another, and the last of them from then on."""

    acts: list[Callable[[ModelRequest], Awaitable[str]] | Exception]
    started: asyncio.Queue[ModelRequest] = field(default_factory=asyncio.Queue)

    async def reply(self, request: ModelRequest) -> str:
        self.started.put_nowait(request)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        if isinstance(act, Exception):
            raise act
        return await act(request)


@dataclass
class Until:
    """An act that waits to be let go."""

    event: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: ModelRequest) -> str:
        await self.event.wait()
        return "answered"


@dataclass
class Reporting:
    """A provider that answers with a usage of its own choice."""

    usage: Usage | None

    async def complete(self, request: ModelRequest) -> ModelReply:
        return ModelReply("answered", self.usage)

    async def close(self) -> None:
        pass


BACKOFF = Backoff(first=0.001)


def broker_of(books: Books, play: Play, **options: Any) -> Broker:
    """A broker whose one model, "small", is played."""
    routes = Routes({"small": Route(NAME, ScriptedProvider({"upstream": play}), "upstream", PRICE)})
    return Broker(books, routes, Prices.load(), **({"backoff": BACKOFF} | options))


def soon() -> float:
    return time.monotonic() + 10


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nobody announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
