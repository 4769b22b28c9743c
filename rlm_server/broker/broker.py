"""The path of a model call: bound it, wait its turn, pay for it, send it, and retry where that cannot bill twice.

No request leaves unless its worst case is reserved, and whatever may have been billed is counted.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from rlm_server.broker.attempt import Attempt, InTurn
from rlm_server.broker.breaker import BreakerConfig, Breakers, RouteUnavailable, State
from rlm_server.broker.counters import Counters
from rlm_server.broker.learned_cap import RESERVED, LearnedCap
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import (
    DeadlinePassed,
    Failure,
    ModelReply,
    ModelRequest,
    NotRecorded,
    ProviderError,
)
from rlm_server.broker.routes import Routes, UnknownModel
from rlm_server.broker.worst_case import bound, input_bound
from rlm_server.database.engine import DatabaseError
from rlm_server.ledger import Amounts, BudgetError, Hold, Ledger, Payer
from rlm_server.shares.gate import Gate, Load
from rlm_server.tenants.policy import Policy, Weights

_random = secrets.SystemRandom()

UNSHARED = 1 << 20
"""Calls at once of a route that tenants do not share: each tenant's own cap holds, and no other."""
LEDGER_WRITES = 16
"""Writes that the ledger is given at once. It has one writer, which takes them in the order they come. So tenants wait
for their turn before it, and behind no more than these. With fewer, fewer would share a commit."""

_SAFE_TO_RETRY = frozenset({Failure.RATE_LIMITED, Failure.OVERLOADED})

_TRANSIENT = _SAFE_TO_RETRY | {Failure.GONE, Failure.TIMED_OUT}

_FALLBACK_AFTER = _SAFE_TO_RETRY | {Failure.GONE, Failure.AUTH, Failure.TIMED_OUT, Failure.UNAVAILABLE}
"""Failures after which a fallback is asked, where they are not billed."""


class CallFailed(ProviderError):
    """A call that got no answer, after `attempts` attempts.

    `spent` is what it cost all the same: what its route says of an attempt that may have been billed. `transient` says
    whether the same call may have an answer the next time. `unrecorded` says that it was not sent, because the database
    was away. `call_id` means the same as in `Completion`.
    """

    def __init__(self, cause: ProviderError, *, spent: Amounts, attempts: int, call_id: str) -> None:
        super().__init__(cause.failure, str(cause), billed=cause.billed, retry_after=cause.retry_after)
        self.spent = spent
        kind = cause.cause if isinstance(cause, RouteUnavailable) else cause.failure
        self.unrecorded = isinstance(cause, NotRecorded)
        self.transient = kind in _TRANSIENT and not isinstance(cause, DeadlinePassed)
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
    settling: asyncio.Task[bool] | None = None
    """What writes the cost into the books, where the answer was wanted before. False where the database did not let it:
    the hold then takes its whole amount."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before trying again, in seconds: from `first`, doubling, up to `most`, with jitter.

    A model is asked until the deadline; one that another may answer for, only `tries` times.
    """

    first: float = 0.5
    most: float = 20.0
    tries: int = 3

    def pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds to wait after so many attempts, and never less than the provider asked for."""
        ceiling = min(self.most, self.first * 2.0 ** min(attempts - 1, 30))
        return (retry_after or 0.0) + _random.uniform(ceiling / 2, ceiling)


class Broker:
    """Makes model calls for many tenants. It owns the routes' providers and closes them.

    A call waits in three places. It first waits for its turn among its own: `tenant_calls` of a tenant and `run_calls`
    of a run go on at once, their pauses and waits included. Before each attempt it waits for the
    model, which is given as many calls at once as are learned to be well, and for its provider: `provider_calls` are in
    flight to it at most. Tenants share both by their weights. Then it waits for the ledger, which
    tenants share in the same way. `policies` are those of tenants that have their own, as they are now. An attempt may
    take `call_seconds` once it is sent. The numbers are those of `limits`.
    """

    def __init__(
        self,
        ledger: Ledger,
        routes: Routes,
        prices: Prices,
        *,
        limits: CallLimits | None = None,
        backoff: Backoff | None = None,
        breaker: BreakerConfig | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self._ledger = ledger
        self._routes = routes
        self._prices = prices
        self._backoff = backoff or Backoff()
        limits = limits or CallLimits()
        self._attempt_seconds = limits.call_seconds
        self.run_calls = limits.run_calls
        """Calls of one run that go on at once."""
        self._policies: Mapping[str, Policy] = {} if policies is None else policies
        self._permitted: dict[tuple[str, ...], Routes] = {}
        """By what a policy says of models, those of the routes that it permits."""
        self._breakers = Breakers(breaker or BreakerConfig())
        self._tenant_gate = Gate(tenant_calls=limits.tenant_calls, run_calls=limits.run_calls)
        weights = Weights(self._policies)
        names = {routes.route(model).provider_name for model in routes.models}
        self._ledger_gate = Gate(calls=LEDGER_WRITES, weights=weights)
        calls, reserved = limits.provider_calls, limits.provider_calls // RESERVED
        self._learned = {model: LearnedCap(calls, weights) for model in routes.models}
        self._provider_gates = {n: Gate(calls=calls, weights=weights, reserved=reserved) for n in sorted(names)}
        for model in routes.models:
            if not (route := routes.route(model)).shared:
                self._learned[model] = LearnedCap(UNSHARED, weights, start=UNSHARED)
                self._provider_gates[route.provider_name] = Gate(calls=UNSHARED, weights=weights)
        self.counters = Counters()

    @property
    def routes(self) -> Routes:
        """The models that can be called."""
        return self._routes

    def routes_of(self, tenant: str) -> Routes:
        """Return the models that a tenant may ask."""
        policy = self._policies.get(tenant)
        if policy is None or not policy.models:
            return self._routes
        if policy.models not in self._permitted:
            self._permitted[policy.models] = self._routes.only(policy.permits)
        return self._permitted[policy.models]

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn among their own tenant's."""
        return self._tenant_gate.load.waiting

    def loads(self) -> dict[str, Load]:
        """The calls in flight to every provider, and those that wait for it."""
        loads = {name: gate.load for name, gate in self._provider_gates.items()}
        for model, learned in self._learned.items():
            name = self._routes.route(model).provider_name
            loads[name] = Load(loads[name].inside, loads[name].waiting + learned.gate.load.waiting)
        return loads

    def caps(self) -> dict[str, int]:
        """How many calls each model is given at once now, as far as its provider and its limits allow."""
        return {model: learned.calls for model, learned in self._learned.items()}

    def states(self) -> dict[str, State]:
        """Whether calls to every model's route are let through; the worst that any tenant meets."""
        return {model: self._breakers.state(model) for model in self._routes.models}

    async def close(self) -> None:
        """Close the providers."""
        await self._routes.close()

    async def check(self, request: ModelRequest, payer: Payer) -> None:
        """Refuse a call that would be refused now whatever became of the calls in flight. Nothing is held or sent.

        Raises:
            UnknownModel: no route has that name.
            RouteUnavailable: the model, and whichever may answer for it, is left alone.
            BudgetExceeded: what is already spent leaves too little for this call's worst case.
            ProviderError: the request cannot be sent as it is (BAD_REQUEST).
        """
        self._refuse_at_once(payer.tenant, self._models(request, payer))
        most = bound(input_bound(request), request.max_tokens, self._routes.route(request.model).price)
        with suppress(DatabaseError):  # what the call itself will meet, and report
            await self._ledger.check(payer.account, most, request.model)

    def _models(self, request: ModelRequest, payer: Payer) -> tuple[str, ...]:
        """The model asked, and those that may answer in its place.

        Raises:
            UnknownModel: there is none of that name.
            ProviderError: the tenant may not ask it (BAD_REQUEST).
        """
        try:
            self.routes_of(payer.tenant).route(request.model)
        except UnknownModel as error:
            if request.model not in self._routes.models:
                raise
            raise ProviderError(Failure.BAD_REQUEST, str(error), billed=False) from None
        policy = self._policies.get(payer.tenant, Policy())
        return (request.model, *filter(policy.allows, self._routes.route(request.model).fallbacks))

    async def complete(
        self,
        request: ModelRequest,
        payer: Payer,
        *,
        deadline: float,
        call_id: str | None = None,
        ahead: Callable[[], float] | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> Completion:
        """Make a call, trying again while the provider is busy and the deadline, on `time.monotonic()`, allows.

        Where the model stays busy or cannot be reached, and nothing was billed, those of its fallbacks are asked that
        the tenant's policy allows. Cancelling the task abandons the call once its hold is settled; `cost` then returns
        what it cost. `call_id` names the call and must be new; None makes one up. `begun` is called whenever an attempt
        has its hold. Where the answer is wanted `ahead` of the books, that says how many seconds its cost may wait for
        another write; whoever asks waits for what is `settling` before it looks at what is left, and before it ends.

        Raises:
            UnknownModel: no route has that name.
            BudgetExceeded: what is already spent leaves too little for this call's worst case.
            BudgetBusy: other calls' holds left too little until the deadline.
            CallFailed: the ProviderError of a call that got no answer.
        """
        self._routes.route(request.model)
        call = _Call(secrets.token_hex(16) if call_id is None else call_id, request, payer, deadline, ahead, begun)
        self.counters.calls += 1
        try:
            models = self._models(request, payer)
            call.input_tokens = input_bound(request)
            self._refuse_at_once(payer.tenant, models)
            async with InTurn(self._tenant_gate, payer.tenant, payer.run, deadline):
                return await self._first_of(call, models)
        except ProviderError as error:
            self.counters.failures[error.failure] += 1
            spent = call.spent if error.billed else Amounts()
            raise CallFailed(error, spent=spent, attempts=call.attempts, call_id=call.id) from None

    async def cost(self, call_id: str) -> Amounts:
        """Return what all attempts at a call have cost."""
        return await self._ledger.posted(f"{call_id}.")

    def _refuse_at_once(self, tenant: str, models: tuple[str, ...]) -> None:
        """Refuse a call that would wait its turn only to be refused then."""
        refusals = []
        for model in models:
            try:
                self._breakers.check(model, tenant)
            except RouteUnavailable as refusal:
                refusals.append(refusal)
        if len(refusals) == len(models) and not any(map(_may_try_again, refusals)):
            raise refusals[0]

    async def _first_of(self, call: _Call, models: tuple[str, ...]) -> Completion:
        """Return the answer of the first model that gives one. Of several failures, the first is raised."""
        failure: ProviderError | None = None
        for number, model in enumerate(models, 1):
            try:
                return await self._ask(call, model, until_deadline=number == len(models))
            except ProviderError as error:
                if error.billed or not (failure or _fallback_may_help(error)):
                    raise
                failure = failure or error
            except BudgetError:
                if failure is None:
                    raise
        assert failure is not None  # noqa: S101 - there is a model, and it raised
        raise failure

    async def _ask(self, call: _Call, model: str, *, until_deadline: bool) -> Completion:
        """Ask one model again while it is busy: until the deadline, or only as often as `Backoff.tries` says."""
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
                too_late = time.monotonic() + pause >= call.deadline
                enough = not until_deadline and (refused or tries >= self._backoff.tries)
                if too_late or enough or not _may_try_again(error):
                    raise
            await asyncio.sleep(pause)

    async def _attempt(self, call: _Call, model: str) -> Completion:
        route, payer = self._routes.route(model), call.payer
        call.attempts += 1
        call.held = bound(call.input_tokens, call.request.max_tokens, route.price)
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
            input_tokens=call.input_tokens,
            route=route,
            hold=hold,
            ledger=self._ledger,
            learned=self._learned[model],
            provider_gate=self._provider_gates[route.provider_name],
            ledger_gate=self._ledger_gate,
            trial=partial(self._breakers.trial, model, payer.tenant),
            begun=call.begun,
            deadline=call.deadline,
            seconds=self._attempt_seconds,
            counters=self.counters,
            ahead=call.ahead,
        )
        try:
            reply, spent = await attempt.make()
        except ProviderError as error:
            self.counters.failed_attempts[error.failure] += 1
            call.spent = attempt.spent
            raise
        finally:
            call.held = attempt.hold.amounts
        self.counters.fallbacks += model != call.request.model
        self.counters.overruns += spent.nano_usd > call.held.nano_usd or spent.tokens > call.held.tokens
        return Completion(reply, spent, call.attempts, call.id, route.provider_name, model, attempt.settling)


def _fallback_may_help(error: ProviderError) -> bool:
    """Whether a fallback may do better: the fault is not the caller's, nor is the time over."""
    return error.failure in _FALLBACK_AFTER and not isinstance(error, DeadlinePassed)


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
    ahead: Callable[[], float] | None
    begun: Callable[[], None]
    input_tokens: int = 0
    attempts: int = 0
    held: Amounts = field(default_factory=Amounts)
    """By the last attempt."""
    spent: Amounts = field(default_factory=Amounts)
    """By the last attempt, where it failed."""
