"""What the ledger says of one account, of a tenant's windows, and of all tenants together."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.database.engine import Connection
from rlm_server.ledger.accounts import Account, Balance, Tree, customer_of, left
from rlm_server.ledger.amounts import UNITS, Amounts, Limit
from rlm_server.ledger.names import CUSTOMER, customer_account
from rlm_server.ledger.sums import amounts, sums
from rlm_server.ledger.windows import PREFIX, Span, bounds, label, parts


@dataclass(frozen=True, slots=True)
class Window:
    """An account's window around now. `begins` and `ends` are in Unix milliseconds, `label` names it (UTC).

    Where it limits the calls of some models, `model` is their name or pattern, and without a `span` it is all of time.
    """

    account: str
    span: Span | None
    label: str
    begins: int
    ends: int
    balance: Balance
    model: str = ""


@dataclass(frozen=True, slots=True)
class Statement:
    """Where an account stands. `left` is the most a hold on it could take, its ancestors and windows considered."""

    balance: Balance
    parent: str | None
    closed: bool
    left: Limit
    customer: bool
    payer: str
    """The path of the nearest customer, itself included; empty where there is none."""
    windows: list[Window]


@dataclass(frozen=True, slots=True)
class Totals:
    """What all tenants together have spent since the database began, and what they hold now."""

    posted: Amounts
    pending: Amounts


_SUMS = sums((*(f"posted_{unit} + overrun_{unit}" for unit in UNITS), *(f"pending_{unit}" for unit in UNITS)))
_TOTALS = f"SELECT {_SUMS} FROM account WHERE parent IS NULL"  # noqa: S608 - column names


def balance(connection: Connection, id: str) -> Balance:
    """Where the account stands.

    Raises:
        AccountUnknown: there is none.
    """
    return Tree(connection).get(id).balance


def windows(connection: Connection, id: str, at: int) -> list[Window]:
    """The limited windows of an account around a time (Unix milliseconds)."""
    tree = Tree(connection)
    account = tree.find(id)
    return [] if account is None else _windows(tree, account, at)


def _windows(tree: Tree, account: Account, at: int) -> list[Window]:
    found = [(name.scope, window) for window in tree.windows(account, at) if (name := parts(window.id))]
    return [
        Window(account.id, scope.span, label(scope.span, at), *bounds(scope.span, at), window.balance, scope.model)
        for scope, window in sorted(found, key=lambda one: one[0].place)
    ]


def statement(connection: Connection, tenant: str, id: str, at: int) -> Statement | None:
    """Where a tenant's account stands at a time (Unix milliseconds), or None: another's does not exist for this one.

    A customer's goes by the id that its tenant chose.
    """
    tree = Tree(connection)
    account = find(tree, tenant, id)
    if account is None:
        return None
    path = tree.path(account.id, at, "")
    above = [one for one in reversed(path) if one.has_windows]
    all_windows = [window for one in above for window in _windows(tree, one, at)]
    is_customer, payer = account.path is not None, customer_of(path)
    return Statement(account.balance, account.parent, account.closed, left(path), is_customer, payer, all_windows)


def find(tree: Tree, tenant: str, id: str) -> Account | None:
    """A tenant's account by the name that the tenant knows, or None where it has none of this name."""
    if id.startswith((PREFIX, CUSTOMER)):
        return None
    account = tree.find(id)
    if account is None or account.tenant != tenant:
        account = tree.find(customer_account(tenant, id))
    return account


def totals(connection: Connection) -> Totals:
    """What all tenants together have spent, and hold."""
    return Totals(*amounts(connection.execute(_TOTALS).fetchone()))
