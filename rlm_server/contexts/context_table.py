"""The rows of contexts in the database: what identifies each, what its files are, and when it was last used."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rlm_server.clock import now
from rlm_server.contexts.local_files import WrittenFile, WrittenFiles
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from sandbox.corpora.corpus import Kind


@dataclass(frozen=True, slots=True)
class Context:
    """A stored context. `size_bytes` counts UTF-8, `characters` what `len()` gives in the guest.

    `number` is its place in the list of contexts. Two uploads of one tenant with the same `identity` are one context.
    `created_at` is in Unix milliseconds.
    """

    id: str
    tenant: str
    identity: str
    name: str
    kind: Kind
    sha256: str
    size_bytes: int
    characters: int
    documents: int
    files: WrittenFiles
    created_at: int
    number: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How large a context's files are, in bytes, and when it was last used, as its row says, in Unix milliseconds."""

    context_id: str
    used_at: int
    size_bytes: int


class ContextTable:
    """The rows. A deleted context's row stays, marked, until its files are gone; `exists` and `all_ids` show it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """Return a tenant's context, or None: another tenant's does not exist for this one."""
        return await self._first("tenant = ? AND id = ?", tenant, context_id)

    async def same(self, tenant: str, identity: str) -> Context | None:
        """Return the tenant's context of the same content, if there is one."""
        return await self._first("tenant = ? AND identity = ?", tenant, identity)

    async def page(self, tenant: str, before: int | None, most: int) -> list[Context]:
        """Return a tenant's contexts, the newest first: those whose number is below `before`, or all."""
        values = (tenant, before if before is not None else 1 << 62, most)
        where = "tenant = ? AND number < ? ORDER BY number DESC LIMIT ?"
        return await self._database.read(lambda db: [_context(row) for row in db.execute(_LIVE + where, values)])

    async def exists(self, context_id: str) -> bool:
        """Whether there is a row of this id, deleted or not."""
        query = "SELECT count(*) FROM context WHERE id = ?"
        (count,) = await self._database.read(lambda db: db.execute(query, (context_id,)).fetchone())
        return bool(count)

    async def all_ids(self) -> dict[str, bool]:
        """Return the id of every row, and whether it is deleted."""
        return await self._database.read(lambda db: dict(db.execute(_IDS).fetchall()))

    async def sizes(self) -> list[ContextSize]:
        """Return the size of every tenant's contexts."""
        return await self._database.read(lambda db: [ContextSize(*row) for row in db.execute(_SIZES)])

    async def insert(self, context: Context, upload: str) -> Context:
        """Write the row of what an upload became, and return it as it is now.

        Where the tenant has the same content already, the new row is deleted from the start, for its files to be
        removed, and the older context is returned.
        """
        return await self._database.write(lambda db: _insert(db, context, upload))

    async def adopt(self, context: Context, upload: str) -> Context | None:
        """Note that an upload became a context that was there; None where that was deleted meanwhile."""
        return await self._database.write(lambda db: _adopt(db, context, upload))

    async def delete(self, tenant: str, context_id: str) -> list[str]:
        """Mark a tenant's context as deleted, and return its id; nothing where there was none."""
        return await self._delete("tenant = ? AND id = ?", tenant, context_id)

    async def delete_unused_since(self, tenant: str, at: int) -> list[str]:
        """Mark a tenant's contexts that were last used before a time (Unix milliseconds) as deleted; return the ids."""
        return await self._delete("tenant = ? AND used_at < ?", tenant, at)

    async def delete_all(self, tenant: str) -> list[str]:
        """Mark all of a tenant's contexts as deleted, and return the ids."""
        return await self._delete("tenant = ?", tenant)

    async def tenants(self) -> list[str]:
        """Return the tenants that have contexts."""
        query = "SELECT DISTINCT tenant FROM context WHERE deleted_at IS NULL"
        return await self._database.read(lambda db: [tenant for (tenant,) in db.execute(query).fetchall()])

    async def remove(self, context_id: str) -> None:
        """Remove a row whose files are gone."""
        await self._database.write(lambda db: _remove(db, context_id))

    async def record_use(self, used: dict[str, int]) -> None:
        """Write when contexts were last used, in Unix milliseconds."""
        await self._database.write(lambda db: _record_use(db, used))

    async def _first(self, where: str, *values: str) -> Context | None:
        return await self._database.read(lambda db: _first(db, where, values))

    async def _delete(self, where: str, *values: object) -> list[str]:
        return await self._database.write(lambda db: _delete(db, where, values))


_COLUMNS = """id, tenant, identity, name, kind, sha256, size_bytes, characters, documents, texts_size, texts_mtime_ns,
texts_sha256, index_size, index_mtime_ns, index_sha256, created_at"""
_LIVE = f"SELECT number, {_COLUMNS} FROM context WHERE deleted_at IS NULL AND "  # noqa: S608
_IDS = "SELECT id, deleted_at IS NOT NULL FROM context"
_SIZES = "SELECT id, used_at, texts_size + index_size FROM context WHERE deleted_at IS NULL"


def _first(db: Connection, where: str, values: tuple[object, ...]) -> Context | None:
    row = db.execute(_LIVE + where, values).fetchone()
    return _context(row) if row else None


def _context(row: tuple[Any, ...]) -> Context:
    number, context_id, tenant, identity, name, kind, sha256, size, characters, documents, *files, created_at = row
    written = WrittenFiles(WrittenFile(*files[:3]), WrittenFile(*files[3:]))
    return Context(
        context_id, tenant, identity, name, Kind(kind), sha256, size, characters, documents, written, created_at, number
    )


def _insert(db: Connection, new: Context, upload: str) -> Context:
    known = _first(db, "tenant = ? AND identity = ?", (new.tenant, new.identity))
    texts, index = new.files.texts, new.files.index
    values = (
        new.id, new.tenant, new.identity, new.name, int(new.kind), new.sha256, new.size_bytes, new.characters,
        new.documents, texts.size, texts.mtime_ns, texts.sha256, index.size, index.mtime_ns, index.sha256,
        new.created_at, new.created_at, now() if known else None,
    )  # fmt: skip
    marks = ", ".join("?" * len(values))
    (number,) = db.execute(
        f"INSERT INTO context ({_COLUMNS}, used_at, deleted_at) VALUES ({marks}) RETURNING number",  # noqa: S608
        values,
    ).fetchone()
    kept = known or replace(new, number=number)
    _finish_upload(db, upload, kept.id)
    return kept


def _adopt(db: Connection, context: Context, upload: str) -> Context | None:
    known = _first(db, "tenant = ? AND id = ?", (context.tenant, context.id))
    if known:
        _finish_upload(db, upload, known.id)
    return known


def _finish_upload(db: Connection, upload: str, context_id: str) -> None:
    """Note what an upload became; only one with a request id is remembered."""
    db.execute("DELETE FROM upload WHERE id = ? AND request_id IS NULL", (upload,))
    db.execute("UPDATE upload SET context = ?, changed_at = ? WHERE id = ?", (context_id, now(), upload))


def _delete(db: Connection, where: str, values: tuple[object, ...]) -> list[str]:
    rows = db.execute(f"SELECT id FROM context WHERE deleted_at IS NULL AND {where}", values).fetchall()  # noqa: S608
    for (context_id,) in rows:
        db.execute("UPDATE context SET deleted_at = ? WHERE id = ?", (now(), context_id))
        db.execute("DELETE FROM upload WHERE context = ?", (context_id,))
    return [context_id for (context_id,) in rows]


def _remove(db: Connection, context_id: str) -> None:
    db.execute("DELETE FROM context WHERE id = ?", (context_id,))


def _record_use(db: Connection, used: dict[str, int]) -> None:
    db.executemany("UPDATE context SET used_at = ? WHERE id = ?", [(at, context_id) for context_id, at in used.items()])
