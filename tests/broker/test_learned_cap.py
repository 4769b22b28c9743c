"""How many calls go to a model at once is learned from its provider: its refusals, and what its headers say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from rlm_server.broker.breaker import BreakerConfig
from rlm_server.broker.broker import Backoff, Broker, Completion
from rlm_server.broker.learned_cap import RESERVED, START, LearnedCap
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.provider import Failure, ModelRequest, Provider, ProviderError
from rlm_server.broker.rate_limit import HEARING, Allowance, allowance
from tests.broker.books import PAYER, Books
from tests.broker.priced import ask
from tests.broker.stage import PROMPT, Play, Until, broker_of, soon, until
from tests.fake_provider.server import FakeProvider, Fault

WIDE = CallLimits(tenant_calls=1_000, run_calls=1_000)


def busy(retry_after: float | None = None) -> ProviderError:
    return ProviderError(
        Failure.RATE_LIMITED, "the provider's rate limit is reached", billed=False, retry_after=retry_after
    )


@dataclass
class Desk:
    """A model that refuses a request by what `refuses` says of how many it has under way.

    It keeps the first ones until `enough` says so of it, and answers all from then on.
    """

    refuses: Callable[[int], bool]
    enough: Callable[[Desk], bool] = lambda desk: True
    inside: int = 0
    most: int = 0
    refused: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: ModelRequest) -> str:
        if self.refuses(self.inside):
            self.refused += 1
            self._look()
            raise busy()
        self.inside += 1
        self.most = max(self.most, self.inside)
        self._look()
        await self.open.wait()
        self.inside -= 1
        return "answered"

    def _look(self) -> None:
        if self.enough(self):
            self.open.set()


async def all_of(broker: Broker, calls: int) -> list[Completion]:
    asked = (broker.complete(PROMPT, PAYER, deadline=soon() + 110) for _ in range(calls))
    return list(await asyncio.gather(*asked))


async def test_two_hundred_calls_of_one_run_go_at_once_where_nobody_said_otherwise(books: Books) -> None:
    slow = Until()
    play = Play([slow])
    broker = broker_of(books, play)
    calls = asyncio.create_task(all_of(broker, 200))
    await until(lambda: play.started.qsize() == 200)
    assert broker.loads()["scripted"].inside == 200
    slow.event.set()
    assert len(await calls) == 200


async def test_the_cap_grows_while_calls_wait_and_nothing_objects_up_to_the_operators(books: Books) -> None:
    desk = Desk(lambda inside: False, lambda desk: desk.inside == START - START // RESERVED)
    broker = broker_of(books, Play([desk]), limits=CallLimits(provider_calls=400, tenant_calls=1_000, run_calls=1_000))
    assert broker.caps() == {"small": START}
    await all_of(broker, 900)
    assert START < broker.caps()["small"] < 1000
    assert desk.most <= 400


async def test_the_cap_goes_down_to_what_the_provider_takes_and_all_calls_are_answered(books: Books) -> None:
    desk = Desk(lambda inside: inside >= 20, lambda desk: desk.refused >= 8)
    broker = broker_of(
        books, Play([desk]), limits=WIDE, backoff=Backoff(first=0.01, most=0.1), breaker=BreakerConfig(calls=10**6)
    )
    assert len(await all_of(broker, 600)) == 600
    assert broker.caps()["small"] <= 40
    assert desk.refused < 600


async def test_a_provider_that_refuses_one_in_ten_by_chance_keeps_its_cap(books: Books) -> None:
    drawn = random.Random(5)
    desk = Desk(lambda inside: drawn.random() < 0.1)
    broker = broker_of(books, Play([desk]), limits=WIDE)
    assert len(await all_of(broker, 1_000)) == 1_000
    assert broker.caps()["small"] >= START
    assert desk.refused > 50


# ---- by itself, with a clock ---------------------------------------------------------------------------------------


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def end(cap: LearnedCap, error: ProviderError | None = None) -> None:
    """One request that ends so."""
    try:
        with cap.request():
            if error is not None:
                raise error
    except ProviderError:
        pass


async def test_an_objection_halves_the_cap_and_all_wait_as_long_as_the_provider_asks() -> None:
    clock = Clock()
    cap = LearnedCap(8, {}, clock)
    with cap.request(), cap.request(), cap.request(), cap.request(), cap.request():
        for _ in range(3):
            end(cap, busy(7.0))
            assert cap.calls == 8, "a few are no objection"
        end(cap, busy(7.0))
        assert cap.calls == 4
        end(cap, busy(7.0))
        assert cap.calls == 4, "once for what was sent under one cap"
    with pytest.raises(ProviderError, match="asks to wait beyond the deadline") as caught:
        await cap.ready(clock.now + 6.9)
    assert (caught.value.failure, caught.value.billed, caught.value.retry_after) == (Failure.RATE_LIMITED, False, 7.0)
    clock.now += 7.0
    await cap.ready(clock.now)


async def test_no_header_stops_a_model_for_ever() -> None:
    clock = Clock()
    cap = LearnedCap(1, {}, clock)
    end(cap, busy(1e300))
    with pytest.raises(ProviderError) as caught:
        await cap.ready(clock.now)
    assert caught.value.retry_after == 60.0
    assert cap.calls == 1


async def test_requests_wait_for_what_the_headers_allow() -> None:
    clock = Clock()
    cap = LearnedCap(100, {}, clock)
    with cap.request():
        listener = HEARING.get()
        assert listener is not None
        listener(Allowance(left=2, rate=0.5))
    assert HEARING.get() is None
    await cap.ready(clock.now)
    await cap.ready(clock.now)
    with pytest.raises(ProviderError) as caught:
        await cap.ready(clock.now + 1.9)
    assert caught.value.retry_after == 2.0
    clock.now += 4.0
    await cap.ready(clock.now)


async def test_what_was_sent_since_is_taken_off_an_allowance() -> None:
    clock = Clock()
    cap = LearnedCap(100, {}, clock)
    with cap.request():
        await cap.ready(clock.now)
        await cap.ready(clock.now)
        listener = HEARING.get()
        assert listener is not None
        listener(Allowance(left=2, rate=1.0))
    with pytest.raises(ProviderError):
        await cap.ready(clock.now)


# ---- headers -------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 27, 2, 0, 0, tzinfo=UTC)


def anthropic(limit: str, remaining: str, reset: str) -> dict[str, str]:
    words = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-requests-{name}": said for name, said in words.items()}


def openai(limit: str, remaining: str, reset: str) -> dict[str, str]:
    words = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-requests": said for name, said in words.items()}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, None),
        (anthropic("50", "20", "2026-11-27T02:01:00Z"), Allowance(20, 0.5)),
        (anthropic("50", "0", "2026-11-27T02:00:10+00:00"), Allowance(0, 5.0)),
        (openai("500", "0", "1m0s"), Allowance(0, 500 / 60)),
        (openai("500", "499", "120ms"), Allowance(499, 1 / 0.12)),
        (openai("10", "5", "1h2m3.5s"), Allowance(5, 5 / 3723.5)),
        (openai("10", "10", "6m"), Allowance(10, 1 / 360)),
        (openai("10", "5", "0s"), None),
        (openai("10", "11", "1s"), None),
        (openai("10", "-1", "1s"), None),
        (openai("10", "1.5", "1s"), None),
        (openai("9" * 5_000, "1", "1s"), None),
        (openai("10", "1", "soon"), None),
        (openai("10", "1", ""), None),
        (openai("10", "1", "9" * 5_000 + "s"), None),
        (anthropic("10", "1", "2026-11-27T01:59:00Z"), None),
        (anthropic("10", "1", "2026-11-27T02:01:00"), None),
        ({"x-ratelimit-remaining-requests": "1"}, None),
    ],
)
def test_headers_are_read_where_they_make_sense(headers: Mapping[str, str], said: Allowance | None) -> None:
    found = allowance(headers, now=NOW)
    assert (found and found.left) == (said and said.left)
    assert (found and found.rate) == pytest.approx(said and said.rate)


async def test_the_headers_of_an_answer_reach_who_listens(provider: Provider, fake: FakeProvider) -> None:
    fake.hint = openai("10", "4", "2s")
    fake.faults.append(Fault.RATE_LIMITED_WITH_HINT)
    heard: list[Allowance] = []
    token = HEARING.set(heard.append)
    try:
        with pytest.raises(ProviderError, match="rate limit"):
            await provider.complete(ask())
    finally:
        HEARING.reset(token)
    assert heard == [Allowance(4, 3.0)]
