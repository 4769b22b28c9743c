"""Circuit breakers: a route that fails again and again is left alone for a while, and then tried with one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from rlm_server.broker.provider import DeadlinePassed, Failure, ProviderError

RECORDED = frozenset({Failure.GONE, Failure.OVERLOADED, Failure.TIMED_OUT, Failure.AUTH})
"""Failures that count against a route. Any other answer of a provider says that the route works."""

IGNORED = frozenset({Failure.UNAVAILABLE, Failure.INTERNAL})
"""Failures that say nothing of a route, as the provider has no part in them."""


class State(StrEnum):
    """Where a breaker is. OPEN lets nothing through; PROBING has let one call through and waits for its end."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


MOVES: dict[State, frozenset[State]] = {
    State.CLOSED: frozenset({State.OPEN}),
    State.OPEN: frozenset({State.PROBING}),
    State.PROBING: frozenset({State.CLOSED, State.OPEN}),
}


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """How many failures open a breaker, and for how long.

    `calls` of one tenant that fail in a row, with no other in between, open its breaker of the route. Failures of
    `tenants` in a row open the route's own, for all. An open breaker lets a probe through after `cooldown` seconds,
    twice as long each time a probe fails, up to `max_cooldown`.
    """

    calls: int = 8
    tenants: int = 5
    cooldown: float = 1.0
    max_cooldown: float = 30.0


class RouteUnavailable(ProviderError):
    """The route is left alone: nothing was sent. `cause` is the kind of its last failure."""

    def __init__(self, cause: Failure, last_message: str, retry_after: float) -> None:
        super().__init__(
            Failure.UNAVAILABLE,
            f"this model failed again and again and is left alone for {retry_after:.0f} s; its last failure: "
            f"{last_message}",
            billed=False,
            retry_after=retry_after,
        )
        self.cause = cause


class Breaker:
    """Opens when `threshold` witnesses in a row report a failure. A witness is a hold's id, or a tenant."""

    def __init__(self, threshold: int, config: BreakerConfig, clock: Callable[[], float]) -> None:
        self._threshold, self._config, self._clock = threshold, config, clock
        self.state = State.CLOSED
        self._witnesses: set[str] = set()
        self._last_failure = Failure.GONE, ""
        self._trials = 0  # under way
        self._openings = 0  # since it was last closed
        self._probe_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether it knows of no failure, and none may be on its way."""
        return self.state is State.CLOSED and not self._witnesses and not self._trials

    def check(self) -> None:
        """See whether a call would be let through.

        Raises:
            RouteUnavailable: it would not.
        """
        left = self._probe_at - self._clock()
        if self.state is State.PROBING or (self.state is State.OPEN and left > 0):
            raise RouteUnavailable(*self._last_failure, max(left, self._config.cooldown))

    @contextmanager
    def trial(self, witness: str) -> Iterator[None]:
        """Let one request through, and learn from what comes of it.

        Raises:
            RouteUnavailable: it is not let through.
        """
        self.check()
        probe = self.state is State.OPEN
        if probe:
            self._move(State.PROBING)
        failure: ProviderError | None = None
        ignored = True  # as a cancellation is
        self._trials += 1
        try:
            yield
            ignored = False
        except ProviderError as error:
            ignored = error.failure in IGNORED or isinstance(error, DeadlinePassed)
            failure = error if error.failure in RECORDED else None
            raise
        finally:
            self._trials -= 1
            # Where it moved on meanwhile, only the probe can tell anything new.
            if probe or self.state is State.CLOSED:
                self._learn(failure, witness, ignored=ignored)

    def _learn(self, failure: ProviderError | None, witness: str, *, ignored: bool) -> None:
        if ignored:
            if self.state is State.PROBING:
                self._move(State.OPEN)  # cool already: the next call is the probe
        elif failure is None:
            self._witnesses.clear()
            self._openings = 0
            if self.state is State.PROBING:
                self._move(State.CLOSED)
        else:
            self._witnesses.add(witness)
            self._last_failure = failure.failure, str(failure)
            if self.state is State.PROBING or len(self._witnesses) >= self._threshold:
                self._open()

    def _open(self) -> None:
        cooldown = min(self._config.max_cooldown, self._config.cooldown * 2.0 ** min(self._openings, 30))
        self._probe_at = self._clock() + cooldown
        self._openings += 1
        self._move(State.OPEN)

    def _move(self, to: State) -> None:
        if to not in MOVES[self.state]:
            raise ValueError(f"a breaker that is {self.state} cannot become {to}")
        self.state = to


class Breakers:
    """The breakers of all routes. Two stand before every call: its tenant's, and the route's own.

    What makes a provider fail may be in the prompt. So a tenant's failures shut out that tenant alone, until other
    tenants' calls fail too.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._breakers: dict[tuple[str, str | None], Breaker] = {}

    def state(self, route: str) -> State:
        """The worst that a call to this route meets: OPEN before PROBING before CLOSED."""
        states = {breaker.state for (of, _), breaker in self._breakers.items() if of == route}
        return next((state for state in (State.OPEN, State.PROBING) if state in states), State.CLOSED)

    def check(self, route: str, tenant: str) -> None:
        """See whether a call would be let through.

        Raises:
            RouteUnavailable: it would not.
        """
        for key in ((route, tenant), (route, None)):
            if key in self._breakers:
                self._breakers[key].check()

    @contextmanager
    def trial(self, route: str, tenant: str, hold_id: str) -> Iterator[None]:
        """Let one request through, and learn from what comes of it.

        Raises:
            RouteUnavailable: it is not let through.
        """
        of_tenant = self._breakers.setdefault((route, tenant), Breaker(self._config.calls, self._config, self._clock))
        of_all = self._breakers.setdefault((route, None), Breaker(self._config.tenants, self._config, self._clock))
        try:
            with of_tenant.trial(hold_id), of_all.trial(tenant):
                yield
        finally:
            for key, breaker in (((route, tenant), of_tenant), ((route, None), of_all)):
                if breaker.idle:
                    self._breakers.pop(key, None)
