"""Circuit breakers: a route that fails again and again is left alone for a while, and then tried with one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from rlm_server.broker.calls import DeadlinePassed, Failure, ProviderError

ILL = frozenset({Failure.GONE, Failure.OVERLOADED, Failure.TIMED_OUT, Failure.AUTH})
"""What says that the route itself is ill. Any other answer of a provider says that it is there."""

UNTOLD = frozenset({Failure.UNAVAILABLE, Failure.INTERNAL})
"""What a provider has no part in."""


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
    """What is borne of a route, and for how long it is left alone then.

    So many `calls` of one tenant that fail in a row, with no other in between, close the route to that tenant; so many
    `tenants` in a row close it to all. It cools for `first` seconds, twice as long each time a probe fails, up to
    `most`.
    """

    calls: int = 8
    tenants: int = 5
    first: float = 1.0
    most: float = 30.0


class RouteUnavailable(ProviderError):
    """The route is left alone: nothing was sent. `cause` is the kind of its last failure, `said` what that one said."""

    def __init__(self, cause: Failure, said: str, retry_after: float) -> None:
        words = f"this model failed again and again and is left alone for {retry_after:.0f} s; its last failure: {said}"
        super().__init__(Failure.UNAVAILABLE, words, billed=False, retry_after=retry_after)
        self.cause = cause


class Breaker:
    """Opens when `most` witnesses in a row tell of a failure."""

    def __init__(self, most: int, patience: BreakerConfig, clock: Callable[[], float]) -> None:
        self._most, self._patience, self._clock = most, patience, clock
        self.state = State.CLOSED
        self._witnesses: set[str] = set()
        self._last = Failure.GONE, ""
        self._trials = 0
        self._opened = 0  # how often since it was last closed
        self._cool_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether it knows of no failure, and none may be on its way."""
        return self.state is State.CLOSED and not self._witnesses and not self._trials

    def check(self) -> None:
        """See whether a call would be let through.

        Raises:
            RouteUnavailable: it would not.
        """
        left = self._cool_at - self._clock()
        if self.state is State.PROBING or (self.state is State.OPEN and left > 0):
            raise RouteUnavailable(*self._last, max(left, self._patience.first))

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
        told = False
        self._trials += 1
        try:
            yield
            told = True
        except ProviderError as error:
            told = error.failure not in UNTOLD and not isinstance(error, DeadlinePassed)
            failure = error if error.failure in ILL else None
            raise
        finally:
            self._trials -= 1
            # Where it moved on meanwhile, only the probe can tell anything new.
            if probe or self.state is State.CLOSED:
                self._learn(told, failure, witness)

    def _learn(self, told: bool, failure: ProviderError | None, witness: str) -> None:
        if not told:
            if self.state is State.PROBING:
                self._move(State.OPEN)  # cool already: the next call is the probe
            return
        if failure is None:
            self._witnesses.clear()
            self._opened = 0
            if self.state is State.PROBING:
                self._move(State.CLOSED)
            return
        self._witnesses.add(witness)
        self._last = failure.failure, str(failure)
        if self.state is State.PROBING or len(self._witnesses) >= self._most:
            cooling = min(self._patience.most, self._patience.first * 2.0 ** min(self._opened, 30))
            self._cool_at = self._clock() + cooling
            self._opened += 1
            self._move(State.OPEN)

    def _move(self, to: State) -> None:
        if to not in MOVES[self.state]:
            raise ValueError(f"a breaker that is {self.state} cannot become {to}")
        self.state = to


class Breakers:
    """The breakers of all routes. Two stand before every call: its tenant's, and the route's own.

    What makes a provider fail may be in the prompt. So a tenant's failures shut out that tenant alone, until others
    tell of them too.
    """

    def __init__(self, patience: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
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
        mine = self._breakers.setdefault((route, tenant), Breaker(self._patience.calls, self._patience, self._clock))
        ours = self._breakers.setdefault((route, None), Breaker(self._patience.tenants, self._patience, self._clock))
        try:
            with ExitStack() as both:
                both.enter_context(mine.trial(hold_id))
                both.enter_context(ours.trial(tenant))
                yield
        finally:
            for key, breaker in (((route, tenant), mine), ((route, None), ours)):
                if breaker.idle:
                    self._breakers.pop(key, None)
