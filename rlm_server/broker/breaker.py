"""Circuit breakers: a route of which most requests fail is left alone for a while, and then tried with one call.

A breaker judges by when requests were *sent*. Failures come back before answers do, and in bunches: of 500 requests in
flight, the fifty that fail at once are all that is known at first. So what is still under way counts as not failed. And
timeouts of requests that were sent before a route was well again say nothing of those that were sent since.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from rlm_server.broker.provider import DeadlinePassed, Failure, ProviderError

RECORDED = frozenset({Failure.GONE, Failure.OVERLOADED, Failure.TIMED_OUT, Failure.AUTH})
"""Failures that count against a route. Any other answer of a provider says that the route works."""

IGNORED = frozenset({Failure.UNAVAILABLE, Failure.INTERNAL})
"""Failures that say nothing of a route, as the provider has no part in them."""

MOMENTS = 8
"""Of a window: requests that were sent in the same one are counted together."""


SLOW = 10.0
"""Seconds. What was sent longer ago than this when it told something has been waited for so long that what was sent
just before it says little: requests that all time out are not weighed against the answers of minutes ago."""


class State(StrEnum):
    """Where a breaker is. OPEN lets nothing through; PROBING has let a call through and waits for its end."""

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
    """What opens a breaker, and for how long.

    A breaker judges the requests that were sent in `window` seconds, or the last twice `calls` where these are more. It
    opens where `share` of them failed: of one tenant's, at least `calls`. The route's own breaker, which is for all,
    opens where those of `tenants` tenants at least fail; there each tenant counts once, with the share of its own.

    An open breaker lets a probe through after `cooldown` seconds, twice as long for each probe before, up to
    `max_cooldown`. A probe that takes longer is followed by another meanwhile.
    """

    calls: int = 8
    tenants: int = 5
    share: float = 0.7
    window: float = 2.0
    cooldown: float = 1.0
    max_cooldown: float = 10.0


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


@dataclass(slots=True)
class _Moment:
    """Requests that were sent at about one time, by their witness: how many, and how many of them failed."""

    at: float
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    known: bool = False
    """Whether any of them has told something."""
    past: bool = False
    """Whether it is looked at no more."""

    def told(self, witness: str, *, failed: bool) -> None:
        """Note what one of its requests told."""
        self.known = True
        if failed:
            self.failed[witness] += 1


class _History:
    """What became of requests: of those in a window that ends with the last one sent of which something is known.

    Where fewer than `least` were sent in it, those before count too, up to so many.
    """

    def __init__(self, window: float, least: int) -> None:
        self._window, self._least = window, least
        self._moments: deque[_Moment] = deque()  # the oldest first

    @property
    def failed(self) -> bool:
        """Whether it knows of a failure."""
        return any(moment.failed for moment in self._moments)

    def sent(self, witness: str, now: float) -> _Moment:
        """Note a request, and return the moment in which its end is to be noted."""
        if not self._moments or now - self._moments[-1].at >= self._window / MOMENTS:
            judged = [moment for moment, _ in self._judged(now)]
            while judged and self._moments[0] is not judged[-1]:
                self._moments.popleft().past = True
            self._moments.append(_Moment(now))
        moment = self._moments[-1]
        moment.sent[witness] += 1
        return moment

    def forget(self) -> None:
        """Look no more at what was sent so far."""
        for moment in self._moments:
            moment.past = True
        self._moments.clear()

    def failures(self, now: float) -> tuple[float, int, float]:
        """Return how many requests failed, of how many witnesses, and the mean of these witnesses' shares that failed.

        A witness's share is the mean of those of its moments. Failures that come fast make room for more of them: a
        short time in which the route failed has many requests, and is a short time all the same.
        """
        number = 0.0
        weights, shares = defaultdict[str, float](float), defaultdict[str, float](float)
        for moment, weight in self._judged(now):
            number += moment.failed.total() * weight
            for witness, sent in moment.sent.items():
                if sent:
                    weights[witness] += weight
                    shares[witness] += weight * moment.failed[witness] / sent
        means = [shares[witness] / weights[witness] for witness in weights]
        return number, sum(mean > 0 for mean in means), sum(means) / max(1, len(means))

    def _judged(self, now: float) -> Iterator[tuple[_Moment, float]]:
        """The moments that count, the last first, each with the part of it that does."""
        ends: float | None = None
        number = 0
        for moment in reversed(self._moments):
            if ends is None and not moment.known:
                continue  # it, and what was sent later, is all under way
            ends = max(moment.at, now - SLOW) if ends is None else ends
            sent = moment.sent.total()
            if ends - moment.at < self._window:
                weight = 1.0
            elif number < self._least:
                weight = min(1.0, (self._least - number) / max(1, sent))
            else:
                return
            number += sent
            yield moment, weight


class Breaker:
    """Opens when `share` of the requests failed: `calls` of them at least, and of `witnesses` at least.

    Each witness counts once, with the share of its own requests that failed.
    """

    def __init__(self, calls: int, witnesses: int, config: BreakerConfig, clock: Callable[[], float]) -> None:
        self._calls, self._witnesses, self._config, self._clock = calls, witnesses, config, clock
        self.state = State.CLOSED
        self._history = _History(config.window, 2 * max(calls, witnesses))
        self._last_failure = Failure.GONE, ""
        self._trials = 0  # under way
        self._openings = 0  # since the start: what was sent before one tells nothing after it
        self._probes_sent = self._probes_out = 0  # since it opened
        self._probe_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether it knows of no failure, and none may be on its way."""
        return self.state is State.CLOSED and not self._trials and not self._history.failed

    def check(self) -> None:
        """See whether a call would be let through.

        Raises:
            RouteUnavailable: it would not.
        """
        left = self._probe_at - self._clock()
        if self.state is not State.CLOSED and left > 0:
            raise RouteUnavailable(*self._last_failure, left)

    @contextmanager
    def trial(self, witness: str) -> Iterator[None]:
        """Let one request through, and learn from what comes of it.

        Raises:
            RouteUnavailable: it is not let through.
        """
        self.check()
        openings, moment = self._openings, None
        if self.state is State.CLOSED:
            moment = self._history.sent(witness, self._clock())
        else:
            self._probe()
        failure: ProviderError | None = None
        ignored = True  # as a cancellation is
        self._trials += 1
        try:
            yield
            ignored = False
        except ProviderError as error:
            ignored = error.failure in IGNORED or isinstance(error, DeadlinePassed)
            failure = error if error.failure in RECORDED and not ignored else None
            raise
        finally:
            self._trials -= 1
            if moment is not None and not moment.past:
                self._learn(moment, witness, failure, ignored=ignored)
            elif moment is None and openings == self._openings and self.state is State.PROBING:
                self._probed(failure, ignored=ignored)

    def _learn(self, moment: _Moment, witness: str, failure: ProviderError | None, *, ignored: bool) -> None:
        if ignored:
            moment.sent[witness] -= 1
            return
        moment.told(witness, failed=failure is not None)
        if failure is None:
            return
        self._last_failure = failure.failure, str(failure)
        failed, of, share = self._history.failures(self._clock())
        if failed >= self._calls and of >= self._witnesses and share >= self._config.share:
            self._history.forget()
            self._openings += 1
            self._probes_sent = self._probes_out = 0
            self._probe_at = self._clock() + self._cooldown
            self._move(State.OPEN)

    @property
    def _cooldown(self) -> float:
        return min(self._config.max_cooldown, self._config.cooldown * 2.0 ** min(self._probes_sent, 30))

    def _probe(self) -> None:
        self._probes_sent += 1
        self._probes_out += 1
        self._probe_at = self._clock() + self._cooldown  # for another, where this one takes longer
        if self.state is State.OPEN:
            self._move(State.PROBING)

    def _probed(self, failure: ProviderError | None, *, ignored: bool) -> None:
        self._probes_out -= 1
        if failure is None and not ignored:
            self._move(State.CLOSED)
            return
        if failure is not None:
            self._last_failure = failure.failure, str(failure)
            self._probe_at = self._clock() + self._cooldown
        elif not self._probes_out:
            self._probe_at = self._clock()  # cool already: the next call is the probe
        if not self._probes_out:
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
    def trial(self, route: str, tenant: str) -> Iterator[None]:
        """Let one request through, and learn from what comes of it.

        Raises:
            RouteUnavailable: it is not let through.
        """
        of_tenant, of_all = (
            self._of((route, tenant), self._config.calls, 1),
            self._of((route, None), 1, self._config.tenants),
        )
        try:
            with of_tenant.trial(tenant), of_all.trial(tenant):
                yield
        finally:
            for key, breaker in (((route, tenant), of_tenant), ((route, None), of_all)):
                if breaker.idle:
                    self._breakers.pop(key, None)

    def _of(self, key: tuple[str, str | None], calls: int, witnesses: int) -> Breaker:
        if key not in self._breakers:
            self._breakers[key] = Breaker(calls, witnesses, self._config, self._clock)
        return self._breakers[key]
