"""A breaker tells a route that is ill from calls that are unlucky: played with many calls and a clock of its own."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count

import pytest

from rlm_server.broker.breaker import BreakerConfig, Breakers, RouteUnavailable
from rlm_server.broker.provider import Failure, ProviderError

Answer = tuple[float, Failure | None]
"""How many seconds a request takes, and how it fails, if it does."""

Route = Callable[[float, str], Answer]
"""What becomes of a request that is sent at a time by a tenant."""

CONFIG = BreakerConfig()


@dataclass
class Played:
    """What became of calls: at what times each was sent, answered and refused, by tenant."""

    sent: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, list[float]] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)

    def refusals(self, since: float = 0.0, until: float = float("inf")) -> int:
        return sum(since <= at < until for times in self.refused.values() for at in times)

    def requests(self, since: float = 0.0, until: float = float("inf")) -> int:
        return sum(since <= at < until for times in self.sent.values() for at in times)


@dataclass
class Simulation:
    """Lines of calls: the next of each begins when the last has ended, or `pause` seconds after it was refused."""

    route: Route
    pause: float = 0.5
    now: float = 0.0
    played: Played = field(default_factory=Played)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.breakers = Breakers(CONFIG, lambda: self.now)

    def play(self, seconds: float, lines: int, *tenants: str, calls: int | None = None) -> Played:
        """Let each tenant have so many calls at once, for so long, or until it has made `calls`."""
        left = Counter(dict.fromkeys(tenants or ("a",), 10**9 if calls is None else calls))
        for tenant in left:
            for _ in range(lines):
                self._at(self.now, lambda tenant=tenant: self._call(tenant, left))  # type: ignore[misc]
        while self._events and self._events[0][0] < seconds:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.played

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act))

    def _call(self, tenant: str, left: Counter[str]) -> None:
        if left[tenant] <= 0:
            return
        left[tenant] -= 1
        trial = self.breakers.trial("route", tenant)
        try:
            trial.__enter__()
        except RouteUnavailable:
            self.played.refused.setdefault(tenant, []).append(self.now)
            self._at(self.now + self.pause, lambda: self._call(tenant, left))
            return
        self.played.sent.setdefault(tenant, []).append(self.now)
        seconds, failure = self.route(self.now, tenant)
        self._at(self.now + seconds, lambda: self._ended(trial, failure, tenant, left))

    def _ended(
        self, trial: AbstractContextManager[None], failure: Failure | None, tenant: str, left: Counter[str]
    ) -> None:
        error = None if failure is None else ProviderError(failure, "words", billed=True)
        trial.__exit__(None if error is None else type(error), error, None)
        self.played.answered[tenant] += failure is None
        self._call(tenant, left)


def unlucky(seed: int, share: float, failing: Answer, well: float = 1.0) -> Route:
    """A route at which a share of the requests fails, whichever it is."""
    drawn = random.Random(seed)
    return lambda at, tenant: failing if drawn.random() < share else (well * drawn.uniform(0.5, 1.5), None)


def down(since: float, until: float, failing: Answer, well: float = 1.0) -> Route:
    """A route at which every request fails that is sent while it is down."""
    return lambda at, tenant: failing if since <= at < until else (well, None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lines", [1, 20, 500])
@pytest.mark.parametrize(
    "failing", [(0.001, Failure.GONE), (1.0, Failure.OVERLOADED), (30.0, Failure.TIMED_OUT)], ids=str
)
def test_a_route_at_which_nine_in_ten_succeed_stays_open(lines: int, failing: Answer, seed: int) -> None:
    played = Simulation(unlucky(seed, 0.1, failing)).play(1e9, lines, calls=3_000)
    assert played.refusals() == 0
    assert played.answered["a"] >= 2_600


@pytest.mark.parametrize("seed", range(5))
def test_failures_that_come_in_bunches_are_no_illness_where_most_calls_succeed(seed: int) -> None:
    """One moment in ten is bad: all that is sent in it fails at once."""
    bad = random.Random(seed)
    moments = [bad.random() < 0.1 for _ in range(10_000)]

    def route(at: float, tenant: str) -> Answer:
        return (0.05, Failure.GONE) if moments[int(at * 5)] else (0.5, None)

    assert Simulation(route).play(100.0, 200).refusals() == 0


def test_many_tenants_with_few_calls_each_are_not_shut_out_by_chance() -> None:
    tenants = [f"tenant {number}" for number in range(60)]
    played = Simulation(unlucky(1, 0.1, (0.01, Failure.GONE))).play(1e9, 1, *tenants, calls=50)
    assert played.refusals() == 0


@pytest.mark.parametrize("lines", [8, 64, 200])
@pytest.mark.parametrize("failure", [Failure.GONE, Failure.OVERLOADED, Failure.AUTH])
def test_a_route_that_goes_down_is_left_alone_within_seconds_and_used_soon_after_it_is_well(
    lines: int, failure: Failure
) -> None:
    played = Simulation(down(20.0, 60.0, (0.1, failure))).play(90.0, lines)
    assert played.refusals(until=20.0) == 0
    assert played.requests(23.0, 60.0) < 15, "probes"
    well = 60.0 + CONFIG.max_cooldown
    assert played.refusals(since=well + CONFIG.cooldown) == 0
    assert played.requests(well, 90.0) > lines * 15


def test_a_route_that_does_not_answer_is_left_alone_when_that_is_known_and_used_soon_after_it_is_well() -> None:
    """Every probe into the silence takes three minutes; those sent meanwhile tell that it is well again."""
    played = Simulation(down(20.0, 260.0, (180.0, Failure.TIMED_OUT))).play(600.0, 100)
    assert played.refusals(until=20.0) == 0
    assert played.requests(202.0, 260.0) < 15, "probes"
    assert played.refusals(since=260.0 + CONFIG.max_cooldown + CONFIG.cooldown) == 0


def test_a_flood_of_timeouts_of_requests_sent_before_it_was_well_does_not_shut_a_route_that_is() -> None:
    simulation = Simulation(down(0.0, 30.0, (180.0, Failure.TIMED_OUT)))
    simulation.play(25.0, 200)
    simulation.now = 31.0
    played = simulation.play(400.0, 5)
    assert played.refusals() == 0
    assert played.answered["a"] > 5 * 340


@pytest.mark.parametrize("failures", range(8))
def test_few_requests_that_fail_are_no_measure(failures: int) -> None:
    clock = iter([True] * failures)
    played = Simulation(lambda at, tenant: (2.0, Failure.GONE) if next(clock, False) else (2.0, None)).play(200.0, 1)
    assert played.refusals() == 0


def test_a_route_that_is_down_is_left_alone_by_one_who_asks_seldom_too() -> None:
    played = Simulation(down(600.0, 1e9, (20.0, Failure.GONE), well=20.0)).play(1_200.0, 1)
    assert played.refusals(until=600.0) == 0
    assert played.refusals() > 0
    assert played.requests(since=600.0) < 40


@pytest.mark.parametrize("answer", [Failure.RATE_LIMITED, Failure.BAD_REQUEST, Failure.REFUSED, Failure.TOO_LONG])
def test_what_a_provider_refuses_with_a_reason_is_no_illness(answer: Failure) -> None:
    assert Simulation(lambda at, tenant: (0.1, answer)).play(10.0, 50).refusals() == 0


@pytest.mark.parametrize("failure", [Failure.GONE, Failure.AUTH, Failure.BAD_REQUEST])
def test_one_tenants_requests_that_always_fail_shut_out_none_of_the_others(failure: Failure) -> None:
    others = [f"tenant {number}" for number in range(8)]
    drawn = random.Random(3)

    def route(at: float, tenant: str) -> Answer:
        if tenant == "poisoner" or drawn.random() < 0.1:
            return 0.01, failure
        return 0.5, None

    played = Simulation(route).play(60.0, 20, "poisoner", *others)
    assert not set(played.refused) - {"poisoner"}
    assert bool(played.refused) == (failure is not Failure.BAD_REQUEST)


def test_failures_of_most_tenants_shut_out_all_of_them() -> None:
    tenants = [f"tenant {number}" for number in range(40)]
    played = Simulation(down(20.0, 1e9, (0.1, Failure.GONE))).play(60.0, 1, *tenants)
    assert played.refusals(until=20.0) == 0
    assert played.requests(23.0) < 20
