"""The path of a model call: bound it, wait its turn, pay for it, send it, and try again where that cannot bill twice.

No request leaves unless its worst case is reserved, and whatever may have been billed is counted.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from rlm_server.broker.attempt import Attempt
from rlm_server.broker.breaker import BreakerConfig, Breakers, RouteUnavailable, State
from rlm_server.broker.calls import DeadlinePassed, Failure, ModelReply, ModelRequest, Payer, ProviderError
from rlm_server.broker.concurrency import Gate, Load
from rlm_server.broker.counters import Counters
from rlm_server.broker.prices.table import Price, Prices
from rlm_server.broker.routes import Routes
from rlm_server.ledger import Amounts, BudgetError, Hold, Ledger
from rlm_server.tenants.policy import Policy

_random = secrets.SystemRandom()

MAX_OUTPUT_TOKENS = 1_000_000
"""No request may ask for more output than this. It is more than any model gives, and keeps every bound an int64."""

FRAMING_TOKENS = 256
"""Allowed for what a provider or a chat template puts around a conversation."""

FRAMING_TOKENS_PER_MESSAGE = 16
"""Allowed for what goes around each message."""

ORDERS = 16
"""How many orders the ledger is given at once. It has one writer, which takes them as they come: tenants wait for their
turn before it, and behind no more than these. Fewer would be committed together less often."""

_SAFE_TO_RETRY = frozenset({Failure.RATE_LIMITED, Failure.OVERLOADED})

_GIVES_WAY = _SAFE_TO_RETRY | {Failure.GONE, Failure.AUTH, Failure.TIMED_OUT, Failure.UNAVAILABLE}
"""Failures, where they are not billed, after which a fallback is asked."""


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

    The hold of attempt n of a call is `{call_id}.{n}`. `provider` and `model` are the ones that answered: `model` is
    another than was asked for where a fallback did.
    """

    reply: ModelReply
    spent: Amounts
    attempts: int
    call_id: str
    provider: str
    model: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before trying again, in seconds: from `first`, doubling, up to `most`, with jitter.

    A model is asked until the deadline, but only `tries` times where another may answer in its place.
    """

    first: float = 0.5
    most: float = 20.0
    tries: int = 3

    def pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds to wait after so many attempts, and never less than the provider asked for."""
        ceiling = min(self.most, self.first * 2.0 ** min(attempts - 1, 30))
        return (retry_after or 0.0) + _random.uniform(ceiling / 2, ceiling)


def worst_case(request: ModelRequest, price: Price) -> Amounts:
    """The most that an attempt at a request can cost.

    Raises:
        ProviderError: the request cannot be sent as it is (BAD_REQUEST).
    """
    return _bound(input_bound(request), request.max_tokens, price)


def input_bound(request: ModelRequest) -> int:
    """The most tokens that the input of a request can have.

    Without the model's own tokenizer it is bounded by its UTF-8 bytes: no token is shorter than one.

    Raises:
        ProviderError: the request cannot be sent as it is (BAD_REQUEST).
    """
    if not 1 <= request.max_tokens <= MAX_OUTPUT_TOKENS:
        raise ProviderError(Failure.BAD_REQUEST, f"max_tokens must be from 1 to {MAX_OUTPUT_TOKENS}", billed=False)
    try:
        size = len(request.system.encode()) + sum(len(message.content.encode()) for message in request.messages)
    except UnicodeEncodeError:
        raise ProviderError(Failure.BAD_REQUEST, "the prompt holds half a surrogate pair", billed=False) from None
    return size + FRAMING_TOKENS + FRAMING_TOKENS_PER_MESSAGE * len(request.messages)


def _bound(input_tokens: int, max_tokens: int, price: Price) -> Amounts:
    return Amounts(price.bound(input_tokens, max_tokens), input_tokens + max_tokens, 1)


class Broker:
    """Makes model calls for many tenants. It owns the routes' providers and closes them.

    A call waits in three places. First for its turn among its own: `tenant_calls` of a tenant and `run_calls` of a run
    go on at once, their pauses and waits included. Then, before each attempt, for the provider: `provider_calls` are
    in flight to it, and tenants share them by their weights. Then, in the same way, for the ledger. `policies` are
    those of tenants that have their own. An attempt may take `attempt_seconds` once it is sent.
    """

    def __init__(
        self,
        ledger: Ledger,
        routes: Routes,
        prices: Prices,
        *,
        provider_calls: int = 64,
        tenant_calls: int = 256,
        run_calls: int = 64,
        attempt_seconds: float = 180.0,
        backoff: Backoff | None = None,
        patience: BreakerConfig | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self._ledger = ledger
        self._routes = routes
        self._prices = prices
        self._backoff = backoff or Backoff()
        self._attempt_seconds = attempt_seconds
        self._policies = dict(policies or {})
        self._breakers = Breakers(patience or BreakerConfig())
        self._turns = Gate(tenant_calls=tenant_calls, run_calls=run_calls)
        weights = {tenant: policy.weight for tenant, policy in self._policies.items()}
        names = {routes.route(model).provider_name for model in routes.models}
        self._ledger_gate = Gate(calls=ORDERS, weights=weights)
        self._gates = {name: Gate(calls=provider_calls, weights=weights) for name in sorted(names)}
        self.counters = Counters()

    @property
    def routes(self) -> Routes:
        """The models that can be called."""
        return self._routes

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn among their own tenant's."""
        return self._turns.load.waiting

    def loads(self) -> dict[str, Load]:
        """The calls in flight to every provider, and those that wait for it."""
        return {name: gate.load for name, gate in self._gates.items()}

    def states(self) -> dict[str, State]:
        """Whether calls to every model's route are let through; the worst that any tenant meets."""
        return {model: self._breakers.state(model) for model in self._routes.models}

    async def close(self) -> None:
        """Close the providers."""
        await self._routes.close()

    async def complete(
        self, request: ModelRequest, payer: Payer, *, deadline: float, call_id: str | None = None
    ) -> Completion:
        """Make a call, trying again while the provider is busy and the deadline, on `time.monotonic()`, allows.

        Where the model stays busy or cannot be reached, and nothing was billed, its fallbacks are asked that the
        tenant's policy allows. Cancelling the task abandons the call once its hold is settled; `cost` then tells what
        it cost. `call_id` names the call; it must be new, and is made up where it is None.

        Raises:
            UnknownModel: no route has that name.
            BudgetExceeded: what is already spent leaves too little for this call's worst case.
            BudgetBusy: other calls' holds left too little until the deadline.
            CallFailed: the ProviderError of a call that got no answer.
        """
        fallbacks = self._routes.route(request.model).fallbacks
        policy = self._policies.get(payer.tenant, Policy())
        models = (request.model, *filter(policy.allows, fallbacks))
        call = _Call(secrets.token_hex(16) if call_id is None else call_id, request, payer, deadline)
        self.counters.calls += 1
        try:
            call.input_tokens = input_bound(request)
            self._refuse_at_once(call, models)
            async with self._turns.slot(payer.tenant, payer.run, deadline=deadline):
                return await self._first_of(call, models)
        except ProviderError as error:
            self.counters.failures[error.failure] += 1
            spent = call.held if error.billed else Amounts()
            raise CallFailed(error, spent=spent, attempts=call.attempts, call_id=call.id) from None

    async def cost(self, call_id: str) -> Amounts:
        """Return what all attempts at a call have cost."""
        return await self._ledger.posted(f"{call_id}.")

    def _refuse_at_once(self, call: _Call, models: tuple[str, ...]) -> None:
        """Refuse a call that would wait its turn only to be refused then."""
        refusals = []
        for model in models:
            try:
                self._breakers.check(model, call.payer.tenant)
            except RouteUnavailable as refusal:
                refusals.append(refusal)
        if len(refusals) == len(models) and not any(map(_may_try_again, refusals)):
            raise refusals[0]

    async def _first_of(self, call: _Call, models: tuple[str, ...]) -> Completion:
        """The answer of the first model that gives one. What is told of several failures is the first one's."""
        failure: ProviderError | None = None
        for number, model in enumerate(models, 1):
            try:
                return await self._ask(call, model, patient=number == len(models))
            except ProviderError as error:
                if error.billed or not (failure or _gives_way(error)):
                    raise
                failure = failure or error
            except BudgetError:
                if failure is None:
                    raise
        assert failure is not None  # noqa: S101 - there is a model, and it raised
        raise failure

    async def _ask(self, call: _Call, model: str, *, patient: bool) -> Completion:
        """Ask one model, until it answers, while it is busy; unless `patient`, only as often as it is borne."""
        tries = 0
        while True:
            try:
                self._breakers.check(model, call.payer.tenant)
                tries += 1
                self.counters.retries += tries > 1
                return await self._attempt(call, model)
            except ProviderError as error:
                refused = isinstance(error, RouteUnavailable)
                pause = self._backoff.pause(1 if refused else tries, error.retry_after)
                over = time.monotonic() + pause >= call.deadline
                if over or not _may_try_again(error) or (not patient and (refused or tries >= self._backoff.tries)):
                    raise
            await asyncio.sleep(pause)

    async def _attempt(self, call: _Call, model: str) -> Completion:
        route, payer = self._routes.route(model), call.payer
        call.attempts += 1
        call.held = _bound(call.input_tokens, call.request.max_tokens, route.price)
        self.counters.attempts += 1
        hold = Hold(
            id=f"{call.id}.{call.attempts}",
            account=payer.account,
            amounts=call.held,
            model=model,
            price_version=self._prices.version,
            tenant=payer.tenant,
            run=payer.run,
            node=payer.node,
        )
        attempt = Attempt(
            request=call.request,
            route=route,
            hold=hold,
            ledger=self._ledger,
            provider_gate=self._gates[route.provider_name],
            ledger_gate=self._ledger_gate,
            trial=partial(self._breakers.trial, model, payer.tenant, hold.id),
            deadline=call.deadline,
            seconds=self._attempt_seconds,
            counters=self.counters,
        )
        try:
            reply, spent = await attempt.make()
        except ProviderError as error:
            self.counters.failed_attempts[error.failure] += 1
            raise
        self.counters.fallbacks += model != call.request.model
        self.counters.overruns += spent.nano_usd > call.held.nano_usd or spent.tokens > call.held.tokens
        return Completion(reply, spent, call.attempts, call.id, route.provider_name, model)


def _gives_way(error: ProviderError) -> bool:
    """Whether a fallback may do better: the fault is not the caller's, nor is the time over."""
    return error.failure in _GIVES_WAY and not isinstance(error, DeadlinePassed)


def _may_try_again(error: ProviderError) -> bool:
    """Whether the same model may be asked again: it is known to be busy, and not to have billed that."""
    kind = error.cause if isinstance(error, RouteUnavailable) else error.failure
    return not error.billed and kind in _SAFE_TO_RETRY


@dataclass(slots=True)
class _Call:
    id: str
    request: ModelRequest
    payer: Payer
    deadline: float
    input_tokens: int = 0
    attempts: int = 0
    held: Amounts = field(default_factory=Amounts)
    """By the last attempt."""
