"""What is left of a node's budget, and the replies that are being written into the books meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from rlm_server.database.engine import DatabaseLostError
from rlm_server.ledger import Limit
from rlm_server.repl.owed import Owed
from rlm_server.runs import purse
from rlm_server.runs.purse import Purse
from tests.system.stage import eventually


@dataclass
class Books:
    """Tells what is left, and remembers how often it was asked."""

    calls: int = 10
    asked: int = 0
    away: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def left(self, _: str) -> Limit:
        self.asked += 1
        if self.away:
            raise DatabaseLostError("away")
        return Limit(calls=self.calls)

    async def settle(self) -> bool:
        await self.settled.wait()
        self.calls -= 1
        return True


def of(books: Books) -> Purse:
    there: Any = books
    return Purse(there, "account", Owed(lambda: None))


async def test_what_is_left_is_read_ahead_once_the_reply_is_in_the_books_and_used_while_it_is_fresh() -> None:
    books = Books()
    account = of(books)
    with patch.object(purse, "FRESH_SECONDS", 3600.0):
        account.replied(asyncio.create_task(books.settle()))
        wanted = asyncio.create_task(account.left())
        for _ in range(10):
            await asyncio.sleep(0)
        assert (books.asked, wanted.done()) == (0, False)
        books.settled.set()
        assert (await wanted).calls == 9
        assert (await account.left(), books.asked) == (Limit(calls=9), 1)
    with patch.object(purse, "FRESH_SECONDS", 0.0):
        books.calls = 5
        assert (await account.left(), books.asked) == (Limit(calls=5), 2)


async def test_what_code_asks_for_waits_for_the_books_and_what_is_left_is_read_again_after_it() -> None:
    books = Books()
    account = of(books)
    with patch.object(purse, "FRESH_SECONDS", 3600.0):
        account.replied(asyncio.create_task(books.settle()))
        asked = asyncio.create_task(account.settled())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not asked.done()
        books.settled.set()
        await asked
        books.calls = 3
        assert (await account.left()).calls == 3


async def test_what_is_under_way_is_waited_for_though_the_waiting_was_cancelled() -> None:
    books = Books()
    account = of(books)
    settling = asyncio.create_task(books.settle())
    account.replied(settling)
    asked = asyncio.create_task(account.settled())
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    ending = asyncio.create_task(account.settled())
    await asyncio.sleep(0)
    assert not settling.done()
    assert not ending.done()
    books.settled.set()
    await ending
    assert settling.result()


async def test_where_it_cannot_be_read_whoever_wants_it_is_told_and_nobody_else() -> None:
    books = Books(away=True)
    account = of(books)
    books.settled.set()
    account.replied(asyncio.create_task(books.settle()))
    await eventually(lambda: books.asked)
    with pytest.raises(DatabaseLostError):
        await account.left()
    await account.settled()
