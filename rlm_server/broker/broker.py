"""The path of a model call: bound it, pay for it, send it, and try again where that cannot bill twice.

No request leaves unless its worst case is reserved, and whatever may have been billed is counted.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from rlm_server.broker.attempt import attempt
from rlm_server.broker.calls import Failure, ModelReply, ModelRequest, Payer, ProviderError
from rlm_server.broker.concurrency import Gate, KeyedGates
from rlm_server.broker.prices import Price, Prices
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts, Hold, Ledger

_random = secrets.SystemRandom()

MAX_OUTPUT_TOKENS = 1_000_000
"""No request may ask for more output than this. It is more than any model gives, and keeps every bound an int64."""

FRAMING_TOKENS = 256
"""Allowed for what a provider or a chat template puts around a conversation."""

FRAMING_TOKENS_PER_MESSAGE = 16
"""Allowed for what goes around each message."""

_SAFE_TO_RETRY = frozenset({Failure.RATE_LIMITED, Failure.OVERLOADED})


class CallFailed(ProviderError):
    """A call that got no answer, after `attempts` attempts.

    `spent` is what it cost all the same: the whole hold of an attempt that may have been billed. `call_id` means the
    same as in `Completion`.
    """

    def __init__(self, cause: ProviderError, *, spent: Amounts, attempts: int, call_id: str) -> None:
        super().__init__(cause.failure, str(cause), billed=cause.billed, retry_after=cause.retry_after)
        self.spent = spent
        self.attempts = attempts
        self.call_id = call_id


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it cost.

    The hold of attempt n of a call is `{call_id}.{n}`. `provider` is the name of the provider that answered.
    """

    reply: ModelReply
    spent: Amounts
    attempts: int
    call_id: str
    provider: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before trying again, in seconds: from `first`, doubling, up to `most`, with jitter."""

    first: float = 0.5
    most: float = 20.0

    def pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds to wait after so many attempts, and never less than the provider asked for."""
        ceiling = min(self.most, self.first * 2.0 ** min(attempts - 1, 30))
        return (retry_after or 0.0) + _random.uniform(ceiling / 2, ceiling)


@dataclass(slots=True)
class Counters:
    """What happened since the start. An overrun is a call that cost more than its hold: a defect of the bound."""

    calls: int = 0
    attempts: int = 0
    failures: Counter[Failure] = field(default_factory=Counter)
    overruns: int = 0


def worst_case(request: ModelRequest, price: Price) -> Amounts:
    """The most that an attempt at a request can cost.

    Without the model's own tokenizer the input is bounded by its UTF-8 bytes: no token is shorter than one.

    Raises:
        ProviderError: the request cannot be sent as it is (BAD_REQUEST).
    """
    if not 1 <= request.max_tokens <= MAX_OUTPUT_TOKENS:
        raise ProviderError(Failure.BAD_REQUEST, f"max_tokens must be from 1 to {MAX_OUTPUT_TOKENS}", billed=False)
    try:
        size = len(request.system.encode()) + sum(len(message.content.encode()) for message in request.messages)
    except UnicodeEncodeError:
        raise ProviderError(Failure.BAD_REQUEST, "the prompt holds half a surrogate pair", billed=False) from None
    input_tokens = size + FRAMING_TOKENS + FRAMING_TOKENS_PER_MESSAGE * len(request.messages)
    return Amounts(price.bound(input_tokens, request.max_tokens), input_tokens + request.max_tokens, 1)


class Broker:
    """Makes model calls for many tenants. It owns the routes' providers and closes them.

    `provider_calls` caps the calls in flight to one provider, `run_calls` those of one run; more wait in line. An
    attempt may take `attempt_seconds` once it is sent.
    """

    def __init__(
        self,
        ledger: Ledger,
        routes: Routes,
        prices: Prices,
        *,
        provider_calls: int = 64,
        run_calls: int = 32,
        attempt_seconds: float = 180.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._ledger = ledger
        self._routes = routes
        self._prices = prices
        self._backoff = backoff or Backoff()
        self._attempt_seconds = attempt_seconds
        self._runs = KeyedGates(run_calls)
        self._gates: defaultdict[str, Gate] = defaultdict(lambda: Gate(provider_calls))
        self.counters = Counters()

    @property
    def routes(self) -> Routes:
        """The models that can be called."""
        return self._routes

    async def close(self) -> None:
        """Close the providers."""
        await self._routes.close()

    async def complete(
        self, request: ModelRequest, payer: Payer, *, deadline: float, call_id: str | None = None
    ) -> Completion:
        """Make a call, trying again while the provider is busy and the deadline, on `time.monotonic()`, allows.

        Cancelling the task abandons the call once its hold is settled; `cost` then tells what it cost. `call_id` names
        the call; it must be new, and is made up where it is None.

        Raises:
            UnknownModel: no route has that name.
            BudgetExceeded: what is already spent leaves too little for this call's worst case.
            BudgetBusy: other calls' holds left too little until the deadline.
            CallFailed: the ProviderError of a call that got no answer.
        """
        route = self._routes.route(request.model)
        call = _Call(call_id or secrets.token_hex(16), route, request, payer, deadline)
        self.counters.calls += 1
        try:
            hold = self._hold(call)
            async with self._runs.slot(payer.run, deadline=deadline):
                return await self._attempts(call, hold)
        except ProviderError as error:
            self.counters.failures[error.failure] += 1
            spent = hold.amounts if error.billed else Amounts()
            raise CallFailed(error, spent=spent, attempts=call.attempts, call_id=call.id) from None

    async def cost(self, call_id: str) -> Amounts:
        """Return what all attempts at a call have cost."""
        return await self._ledger.posted(f"{call_id}.")

    async def _attempts(self, call: _Call, hold: Hold) -> Completion:
        route = call.route
        upstream = replace(call.request, model=route.upstream)
        while True:
            call.attempts += 1
            self.counters.attempts += 1
            try:
                reply, spent = await attempt(
                    upstream,
                    route.provider,
                    route.price,
                    ledger=self._ledger,
                    hold=replace(hold, id=f"{call.id}.{call.attempts}"),
                    gate=self._gates[route.provider_name],
                    deadline=call.deadline,
                    seconds=self._attempt_seconds,
                )
            except ProviderError as error:
                pause = self._backoff.pause(call.attempts, error.retry_after)
                if error.billed or error.failure not in _SAFE_TO_RETRY or time.monotonic() + pause >= call.deadline:
                    raise
            else:
                self.counters.overruns += spent.nano_usd > hold.amounts.nano_usd or spent.tokens > hold.amounts.tokens
                return Completion(reply, spent, call.attempts, call.id, route.provider_name)
            await asyncio.sleep(pause)

    def _hold(self, call: _Call) -> Hold:
        return Hold(
            id=call.id,
            account=call.payer.account,
            amounts=worst_case(call.request, call.route.price),
            model=call.request.model,
            price_version=self._prices.version,
            tenant=call.payer.tenant,
            run=call.payer.run,
            node=call.payer.node,
        )


@dataclass(slots=True)
class _Call:
    id: str
    route: Route
    request: ModelRequest
    payer: Payer
    deadline: float
    attempts: int = 0
