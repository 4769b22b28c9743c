"""Small budgets: a call for whose worst case there is no room goes with a lower bound, which its hold covers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from rlm_server.broker.broker import CallFailed, Completion
from rlm_server.broker.outputs import AT_ONCE, LEAST, TIMES, Lowering, Outputs
from rlm_server.broker.provider import Failure, Message, ModelRequest, ProviderError
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, BudgetExceeded, Limit
from tests.broker.books import AT_ONCE as RESERVED_AND_DISPATCHED
from tests.broker.books import PAYER, Books
from tests.broker.stage import PRICE, Play, broker_of, soon, until

Act = Callable[[ModelRequest], Awaitable[str]]

MOST = 4_096
HOLD = worst_case(ModelRequest("small", (Message("user", "tiny"),), max_tokens=MOST), PRICE)


@dataclass
class Model:
    """Answers a word once it may, and says how many are at it, and with which bounds they came."""

    text: str = "tiny"
    let: asyncio.Event = field(default_factory=asyncio.Event)
    at_work: int = 0
    bounds: list[int] = field(default_factory=list)

    async def __call__(self, request: ModelRequest) -> str:
        self.bounds.append(request.max_tokens)
        self.at_work += 1
        await self.let.wait()
        self.at_work -= 1
        return self.text


def tiny(outputs: Outputs, **other: int) -> ModelRequest:
    return ModelRequest("small", (Message("user", "tiny"),), max_tokens=MOST, lowering=Lowering(outputs, **other))


async def learned(books: Books, outputs: Outputs, count: int = 4) -> None:
    """Have a few short answers be known."""
    model = Model()
    model.let.set()
    for _ in range(count):
        await broker_of(books, Play([model])).complete(tiny(outputs), PAYER, deadline=soon())


async def limit(books: Books, holds: float) -> None:
    """Leave room for so many calls of the worst case."""
    spent = (await books.balance(PAYER.account)).posted.nano_usd
    await books.set_limit(PAYER.account, Limit(nano_usd=spent + int(HOLD.nano_usd * holds)))


async def test_calls_that_wait_for_money_go_as_soon_as_answers_are_known_to_be_short(books: Books) -> None:
    await limit(books, 2.5)
    model, outputs = Model(), Outputs()
    broker = broker_of(books, Play([model]))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        calls = [group.create_task(broker.complete(tiny(outputs), PAYER, deadline=soon())) for _ in range(40)]
        await until(lambda: model.at_work == 2 and broker.waiting == 0)
        first, model.let = model.let, asyncio.Event()
        first.set()
        await until(lambda: model.at_work == 38)
        model.let.set()
    assert set(model.bounds) == {MOST, LEAST}
    assert {call.result().reply.max_tokens for call in calls} == {MOST, LEAST}
    balance = await books.balance(PAYER.account)
    assert (balance.overrun, balance.pending) == (Amounts(), Amounts())
    assert len(await books.chargeback()) == 40


async def test_what_is_sent_asks_for_no_more_than_is_held(books: Books) -> None:
    outputs = Outputs()
    await learned(books, outputs)
    await limit(books, 0.5)
    model = Model()
    model.let.set()
    done = await broker_of(books, Play([model])).complete(tiny(outputs), PAYER, deadline=soon())
    assert model.bounds == [LEAST]
    held = [hold for hold in books.held if hold == worst_case(replace(tiny(outputs), max_tokens=LEAST), PRICE)]
    assert len(held) == 1
    (entry,) = [entry for entry in await books.chargeback() if entry.hold.id == f"{done.call_id}.1"]
    assert entry.hold.amounts == held[0]


async def test_a_call_that_fits_is_not_bounded_lower(books: Books) -> None:
    outputs = Outputs()
    await learned(books, outputs)
    await limit(books, 1)
    model = Model()
    model.let.set()
    await broker_of(books, Play([model])).complete(tiny(outputs), PAYER, deadline=soon())
    assert model.bounds == [MOST]


async def test_without_a_known_answer_or_leave_a_call_that_does_not_fit_is_refused(books: Books) -> None:
    outputs = Outputs()
    await limit(books, 0.5)
    for request in (tiny(outputs), replace(tiny(outputs), lowering=None)):
        with pytest.raises(BudgetExceeded):
            await broker_of(books, Play([Model()])).complete(request, PAYER, deadline=soon())
    assert [order for order, _ in books.orders] == [RESERVED_AND_DISPATCHED] * 2


async def test_a_lowered_call_that_fails_and_may_be_billed_costs_its_own_hold(books: Books) -> None:
    outputs = Outputs()
    await learned(books, outputs)
    await limit(books, 0.5)
    doubt = ProviderError(Failure.TIMED_OUT, "no answer came", billed=True)
    with pytest.raises(CallFailed) as failed:
        await broker_of(books, Play([doubt])).complete(tiny(outputs), PAYER, deadline=soon())
    assert failed.value.spent == worst_case(replace(tiny(outputs), max_tokens=LEAST), PRICE)
    assert (await books.costs())[f"{failed.value.call_id}.1"] == failed.value.spent


async def test_a_call_that_waits_and_is_given_up_leaves_no_trace(books: Books) -> None:
    await limit(books, 1.5)
    model, outputs = Model(), Outputs()
    broker = broker_of(books, Play([model]))
    async with asyncio.timeout(30):
        first = asyncio.create_task(broker.complete(tiny(outputs), PAYER, deadline=soon()))
        await until(lambda: model.at_work == 1)
        waiting = [asyncio.create_task(broker.complete(tiny(outputs), PAYER, deadline=soon())) for _ in range(5)]
        await until(lambda: len(books.orders) == 11)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        model.let.set()
        await first
    assert len(await books.chargeback()) == 1
    assert await books.unresolved() == 0
    assert outputs.lower(MOST) == LEAST, "none of them waits"


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_a_lower_bound_is_a_few_times_the_longest_answer_of_late() -> None:
    outputs = Outputs()
    assert outputs.lowest(MOST) == MOST, "nothing is known"
    outputs.saw(3, cut=False)
    assert outputs.lowest(MOST) == LEAST
    outputs.saw(100, cut=False)
    assert outputs.lowest(MOST) == 100 * TIMES
    assert outputs.lowest(50) == 50, "never above the call's own"
    assert outputs.lowest(MOST, 1_000) == 1_000


def test_an_answer_that_was_cut_raises_the_bound_and_is_all_that_is_known() -> None:
    outputs = Outputs()
    for _ in range(8):
        outputs.saw(3, cut=False)
    outputs.saw(LEAST, cut=True)
    assert outputs.lowest(MOST) == TIMES * LEAST == MOST // AT_ONCE
    assert [outputs.lower(MOST) for _ in range(AT_ONCE + 1)] == [TIMES * LEAST] * AT_ONCE + [None]


@pytest.mark.parametrize(
    ("besides", "for_each"),
    [
        pytest.param(0, MOST // LEAST, id="as many as may have no more output than one"),
        pytest.param(100, (MOST + 100) // (LEAST + 100), id="as many as cost no more than one, with their input"),
        pytest.param(10_000, AT_ONCE, id="a few at least"),
    ],
)
def test_few_answers_let_few_calls_go(besides: int, for_each: int) -> None:
    outputs = Outputs()
    assert outputs.lower(MOST) is None
    for known in (1, 2):
        outputs.saw(3, cut=False)
        for _ in range(for_each):
            assert outputs.lower(MOST, 0, besides) == LEAST
        assert outputs.lower(MOST, 0, besides) is None, known
    outputs.ended()
    assert outputs.lower(MOST, 0, besides) == LEAST


async def test_calls_that_wait_go_in_their_order_as_many_as_their_own_cost_lets_go() -> None:
    outputs = Outputs()
    dear = [asyncio.create_task(outputs.lowered(MOST, 0, 10_000)) for _ in range(AT_ONCE + 1)]
    await asyncio.sleep(0)
    cheap = asyncio.create_task(outputs.lowered(MOST))
    await asyncio.sleep(0)
    outputs.saw(3, cut=False)
    await asyncio.wait(dear[:-1])
    assert not dear[-1].done(), "as many as may have gone"
    assert not cheap.done(), "it waits behind that"
    outputs.ended()
    assert [await dear[-1], await cheap] == [LEAST, LEAST]


def spent(done: list[Completion]) -> int:
    return sum(one.spent.nano_usd for one in done)


async def test_a_hundred_tiny_calls_stay_within_a_small_budget(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=50_000_000))
    model, outputs = Model(), Outputs()
    model.let.set()
    broker = broker_of(books, Play([model]))
    calls = [broker.complete(tiny(outputs), PAYER, deadline=soon()) for _ in range(100)]
    done = await asyncio.gather(*calls)
    assert (await books.balance(PAYER.account)).posted.nano_usd == spent(done) < 50_000_000
    assert (await books.balance(PAYER.account)).overrun == Amounts()
