"""A route that fails again and again is left alone, tried with one call, and used again when that succeeds."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker.breaker import (
    IGNORED,
    MOVES,
    RECORDED,
    Breaker,
    BreakerConfig,
    Breakers,
    RouteUnavailable,
    State,
)
from rlm_server.broker.provider import DeadlinePassed, Failure, ProviderError

CONFIG = BreakerConfig(calls=3, tenants=2, cooldown=1.0, max_cooldown=8.0)
T = "a tenant"


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def failing(failure: Failure = Failure.GONE) -> ProviderError:
    return ProviderError(failure, f"words of {failure}", billed=True)


def tried(trial: AbstractContextManager[None], outcome: BaseException | None = None) -> bool:
    """Send one request that ends so; False where it was not let through."""
    try:
        trial.__enter__()
    except RouteUnavailable:
        return False
    assert not trial.__exit__(None if outcome is None else type(outcome), outcome, None)
    return True


def now(breaker: Breaker) -> State:
    """Its state; a function, because a type checker takes an attribute that was compared for unchanged."""
    return breaker.state


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(3, 1, CONFIG, clock)
    for _ in range(3):
        assert tried(breaker.trial(T), failing(Failure.AUTH))
    return breaker


@pytest.mark.parametrize("failure", sorted(RECORDED))
def test_failures_in_a_row_that_say_the_route_is_ill_open_it(failure: Failure) -> None:
    breaker = Breaker(3, 1, CONFIG, Clock())
    for _ in range(2):
        assert tried(breaker.trial(T), failing(failure))
    assert now(breaker) is State.CLOSED
    assert tried(breaker.trial(T), failing(failure))
    assert now(breaker) is State.OPEN
    with pytest.raises(RouteUnavailable, match=f"left alone for 1 s; its last failure: words of {failure}") as caught:
        breaker.check()
    refusal = caught.value
    assert (refusal.failure, refusal.cause, refusal.billed) == (Failure.UNAVAILABLE, failure, False)
    assert refusal.retry_after == 1.0
    assert not tried(breaker.trial(T))


@pytest.mark.parametrize(
    "answer", [None, *(failing(kind) for kind in sorted(set(Failure) - RECORDED - IGNORED))], ids=str
)
def test_any_answer_in_between_says_that_the_route_is_there(answer: ProviderError | None) -> None:
    breaker = Breaker(3, 1, CONFIG, Clock())
    for _ in range(9):
        for outcome in (failing(), answer):
            assert tried(breaker.trial(T), outcome)
    assert now(breaker) is State.CLOSED


UNTELLING = [
    DeadlinePassed("the caller was in a hurry", billed=True),
    *(failing(kind) for kind in sorted(IGNORED)),
    KeyboardInterrupt(),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("nothing", UNTELLING, ids=repr)
def test_what_the_provider_has_no_part_in_says_nothing(nothing: BaseException) -> None:
    breaker = Breaker(3, 1, CONFIG, Clock())
    for outcome in [failing(), nothing, nothing, nothing, failing(), nothing]:
        assert tried(breaker.trial(T), outcome)
    assert now(breaker) is State.CLOSED
    assert tried(breaker.trial(T), failing())
    assert now(breaker) is State.OPEN


def test_what_is_told_to_wait_is_what_is_left_of_the_cooling() -> None:
    clock = Clock()
    breaker = opened(clock)
    tried_after = []
    for passed in (0.0, 4.0, 4.0):
        clock.now += passed
        if tried(breaker.trial(T), failing()):
            with pytest.raises(RouteUnavailable) as caught:
                breaker.check()
            tried_after.append(caught.value.retry_after)
    assert tried_after == [2.0, 4.0]


def test_after_the_cooling_one_probe_goes_and_its_success_closes_the_route() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 0.999
    assert not tried(breaker.trial(T))
    clock.now += 0.001
    with breaker.trial(T):
        assert now(breaker) is State.PROBING
        assert not tried(breaker.trial(T))
        with pytest.raises(RouteUnavailable) as caught:
            breaker.check()
        assert caught.value.retry_after == 2 * CONFIG.cooldown
    assert now(breaker) is State.CLOSED
    assert breaker.idle


def test_the_cooling_doubles_with_each_probe_that_fails_and_is_short_again_after_a_success() -> None:
    clock = Clock()
    breaker = opened(clock)
    for cooling in (1.0, 2.0, 4.0, 8.0, 8.0):
        clock.now += cooling - 0.01
        assert not tried(breaker.trial(T))
        clock.now += 0.02
        assert tried(breaker.trial(T), failing())
        assert now(breaker) is State.OPEN
    clock.now += 8.0
    assert tried(breaker.trial(T))
    for _ in range(3):
        assert tried(breaker.trial(T), failing())
    clock.now += 1.0
    assert tried(breaker.trial(T))


@pytest.mark.parametrize("nothing", UNTELLING, ids=repr)
def test_a_probe_that_tells_nothing_is_followed_by_another_at_once(nothing: BaseException) -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 1.0
    assert tried(breaker.trial(T), nothing)
    assert now(breaker) is State.OPEN
    assert tried(breaker.trial(T))
    assert now(breaker) is State.CLOSED


@pytest.mark.parametrize("late", [None, failing()], ids=["a success", "a failure"])
def test_news_of_requests_sent_before_it_opened_change_nothing(late: ProviderError | None) -> None:
    clock = Clock()
    breaker = Breaker(3, 1, CONFIG, clock)
    with suppress(ProviderError), breaker.trial(T):
        for _ in range(3):
            tried(breaker.trial(T), failing())
        if late is not None:
            raise late
    assert now(breaker) is State.OPEN
    clock.now += 1.0
    with breaker.trial(T):
        pass
    assert now(breaker) is State.CLOSED


def test_a_move_that_is_not_in_the_table_is_refused() -> None:
    for state in State:
        for to in State:
            breaker = Breaker(3, 1, CONFIG, Clock())
            breaker.state = state
            if to in MOVES[state]:
                breaker._move(to)
                assert breaker.state is to
            else:
                with pytest.raises(ValueError, match=f"a breaker that is {state} cannot become {to}"):
                    breaker._move(to)


@given(st.lists(st.tuples(st.sampled_from(["good", "bad", "nothing", "send", "end"]), st.floats(0, 3))))
def test_whatever_happens_requests_go_one_by_one_while_it_is_not_closed(acts: list[tuple[str, float]]) -> None:
    clock = Clock()
    breaker = Breaker(3, 1, CONFIG, clock)
    under_way: list[tuple[ExitStack, float | None]] = []  # with when it went, where it was a probe
    for act, passed in acts:
        clock.now += passed
        before = breaker.state
        if act == "end":
            for stack, _ in under_way[:1]:
                stack.close()
            del under_way[:1]
        elif act == "send":
            stack = ExitStack()
            with suppress(RouteUnavailable):
                stack.enter_context(breaker.trial(T))
                under_way.append((stack, clock.now if before is not State.CLOSED else None))
        else:
            outcomes = {"good": None, "bad": failing(), "nothing": ZeroDivisionError()}
            through = tried(breaker.trial(T), outcomes[act])
            assert through or before is not State.CLOSED
            if through and before is State.OPEN:
                assert (act == "good") == (breaker.state is State.CLOSED)
        probes = [at for _, at in under_way if at is not None]
        assert probes or breaker.state is not State.PROBING
        assert all(then - at >= CONFIG.cooldown for at, then in pairwise(probes)), "one that is slow has another follow"
    for stack, _ in under_way:
        stack.close()


# ---- tenants -------------------------------------------------------------------------------------------------------


def test_a_tenants_failures_shut_out_that_tenant_alone() -> None:
    breakers = Breakers(CONFIG, Clock())
    for _ in range(50):
        tried(breakers.trial("route", "poisoner"), failing())
    assert not tried(breakers.trial("route", "poisoner"))
    assert tried(breakers.trial("route", "other"))
    assert tried(breakers.trial("another route", "poisoner"))
    breakers.check("route", "other")
    with pytest.raises(RouteUnavailable):
        breakers.check("route", "poisoner")
    assert (breakers.state("route"), breakers.state("another route")) == (State.OPEN, State.CLOSED)


def test_failures_of_several_tenants_in_a_row_shut_out_all() -> None:
    clock = Clock()
    breakers = Breakers(CONFIG, clock)
    for tenant in "ab":
        assert tried(breakers.trial("route", tenant), failing())
    assert not tried(breakers.trial("route", "c"))
    with pytest.raises(RouteUnavailable):
        breakers.check("route", "c")
    clock.now += 1.0
    assert tried(breakers.trial("route", "c"))
    for tenant in "abc":
        assert tried(breakers.trial("route", tenant))


def test_one_tenants_success_speaks_for_the_route_but_not_for_anothers_prompts() -> None:
    breakers = Breakers(CONFIG, Clock())
    for _ in range(3):
        assert tried(breakers.trial("route", "a"), failing())
        assert tried(breakers.trial("route", "b"))
    assert not tried(breakers.trial("route", "a"))
    assert tried(breakers.trial("route", "b"))


def test_a_call_that_one_breaker_refuses_is_no_probe_of_the_other() -> None:
    clock = Clock()
    breakers = Breakers(CONFIG, clock)
    for _ in range(3):
        tried(breakers.trial("route", "a"), failing())
    clock.now += 1.0  # the tenant's own has cooled
    tried(breakers.trial("route", "b"), failing())  # and now the route is shut to all
    assert not tried(breakers.trial("route", "a"))
    assert breakers._breakers["route", "a"].state is State.OPEN
    clock.now += 1.0
    assert tried(breakers.trial("route", "a"))
    assert breakers.state("route") is State.CLOSED


def test_a_probe_that_takes_long_is_followed_by_others_and_the_first_answer_closes_the_route() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 1.0
    with suppress(ProviderError), breaker.trial(T):
        clock.now += 1.9
        assert not tried(breaker.trial(T)), "the probe has time"
        clock.now += 0.1
        assert tried(breaker.trial(T)), "the route answers by now"
        assert now(breaker) is State.CLOSED
        raise failing()
    assert breaker.idle, "what was sent before the route was well again says nothing of it"


def test_nothing_is_kept_of_routes_that_work() -> None:
    clock = Clock()
    breakers = Breakers(CONFIG, clock)
    with breakers.trial("route", "a"), breakers.trial("route", "b"):
        assert breakers._breakers
    for _ in range(3):
        tried(breakers.trial("route", "a"), failing())
    for _ in range(10):
        clock.now += 1.0
        tried(breakers.trial("route", "a"))
    assert breakers._breakers == {}


def test_failures_that_come_while_another_request_succeeds_are_not_forgotten() -> None:
    breakers = Breakers(CONFIG, Clock())
    with breakers.trial("route", "a"):
        tried(breakers.trial("route", "a"))
        for _ in range(4):
            tried(breakers.trial("route", "a"), failing())
        assert breakers.state("route") is State.CLOSED
        tried(breakers.trial("route", "a"), failing())
        assert breakers.state("route") is State.OPEN, "five of seven"
