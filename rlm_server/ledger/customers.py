"""A tenant's customers: accounts between the tenant's own and those of its runs, with limits and windows of their own.

Each function is one transaction's work. A customer is named by the id that its tenant chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlm_server.database import labels
from rlm_server.database.engine import Connection
from rlm_server.ledger.account_lifecycle import reset_window, set_limits
from rlm_server.ledger.accounts import Account, Tree, refuse_uncountable
from rlm_server.ledger.amounts import UNITS, Limit
from rlm_server.ledger.errors import AccountClosed, AccountConflict, AccountExists, AccountUnknown, TooManyAccounts
from rlm_server.ledger.names import CUSTOMER, customer_account
from rlm_server.ledger.windows import Limited, ModelLimit, Scope, SoftLimit, Span, terms_of

TEMPLATE = "default"
"""The id of the customer that those are made after who are named by a run or session and are not there yet."""
MOST_LEVELS = 4
"""Levels of customers under a tenant."""
LABELS = "account"
"""The kind of customers' labels."""

_LIMITS = tuple(f"limit_{unit}" for unit in UNITS)
_COLUMNS = f"account, tenant, id, parent, path, name, created_at, {', '.join(_LIMITS)}"
_SELECT = f"SELECT {_COLUMNS} FROM customer WHERE "  # noqa: S608 - column names
_INSERT = f"INSERT INTO customer ({_COLUMNS}) VALUES ({', '.join('?' * (7 + len(UNITS)))})"  # noqa: S608
_UPDATE = f"UPDATE customer SET name = ?, {', '.join(f'{limit} = ?' for limit in _LIMITS)} WHERE account = ?"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer as it is kept. `parent` is the id of the one above, empty where that is the tenant."""

    tenant: str
    id: str
    parent: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    limit: Limit = Limit()  # noqa: RUF009 - it does not change
    windows: Mapping[Span, Limit] = field(default_factory=dict)
    model_limits: tuple[ModelLimit, ...] = ()
    soft_limits: tuple[SoftLimit, ...] = ()
    path: str = ""
    """The ids from the top to this one, joined by `/`."""
    created_at: int = 0
    """Unix milliseconds."""

    @property
    def account(self) -> str:
        """Its account."""
        return customer_account(self.tenant, self.id)

    @property
    def limits(self) -> dict[Scope, Limit]:
        """What it may spend in windows, and with some models."""
        windows = {Scope(span): limit for span, limit in self.windows.items()}
        return windows | {one.scope: one.limit for one in self.model_limits}


def create(connection: Connection, new: Customer, at: int, most: int) -> Customer:
    """Make a customer with its account, at a time in Unix milliseconds. A tenant has at most `most`.

    Raises:
        AccountExists: there is one of this id, or was.
        AccountUnknown, AccountClosed: there is no such parent, or it was closed.
        AccountConflict: it would be too many levels below the tenant.
        TooManyAccounts: the tenant has as many as it may.
        AmountRefused: a limit is negative or above 2^62.
    """
    refuse_uncountable(limit=new.limit)
    tree = Tree(connection)
    existing = tree.find(new.account)
    if existing is not None:
        if new.id == TEMPLATE and existing.closed:  # nothing was ever spent on it
            return _reopened(connection, new, at)
        raise AccountExists(new.id, closed=existing.closed)
    above = _above(tree, new)
    path = f"{above.path}/{new.id}" if above.path is not None else new.id
    if path.count("/") >= MOST_LEVELS:
        raise AccountConflict(new.id, f"would be more than {MOST_LEVELS} levels below the tenant")
    (there_are,) = connection.execute("SELECT count(*) FROM customer WHERE tenant = ?", (new.tenant,)).fetchone()
    if there_are >= most:
        raise TooManyAccounts(most, there_are)
    tree.add(Account(new.account, new.tenant, above.id, False, new.limit, path=path))
    made = replace(new, path=path, created_at=at)
    row = (made.account, made.tenant, made.id, made.parent, path, made.name, at)
    connection.execute(_INSERT, (*row, *(getattr(made.limit, unit) for unit in UNITS)))
    return _with_terms(connection, made, at)


def _above(tree: Tree, new: Customer) -> Account:
    above = tree.find(customer_account(new.tenant, new.parent) if new.parent else new.tenant)
    if above is None:
        raise AccountUnknown(new.parent or new.tenant)
    if above.closed:
        raise AccountClosed(above.id)
    return above


def _reopened(connection: Connection, new: Customer, at: int) -> Customer:
    connection.execute("UPDATE account SET closed = 0 WHERE id = ?", (new.account,))
    return update(connection, replace(get(connection, new.tenant, new.id), **_settable(new)), at)


def _settable(customer: Customer) -> dict[str, Any]:
    return {
        name: getattr(customer, name) for name in ("name", "labels", "limit", "windows", "model_limits", "soft_limits")
    }


def update(connection: Connection, new: Customer, at: int, resets: Sequence[Span] = ()) -> Customer:
    """Give a customer the name, labels and limits of `new`, and have some windows begin anew.

    A limit may be below what was spent: then nothing more can be.

    Raises:
        AccountClosed: it was closed.
        AmountRefused: a limit is negative or above 2^62.
    """
    refuse_uncountable(limit=new.limit)
    tree = Tree(connection)
    account = tree.get(new.account)
    if account.closed:
        raise AccountClosed(account.id)
    account.limit = new.limit
    connection.execute(_UPDATE, (new.name, *(getattr(new.limit, unit) for unit in UNITS), new.account))
    tree.change(account)
    tree.save()
    _with_terms(connection, new, at)
    for span in resets:
        reset_window(connection, new.account, span, at)
    return new


def _with_terms(connection: Connection, customer: Customer, at: int) -> Customer:
    labels.put(connection, LABELS, customer.account, customer.labels)
    set_limits(connection, customer.account, customer.limits, at, customer.soft_limits)
    return customer


def close(connection: Connection, tenant: str, id: str) -> Customer:
    """Close a customer and those under it. What is under way on them is counted, and nothing more is allowed.

    Raises:
        AccountUnknown: there is none.
    """
    customer = get(connection, tenant, id)
    under = "SELECT account FROM customer WHERE tenant = ? AND (path = ? OR (path >= ? AND path < ?))"
    closing = connection.execute(under, (tenant, customer.path, f"{customer.path}/", f"{customer.path}0")).fetchall()
    connection.executemany("UPDATE account SET closed = 1 WHERE id = ?", closing)
    return customer


def forget(connection: Connection, accounts: Sequence[str]) -> None:
    """Close those of some accounts that are customers', and forget all but their ids and what they spent."""
    customers = [(account,) for account in accounts if account.startswith(CUSTOMER)]
    connection.executemany("UPDATE account SET closed = 1 WHERE id = ?", customers)
    connection.executemany("UPDATE customer SET name = '' WHERE account = ?", customers)
    connection.executemany("DELETE FROM window_limit WHERE account = ?", customers)


def known_payer(connection: Connection, tenant: str, id: str) -> Customer | None:
    """Return the customer that is to pay for a new run or session, or None where it is not there.

    Raises:
        AccountClosed: it was closed.
        AccountConflict: it is the template itself.
    """
    if id == TEMPLATE:
        raise AccountConflict(id, "is what customers are made after, and pays for nothing")
    account = Tree(connection).find(customer_account(tenant, id))
    if account is None:
        return None
    if account.closed:
        raise AccountClosed(account.id)
    return get(connection, tenant, id)


def payer(connection: Connection, tenant: str, id: str, at: int, most: int) -> Customer:
    """Return the customer that is to pay for a new run or session; made after the template where it is not there.

    Raises:
        AccountUnknown: there is none, and no template or it is closed.
        AccountClosed: it was closed.
        AccountConflict: it is the template itself.
        TooManyAccounts: the tenant has as many as it may.
    """
    known = known_payer(connection, tenant, id)
    if known is not None:
        return known
    template = Tree(connection).find(customer_account(tenant, TEMPLATE))
    if template is None or template.closed:
        raise AccountUnknown(id)
    terms = get(connection, tenant, TEMPLATE)
    return create(connection, replace(terms, id=id, parent="", path=""), at, most)


def get(connection: Connection, tenant: str, id: str) -> Customer:
    """Return a customer, closed or not.

    Raises:
        AccountUnknown: there is none.
    """
    found = _read(connection, f"{_SELECT} tenant = ? AND id = ?", (tenant, id))
    if not found:
        raise AccountUnknown(id)
    return found[0]


def find(connection: Connection, tenant: str, ids: Sequence[str]) -> dict[str, Customer]:
    """Return those of some customers that there are."""
    if not ids:
        return {}
    where = f"{_SELECT} tenant = ? AND id IN ({', '.join('?' * len(ids))})"
    return {customer.id: customer for customer in _read(connection, where, (tenant, *ids))}


def page(
    connection: Connection, tenant: str, parent: str, having: Mapping[str, str], after: str, most: int
) -> list[Customer]:
    """Return customers directly under another, or under the tenant, with these labels, in the order of their ids."""
    condition, values = labels.having((LABELS,), "customer.account", having)
    where = f"{_SELECT} tenant = ? AND parent = ? AND id > ? AND {condition} ORDER BY id LIMIT ?"
    return _read(connection, where, (tenant, parent, after, *values, most))


def _read(connection: Connection, query: str, values: Sequence[Any]) -> list[Customer]:
    rows = connection.execute(query, values).fetchall()
    accounts = [account for account, *_ in rows]
    named, terms = labels.of(connection, LABELS, accounts), terms_of(connection, accounts)
    return [
        Customer(tenant, id, parent, name, named[account], Limit(*limit), *_by_kind(terms[account]), path, created_at)
        for account, tenant, id, parent, path, name, created_at, *limit in rows
    ]


def _by_kind(
    terms: Sequence[Limited],
) -> tuple[dict[Span, Limit], tuple[ModelLimit, ...], tuple[SoftLimit, ...]]:
    hard = [one for one in terms if one.limit != Limit() or not one.soft]
    windows = {one.scope.span: one.limit for one in hard if one.scope.span is not None and not one.scope.model}
    of_models = tuple(ModelLimit(one.scope, one.limit) for one in hard if one.scope.model)
    return windows, of_models, tuple(soft for one in terms for soft in one.soft)
