"""The tree: what is promised is kept, what is spent below is spent above, and limits are the database's own."""

from __future__ import annotations

import asyncio
import sqlite3

import psycopg
import pytest

from rlm_server.database.engine import Connection
from rlm_server.ledger import (
    UNITS,
    AccountClosed,
    AccountConflict,
    AccountInUse,
    AccountUnknown,
    AmountRefused,
    Amounts,
    BudgetExceeded,
    Limit,
    LimitTooLow,
    Query,
    Span,
)
from tests.ledger.accounting import Books, a_hold, at_most, at_once, cents

NOTHING = Amounts()


async def test_a_hold_is_placed_on_every_account_up_to_the_tenants(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    await books.held("run", cents(20))
    for account, left in (("run", 30), ("acme", 80)):
        balance = await books.ledger.balance(account)
        assert (balance.pending, balance.left) == (cents(20), at_most(left))


async def test_a_hold_an_ancestor_has_no_room_for_is_placed_nowhere(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.run("run", at_most(50))
    with pytest.raises(BudgetExceeded) as refused:
        await books.held("run", cents(11))
    assert refused.value.account == "acme"
    for account in ("run", "acme"):
        assert (await books.ledger.balance(account)).pending == NOTHING


async def test_a_childs_cost_is_counted_at_its_parent_and_its_tenant(books: Books) -> None:
    """The reference implementation loses what a child spends."""
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    await books.child("child", at_most(30))
    await books.child("grandchild", at_most(20), parent="child")
    await books.spent("grandchild", cents(5))
    for account in ("grandchild", "child", "run", "acme"):
        assert (await books.ledger.balance(account)).posted == cents(5)


async def test_what_nothing_limits_is_charged_without_a_hold_once_and_on_every_account(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    time = a_hold("run", Amounts(cpu_ms=1_500), id="turn")
    for patience in (0.001, 0.0):
        await books.ledger.charge(time, patience=patience)
        for account in ("run", "acme"):
            balance = await books.ledger.balance(account)
            assert (balance.posted, balance.pending) == (Amounts(cpu_ms=1_500), NOTHING)
    (entry,) = await books.ledger.entries(Query("acme"))
    assert (entry.hold, entry.actual, entry.usage) == (time, Amounts(cpu_ms=1_500), None)


async def test_what_has_no_room_is_not_charged_and_a_closed_account_is_not(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", Limit(cpu_ms=1_000))
    with pytest.raises(BudgetExceeded):
        await books.ledger.charge(a_hold("run", Amounts(cpu_ms=1_001)))
    await books.ledger.close_account("run")
    with pytest.raises(AccountClosed):
        await books.ledger.charge(a_hold("run", Amounts(cpu_ms=1)))
    assert (await books.ledger.balance("acme")).posted == NOTHING


async def test_whether_anything_limits_a_unit_is_known_as_soon_as_that_changes(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))

    async def limited() -> tuple[bool, bool]:
        return await books.ledger.limited("run", "nano_usd"), await books.ledger.limited("run", "cpu_ms")

    assert await limited() == (True, False)
    await books.ledger.set_limit("acme", Limit(cpu_ms=10))
    assert await limited() == (True, True)
    await books.ledger.set_limit("acme", Limit())
    assert await limited() == (True, False)
    await books.ledger.set_window("acme", Span.DAY, Limit(cpu_ms=10))
    assert await limited() == (True, True)
    await books.ledger.set_window("acme", Span.DAY, None)
    assert await limited() == (True, False)
    with pytest.raises(AccountUnknown):
        await books.ledger.limited("nobody", "cpu_ms")


async def test_twenty_children_cannot_each_get_the_same_remainder(books: Books) -> None:
    """The reference implementation gives each parallel child all that is left."""
    await books.tenant(Limit())
    await books.run("run", at_most(40))
    opened = await asyncio.gather(
        *(books.child(f"child-{number}", at_most(10)) for number in range(20)), return_exceptions=True
    )
    assert [type(error) for error in opened if error is not None] == [BudgetExceeded] * 16
    balance = await books.ledger.balance("run")
    assert (balance.carved, balance.left) == (cents(40), at_most(0))


async def test_a_carved_childs_hold_moves_its_parents_promise_and_takes_no_more(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    await books.child("child", at_most(50))
    hold = await books.sent("child", cents(20))
    balance = await books.ledger.balance("run")
    assert (balance.pending, balance.carved) == (cents(20), cents(30))
    await books.ledger.post(hold, cents(5), None)
    balance = await books.ledger.balance("run")
    assert (balance.posted, balance.pending, balance.carved) == (cents(5), NOTHING, cents(45))


async def test_a_carved_promise_is_kept_when_its_parent_spends_all_else(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(50))
    await books.child("child", at_most(30))
    await books.spent("run", cents(20))
    assert await books.ledger.left("run") == at_most(0)
    assert await books.ledger.left("child") == at_most(30)
    await books.spent("child", cents(30))


async def test_a_capped_account_promises_nothing(books: Books) -> None:
    await books.tenant(at_most(10))
    await books.run("a", at_most(10))
    await books.run("b", at_most(10))
    await books.spent("a", cents(10))
    assert (await books.ledger.balance("b")).left == at_most(10)
    assert await books.ledger.left("b") == at_most(0)


async def test_a_carve_needs_room_up_the_path_but_is_set_aside_only_as_far_as_the_links_are_carved(
    books: Books,
) -> None:
    await books.tenant(at_most(10))
    await books.run("run", at_most(50))
    with pytest.raises(BudgetExceeded) as refused:
        await books.child("child", at_most(11))
    assert refused.value.account == "acme"
    await books.child("child", at_most(10))
    assert (await books.ledger.balance("run")).carved == cents(10)
    assert (await books.ledger.balance("acme")).carved == NOTHING
    assert await books.ledger.left("acme") == at_most(10)


async def test_a_unit_the_child_does_not_limit_is_not_carved_and_counts_at_the_parent_as_it_is_used(
    books: Books,
) -> None:
    await books.tenant(Limit())
    await books.run("run", Limit(nano_usd=cents(10).nano_usd, tokens=100))
    await books.child("child", at_most(10))
    assert (await books.ledger.balance("run")).carved == cents(10)
    await books.spent("child", cents(5) + Amounts(tokens=60))
    balance = await books.ledger.balance("run")
    assert balance.carved == cents(5)
    assert balance.left == Limit(nano_usd=0, tokens=40)
    assert await books.ledger.left("child") == Limit(nano_usd=cents(5).nano_usd, tokens=40)


async def test_closing_returns_what_a_carved_child_left(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(50))
    await books.child("child", at_most(30))
    await books.spent("child", cents(5))
    closed = await books.ledger.close_account("child")
    assert closed.posted == cents(5)
    balance = await books.ledger.balance("run")
    assert (balance.posted, balance.carved, balance.left) == (cents(5), NOTHING, at_most(45))
    assert await books.ledger.close_account("child") == closed
    assert await books.ledger.balance("run") == balance


async def test_an_account_in_use_is_not_closed(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(50))
    await books.child("child", at_most(30))
    with pytest.raises(AccountInUse, match="under it"):
        await books.ledger.close_account("run")
    hold = await books.held("child", NOTHING)
    with pytest.raises(AccountInUse, match="unresolved"):
        await books.ledger.close_account("child")
    await books.ledger.void(hold)
    await books.ledger.close_account("child")
    await books.ledger.close_account("run")


async def test_nothing_happens_on_a_closed_account(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(50))
    await books.ledger.close_account("run")
    with pytest.raises(AccountClosed):
        await books.held("run", cents(1))
    with pytest.raises(AccountClosed):
        await books.child("child", at_most(1))
    with pytest.raises(AccountClosed):
        await books.run("run", at_most(50))
    with pytest.raises(AccountClosed):
        await books.ledger.set_limit("run", at_most(1))


async def test_opening_again_changes_nothing_and_otherwise_is_refused(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    await books.child("child", at_most(30))
    before = await books.ledger.balance("run")
    await books.child("child", at_most(30))
    assert await books.ledger.balance("run") == before
    with pytest.raises(AccountConflict):
        await books.child("child", at_most(31))
    with pytest.raises(AccountConflict):
        await books.run("child", at_most(30), parent="run")
    with pytest.raises(AccountConflict):
        await books.ledger.open_account("run", tenant="other", parent=None, limit=Limit())


async def test_a_tenants_own_account_may_be_opened_at_every_start_and_keeps_its_limit(books: Books) -> None:
    await books.tenant(Limit())
    await books.ledger.set_limit("acme", at_most(5))
    await books.tenant(Limit())
    assert (await books.ledger.balance("acme")).limit == at_most(5)


async def test_an_account_belongs_to_its_tenant_alone(books: Books) -> None:
    await books.tenant(Limit())
    with pytest.raises(AccountUnknown):
        await books.ledger.open_account("run", tenant="other", parent="acme", limit=Limit())
    with pytest.raises(AccountUnknown):
        await books.ledger.reserve(a_hold("acme", cents(1), tenant="other"), deadline=at_once())


async def test_what_does_not_exist_is_said_so(books: Books) -> None:
    with pytest.raises(AccountUnknown):
        await books.ledger.balance("nowhere")
    with pytest.raises(AccountUnknown):
        await books.ledger.left("nowhere")
    with pytest.raises(AccountUnknown):
        await books.ledger.close_account("nowhere")
    with pytest.raises(AccountUnknown):
        await books.held("nowhere", cents(1))
    with pytest.raises(AccountUnknown):
        await books.child("child", at_most(1), parent="nowhere")


async def test_a_tenant_has_nothing_to_be_carved_from(books: Books) -> None:
    with pytest.raises(AccountConflict):
        await books.ledger.open_account("acme", tenant="acme", parent=None, limit=at_most(1), carve=True)


async def test_a_limit_cannot_go_below_what_is_used(books: Books) -> None:
    await books.tenant(at_most(100))
    await books.run("run", at_most(50))
    await books.spent("run", cents(10))
    await books.held("run", cents(10))
    await books.child("child", at_most(10))
    with pytest.raises(LimitTooLow) as refused:
        await books.ledger.set_limit("run", at_most(29))
    assert str(refused.value) == "account 'run' cannot be limited to $0.29: $0.30 is already used"
    await books.ledger.set_limit("run", at_most(30))
    assert await books.ledger.left("run") == at_most(0)
    with pytest.raises(AccountConflict):
        await books.ledger.set_limit("child", at_most(9))


@pytest.mark.parametrize("unit", ["nano_usd", "tokens", "calls"])
async def test_every_unit_is_limited(books: Books, unit: str) -> None:
    await books.tenant(Limit(**{unit: 3}))
    await books.spent("acme", Amounts(**{unit: 2}))
    with pytest.raises(BudgetExceeded) as refused:
        await books.held("acme", Amounts(**{unit: 2}))
    error = refused.value
    assert (error.unit, error.limit, error.used, error.asked) == (unit, 3, 2, 2)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("part", ["posted", "pending", "carved"])
async def test_the_database_itself_refuses_more_than_the_limit(books: Books, unit: str, part: str) -> None:
    await books.tenant(Limit(**{unit: 3}))

    def tamper(connection: Connection) -> None:
        connection.execute(f"UPDATE account SET {part}_{unit} = 4")

    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=r"(?i)check"):
        await books.database.write(tamper)


@pytest.mark.parametrize("number", [-1, 2**62 + 1])
async def test_numbers_that_cannot_be_counted_are_refused_by_name(books: Books, number: int) -> None:
    await books.tenant(Limit())
    with pytest.raises(AmountRefused, match=rf"amounts\.tokens is {number}; it must be between 0 and {2**62}"):
        await books.held("acme", Amounts(tokens=number))
    with pytest.raises(AmountRefused, match=r"limit\.calls"):
        await books.run("run", Limit(calls=number))
    with pytest.raises(AmountRefused, match=r"limit\.nano_usd"):
        await books.ledger.set_limit("acme", Limit(nano_usd=number))
    hold = await books.sent("acme", Amounts())
    with pytest.raises(AmountRefused, match=r"actual\.nano_usd"):
        await books.ledger.post(hold, Amounts(nano_usd=number), None)


async def test_even_an_unlimited_account_never_counts_further_than_it_can(books: Books) -> None:
    await books.tenant(Limit())
    await books.spent("acme", Amounts(tokens=2**62))
    with pytest.raises(BudgetExceeded):
        await books.held("acme", Amounts(tokens=1))


async def test_accounts_that_a_dead_server_left_open_are_closed_by_their_prefix(books: Books) -> None:
    await books.tenant(Limit())
    for name in ("ses_1", "ses_2", "run_1", "set"):
        await books.run(name, Limit())
    await books.spent("ses_1", cents(3))
    assert await books.ledger.close_left("ses_") == 2
    assert await books.ledger.close_left("ses_") == 0
    for name, is_open in (("ses_1", False), ("ses_2", False), ("run_1", True), ("set", True)):
        if is_open:
            await books.held(name, cents(1))
        else:
            with pytest.raises(AccountClosed):
                await books.held(name, cents(1))


async def test_accounts_of_what_outlives_a_server_stay_open(books: Books) -> None:
    await books.tenant(Limit())
    for name in ("ses_1", "ses_2"):
        await books.run(name, Limit())
    assert await books.ledger.close_left("ses_", {"ses_2"}) == 1
    await books.held("ses_2", cents(1))
    with pytest.raises(AccountClosed):
        await books.held("ses_1", cents(1))


async def test_an_account_begins_and_ends_with_what_is_written_of_it_or_not_at_all(books: Books) -> None:
    def write(connection: Connection, *_: object) -> None:
        connection.execute("INSERT INTO tenant (id, created_at) VALUES ('written', 1)")
        raise ValueError("no")

    await books.tenant(Limit())
    with pytest.raises(ValueError, match="no"):
        await books.ledger.open_account("ses_1", tenant="acme", parent="acme", limit=Limit(), also=write)
    with pytest.raises(AccountUnknown):
        await books.ledger.balance("ses_1")
    await books.run("ses_1", Limit())
    with pytest.raises(ValueError, match="no"):
        await books.ledger.close_account("ses_1", also=write)
    await books.held("ses_1", cents(1))
    rows = await books.database.read(lambda db: db.execute("SELECT id FROM tenant WHERE id = 'written'").fetchall())
    assert rows == []
