"""Tenants: whom everything belongs to. Their rows, and what their budgets are in the ledger, change together."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request, once
from rlm_server.ledger import Amounts, LimitTooLow, account_lifecycle, statements
from rlm_server.ledger.accounts import Account
from rlm_server.tenants.changes import next_version, version
from rlm_server.tenants.terms import OwnTerms, Terms

T = TypeVar("T")

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
"""What a tenant may be called: the name is its account's too, and so no run's and no window's."""


class TenantUnknown(Exception):
    """There is no such tenant, or it was deleted."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"there is no tenant {tenant[:200]!r}")
        self.tenant = tenant


class TenantExists(Exception):
    """There is a tenant of this name, or there was one."""

    def __init__(self, tenant: str, *, deleted: bool) -> None:
        was = "was a tenant, and its name is not given again" if deleted else "exists"
        super().__init__(f"the tenant {tenant!r} {was}: choose another name")
        self.tenant = tenant


class TenantInUse(Exception):
    """A tenant has what would go with it. `counts` says how many of what."""

    def __init__(self, tenant: str, counts: Mapping[str, int]) -> None:
        has = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
        super().__init__(f"the tenant {tenant!r} has {has}: end and remove these first, or use force")
        self.counts = counts


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it is kept. Times are Unix milliseconds; `terms` are those that it was told itself.

    `cleared_at` is when nothing was left of a deleted one but its name and what it spent.
    """

    id: str
    labels: Mapping[str, str]
    terms: OwnTerms
    created_at: int
    changed_at: int
    deleted_at: int | None = None
    cleared_at: int | None = None
    spent: Amounts = Amounts()  # noqa: RUF009 - it does not change


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed in tenants since a version: the new `version`, each tenant's terms, and who was deleted.

    The terms of one that was deleted hold until nothing is left of what it had.
    """

    version: int
    terms: Mapping[str, OwnTerms | None]
    leaving: tuple[str, ...]


_AT_ONCE = 100
"""Tenants read at once."""

_terms = TypeAdapter(OwnTerms)
_tenants = TypeAdapter(Tenant)

_COLUMNS = "id, labels, terms, created_at, changed_at, deleted_at, cleared_at"
_SELECT = f"SELECT {_COLUMNS} FROM tenant WHERE "  # noqa: S608 - column names


class Tenants:
    """The tenants in the database. `terms` says what budgets are where a tenant was told none."""

    def __init__(self, database: Database, terms: Terms | None = None) -> None:
        self._database, self._served = database, terms or Terms(())

    async def ensure(self, tenant: str) -> None:
        """Create a tenant unless it exists."""

        def write(connection: Connection) -> None:
            at = now()
            connection.execute(
                "INSERT INTO tenant (id, created_at, changed_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (tenant, at, at),
            )

        await self._database.write(write)

    async def create(
        self, tenant: str, terms: OwnTerms, labels: Mapping[str, str], request: Request | None = None
    ) -> Tenant:
        """Make a tenant with its account.

        Raises:
            TenantExists: there is one of this name, or was.
            RequestIdReused: the request asked for something else before.
        """

        def work(connection: Connection) -> Tenant:
            known = _find(connection, tenant)
            if known is not None:
                raise TenantExists(tenant, deleted=known.deleted_at is not None)
            at = now()
            connection.execute("INSERT INTO tenant (id, created_at, changed_at) VALUES (?, ?, ?)", (tenant, at, at))
            _keep(connection, Tenant(tenant, labels, terms, at, at))
            self.put_budgets(connection, tenant, terms, at)
            return _get(connection, tenant)

        return await self._once(request, work)

    async def get(self, tenant: str) -> Tenant:
        """Return a tenant that was not deleted.

        Raises:
            TenantUnknown: there is none.
        """
        return await self._database.read(lambda connection: _get(connection, tenant))

    async def page(self, after: str, most: int, *, deleted: bool = False) -> list[Tenant]:
        """Return tenants in the order of their names, from the first after `after` on, deleted ones where asked."""
        where = "id > ? AND (deleted_at IS NULL OR ? = 1) ORDER BY id LIMIT ?"
        return await self._database.read(
            lambda connection: [
                _row(connection, row)
                for row in connection.execute(_SELECT + where, (after, int(deleted), most)).fetchall()
            ]
        )

    async def update(self, tenant: str, change: Callable[[Tenant], Tenant], request: Request | None = None) -> Tenant:
        """Change a tenant's terms and labels. `change` returns it as it is to be, and may refuse by an exception.

        Raises:
            TenantUnknown: there is none.
            LimitTooLow: a budget is below what was spent.
            RequestIdReused: the request asked for something else before.
        """

        def work(connection: Connection) -> Tenant:
            before, at = _get(connection, tenant), now()
            after = replace(change(before), changed_at=at)
            _keep(connection, after)
            if _budgets(before.terms) != _budgets(after.terms):
                self.put_budgets(connection, tenant, after.terms, at)
            return _get(connection, tenant)

        return await self._once(request, work)

    async def delete(self, tenant: str, *, force: bool, request: Request | None = None) -> Tenant:
        """Delete a tenant: from now on no key of it works, and what it has is to be stopped and removed.

        Raises:
            TenantUnknown: there is none.
            TenantInUse: without `force`, it has what would go with it.
            RequestIdReused: the request asked for something else before.
        """

        def work(connection: Connection) -> Tenant:
            before, at = _get(connection, tenant), now()
            counts = in_use(connection, tenant, at)
            if not force and any(counts.values()):
                raise TenantInUse(tenant, counts)
            number = next_version(connection)
            connection.execute(
                "UPDATE api_key SET revoked_at = ?, version = ? WHERE tenant = ? AND revoked_at IS NULL",
                (at, number, tenant),
            )
            deleted = replace(before, changed_at=at, deleted_at=at)
            _keep(connection, deleted)
            return deleted

        return await self._once(request, work)

    async def cleared(self, tenant: str) -> None:
        """Note that nothing is left of a deleted tenant."""

        def write(connection: Connection) -> None:
            connection.execute("UPDATE tenant SET cleared_at = ? WHERE id = ?", (now(), tenant))

        await self._database.write(write)

    async def changed_since(self, seen: int) -> Change:
        """Return what was changed after a version, or all there is where `seen` is below 0."""

        def read(connection: Connection) -> Change:
            rows = connection.execute(
                "SELECT id, terms, deleted_at, cleared_at FROM tenant WHERE version > ?", (seen,)
            ).fetchall()
            told = {id: None if cleared is not None else _terms.validate_json(terms) for id, terms, _, cleared in rows}
            leaving = tuple(id for id, _, deleted, cleared in rows if deleted is not None and cleared is None)
            return Change(version(connection), told, leaving)

        return await self._database.read(read)

    async def tell_all(self) -> None:
        """Have the terms say what every tenant was told."""
        for tenant, own in (await self.changed_since(-1)).terms.items():
            self._served.tell(tenant, own)

    async def settle_all_budgets(self) -> dict[str, LimitTooLow]:
        """Have the ledger limit all tenants as `settle_budgets` does, as after a change of the settings."""
        refused: dict[str, LimitTooLow] = {}
        after = ""
        while page := await self.page(after, _AT_ONCE):
            refused |= await self.settle_budgets({tenant.id: tenant.terms for tenant in page})
            after = page[-1].id
        return refused

    async def settle_budgets(self, own: Mapping[str, OwnTerms]) -> dict[str, LimitTooLow]:
        """Have the ledger limit tenants as their own terms say, and where these say nothing, as the settings do.

        Returns:
            of those for whom that is less than was spent, what was refused. Their budget stays as it was.
        """
        put = [partial(self.put_budgets, tenant=tenant, own=terms, at=now()) for tenant, terms in own.items()]
        done = await asyncio.gather(*map(self._database.write, put), return_exceptions=True)  # in one commit
        refused: dict[str, LimitTooLow] = {}
        for tenant, failure in zip(own, done, strict=True):
            if isinstance(failure, LimitTooLow):
                refused[tenant] = failure
            elif isinstance(failure, BaseException):
                raise failure
        return refused

    def put_budgets(self, connection: Connection, tenant: str, own: OwnTerms, at: int) -> None:
        """Have the ledger limit a tenant as these terms say, and the settings where they say nothing.

        Raises:
            LimitTooLow: a budget is below what was spent.
        """
        terms = self._served.with_own(own, tenant)
        account_lifecycle.open_account(connection, Account(tenant, tenant, None, False, terms.budget), at)
        account_lifecycle.set_limit(connection, tenant, terms.budget)
        account_lifecycle.set_limits(connection, tenant, terms.ledger_limits, at, terms.soft_limits)

    async def _once(self, request: Request | None, work: Callable[[Connection], Tenant]) -> Tenant:
        answer, _ = await self._database.write(
            lambda connection: once(connection, request, _tenants, lambda: work(connection), now())
        )
        return answer


def _budgets(terms: OwnTerms) -> tuple[object, ...]:
    """Return what of a tenant's terms the ledger has to be told."""
    return terms.budget, terms.windows, terms.model_limits, terms.soft_limits


def in_use(connection: Connection, tenant: str, at: int) -> dict[str, int]:
    """Count what would go with a tenant: keys that work, what is under way, and contexts."""
    counts: dict[str, int] = {}
    for what, count, values in (
        ("keys", _KEYS, (tenant, at)),
        ("runs", _RUNS, (tenant,)),
        ("sessions", _SESSIONS, (tenant,)),
        ("uploads", "SELECT count(*) FROM upload WHERE tenant = ? AND context IS NULL", (tenant,)),
        ("contexts", "SELECT count(*) FROM context WHERE tenant = ?", (tenant,)),
    ):
        (counts[what],) = connection.execute(count, values).fetchone()
    return counts


_KEYS = """
SELECT count(*) FROM api_key WHERE tenant = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)
"""
_RUNS = """
SELECT count(*) FROM node JOIN run ON run.id = node.id
WHERE run.tenant = ? AND node.state IN ('pending', 'running')
"""
_SESSIONS = "SELECT count(*) FROM account WHERE tenant = ? AND closed = 0 AND substr(id, 1, 4) = 'ses_'"


def _keep(connection: Connection, tenant: Tenant) -> None:
    connection.execute(
        "UPDATE tenant SET labels = ?, terms = ?, changed_at = ?, deleted_at = ?, version = ? WHERE id = ?",
        (
            json.dumps(dict(tenant.labels)),
            _terms.dump_json(tenant.terms, exclude_defaults=True).decode(),
            tenant.changed_at,
            tenant.deleted_at,
            next_version(connection),
            tenant.id,
        ),
    )


def _get(connection: Connection, tenant: str) -> Tenant:
    found = _find(connection, tenant)
    if found is None or found.deleted_at is not None:
        raise TenantUnknown(tenant)
    return found


def _find(connection: Connection, tenant: str) -> Tenant | None:
    row = connection.execute(f"{_SELECT} id = ?", (tenant,)).fetchone()
    return None if row is None else _row(connection, row)


def _row(connection: Connection, row: tuple[Any, ...]) -> Tenant:
    id, labels, terms, created_at, changed_at, deleted_at, cleared_at = row
    spent = _spent(connection, id)
    return Tenant(
        id, json.loads(labels), _terms.validate_json(terms), created_at, changed_at, deleted_at, cleared_at, spent
    )


def _spent(connection: Connection, tenant: str) -> Amounts:
    found = connection.execute("SELECT 1 FROM account WHERE id = ?", (tenant,)).fetchone()
    if found is None:
        return Amounts()
    balance = statements.balance(connection, tenant)
    return balance.posted + balance.overrun
