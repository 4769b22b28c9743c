"""What is kept of snapshots besides their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlm_server.database import labels, requests
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.listing import Conditions, place
from rlm_server.database.requests import Request

LABELS = "snapshot"
"""The kind of snapshots' labels."""


class TooManySnapshots(Exception):
    """The tenant has as many snapshots as it may; the message names the limit."""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot as it is kept. `session` is None where it was imported. `created_at` is in Unix milliseconds."""

    id: str
    tenant: str
    session: str | None
    image: str
    context: str | None
    name: str
    size_bytes: int
    created_at: int
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands in a list: later ones have a lesser one."""
        return place(self.created_at, self.id)


@dataclass(frozen=True, slots=True)
class SnapshotFilter:
    """Which of a tenant's snapshots are listed. All that is given must hold; `until` is excluded."""

    tenant: str
    session: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None


class SnapshotTable:
    """The rows of snapshots. What was written is durable when the call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, snapshot: str) -> SnapshotRow | None:
        """Return a tenant's snapshot, or None: another tenant's does not exist for this one."""
        found = await self._database.read(
            lambda connection: _rows(connection, "tenant = ? AND id = ?", (tenant, snapshot))
        )
        return found[0] if found else None

    async def by_request(self, request: Request | None) -> SnapshotRow | None:
        """Return the snapshot that a request made, if one did.

        Raises:
            RequestIdReused: it asked for another then.
        """
        if request is None:
            return None

        def read(connection: Connection) -> SnapshotRow | None:
            made = requests.answered(connection, request)
            found = _rows(connection, "id = ?", (made,)) if made is not None else []
            return found[0] if found else None

        return await self._database.read(read)

    async def knows(self, tenant: str, session: str) -> bool:
        """Whether a tenant has a session, or has snapshots of one that is forgotten."""
        of_session = "SELECT 1 FROM session WHERE tenant = ? AND id = ?"
        of_snapshots = "SELECT 1 FROM snapshot WHERE tenant = ? AND session = ?"
        query, values = f"{of_session} UNION {of_snapshots} LIMIT 1", (tenant, session) * 2
        return await self._database.read(lambda connection: connection.execute(query, values).fetchone() is not None)

    async def count(self, tenant: str) -> int:
        """Return how many snapshots a tenant has."""
        return await self._database.read(lambda connection: _count(connection, tenant))

    async def names(self) -> list[tuple[str, str]]:
        """Return the ids of all tenants' snapshots, each with its tenant."""
        query = "SELECT id, tenant FROM snapshot"
        return await self._database.read(lambda connection: list(connection.execute(query).fetchall()))

    async def page(self, asked: SnapshotFilter, before: str | None, most: int) -> list[SnapshotRow]:
        """Return up to `most` snapshots, the newest first, from the one after the place `before` on."""

        def read(connection: Connection) -> list[SnapshotRow]:
            found = _where(asked, before)
            order = "ORDER BY created_at DESC, id DESC LIMIT ?"
            return _rows(connection, f"{found.where} {order}", (*found.values, most))

        return await self._database.read(read)

    async def insert(self, row: SnapshotRow, request: Request | None, most: int) -> None:
        """Keep a new snapshot, and what asked for it. The tenant may have `most`.

        Raises:
            TooManySnapshots: it has as many.
        """
        values = (
            row.id, row.tenant, row.session, row.image, row.context, row.name, row.id, row.size_bytes, row.created_at,
        )  # fmt: skip

        def write(connection: Connection) -> None:
            if _count(connection, row.tenant) >= most:
                raise TooManySnapshots(f"a tenant may have {most} snapshots (tenant_snapshots)")
            connection.execute(
                "INSERT INTO snapshot (id, tenant, session, image, context, name, stored, size_bytes, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            labels.put(connection, LABELS, row.id, row.labels)
            requests.answer(connection, request, row.id, row.created_at, thing=row.id)

        await self._database.write(write)

    async def delete(self, tenant: str, snapshot: str, request: Request | None, at: int) -> bool:
        """Forget a snapshot, and say whether there was one, or this request has forgotten it before.

        Raises:
            RequestIdReused: the request id was sent with another content.
        """

        def write(connection: Connection) -> bool:
            if requests.answered(connection, request) is not None:
                return True
            if not _rows(connection, "tenant = ? AND id = ?", (tenant, snapshot)):
                return False
            _forget(connection, tenant, snapshot)
            requests.answer_deletion(connection, request, at)
            return True

        return await self._database.write(write)

    async def some(self, tenant: str, most: int) -> list[str]:
        """Return the ids of up to `most` of a tenant's snapshots."""
        query = "SELECT id FROM snapshot WHERE tenant = ? LIMIT ?"
        return await self._database.read(
            lambda connection: [id for (id,) in connection.execute(query, (tenant, most)).fetchall()]
        )


def _count(connection: Connection, tenant: str) -> int:
    (count,) = connection.execute("SELECT count(*) FROM snapshot WHERE tenant = ?", (tenant,)).fetchone()
    return int(count)


def _forget(connection: Connection, tenant: str, snapshot: str) -> None:
    requests.forget_about(connection, tenant, snapshot)
    labels.forget(connection, (LABELS,), [snapshot])
    connection.execute("DELETE FROM snapshot WHERE id = ?", (snapshot,))


def _rows(connection: Connection, which: str, values: Sequence[Any]) -> list[SnapshotRow]:
    columns = "id, tenant, session, image, context, name, size_bytes, created_at"
    rows = connection.execute(f"SELECT {columns} FROM snapshot WHERE {which}", values).fetchall()  # noqa: S608
    named = labels.of(connection, LABELS, [row[0] for row in rows])
    return [_row(*row, labels=named[row[0]]) for row in rows]


def _row(*values: Any, labels: Mapping[str, str]) -> SnapshotRow:
    id, tenant, session, image, context, name, size_bytes, created_at = values
    return SnapshotRow(id, tenant, session, image, context, name, size_bytes, created_at, labels)


def _where(asked: SnapshotFilter, before: str | None) -> Conditions:
    found = Conditions()
    found.must("tenant = ?", asked.tenant)
    if asked.session:
        found.must("session = ?", asked.session)
    found.made("snapshot", asked.since, asked.until)
    found.after("snapshot", before)
    if asked.labels:
        condition, named = labels.having((LABELS,), "snapshot.id", asked.labels)
        found.must(condition, *named)
    return found
