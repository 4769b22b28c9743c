"""A hold is taken once, leaves once, and is resolved once."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from rlm_server.ledger import (
    Amounts,
    BudgetExceeded,
    HoldConflict,
    HoldUnknown,
    Limit,
    MoveRefused,
    Query,
    Recovery,
    StaleEpoch,
    Usage,
)
from tests.ledger.accounting import Books, a_hold, at_most, at_once, cents, soon

USAGE = Usage(input=100, output=20, cache_read=50, reasoning=5)


@pytest.fixture
async def funded(books: Books) -> Books:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    return books


async def test_a_posted_hold_costs_its_actual_and_frees_the_rest(funded: Books) -> None:
    hold = await funded.sent("run", cents(20))
    await funded.ledger.post(hold, cents(5), USAGE)
    for account, left in (("run", 45), ("acme", 95)):
        balance = await funded.ledger.balance(account)
        assert (balance.posted, balance.pending, balance.left) == (cents(5), Amounts(), at_most(left))


async def test_a_hold_whose_cost_is_unknown_costs_all_of_it(funded: Books) -> None:
    await funded.ledger.post_in_full(await funded.sent("run", cents(20)))
    assert (await funded.ledger.balance("run")).posted == cents(20)


@pytest.mark.parametrize("dispatched", [False, True])
async def test_a_voided_hold_costs_nothing(funded: Books, dispatched: bool) -> None:
    hold = await funded.held("run", cents(20))
    if dispatched:
        await funded.ledger.dispatch(hold)
    await funded.ledger.void(hold)
    assert (await funded.ledger.balance("run")).left == at_most(50)


async def test_what_was_not_dispatched_cannot_be_posted(funded: Books) -> None:
    hold = await funded.held("run", cents(20))
    with pytest.raises(MoveRefused, match="is pending and cannot be posted"):
        await funded.ledger.post(hold, cents(1), None)
    with pytest.raises(MoveRefused):
        await funded.ledger.post_in_full(hold)


async def test_a_request_may_leave_once(funded: Books) -> None:
    hold = await funded.sent("run", cents(20))
    with pytest.raises(MoveRefused):
        await funded.ledger.dispatch(hold)
    await funded.ledger.void(hold)
    with pytest.raises(MoveRefused):
        await funded.ledger.dispatch(hold)


async def test_repeating_a_resolution_changes_nothing_and_another_is_refused(funded: Books) -> None:
    posted = await funded.sent("run", cents(20))
    in_full = await funded.sent("run", cents(5))
    voided = await funded.sent("run", cents(5))
    for _ in range(2):
        await funded.ledger.post(posted, cents(7), USAGE)
        await funded.ledger.post_in_full(in_full)
        await funded.ledger.void(voided)
        assert (await funded.ledger.balance("run")).posted == cents(12)
    with pytest.raises(MoveRefused):
        await funded.ledger.post(posted, cents(8), USAGE)
    with pytest.raises(MoveRefused):
        await funded.ledger.post(posted, cents(7), None)
    with pytest.raises(MoveRefused):
        await funded.ledger.void(in_full)
    with pytest.raises(MoveRefused):
        await funded.ledger.post_in_full(voided)
    assert (await funded.ledger.balance("run")).posted == cents(12)


async def test_reserving_the_same_again_changes_nothing_and_another_of_its_id_is_refused(funded: Books) -> None:
    hold = a_hold("run", cents(20))
    for _ in range(2):
        await funded.ledger.reserve(hold, deadline=at_once())
        assert (await funded.ledger.balance("run")).pending == cents(20)
    with pytest.raises(HoldConflict):
        await funded.ledger.reserve(replace(hold, amounts=cents(21)), deadline=at_once())
    await funded.ledger.void(hold.id)
    await funded.ledger.reserve(hold, deadline=at_once())
    assert (await funded.ledger.balance("run")).pending == Amounts()


async def test_a_hold_that_is_dispatched_as_it_is_reserved_may_leave_once_and_only_by_its_first_asker(
    funded: Books,
) -> None:
    hold, pending = a_hold("run", cents(20)), a_hold("run", cents(5))
    await funded.ledger.reserve(hold, deadline=at_once(), dispatch=True)
    await funded.ledger.reserve(pending, deadline=at_once())
    for known in (hold, pending):
        with pytest.raises(MoveRefused, match="cannot be dispatched"):
            await funded.ledger.reserve(known, deadline=at_once(), dispatch=True)
    with pytest.raises(HoldConflict):
        await funded.ledger.reserve(replace(hold, amounts=cents(21)), deadline=at_once(), dispatch=True)
    with pytest.raises(MoveRefused):
        await funded.ledger.dispatch(hold.id)
    assert (await funded.ledger.balance("run")).pending == cents(25)
    await funded.ledger.post(hold.id, cents(2), USAGE)
    await funded.ledger.void(pending.id)
    balance = await funded.ledger.balance("run")
    assert (balance.posted, balance.pending) == (cents(2), Amounts())


async def test_an_unknown_hold_is_said_so(funded: Books) -> None:
    for move in (funded.ledger.dispatch, funded.ledger.post_in_full, funded.ledger.void):
        with pytest.raises(HoldUnknown):
            await move("never-reserved")


async def test_a_resolution_happens_though_its_caller_is_cancelled(funded: Books) -> None:
    hold = await funded.sent("run", cents(50))
    next_one = asyncio.create_task(funded.ledger.reserve(a_hold("run", cents(50)), deadline=soon()))
    await funded.settled()
    posting = asyncio.create_task(funded.ledger.post(hold, Amounts(), None))
    await asyncio.sleep(0)
    posting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await posting
    await next_one


async def test_an_actual_above_its_hold_is_recorded_truthfully_alarmed_and_counted(
    funded: Books, caplog: pytest.LogCaptureFixture
) -> None:
    await funded.spent("run", cents(30))
    assert await funded.ledger.overruns() == 0
    hold = await funded.sent("run", cents(20))
    for _ in range(2):
        await funded.ledger.post(hold, cents(23), USAGE)
    for account in ("run", "acme"):
        balance = await funded.ledger.balance(account)
        assert (balance.posted, balance.overrun) == (cents(50), cents(3))
    assert await funded.ledger.overruns() == 1
    assert (await funded.ledger.entries(Query(tenant="acme")))[-1].actual == cents(23)
    (alarm,) = caplog.records
    assert alarm.levelno == logging.ERROR
    assert hold in alarm.message


async def test_an_overrun_takes_the_room_of_later_holds(funded: Books) -> None:
    hold = await funded.sent("run", cents(20))
    await funded.ledger.post(hold, cents(23), USAGE)
    assert await funded.ledger.left("run") == at_most(27)
    with pytest.raises(BudgetExceeded):
        await funded.held("run", cents(28))


async def test_a_start_voids_what_never_left_and_posts_in_full_what_did(funded: Books) -> None:
    await funded.held("run", cents(10))
    sent = await funded.sent("run", cents(20))
    at_one_go = a_hold("run", cents(4))
    await funded.ledger.reserve(at_one_go, deadline=at_once(), dispatch=True)
    done = await funded.spent("run", cents(5))
    async with funded.taken_over() as ledger:
        flying = a_hold("run", cents(1))
        await ledger.reserve(flying, deadline=at_once())
        assert await ledger.recover() == Recovery(voided=1, posted=2)
        assert await ledger.recover() == Recovery(voided=0, posted=0)
        await ledger.dispatch(flying.id)
        await ledger.void(flying.id)
        balance = await ledger.balance("run")
        assert (balance.posted, balance.pending) == (cents(29), Amounts())
        assert {entry.hold.id for entry in await ledger.entries(Query(tenant="acme"))} == {done, sent, at_one_go.id}


async def test_nothing_is_sent_for_what_a_former_owner_reserved(funded: Books) -> None:
    held = await funded.held("run", cents(10))
    async with funded.taken_over() as ledger:
        with pytest.raises(StaleEpoch, match="epoch"):
            await ledger.dispatch(held)
        assert await ledger.recover() == Recovery(voided=1, posted=0)


async def test_every_posted_hold_is_one_entry_and_their_sum_is_the_account(funded: Books) -> None:
    await funded.run("other", Limit())
    hold = a_hold("run", cents(10) + Amounts(tokens=200, calls=1))
    actual = cents(4) + Amounts(tokens=120, calls=1)
    await funded.ledger.reserve(hold, deadline=at_once())
    await funded.ledger.dispatch(hold.id)
    await funded.ledger.post(hold.id, actual, USAGE)
    unreported = await funded.sent("run", cents(3))
    await funded.ledger.post_in_full(unreported)
    await funded.ledger.void(await funded.sent("run", cents(3)))
    other = a_hold("other", cents(1), run="another run")
    await funded.ledger.reserve(other, deadline=at_once())
    await funded.ledger.dispatch(other.id)
    await funded.ledger.post_in_full(other.id)

    first, second = await funded.ledger.entries(Query(tenant="acme", run="run"))
    assert (first.hold, first.actual, first.usage) == (hold, actual, USAGE)
    assert (second.hold.id, second.actual, second.usage) == (unreported, cents(3), None)
    assert first.at <= second.at
    everything = await funded.ledger.entries(Query(tenant="acme"))
    assert [entry.hold.id for entry in everything] == [hold.id, unreported, other.id]
    total = sum((entry.actual for entry in everything), Amounts())
    assert total == (await funded.ledger.balance("acme")).posted
    assert await funded.ledger.entries(Query(tenant="somebody else")) == []
