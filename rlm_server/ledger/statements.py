"""What the ledger says of one account, of a tenant's windows, and of all tenants together."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.database.engine import Connection, following
from rlm_server.ledger.accounts import Balance, Tree, left
from rlm_server.ledger.amounts import UNITS, Amounts, Limit
from rlm_server.ledger.sums import amounts, sums
from rlm_server.ledger.windows import PREFIX, Span, account_of, bounds, label


@dataclass(frozen=True, slots=True)
class Window:
    """A tenant's window around now. `begins` and `ends` are in Unix milliseconds, `label` names it (UTC)."""

    span: Span
    label: str
    begins: int
    ends: int
    balance: Balance


@dataclass(frozen=True, slots=True)
class Statement:
    """Where an account stands. `left` is the most a hold on it could take, its ancestors and windows considered."""

    balance: Balance
    parent: str | None
    closed: bool
    left: Limit
    windows: list[Window]


@dataclass(frozen=True, slots=True)
class Totals:
    """What all tenants together have spent since the database began, and what they hold now."""

    posted: Amounts
    pending: Amounts


_SUMS = sums((*(f"posted_{unit} + overrun_{unit}" for unit in UNITS), *(f"pending_{unit}" for unit in UNITS)))
# Windows have no parent either; they count once more what the tenants' own accounts do.
_TOTALS = f"SELECT {_SUMS} FROM account WHERE parent IS NULL AND NOT (id >= ? AND id < ?)"  # noqa: S608 - column names


def balance(connection: Connection, id: str) -> Balance:
    """Where the account stands.

    Raises:
        AccountUnknown: there is none.
    """
    return Tree(connection).get(id).balance


def windows(connection: Connection, tenant: str, at: int) -> list[Window]:
    """The limited windows of a tenant around a time (Unix milliseconds)."""
    balances = {account.id: account.balance for account in Tree(connection).windows(tenant, at)}
    accounts = ((span, account_of(tenant, span, at)) for span in Span)
    return [Window(span, label(span, at), *bounds(span, at), balances[id]) for span, id in accounts if id in balances]


def statement(connection: Connection, tenant: str, id: str, at: int) -> Statement | None:
    """Where a tenant's account stands at a time (Unix milliseconds), or None: another's does not exist for this one."""
    tree = Tree(connection)
    account = tree.find(id)
    if account is None or account.tenant != tenant or id.startswith(PREFIX):
        return None
    room = left(tree.path(id, at))
    return Statement(account.balance, account.parent, account.closed, room, windows(connection, tenant, at))


def totals(connection: Connection) -> Totals:
    """What all tenants together have spent, and hold."""
    return Totals(*amounts(connection.execute(_TOTALS, (PREFIX, following(PREFIX))).fetchone()))
