"""Short ways to say what the tests of the ledger say often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Hold, Ledger, Limit

CENT = 10_000_000
"""A US cent in nano-US-dollars."""

_attempts = count()


def cents(number: int) -> Amounts:
    return Amounts(nano_usd=number * CENT)


def at_most(number: int) -> Limit:
    return Limit(nano_usd=number * CENT)


def a_hold(account: str, amounts: Amounts, *, id: str | None = None, run: str = "run", tenant: str = "acme") -> Hold:
    return Hold(
        id=id or f"attempt-{next(_attempts)}",
        account=account,
        amounts=amounts,
        model="some-model",
        price_version="prices-1",
        tenant=tenant,
        run=run,
        node="0",
    )


def soon() -> float:
    """A deadline no passing test reaches."""
    return time.monotonic() + 30


def at_once() -> float:
    """A deadline that allows no waiting."""
    return time.monotonic()


@dataclass(frozen=True)
class Books:
    """A ledger and the database under it."""

    ledger: Ledger
    database: Database
    at: str | Path

    @asynccontextmanager
    async def taken_over(self) -> AsyncIterator[Ledger]:
        """Leave everything as it is, as a death would, and open the database as the next owner."""
        await self.database.close()
        async with await Database.open(self.at, MIGRATIONS) as database:
            yield Ledger(database)

    async def tenant(self, limit: Limit, name: str = "acme") -> None:
        await self.ledger.open_account(name, tenant=name, parent=None, limit=limit)

    async def run(self, name: str, limit: Limit, *, parent: str = "acme") -> None:
        await self.ledger.open_account(name, tenant="acme", parent=parent, limit=limit)

    async def child(self, name: str, limit: Limit, *, parent: str = "run") -> None:
        await self.ledger.open_account(name, tenant="acme", parent=parent, limit=limit, carve=True)

    async def held(self, account: str, amounts: Amounts) -> str:
        hold = a_hold(account, amounts)
        await self.ledger.reserve(hold, deadline=at_once())
        return hold.id

    async def sent(self, account: str, amounts: Amounts) -> str:
        hold = await self.held(account, amounts)
        await self.ledger.dispatch(hold)
        return hold

    async def spent(self, account: str, amounts: Amounts) -> str:
        hold = await self.sent(account, amounts)
        await self.ledger.post(hold, amounts, None)
        return hold

    async def settled(self) -> None:
        """Return once everything asked before has been judged: the writer answers in the order it was asked."""
        await asyncio.sleep(0)  # tasks made just before get to ask
        for _ in range(3):  # judging may lead to a second pass, taking back to a third
            await self.database.write(lambda connection: None)
