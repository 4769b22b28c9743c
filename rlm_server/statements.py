"""What a tenant can see of its money, each answer out of one snapshot. Another tenant's does not exist for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlm_server.ledger import UNITS, Amounts, Balance, By, Limit, Query, UsageRow, Window, entries, opening, windows
from rlm_server.ledger.accounts import Tree, left
from rlm_server.ledger.holds import now
from rlm_server.store.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Statement:
    """Where an account stands. `left` is the most a hold on it could take, its ancestors and windows considered."""

    balance: Balance
    parent: str | None
    closed: bool
    left: Limit
    windows: list[Window]


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What was spent under one key, and what of it was counted in full because its cost is not known."""

    row: UsageRow
    ambiguous: Amounts


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
_TOTALS = f"SELECT {_SUMS} FROM account WHERE parent IS NULL AND substr(id, 1, {len(windows.PREFIX)}) <> ?"  # noqa: S608
_LAST = "SELECT coalesce(max(entry), 0) FROM hold WHERE tenant = ? AND entry IS NOT NULL"


class Statements:
    """Reads the ledger's books for those they are about. `clock` says the time in Unix milliseconds."""

    def __init__(self, database: Database, *, clock: Callable[[], int] = now) -> None:
        self._database, self._clock = database, clock

    async def of(self, tenant: str, account: str) -> Statement | None:
        """Where a tenant's account stands, or None: another tenant's does not exist for this one."""

        def read(connection: Connection) -> Statement | None:
            tree, at = Tree(connection), self._clock()
            found = tree.find(account)
            if found is None or found.tenant != tenant or account.startswith(windows.PREFIX):
                return None
            return Statement(
                found.balance,
                found.parent,
                found.closed,
                left(tree.path(account, at)),
                opening.windows(connection, tenant, at),
            )

        return await self._database.read(read)

    async def usage(self, query: Query, by: By) -> list[UsageLine]:
        """What the entries asked for add up to, in the order of their keys."""

        def read(connection: Connection) -> list[UsageLine]:
            doubtful = {row.key: row for row in entries.usage(connection, replace(query, ambiguous=True), by)}
            rows = entries.usage(connection, query, by)
            return [UsageLine(row, doubtful[row.key].actual if row.key in doubtful else Amounts()) for row in rows]

        # Sorted here, since databases differ in how they order text.
        return sorted(await self._database.read(read), key=lambda line: line.row.key)

    async def last(self, tenant: str) -> int:
        """The number of a tenant's last entry; 0 where it has none."""

        def read(connection: Connection) -> int:
            (number,) = connection.execute(_LAST, (tenant,)).fetchone()
            return int(number)

        return await self._database.read(read)

    async def totals(self) -> Totals:
        """What all tenants together have spent, and hold."""

        def read(connection: Connection) -> Totals:
            row = [int(sum_) for sum_ in connection.execute(_TOTALS, (windows.PREFIX,)).fetchone()]
            return Totals(Amounts(*row[: len(UNITS)]), Amounts(*row[len(UNITS) :]))

        return await self._database.read(read)
