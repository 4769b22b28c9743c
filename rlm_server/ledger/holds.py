"""A hold: what a call may cost at worst, reserved before it leaves, and resolved once when it is over."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import StrEnum

from rlm_server.ledger.accounts import ZERO, Tree, refuse_uncountable
from rlm_server.ledger.amounts import UNITS, Amounts
from rlm_server.ledger.errors import HoldUnknown, MoveRefused
from rlm_server.ledger.usage import Usage


@dataclass(frozen=True, slots=True)
class Hold:
    """What is asked for before a request leaves.

    `id` is the attempt's id, `account` the leaf account, `amounts` the worst case. `price_version` names the price
    table the worst case was computed with; `run` and `node` say where the call was made.
    """

    id: str
    account: str
    amounts: Amounts
    model: str
    price_version: str
    tenant: str
    run: str
    node: str


class HoldState(StrEnum):
    """Where a hold is in its life."""

    PENDING = "pending"
    DISPATCHED = "dispatched"
    POSTED = "posted"
    VOIDED = "voided"


MOVES: dict[HoldState, frozenset[HoldState]] = {
    HoldState.PENDING: frozenset({HoldState.DISPATCHED, HoldState.VOIDED}),
    HoldState.DISPATCHED: frozenset({HoldState.POSTED, HoldState.VOIDED}),
    HoldState.POSTED: frozenset(),
    HoldState.VOIDED: frozenset(),
}
"""The moves a hold may make. A hold that has none left is resolved."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a hold is resolved. POSTED with `actual` None posts the whole hold."""

    state: HoldState
    actual: Amounts | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One posted hold, for chargeback.

    `actual` is what it cost, `usage` what the provider counted; `usage` is None where the hold was posted in full for
    want of a report. `at` is when it was posted, in Unix milliseconds.
    """

    hold: Hold
    actual: Amounts
    usage: Usage | None
    at: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: the hold, and by how much its actual was above it."""

    hold: Hold
    overrun: Amounts = ZERO


@dataclass(frozen=True, slots=True)
class Recovery:
    """How many holds a start found unresolved: `voided` had not been dispatched, `posted` had, and cost the whole."""

    voided: int
    posted: int


_HOLD = "id, account, nano_usd, tokens, calls, model, price_version, tenant, run, node"
_RESULT = "actual_nano_usd, actual_tokens, actual_calls, input, output, cache_read, cache_write, reasoning"
_INSERT = f"INSERT INTO hold ({_HOLD}, reserved_at, state) VALUES ({', '.join('?' * 12)})"  # noqa: S608
_FIND = f"SELECT {_HOLD}, state, {_RESULT} FROM hold WHERE id = ?"  # noqa: S608
_ENTRIES = f"""
SELECT {_HOLD}, resolved_at, {_RESULT} FROM hold
WHERE state = 'posted' AND tenant = ?1 AND run = coalesce(?2, run) ORDER BY resolved_at, rowid
"""  # noqa: S608
_POSTED = """
SELECT coalesce(sum(actual_nano_usd), 0), coalesce(sum(actual_tokens), 0), coalesce(sum(actual_calls), 0)
FROM hold WHERE id >= ? AND id < ?
"""
_OVERRUNS = (
    "SELECT count(*) FROM hold WHERE actual_nano_usd > nano_usd OR actual_tokens > tokens OR actual_calls > calls"
)
_RESOLVE = f"UPDATE hold SET state = ?, resolved_at = ?, ({_RESULT}) = ({', '.join('?' * 8)}) WHERE id = ?"  # noqa: S608


def now() -> int:
    """The time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def find(connection: sqlite3.Connection, id: str) -> tuple[Hold, Outcome] | None:
    """The hold of this id and its state, if there is one."""
    row = connection.execute(_FIND, (id,)).fetchone()
    return None if row is None else (_hold(row), Outcome(HoldState(row[10]), *_result(row[11:])))


def insert(connection: sqlite3.Connection, hold: Hold) -> None:
    """Write a new, pending hold; its accounts are not touched."""
    text = (hold.model, hold.price_version, hold.tenant, hold.run, hold.node)
    connection.execute(_INSERT, (hold.id, hold.account, *astuple(hold.amounts), *text, now(), HoldState.PENDING))


def move(connection: sqlite3.Connection, id: str, wanted: Outcome) -> Moved:
    """Move a hold to another state and its amounts with it, on every account of its path.

    Repeating the resolution a hold already has changes nothing.

    Raises:
        HoldUnknown: there is none.
        MoveRefused: its state does not allow the move.
        AmountRefused: the actual amounts or the usage are negative or above 2^62.
    """
    found = find(connection, id)
    if found is None:
        raise HoldUnknown(id)
    hold, current = found
    if wanted.state is HoldState.POSTED and wanted.actual is None:
        wanted = Outcome(HoldState.POSTED, hold.amounts, wanted.usage)
    if current == wanted and not MOVES[current.state]:
        return Moved(hold)
    if wanted.state not in MOVES[current.state]:
        raise MoveRefused(id, current.state, wanted.state)
    if wanted.state is HoldState.DISPATCHED:
        connection.execute("UPDATE hold SET state = ? WHERE id = ?", (wanted.state, id))
        return Moved(hold)
    return _resolve(connection, hold, wanted)


def _resolve(connection: sqlite3.Connection, hold: Hold, outcome: Outcome) -> Moved:
    actual = outcome.actual or ZERO
    refuse_uncountable(actual=actual, usage=outcome.usage or Usage())
    within = Amounts(*(min(getattr(actual, unit), getattr(hold.amounts, unit)) for unit in UNITS))
    overrun = actual - within
    tree = Tree(connection)
    tree.apply(tree.path(hold.account), pending=ZERO - hold.amounts, posted=within, overrun=overrun)
    tree.save()
    result = (*_or_nulls(outcome.actual, Amounts), *_or_nulls(outcome.usage, Usage))
    connection.execute(_RESOLVE, (outcome.state, now(), *result, hold.id))
    return Moved(hold, overrun)


def withdraw(connection: sqlite3.Connection, id: str) -> None:
    """Remove a pending hold that nobody was told of, as if it had never been asked for."""
    found = find(connection, id)
    if found is None or found[1].state is not HoldState.PENDING:
        return
    hold, _ = found
    tree = Tree(connection)
    tree.apply(tree.path(hold.account), pending=ZERO - hold.amounts)
    tree.save()
    connection.execute("DELETE FROM hold WHERE id = ?", (id,))


def recover(connection: sqlite3.Connection) -> Recovery:
    """Resolve every hold a dead server left: what was not dispatched is void, the rest is posted in full."""
    rows = connection.execute("SELECT id, state FROM hold WHERE state IN ('pending', 'dispatched')").fetchall()
    posted = 0
    for id, state in rows:
        dispatched = state == HoldState.DISPATCHED
        posted += dispatched
        move(connection, id, Outcome(HoldState.POSTED if dispatched else HoldState.VOIDED))
    return Recovery(voided=len(rows) - posted, posted=posted)


def entries(connection: sqlite3.Connection, tenant: str, run: str | None) -> list[Entry]:
    """The posted holds of a tenant, or of one of its runs, oldest first."""
    found = []
    for row in connection.execute(_ENTRIES, (tenant, run)):
        actual, usage = _result(row[11:])
        found.append(Entry(_hold(row), actual or ZERO, usage, row[10]))
    return found


def posted(connection: sqlite3.Connection, prefix: str) -> Amounts:
    """What the posted holds cost whose ids begin with `prefix`, which is not empty."""
    following = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return Amounts(*connection.execute(_POSTED, (prefix, following)).fetchone())


def overruns(connection: sqlite3.Connection) -> int:
    """How many posted holds cost more than they held."""
    (count,) = connection.execute(_OVERRUNS).fetchone()
    return int(count)


def _hold(row: tuple[str, ...]) -> Hold:
    id, account, nano_usd, tokens, calls, *text = row[:10]
    return Hold(id, account, Amounts(int(nano_usd), int(tokens), int(calls)), *text)


def _result(columns: tuple[int | None, ...]) -> tuple[Amounts | None, Usage | None]:
    actual, usage = _unless_null(columns[:3]), _unless_null(columns[3:])
    return Amounts(*actual) if actual else None, Usage(*usage) if usage else None


def _unless_null(columns: Iterable[int | None]) -> list[int]:
    return [column for column in columns if column is not None]


def _or_nulls(value: Amounts | Usage | None, kind: type[Amounts | Usage]) -> tuple[int | None, ...]:
    return astuple(value) if value is not None else (None,) * len(astuple(kind()))
