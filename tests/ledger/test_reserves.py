"""A reserve: a part of an account that nothing takes until it is given back."""

from __future__ import annotations

import pytest

from rlm_server.ledger import AccountClosed, Amounts, BudgetExceeded, Limit
from tests.ledger.accounting import Books, at_most, cents


async def opened(books: Books, limit: int = 50, reserve: int = 10, *, tenant: int = 1000) -> None:
    await books.tenant(at_most(tenant))
    await books.ledger.open_account("run", tenant="acme", parent="acme", limit=at_most(limit), reserve=at_most(reserve))


async def test_what_is_reserved_is_not_left_to_calls_turns_and_children(books: Books) -> None:
    await opened(books)
    assert await books.ledger.left("run") == at_most(40)
    with pytest.raises(BudgetExceeded):
        await books.held("run", cents(41))
    with pytest.raises(BudgetExceeded):
        await books.child("child", at_most(41))
    await books.spent("run", cents(40))
    with pytest.raises(BudgetExceeded):
        await books.ledger.check("run", cents(1))


async def test_once_given_back_it_can_be_spent_and_no_more_than_it(books: Books) -> None:
    await opened(books)
    await books.spent("run", cents(40))
    await books.ledger.release_reserve("run")
    await books.ledger.release_reserve("run")
    assert await books.ledger.left("run") == at_most(10)
    await books.spent("run", cents(10))
    with pytest.raises(BudgetExceeded):
        await books.held("run", cents(1))


async def test_an_account_is_closed_with_its_reserve_and_a_carved_one_gives_all_of_it_back(books: Books) -> None:
    await books.tenant(at_most(1000))
    await books.run("run", at_most(50))
    await books.ledger.open_account(
        "child", tenant="acme", parent="run", limit=at_most(30), carve=True, reserve=at_most(10)
    )
    await books.spent("child", cents(5))
    closed = await books.ledger.close_account("child")
    assert (closed.posted, closed.carved) == (cents(5), Amounts())
    assert (await books.ledger.balance("run")).left == at_most(45)
    await books.ledger.close_account("run")


async def test_no_reserve_is_kept_where_there_is_not_as_much(books: Books) -> None:
    await opened(books, limit=50, reserve=51)
    assert await books.ledger.left("run") == at_most(50)
    await books.ledger.release_reserve("run")
    await books.ledger.close_account("run")


async def test_an_account_without_a_reserve_has_none_to_give_back(books: Books) -> None:
    await books.tenant(Limit())
    await books.run("run", at_most(50))
    await books.ledger.release_reserve("run")
    assert await books.ledger.left("run") == at_most(50)


async def test_what_a_dead_server_left_is_closed_with_its_reserves(books: Books) -> None:
    await opened(books)
    await books.ledger.close_left("run")
    with pytest.raises(AccountClosed):
        await books.held("run", cents(1))
    assert (await books.ledger.balance("run")).carved == Amounts()
