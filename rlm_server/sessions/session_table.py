"""What is kept of sessions: as they were asked for, where they are, and for a day why they ended.

A function that takes a connection is part of one transaction's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from rlm_server.database import labels, requests
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.listing import Conditions, place
from rlm_server.database.requests import Request
from rlm_server.ledger.amounts import UNITS, Limit
from rlm_server.ledger.work_filter import WorkFilter
from rlm_server.sessions.state import End, EndReason, SessionState, move
from sandbox.limits import Limits

LABELS = "session"
"""The kind of sessions' labels."""
CREATING = "CreateSession"
"""The call that starts a session."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is kept. Times are Unix milliseconds.

    `customer` is the path of the customer who pays, empty where the tenant itself does. `idle_ms` and `life_ms` are
    None where they are what the server says. `used_at` is when its last turn ended and `turns` how many there were,
    both a little behind while it lives. `stored` is the name under which its state is kept, None where it has ended.
    """

    id: str
    tenant: str
    image: str
    context: str | None
    sub_model: str
    budget: Limit
    limits: Limits
    created_at: int
    used_at: int
    customer: str = ""
    snapshot: str | None = None
    parent: str | None = None
    turns: int = 0
    idle_ms: int | None = None
    life_ms: int | None = None
    state: SessionState = SessionState.ACTIVE
    stored: str | None = None
    end_reason: EndReason | None = None
    end_message: str = ""
    ended_at: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def end(self) -> End | None:
        """How it ended; None while it lives."""
        if self.end_reason is None or self.ended_at is None:
            return None
        return End(self.end_reason, self.end_message, self.ended_at)

    @property
    def place(self) -> str:
        """Where it stands in a list: later ones have a lesser one."""
        return place(self.created_at, self.id)


@dataclass(frozen=True, slots=True)
class SessionFilter(WorkFilter[SessionState]):
    """Which of a tenant's sessions are listed."""


class SessionTable:
    """The rows of sessions. What was written is durable when the call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, session: str) -> SessionRow | None:
        """Return a tenant's session, or None: another tenant's does not exist for this one."""
        found = await self._database.read(
            lambda connection: _rows(connection, "id = ? AND tenant = ?", (session, tenant))
        )
        return found[0] if found else None

    async def by_request(self, request: Request) -> SessionRow | None:
        """Return the session that a request made, if one did.

        Raises:
            RequestIdReused: it asked for another session then.
        """

        def read(connection: Connection) -> SessionRow | None:
            made = requests.answered(connection, request)
            return None if made is None else find(connection, [made]).get(made)

        return await self._database.read(read)

    async def page(self, asked: SessionFilter, before: str | None, most: int) -> list[SessionRow]:
        """Return up to `most` sessions, the newest first, from the one after the place `before` on."""

        def read(connection: Connection) -> list[SessionRow]:
            found = _where(asked, before)
            order = "ORDER BY created_at DESC, id DESC LIMIT ?"
            return _rows(connection, f"{found.where} {order}", (*found.values, most))

        return await self._database.read(read)

    async def living(self, after: str, most: int) -> list[SessionRow]:
        """Return up to `most` sessions of all tenants that have not ended, in the order of their ids."""
        return await self._database.read(
            lambda connection: _rows(connection, "state <> 'ended' AND id > ? ORDER BY id LIMIT ?", (after, most))
        )

    async def several(self, sessions: Sequence[str]) -> list[SessionRow]:
        """Return sessions by their ids, in this order; those that are forgotten are left out."""
        found = await self._database.read(lambda connection: find(connection, sessions))
        return [found[session] for session in sessions if session in found]

    async def pause_all(self) -> None:
        """Keep that every session that lives is stored and has no memory, as at a server's start."""
        update = "UPDATE session SET state = ? WHERE state = ?"
        values = (SessionState.PAUSED, SessionState.ACTIVE)
        await self._database.write(lambda connection: connection.execute(update, values))

    async def move(self, session: str, state: SessionState) -> None:
        """Keep that a session that lives is in a state now."""
        update = "UPDATE session SET state = ? WHERE id = ? AND state <> 'ended'"
        await self._database.write(lambda connection: connection.execute(update, (state, session)))

    async def used(self, uses: Sequence[tuple[str, int, int]]) -> None:
        """Keep of sessions that live when they were last used (Unix milliseconds), and how many turns they had."""
        rows = [(used_at, turns, session) for session, used_at, turns in uses]
        update = "UPDATE session SET used_at = ?, turns = ? WHERE id = ? AND state <> 'ended'"
        await self._database.write(lambda connection: connection.executemany(update, rows))

    async def change(self, row: SessionRow, request: Request | None, at: int) -> bool:
        """Keep the labels and the times that a session that lives has now, at a time in Unix milliseconds.

        Returns:
            whether it was changed: where the same request did that before, it stays as it is.

        Raises:
            RequestIdReused: the same request id asked for something else.
        """

        def write(connection: Connection) -> bool:
            if requests.answered(connection, request) is not None:
                return False
            update = "UPDATE session SET idle_ms = ?, life_ms = ? WHERE id = ?"
            connection.execute(update, (row.idle_ms, row.life_ms, row.id))
            labels.put(connection, LABELS, row.id, row.labels)
            requests.answer(connection, request, row.id, at, thing=row.id)
            return True

        return await self._database.write(write)

    async def answered(self, request: Request | None) -> str | None:
        """Return what a request about a session was answered with before, as it was kept; None where it is new.

        Raises:
            RequestIdReused: the same request id asked for something else.
        """
        if request is None:
            return None
        return await self._database.read(lambda connection: requests.answered(connection, request))

    async def answer(self, session: str, request: Request, kept: str, at: int) -> None:
        """Keep what a request about a session is answered with."""
        await self._database.write(lambda connection: requests.answer(connection, request, kept, at, thing=session))

    async def forget_ended(self, before: int, most: int) -> int:
        """Forget up to `most` sessions that ended before a time (Unix milliseconds), and return how many that were."""
        return await self._database.write(
            lambda connection: _forget(connection, "ended_at < ? ORDER BY ended_at LIMIT ?", (before, most))
        )

    async def forget_some(self, tenant: str, most: int) -> int:
        """Forget up to `most` sessions of a tenant, and return how many that were."""
        return await self._database.write(
            lambda connection: _forget(connection, "tenant = ? ORDER BY id LIMIT ?", (tenant, most))
        )


def insert(connection: Connection, row: SessionRow, request: Request | None) -> None:
    """Keep a new session, and what asked for it."""
    values = (
        row.id, row.tenant, row.image, row.context, row.sub_model,
        *(getattr(row.budget, unit) for unit in UNITS),
        _limits.dump_json(row.limits).decode(), row.customer, row.snapshot, row.parent, row.created_at, row.used_at,
        row.turns, row.idle_ms, row.life_ms, row.state, row.stored,
        "" if row.end_reason is None else row.end_reason, row.end_message, row.ended_at,
    )  # fmt: skip
    connection.execute(f"INSERT INTO session ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608
    labels.put(connection, LABELS, row.id, row.labels)
    requests.answer(connection, request, row.id, row.created_at, thing=row.id)


def end(connection: Connection, session: str, how: End, used_at: int, turns: int) -> None:
    """Keep that a session has ended, and how. One that has ended stays as it is."""
    row = connection.execute("SELECT state FROM session WHERE id = ?", (session,)).fetchone()
    if row is None or row[0] == SessionState.ENDED:
        return
    connection.execute(
        "UPDATE session SET state = ?, end_reason = ?, end_message = ?, ended_at = ?, used_at = ?, turns = ?, "
        "stored = NULL WHERE id = ?",
        (move(SessionState(row[0]), SessionState.ENDED), how.reason, how.message, how.at, used_at, turns, session),
    )


def _forget(connection: Connection, which: str, values: Sequence[Any]) -> int:
    """Forget sessions, and the requests about them. Their labels stay, for what they spent."""
    query = f"SELECT tenant, id FROM session WHERE {which}"  # noqa: S608
    found = connection.execute(query, values).fetchall()
    for tenant, session in found:
        requests.forget_about(connection, tenant, session)
        connection.execute("DELETE FROM session WHERE id = ?", (session,))
    return len(found)


def ended(row: SessionRow, how: End) -> SessionRow:
    """Return the row as it is after its end."""
    return replace(
        row,
        state=SessionState.ENDED,
        stored=None,
        end_reason=how.reason,
        end_message=how.message,
        ended_at=how.at,
    )


def find(connection: Connection, sessions: Sequence[str]) -> dict[str, SessionRow]:
    """Return sessions by their ids, of any tenant."""
    return {row.id: row for row in _rows(connection, f"id IN ({', '.join('?' * len(sessions))})", sessions)}


def _rows(connection: Connection, which: str, values: Sequence[Any]) -> list[SessionRow]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM session WHERE {which}", values).fetchall()  # noqa: S608
    named = labels.of(connection, LABELS, [row[0] for row in rows])
    return [_row(row, named[row[0]]) for row in rows]


def _row(row: tuple[Any, ...], named: Mapping[str, str]) -> SessionRow:
    id, tenant, image, context, sub_model, *rest = row
    budget, rest = Limit(*rest[: len(UNITS)]), rest[len(UNITS) :]
    limits, customer, snapshot, parent, created_at, used_at, turns, idle_ms, life_ms, state, stored, *end = rest
    reason, message, ended_at = end
    return SessionRow(
        id, tenant, image, context, sub_model, budget, _limits.validate_json(limits), created_at, used_at, customer,
        snapshot, parent, turns, idle_ms, life_ms, SessionState(state), stored, EndReason(reason) if reason else None,
        message, ended_at, named,
    )  # fmt: skip


def _where(asked: SessionFilter, before: str | None) -> Conditions:
    found = asked.conditions("session", before)
    if asked.states:
        found.must(f"state IN ({', '.join('?' * len(asked.states))})", *sorted(asked.states))
    return found


_limits = TypeAdapter(Limits)

_COLUMNS = (
    f"id, tenant, image, context, sub_model, {', '.join(f'limit_{unit}' for unit in UNITS)}, limits, customer, "
    "snapshot, parent, created_at, used_at, turns, idle_ms, life_ms, state, stored, end_reason, end_message, ended_at"
)
