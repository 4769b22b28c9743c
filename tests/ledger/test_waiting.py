"""Never over the limit, however many ask at once; and whoever waits is served in order, by events alone."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from rlm_server.database.engine import DatabaseClosedError
from rlm_server.ledger import Amounts, BudgetBusy, BudgetExceeded, HoldUnknown, Limit, Query
from rlm_server.ledger.wait_queue import APPLIED_AT_ONCE
from tests.ledger.accounting import Books, a_hold, at_most, at_once, cents, soon


def asks(
    books: Books, account: str, amounts: Amounts, *, id: str | None = None, dispatch: bool = False
) -> asyncio.Task[None]:
    hold = a_hold(account, amounts, id=id)
    return asyncio.create_task(books.ledger.reserve(hold, deadline=soon(), dispatch=dispatch))


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_batch_of_many_calls_stays_under_a_cap_of_five_cents(books: Books) -> None:
    """The reference implementation checks between iterations: one such batch spent $1.01."""
    await books.tenant(Limit())
    await books.run("run", at_most(5))

    async def call() -> None:
        hold = a_hold("run", cents(1))
        await books.ledger.reserve(hold, deadline=soon())
        await books.ledger.dispatch(hold.id)
        await books.ledger.post(hold.id, cents(1), None)

    answers = await asyncio.gather(*(call() for _ in range(101)), return_exceptions=True)
    assert answers.count(None) == 5
    assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 96
    assert (await books.ledger.balance("run")).posted == cents(5)


async def test_hundreds_at_once_share_a_small_limit_and_all_get_through(books: Books) -> None:
    await books.tenant(at_most(7))
    for run in range(4):
        await books.run(f"run-{run}", at_most(5))
    held = 0

    async def call(number: int) -> None:
        nonlocal held
        size = number % 3 + 1
        hold = a_hold(f"run-{number % 4}", cents(size))
        await books.ledger.reserve(hold, deadline=soon())
        held += size
        assert held <= 7
        await books.ledger.dispatch(hold.id)
        held -= size
        await books.ledger.post(hold.id, Amounts(), None)

    async with asyncio.TaskGroup() as calls:
        for number in range(300):
            calls.create_task(call(number))
    assert await books.ledger.left("acme") == at_most(7)
    assert len(await books.ledger.entries(Query(tenant="acme"))) == 300


async def test_those_who_wait_get_through_in_the_order_they_came(books: Books) -> None:
    await books.tenant(at_most(3))
    sizes = random.Random(1).choices([1, 2, 3], k=200)
    passed: list[int] = []

    async def call(number: int) -> None:
        hold = a_hold("acme", cents(sizes[number]))
        await books.ledger.reserve(hold, deadline=soon())
        passed.append(number)
        await books.ledger.void(hold.id)

    async with asyncio.TaskGroup() as calls:
        for number in range(len(sizes)):
            calls.create_task(call(number))
    assert passed == sorted(passed)


async def test_a_later_small_hold_does_not_overtake_an_earlier_large_one_on_the_same_account(books: Books) -> None:
    await books.tenant(at_most(10))
    first = await books.held("acme", cents(5))
    large = asks(books, "acme", cents(10))
    await books.settled()
    small = asks(books, "acme", cents(1))
    await books.settled()
    assert not large.done()
    assert not small.done()
    await books.ledger.void(first)
    await large
    await books.settled()
    assert not small.done()
    await cancelled(small)


async def test_one_that_waits_for_its_run_does_not_block_another_run_of_the_tenant(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("a", at_most(10))
    await books.run("b", at_most(10))
    await books.held("a", cents(10))
    waiting = asks(books, "a", cents(1))
    await books.settled()
    await books.held("b", cents(10))
    assert not waiting.done()
    await cancelled(waiting)


async def test_one_that_waits_for_the_tenant_is_served_before_a_later_one_of_another_run(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.run("a", at_most(20))
    await books.run("b", at_most(10))
    first = await books.held("a", cents(9))
    large = asks(books, "a", cents(10))
    await books.settled()
    small = asks(books, "b", cents(1))
    await books.settled()
    assert not small.done()
    await books.ledger.void(first)
    await large
    await cancelled(small)


async def test_a_carved_child_does_not_queue_for_what_it_was_promised(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(10))
    await books.child("child", at_most(4))
    await books.held("run", cents(6))
    waiting = asks(books, "run", cents(6))
    await books.settled()
    await books.held("child", cents(4))
    assert not waiting.done()
    await cancelled(waiting)


async def test_what_spent_money_prevents_is_refused_at_once_in_words_a_model_can_use(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(10))
    await books.spent("run", cents(8))
    await books.held("run", cents(1))
    with pytest.raises(BudgetExceeded) as refused:
        await books.ledger.reserve(a_hold("run", cents(3)), deadline=soon())
    assert str(refused.value) == (
        "this needs up to $0.03, but $0.08 of the limit of $0.10 of account 'run' is already spent or promised. "
        "Ask for less (a shorter prompt, a smaller max_tokens, fewer calls, a cheaper model), or finish with what is "
        "known"
    )


async def test_what_a_childs_promise_prevents_is_refused_at_once_even_where_the_child_holds_it(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(10))
    await books.child("child", at_most(8))
    await books.held("child", cents(8))
    with pytest.raises(BudgetExceeded):
        await books.ledger.reserve(a_hold("run", cents(3)), deadline=soon())


async def test_one_that_waits_is_refused_as_soon_as_what_it_waits_for_is_spent(books: Books) -> None:
    await books.tenant(at_most(10))
    hold = await books.sent("acme", cents(6))
    waiting = asks(books, "acme", cents(6))
    await books.settled()
    await books.ledger.post(hold, cents(6), None)
    with pytest.raises(BudgetExceeded):
        await waiting


async def test_what_is_not_free_until_the_deadline_is_refused_as_busy_and_leaves_nothing(books: Books) -> None:
    await books.tenant(at_most(10))
    hold = await books.held("acme", cents(6))
    with pytest.raises(BudgetBusy) as refused:
        await books.ledger.reserve(a_hold("acme", cents(6), id="late"), deadline=time.monotonic() + 0.05)
    assert (refused.value.used, refused.value.asked) == (cents(6).nano_usd, cents(6).nano_usd)
    await books.ledger.void(hold)
    assert await books.ledger.left("acme") == at_most(10)
    await books.held("acme", cents(10))


async def test_a_deadline_that_has_passed_allows_what_needs_no_waiting(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.ledger.reserve(a_hold("acme", cents(10)), deadline=time.monotonic() - 1)
    with pytest.raises(BudgetBusy):
        await books.ledger.reserve(a_hold("acme", cents(1)), deadline=at_once())


async def test_those_behind_one_that_gives_up_move_on(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.held("acme", cents(5))
    expiring = asyncio.create_task(books.ledger.reserve(a_hold("acme", cents(6)), deadline=time.monotonic() + 0.05))
    await books.settled()
    behind = asks(books, "acme", cents(5))
    with pytest.raises(BudgetBusy):
        await expiring
    await behind


async def test_those_behind_one_that_is_cancelled_move_on(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.held("acme", cents(5))
    large = asks(books, "acme", cents(6))
    await books.settled()
    behind = asks(books, "acme", cents(5))
    await books.settled()
    assert not behind.done()
    await cancelled(large)
    await behind


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_reservation_leaves_no_trace_whenever_it_is_cancelled(
    books: Books, steps: int, dispatch: bool
) -> None:
    await books.tenant(at_most(10))
    for attempt in range(20):
        task = asks(books, "acme", cents(10), id=f"cancelled-{attempt}", dispatch=dispatch)
        for _ in range(steps):
            await asyncio.sleep(0)
        if steps == 5:
            await books.database.write(lambda connection: None)  # the hold is taken, its caller does not know yet
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if outcome is None:
            await books.ledger.void(f"cancelled-{attempt}")
            continue
        assert isinstance(outcome, asyncio.CancelledError)
        assert (await books.ledger.balance("acme")).pending == Amounts()
        with pytest.raises(HoldUnknown):
            await books.ledger.dispatch(f"cancelled-{attempt}")


async def test_closing_a_carved_child_lets_those_who_wait_for_its_promise_through(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(10))
    await books.child("child", at_most(4))
    hold = await books.held("run", cents(6))
    waiting = asks(books, "run", cents(6))
    await books.settled()
    await books.ledger.close_account("child")
    await books.settled()
    assert not waiting.done()
    await books.ledger.void(hold)
    await waiting


async def test_raising_a_limit_lets_those_who_wait_through(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.held("acme", cents(10))
    waiting = asks(books, "acme", cents(5))
    await books.settled()
    await books.ledger.set_limit("acme", at_most(15))
    await waiting


async def test_tenants_do_not_wait_for_each_other(books: Books) -> None:
    await books.tenant(at_most(1))
    await books.tenant(at_most(1), name="other")
    await books.held("acme", cents(1))
    waiting = [asks(books, "acme", cents(1)) for _ in range(50)]
    await books.settled()
    await books.ledger.reserve(a_hold("other", cents(1), tenant="other"), deadline=at_once())
    for task in waiting:
        await cancelled(task)


async def test_a_closed_database_is_said_to_everyone_who_asks(books: Books) -> None:
    await books.tenant(at_most(1))
    await books.database.close()
    with pytest.raises(DatabaseClosedError):
        await books.held("acme", cents(1))


# ---- holds that are made lower ---------------------------------------------------------------------------------------


async def test_a_hold_that_waits_can_be_made_lower_and_keeps_its_place(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.ledger.reserve(a_hold("acme", cents(8), id="there"), deadline=at_once())
    first = asks(books, "acme", cents(5), id="first")
    second = asks(books, "acme", cents(5), id="second")
    await books.database.write(lambda connection: None)
    assert await books.ledger.lower(a_hold("acme", cents(2), id="first"))
    await first
    assert not second.done()
    assert (await books.ledger.balance("acme")).pending == cents(10)
    await books.ledger.void("there")
    await second
    assert (await books.ledger.balance("acme")).pending == cents(7)


async def test_a_hold_that_does_not_wait_is_not_made_lower(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.ledger.reserve(a_hold("acme", cents(8), id="there"), deadline=at_once())
    assert not await books.ledger.lower(a_hold("acme", cents(1), id="there"))
    assert not await books.ledger.lower(a_hold("acme", cents(1), id="never"))
    assert (await books.ledger.balance("acme")).pending == cents(8)


@pytest.mark.parametrize("steps", range(6))
async def test_a_hold_is_what_lowering_it_said_whenever_that_came(books: Books, steps: int) -> None:
    await books.tenant(at_most(10))
    await books.ledger.reserve(a_hold("acme", cents(8), id="there"), deadline=at_once())
    waiting = asks(books, "acme", cents(5), id="waits")
    for _ in range(steps):
        await asyncio.sleep(0)
    freeing = asyncio.create_task(books.ledger.void("there"))
    lowered = await books.ledger.lower(a_hold("acme", cents(1), id="waits"))
    await waiting
    await freeing
    assert (await books.ledger.balance("acme")).pending == (cents(1) if lowered else cents(5))


async def test_a_hold_that_is_made_lower_as_its_caller_gives_up_leaves_no_trace(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.ledger.reserve(a_hold("acme", cents(8), id="there"), deadline=at_once())
    waiting = asks(books, "acme", cents(5), id="waits")
    await books.database.write(lambda connection: None)
    lowering = asyncio.create_task(books.ledger.lower(a_hold("acme", cents(1), id="waits")))
    await asyncio.sleep(0)
    await cancelled(waiting)
    await lowering
    assert (await books.ledger.balance("acme")).pending == cents(8)


async def test_hundreds_that_are_let_through_at_once_go_on_a_few_at_a_time(books: Books) -> None:
    await books.tenant(Limit())
    went_on = 0

    async def call() -> None:
        nonlocal went_on
        await books.ledger.reserve(a_hold("acme", cents(1)), deadline=soon())
        went_on += 1

    async with asyncio.TaskGroup() as calls:
        for _ in range(200):
            calls.create_task(call())
        before = most = 0
        while before < 200:
            await asyncio.sleep(0)
            most, before = max(most, went_on - before), went_on
    assert 1 <= most <= 2 * APPLIED_AT_ONCE
