"""Chargeback: every posted hold is one entry. An account's entries add up to what it has posted and overrun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlm_server.clock import DAY_MS
from rlm_server.database import labels
from rlm_server.database.engine import Connection, following
from rlm_server.ledger import names, windows
from rlm_server.ledger.amounts import UNITS, Amounts
from rlm_server.ledger.holds import COLUMNS, RESULT, Hold, hold_of, result_of
from rlm_server.ledger.sums import amounts, sums
from rlm_server.ledger.usage import COUNTS, Usage


@dataclass(frozen=True, slots=True)
class Entry:
    """One posted hold.

    `actual` is what it cost, and `usage` what the provider counted: None for a sandbox's turn, and where the hold was
    posted in full because no report came. `at` is when it was posted, in Unix milliseconds. `number` grows with every
    entry of the database.
    """

    hold: Hold
    actual: Amounts
    usage: Usage | None
    at: int
    number: int
    customer: str = ""
    """The path of the customer who pays; empty where the tenant itself does."""

    @property
    def ambiguous(self) -> bool:
        """Whether a model's call was counted as its whole hold, because what it cost is not known."""
        return bool(self.hold.model) and self.usage is None


@dataclass(frozen=True, slots=True)
class Query:
    """Selects entries of a tenant: by run, node, model and time (Unix milliseconds, `until` excluded).

    `customer` is the path of one, and selects those under it, too. `labels` are those of runs and sessions.
    """

    tenant: str
    run: str | None = None
    node: str | None = None
    model: str | None = None
    since: int | None = None
    until: int | None = None
    ambiguous: bool = False
    after: int = 0
    """Only entries with a greater number."""
    customer: str = ""
    labels: tuple[tuple[str, str], ...] = ()


class By(StrEnum):
    """What usage is summed by."""

    DAY = "day"
    MODEL = "model"
    RUN = "run"
    ACCOUNT = "account"
    LABEL = "label"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What the entries of one key add up to.

    `key` is the day (`2026-11-25`, UTC), the model, the run, the id of the account that pays, or the label's value.

    Of `entries`, `ambiguous` were counted as their whole holds; they cost `doubtful` of `actual`.
    """

    key: str
    entries: int
    ambiguous: int
    actual: Amounts
    doubtful: Amounts
    usage: Usage


_WIDTH = len(COLUMNS.split(","))
_ENTRIES = f"SELECT {COLUMNS}, resolved_at, entry, customer, {RESULT} FROM hold WHERE "  # noqa: S608
_KEYS = {By.DAY: f"resolved_at / {DAY_MS}", By.MODEL: "model", By.RUN: "run", By.ACCOUNT: "customer"}
WORK = ("run", "session")
"""The kinds of labels that usage goes by."""
_AMBIGUOUS = "model <> '' AND input IS NULL"
_ACTUAL = tuple(f"actual_{unit}" for unit in UNITS)
_SUMS = sums((*_ACTUAL, *(f"CASE WHEN {_AMBIGUOUS} THEN {actual} END" for actual in _ACTUAL), *COUNTS))
_POSTED = f"SELECT {sums(_ACTUAL)} FROM hold WHERE id >= ? AND id < ?"  # noqa: S608
_LAST = "SELECT coalesce(max(entry), 0) FROM hold WHERE tenant = ? AND entry IS NOT NULL"
_OVER = " OR ".join(f"actual_{unit} > {unit}" for unit in UNITS)


def entries(connection: Connection, query: Query, most: int | None) -> list[Entry]:
    """The entries that a query selects, in the order they were posted; at most so many."""
    where, values = _where(query)
    limit = "" if most is None else f" LIMIT {int(most)}"
    rows = connection.execute(f"{_ENTRIES}{where} ORDER BY entry{limit}", values).fetchall()
    return [_entry(row) for row in rows]


def usage(connection: Connection, query: Query, by: By, label: str = "") -> list[UsageRow]:
    """What the entries that a query selects add up to, in the order of their keys.

    By LABEL it is the label of this key, of runs and sessions. What they spend keeps it when they are deleted.
    """
    where, values = _where(query)
    key, named = labels.value_of(WORK, "hold.run", label) if by is By.LABEL else (_KEYS[by], [])
    rows = connection.execute(
        f"SELECT {key}, count(*), coalesce(sum(CASE WHEN {_AMBIGUOUS} THEN 1 END), 0), {_SUMS} "  # noqa: S608
        f"FROM hold WHERE {where} GROUP BY 1 ORDER BY 1",
        (*named, *values),
    ).fetchall()
    found = [_usage_row(by, row, query.tenant) for row in rows]
    return sorted(found, key=lambda row: row.key) if by is By.ACCOUNT else found


def posted(connection: Connection, prefix: str) -> Amounts:
    """What the posted holds cost whose ids begin with `prefix`, which is not empty."""
    return Amounts(*connection.execute(_POSTED, (prefix, following(prefix))).fetchone())


def last(connection: Connection, tenant: str) -> int:
    """The number of a tenant's last entry; 0 where it has none."""
    (number,) = connection.execute(_LAST, (tenant,)).fetchone()
    return int(number)


def overruns(connection: Connection) -> int:
    """How many posted holds cost more than they held."""
    (count,) = connection.execute(f"SELECT count(*) FROM hold WHERE {_OVER}").fetchone()  # noqa: S608
    return int(count)


def _where(query: Query) -> tuple[str, list[Any]]:
    conditions, values = ["entry > ?", "tenant = ?"], [query.after, query.tenant]
    for name in ("run", "node", "model"):
        if getattr(query, name) is not None:
            conditions.append(f"{name} = ?")
            values.append(getattr(query, name))
    for sign, time in ((">=", query.since), ("<", query.until)):
        if time is not None:
            conditions.append(f"resolved_at {sign} ?")
            values.append(time)
    if query.customer:
        condition, paths = names.under(query.customer)
        conditions.append(condition)
        values += paths
    if query.labels:
        condition, named = labels.having(WORK, "hold.run", dict(query.labels))
        conditions.append(condition)
        values += named
    if query.ambiguous:
        conditions.append(_AMBIGUOUS)
    return " AND ".join(conditions), values


def _entry(row: Sequence[Any]) -> Entry:
    at, number, customer = row[_WIDTH : _WIDTH + 3]
    actual, used = result_of(row[_WIDTH + 3 :])
    return Entry(hold_of(row), actual or Amounts(), used, at, number, customer)


def _usage_row(by: By, row: Sequence[Any], tenant: str) -> UsageRow:
    key, count, ambiguous, *columns = row
    actual, doubtful = amounts(columns[: -len(COUNTS)])
    return UsageRow(_key(by, key, tenant), count, ambiguous, actual, doubtful, Usage(*columns[-len(COUNTS) :]))


def _key(by: By, key: Any, tenant: str) -> str:
    if by is By.ACCOUNT:
        return names.last_of(key, tenant)
    return windows.label(windows.Span.DAY, key * DAY_MS) if by is By.DAY else str(key)
