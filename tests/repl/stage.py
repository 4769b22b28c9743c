"""Guest code that calls models, with a real broker and ledger, and what is told of its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rlm_server.broker.breaker import BreakerConfig
from rlm_server.broker.broker import Broker
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from rlm_server.broker.providers.scripted import NAME, ScriptedProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts
from rlm_server.repl.call_tally import Failures
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, FinishedCall
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import Memo
from rlm_server.repl.model_calls import CallOptions, ModelCalls
from rlm_server.repl.owed import Owed
from rlm_server.repl.tracing import Tracer
from rlm_server.shares.held import Held
from rlm_server.shares.shares import Shares
from rlm_server.tenants.policy import Policy
from sandbox.limits import Limits
from tests.broker.books import PAYER, TENANT, Books
from tests.broker.stage import PRICE, soon

HELD = Held(lambda _: 1 << 40)

Answer = Callable[[str], Awaitable[str]]


async def shout(prompt: str) -> str:
    return prompt.upper()


@dataclass
class Script:
    """A model that answers prompts as `answer` does, and counts them."""

    answer: Answer = shout
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[ModelRequest] = field(default_factory=list)

    async def reply(self, request: ModelRequest) -> str:
        prompt = request.messages[0].content
        self.asked[prompt] += 1
        self.requests.append(request)
        return await self.answer(prompt)


class Stage:
    """Guest code that calls models, and what is told of it. "small" is played, "large" too, by one that falls back.

    A `patient` broker leaves no model alone.
    """

    def __init__(
        self, books: Books, answer: Answer = shout, *, run_calls: int = 64, patient: bool = False, **limits: Any
    ) -> None:
        async def broken(prompt: str) -> str:
            raise ProviderError(Failure.GONE, "there is no such model any more", billed=False)

        self.books, self.script, self.large = books, Script(answer), Script(broken)
        provider = ScriptedProvider({"small": self.script, "large": self.large})
        routes = Routes(
            {
                "small": Route(NAME, provider, "small", PRICE),
                "large": Route(NAME, provider, "large", PRICE, fallbacks=("small",)),
            }
        )
        policies = {TENANT: Policy(fallbacks=frozenset({"small"}))}
        self.broker = Broker(
            books,
            routes,
            Prices.load(),
            policies=policies,
            limits=CallLimits(run_calls=run_calls),
            breaker=BreakerConfig(calls=1_000_000) if patient else None,
        )
        self.told: list[CallStarted | CallFinished | CallTraced] = []
        reply_bytes = limits.pop("reply_bytes", Limits().frame_bytes)
        sandbox = Limits(frame_bytes=reply_bytes)
        self.limits = replace(RunLimits(sub_tokens=50, sandbox=sandbox), **limits)
        self.memo, self.failures = Memo(TENANT, self.limits.memo_bytes, HELD), Failures()
        self.owed = Owed(books.hurry)
        self.calls = self.more()

    def more(self, *, deadline: float | None = None, **limits: Any) -> ModelCalls:
        """The calls of another node of the same run."""
        until = soon() if deadline is None else deadline
        options = CallOptions.of(replace(self.limits, **limits), "small", until)
        return ModelCalls(
            self.broker,
            PAYER,
            options,
            self.memo,
            self.failures,
            Tracer(),
            self.told.append,
            Shares.of(),
            self.owed,
        )

    async def costs(self) -> dict[str, Amounts]:
        """What each call cost, once all of them are in the books."""
        await self.owed.settled()
        return await self.books.costs()

    @property
    def finished(self) -> list[FinishedCall]:
        return [body.call for body in self.told if isinstance(body, CallFinished)]


def errors(slots: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(slot["error"]["type"], slot["error"]["message"]) for slot in slots]
