"""The real ledger, with every order it was given written down, so that a test can say what became of each hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Entry, Hold, Ledger, Limit, Payer, Query, Usage

TENANT = "acme"
RUN = "run-1"
PAYER = Payer(account=RUN, tenant=TENANT, run=RUN, node="0")

AT_ONCE = "reserve and dispatch"
"""The order to reserve a hold where it is to be dispatched in the same commit."""

_RESOLVING = ("post", "post_in_full", "void")


def reserving(*, dispatch: bool) -> str:
    """The name of an order to reserve."""
    return AT_ONCE if dispatch else "reserve"


class Books(Ledger):
    """A ledger whose `orders` are listed as (method, hold id), and `held` amounts as asked for.

    What is put into `before` under a method's name is called once, as the next such order arrives.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.orders: list[tuple[str, str]] = []
        self.held: list[Amounts] = []
        self.before: dict[str, Callable[[], object]] = {}
        self._voiding: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path) -> AsyncIterator[Self]:
        """Books in a new database, in which PAYER's accounts are open."""
        async with await Database.open(path, MIGRATIONS) as database:
            books = cls(database)
            await books.open(PAYER)
            yield books

    @property
    def commits(self) -> int:
        """How many there have been."""
        return self._database.commits

    @property
    def ends(self) -> dict[str, str]:
        """How each hold was resolved."""
        return {hold: order for order, hold in self.orders if order in _RESOLVING}

    async def costs(self) -> dict[str, Amounts]:
        """What each posted hold of the tenant cost."""
        return {entry.hold.id: entry.actual for entry in await self.chargeback()}

    async def chargeback(self) -> list[Entry]:
        return await self.entries(Query(tenant=TENANT))

    async def open(self, payer: Payer) -> Payer:
        """Open the accounts of a payer, without limits."""
        await self.open_account(payer.tenant, tenant=payer.tenant, parent=None, limit=Limit())
        await self.open_account(payer.account, tenant=payer.tenant, parent=payer.tenant, limit=Limit())
        return payer

    async def reserve(self, hold: Hold, *, deadline: float, dispatch: bool = False) -> None:
        self.held.append(hold.amounts)
        self._note(reserving(dispatch=dispatch), hold.id)
        await super().reserve(hold, deadline=deadline, dispatch=dispatch)

    async def dispatch(self, hold_id: str) -> None:
        self._note("dispatch", hold_id)
        await super().dispatch(hold_id)

    async def post(self, hold_id: str, actual: Amounts, usage: Usage | None, *, patience: float = 0.0) -> None:
        self._note("post", hold_id)
        await super().post(hold_id, actual, usage, patience=patience)

    async def post_in_full(self, hold_id: str) -> None:
        self._note("post_in_full", hold_id)
        await super().post_in_full(hold_id)

    async def void(self, hold_id: str) -> None:
        self._note("void", hold_id)
        await super().void(hold_id)

    async def short(self, payer: Payer, amounts: Amounts) -> None:
        """Let another hold have a payer's money until the payer's next call has asked for it."""
        await self.set_limit(payer.account, Limit(nano_usd=amounts.nano_usd))
        elsewhere = Hold("elsewhere", payer.account, amounts, "small", "", payer.tenant, payer.run, payer.node)
        await Ledger.reserve(self, elsewhere, deadline=0.0)

        def free() -> None:
            self._voiding = asyncio.create_task(Ledger.void(self, elsewhere.id))

        self.before[AT_ONCE] = free

    async def freed(self) -> None:
        """Wait until what `short` let another hold have is free, where it was asked for."""
        if self._voiding is not None:
            await self._voiding

    def _note(self, order: str, hold_id: str) -> None:
        self.orders.append((order, hold_id))
        self.before.pop(order, lambda: None)()
