"""A tenant's customers: made, changed, listed and closed while work goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rlm_server.database import labels
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request, answer, answered, forget_some
from rlm_server.ledger import customers
from rlm_server.ledger.amounts import UNITS, Limit
from rlm_server.ledger.customers import Customer
from rlm_server.ledger.entries import WORK
from rlm_server.ledger.ledger import Ledger
from rlm_server.ledger.windows import Span

_AT_ONCE = 500
"""Accounts, or requests, that are forgotten in one transaction."""


class CustomerBook:
    """The customers of every tenant. `most` says how many a tenant may have.

    A request that comes again changes nothing, and is answered with the customer as it is by then. Besides what each
    method names, they raise `RequestIdReused` where its id asked for something else.
    """

    def __init__(self, database: Database, ledger: Ledger, most: Callable[[str], int]) -> None:
        self._database, self._ledger, self._most = database, ledger, most

    async def create(self, new: Customer, request: Request | None = None) -> Customer:
        """Make a customer; see `customers.create`."""
        most = self._most(new.tenant)
        return await self._once(new.tenant, request, lambda connection, at: customers.create(connection, new, at, most))

    async def update(
        self,
        tenant: str,
        id: str,
        change: Callable[[Customer], Customer],
        resets: Sequence[Span] = (),
        request: Request | None = None,
    ) -> Customer:
        """Change a customer, and have some of its windows begin anew. `change` returns it as it is to be.

        Raises:
            AccountUnknown, AccountClosed: there is none to change.
            AmountRefused: a limit is negative or above 2^62.
        """
        return await self._once(
            tenant,
            request,
            lambda connection, at: customers.update(
                connection, change(customers.get(connection, tenant, id)), at, resets
            ),
        )

    async def close(self, tenant: str, id: str, request: Request | None = None) -> Customer:
        """Close a customer and those under it: nothing more is allowed there, and what is under way is counted.

        Raises:
            AccountUnknown: there is none.
        """
        return await self._once(tenant, request, lambda connection, _: customers.close(connection, tenant, id))

    async def forget_all(self, tenant: str) -> None:
        """Forget a tenant's labels, names and requests, as it is deleted. What its customers spent stays."""
        accounts = partial(_accounts, tenant=tenant)
        while some := await self._database.read(accounts):
            await self._database.write(partial(_forget, accounts=some))
            accounts = partial(_accounts, tenant=tenant, after=some[-1])
        while await self._database.write(lambda connection: forget_some(connection, tenant, _AT_ONCE)):
            pass

    async def payer(self, tenant: str, id: str) -> Customer | None:
        """Return who is to pay for a new run or session; see `customers.payer`. None for the tenant itself."""
        if id in ("", tenant):
            return None
        known = await self._database.read(lambda connection: customers.known_payer(connection, tenant, id))
        if known is not None:
            return known
        most = self._most(tenant)
        return await self._ledger.change(
            tenant, lambda connection, at: customers.payer(connection, tenant, id, at, most)
        )

    async def usual(self, customer: Customer | None, budget: Limit) -> Limit:
        """Return the budget of a run or session that names none: no more than its customers have left, if anything."""
        if customer is None:
            return budget
        least = {unit: getattr(budget, unit) for unit in UNITS}
        for balance in (await self._ledger.ancestry(customer.account))[:-1]:
            for unit in UNITS:
                has, so_far = getattr(balance.left, unit), least[unit]
                if has is not None and so_far is not None and 0 < has < so_far:
                    least[unit] = has
        return Limit(**least)

    async def count(self, tenant: str) -> int:
        """Return how many customers a tenant has, closed ones included."""
        query = "SELECT count(*) FROM customer WHERE tenant = ?"
        return await self._database.read(lambda connection: int(connection.execute(query, (tenant,)).fetchone()[0]))

    async def get(self, tenant: str, id: str) -> Customer:
        """Return a customer, closed or not.

        Raises:
            AccountUnknown: there is none.
        """
        return await self._database.read(lambda connection: customers.get(connection, tenant, id))

    async def find(self, tenant: str, ids: Sequence[str]) -> dict[str, Customer]:
        """Return those of some customers that there are."""
        return await self._database.read(lambda connection: customers.find(connection, tenant, ids))

    async def page(self, tenant: str, parent: str, labels: Mapping[str, str], after: str, most: int) -> list[Customer]:
        """Return customers directly under another, or under the tenant, with these labels, in the order of their ids.

        Raises:
            AccountUnknown: there is no such parent.
        """

        def read(connection: Connection) -> list[Customer]:
            if parent:
                customers.get(connection, tenant, parent)
            return customers.page(connection, tenant, parent, labels, after, most)

        return await self._database.read(read)

    async def _once(
        self, tenant: str, request: Request | None, work: Callable[[Connection, int], Customer]
    ) -> Customer:
        def once(connection: Connection, at: int) -> Customer:
            known = answered(connection, request)
            if known is not None:
                return customers.get(connection, tenant, known)
            done = work(connection, at)
            answer(connection, request, done.id, at)
            return done

        return await self._ledger.change(tenant, once)


def _accounts(connection: Connection, tenant: str, after: str = "") -> list[str]:
    query = "SELECT id FROM account WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
    return [str(id) for (id,) in connection.execute(query, (tenant, after, _AT_ONCE)).fetchall()]


def _forget(connection: Connection, accounts: Sequence[str]) -> None:
    customers.forget(connection, accounts)
    labels.forget(connection, (customers.LABELS, *WORK), accounts)
