"""A hold: what a call may cost at worst, reserved before it leaves, and resolved once when it is over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlm_server.database.engine import Connection
from rlm_server.ledger import events
from rlm_server.ledger.accounts import ZERO, Tree, refuse_uncountable
from rlm_server.ledger.amounts import UNITS, Amounts, numbers
from rlm_server.ledger.errors import HoldUnknown, MoveRefused, StaleEpoch
from rlm_server.ledger.usage import COUNTS, Usage, counts


@dataclass(frozen=True, slots=True)
class Hold:
    """What is reserved before a request leaves.

    `id` is the attempt's id, `account` the leaf account, `amounts` the worst case. `price_version` names the price
    table that the worst case was computed with. `run` and `node` say where the call was made. `model` is empty where
    the hold pays for a sandbox's turn.
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
class Moved:
    """What a move did: the hold, by how much its actual was above it, and whether it crossed a soft limit."""

    hold: Hold
    overrun: Amounts = ZERO
    told: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """How many holds of former owners a start resolved.

    `voided` had not been dispatched. `posted` had been, and cost their whole amounts.
    """

    voided: int
    posted: int


COLUMNS = f"id, account, {', '.join(UNITS)}, model, price_version, tenant, run, node"
RESULT = ", ".join((*(f"actual_{unit}" for unit in UNITS), *COUNTS))
_WIDTH = len(COLUMNS.split(","))
_INSERT = f"""
INSERT INTO hold ({COLUMNS}, reserved_at, state, epoch, customer) VALUES ({", ".join("?" * (_WIDTH + 4))})
ON CONFLICT (id) DO NOTHING
"""  # noqa: S608
_FIND = f"SELECT {COLUMNS}, state, reserved_at, epoch, {RESULT} FROM hold WHERE id = ?"  # noqa: S608
_RESOLVE = f"""
UPDATE hold SET state = ?, resolved_at = ?, ({RESULT}) = ({", ".join("?" * len(RESULT.split(",")))}),
    entry = CASE WHEN ? = 1 THEN (SELECT coalesce(max(entry), 0) + 1 FROM hold WHERE entry IS NOT NULL) END
WHERE id = ?
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class StoredHold:
    """A hold as it is in the database. `reserved_at` is in Unix milliseconds."""

    hold: Hold
    outcome: Outcome
    reserved_at: int
    epoch: int


def find(connection: Connection, id: str) -> StoredHold | None:
    """The hold of this id, if there is one."""
    row = connection.execute(_FIND, (id,)).fetchone()
    if row is None:
        return None
    state, reserved_at, epoch = row[_WIDTH : _WIDTH + 3]
    return StoredHold(hold_of(row), Outcome(HoldState(state), *result_of(row[_WIDTH + 3 :])), reserved_at, epoch)


def insert(connection: Connection, hold: Hold, state: HoldState, at: int, epoch: int, customer: str) -> bool:
    """Write a new hold, pending or dispatched; its accounts are not touched. `customer` is the path of who pays.

    Returns:
        whether it was new. One of the same id stays as it is.
    """
    text = (hold.model, hold.price_version, hold.tenant, hold.run, hold.node)
    values = (hold.id, hold.account, *numbers(hold.amounts), *text, at, state, epoch, customer)
    return connection.execute(_INSERT, values).rowcount == 1


def move(connection: Connection, id: str, wanted: Outcome, *, epoch: int, at: int) -> Moved:
    """Move a hold to another state and its amounts with it, on every account of its path, at a time.

    Repeating the resolution a hold already has changes nothing.

    Raises:
        HoldUnknown: there is none.
        MoveRefused: its state does not allow the move.
        StaleEpoch: it is to be dispatched and is not of this epoch.
        AmountRefused: the actual amounts or the usage are negative or above 2^62.
    """
    kept = find(connection, id)
    if kept is None:
        raise HoldUnknown(id)
    hold, current = kept.hold, kept.outcome
    if wanted.state is HoldState.POSTED and wanted.actual is None:
        wanted = Outcome(HoldState.POSTED, hold.amounts, wanted.usage)
    if current == wanted and not MOVES[current.state]:
        return Moved(hold)
    if wanted.state not in MOVES[current.state]:
        raise MoveRefused(id, current.state, wanted.state)
    if wanted.state is HoldState.DISPATCHED:
        if kept.epoch != epoch:
            raise StaleEpoch(id, kept.epoch, epoch)
        connection.execute("UPDATE hold SET state = ? WHERE id = ?", (wanted.state, id))
        return Moved(hold)
    return _resolve(Tree(connection), kept, wanted, at)


def post_new(tree: Tree, hold: Hold, *, epoch: int, at: int) -> Moved:
    """Post all of a hold that was taken with a tree of accounts at this time, which is not written back yet."""
    return _resolve(
        tree, StoredHold(hold, Outcome(HoldState.DISPATCHED), at, epoch), Outcome(HoldState.POSTED, hold.amounts), at
    )


def _resolve(tree: Tree, kept: StoredHold, outcome: Outcome, at: int) -> Moved:
    hold, actual = kept.hold, outcome.actual or ZERO
    refuse_uncountable(actual=actual, usage=outcome.usage or Usage())
    within = Amounts(*(min(getattr(actual, unit), getattr(hold.amounts, unit)) for unit in UNITS))
    overrun = actual - within
    path = tree.path(hold.account, kept.reserved_at, hold.model)
    tree.apply(path, pending=ZERO - hold.amounts, posted=within, overrun=overrun)
    tree.save()
    events.record(tree.connection, tree.crossed, at)
    result = (
        *(_NO_AMOUNTS if outcome.actual is None else numbers(outcome.actual)),
        *(_NO_USAGE if outcome.usage is None else counts(outcome.usage)),
    )
    tree.connection.execute(_RESOLVE, (outcome.state, at, *result, outcome.state is HoldState.POSTED, hold.id))
    return Moved(hold, overrun, bool(tree.crossed))


def withdraw(connection: Connection, id: str, state: HoldState) -> None:
    """Remove a hold that no caller learnt of, if it is still in the state it was taken in."""
    kept = find(connection, id)
    if kept is None or kept.outcome.state is not state:
        return
    hold, tree = kept.hold, Tree(connection)
    tree.apply(tree.path(hold.account, kept.reserved_at, hold.model), pending=ZERO - hold.amounts)
    tree.save()
    connection.execute("DELETE FROM hold WHERE id = ?", (id,))


def recover(connection: Connection, epoch: int, at: int) -> Recovery:
    """Resolve every hold that former owners left: what was not dispatched is void, the rest is posted in full."""
    rows = connection.execute(
        "SELECT id, state FROM hold WHERE state IN ('pending', 'dispatched') AND epoch <> ?", (epoch,)
    ).fetchall()
    posted = 0
    for id, state in rows:
        dispatched = state == HoldState.DISPATCHED
        posted += dispatched
        move(connection, id, Outcome(HoldState.POSTED if dispatched else HoldState.VOIDED), epoch=epoch, at=at)
    return Recovery(voided=len(rows) - posted, posted=posted)


def unresolved_of(connection: Connection, run: str) -> list[tuple[str, bool]]:
    """The holds of a run that are neither posted nor void, and whether each was dispatched."""
    rows = connection.execute(
        "SELECT id, state FROM hold WHERE state IN ('pending', 'dispatched') AND run = ?", (run,)
    ).fetchall()
    return [(id, state == HoldState.DISPATCHED) for id, state in rows]


def unresolved(connection: Connection) -> int:
    """How many holds are neither posted nor void."""
    (count,) = connection.execute("SELECT count(*) FROM hold WHERE state IN ('pending', 'dispatched')").fetchone()
    return int(count)


def hold_of(row: Sequence[Any]) -> Hold:
    """The hold of a row that begins with `COLUMNS`."""
    id, account, *rest = row[:_WIDTH]
    return Hold(id, account, Amounts(*rest[: len(UNITS)]), *rest[len(UNITS) :])


def result_of(columns: Sequence[int | None]) -> tuple[Amounts | None, Usage | None]:
    """The actual amounts and the usage of the columns of `RESULT`; None where they are NULL."""
    actual, usage = _unless_null(columns[: len(UNITS)]), _unless_null(columns[len(UNITS) :])
    return Amounts(*actual) if actual else None, Usage(*usage) if usage else None


_NO_AMOUNTS, _NO_USAGE = (None,) * len(UNITS), (None,) * len(COUNTS)


def _unless_null(columns: Iterable[int | None]) -> list[int]:
    return [column for column in columns if column is not None]
