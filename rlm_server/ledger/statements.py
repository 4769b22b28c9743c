"""What the books say of one account, and of all tenants together."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.database.engine import Connection, following
from rlm_server.ledger import account_lifecycle as opening
from rlm_server.ledger.account_lifecycle import Window
from rlm_server.ledger.accounts import Balance, Tree, left
from rlm_server.ledger.amounts import UNITS, Amounts, Limit
from rlm_server.ledger.windows import PREFIX


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


_SUMS = ", ".join(
    f"coalesce(sum({part}), 0)"
    for part in (*(f"posted_{unit} + overrun_{unit}" for unit in UNITS), *(f"pending_{unit}" for unit in UNITS))
)
# Windows have no parent either; they count once more what the tenants' own accounts do.
_TOTALS = f"SELECT {_SUMS} FROM account WHERE parent IS NULL AND NOT (id >= ? AND id < ?)"  # noqa: S608 - column names


def statement(connection: Connection, tenant: str, id: str, at: int) -> Statement | None:
    """Where a tenant's account stands at a time (Unix milliseconds), or None: another's does not exist for this one."""
    tree = Tree(connection)
    found = tree.find(id)
    if found is None or found.tenant != tenant or id.startswith(PREFIX):
        return None
    room = left(tree.path(id, at))
    return Statement(found.balance, found.parent, found.closed, room, opening.windows(connection, tenant, at))


def totals(connection: Connection) -> Totals:
    """What all tenants together have spent, and hold."""
    sums = connection.execute(_TOTALS, (PREFIX, following(PREFIX))).fetchone()
    return Totals(Amounts(*sums[: len(UNITS)]), Amounts(*sums[len(UNITS) :]))
