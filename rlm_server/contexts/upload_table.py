"""The rows of uploads in the database: each upload's header, the context it became, and the tenants' quotas."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlm_server.contexts.spool import Header
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection


class ContextQuotaExceeded(Exception):
    """A tenant would exceed its quota. `unit` says of what."""

    def __init__(self, unit: str, limit: int, used: int, asked: int) -> None:
        super().__init__(
            f"{unit}: a tenant may have {limit}; {used} are in use or announced, {asked} more were asked for"
        )
        self.unit, self.limit, self.used, self.asked = unit, limit, used, asked


@dataclass(frozen=True, slots=True)
class UploadQuota:
    """What a tenant may have: bytes of contexts, uploads that are not finished, and contexts."""

    context_bytes: int
    uploads: int
    contexts: int


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload. `changed_at` is when it began or was finished, in Unix milliseconds. `context` is what it became."""

    id: str
    header: Header
    changed_at: int
    context: str | None

    @property
    def context_id(self) -> str:
        """The id that its context will have."""
        return "ctx_" + self.id

    @property
    def content_id(self) -> str:
        """The id that its content will have, where there is none like it: the same as its context's.

        It is fixed from the start, so that a half-made content can be found.
        """
        return self.context_id


class UploadTable:
    """The rows. A row with a request id stays as long as what it became, to answer a client that sends it again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, new_id: str, header: Header, at: int, quota: UploadQuota) -> UploadRow:
        """Return the row of the upload with this request id. Where there is none, insert one with the new id.

        `at` is when it begins, in Unix milliseconds. One that is refused, or known, does not wait for the writer.

        Raises:
            ContextQuotaExceeded: the tenant may not have a new one.
        """
        known = await self._database.read(lambda db: _known(db, header, quota))
        if known is not None:
            return known
        return await self._database.write(lambda db: _begin(db, new_id, header, at, quota))

    async def in_use(self, tenant: str) -> tuple[int, int]:
        """Return the bytes that a tenant's contexts and unfinished uploads have, and how many of the latter there are.

        What an upload announced counts, whether or not it has come.
        """
        return await self._database.read(lambda db: _in_use(db, tenant))

    async def by_request(self, tenant: str, request_id: str) -> UploadRow | None:
        """Return the upload of a request id, finished or not; None where the tenant has none."""
        return next(iter(await self._rows("tenant = ? AND request_id = ?", tenant, request_id)), None)

    async def unfinished(self) -> list[UploadRow]:
        """Return every tenant's uploads that have not become a context."""
        return await self._rows("context IS NULL")

    async def of_tenant(self, tenant: str) -> list[UploadRow]:
        """Return a tenant's uploads, finished or not."""
        return await self._rows("tenant = ?", tenant)

    async def resumable_ids(self) -> set[str]:
        """Return the ids of uploads that a stream may continue, also after a restart."""
        return {row.id for row in await self._rows("context IS NULL AND request_id IS NOT NULL")}

    async def is_unfinished(self, upload_id: str) -> bool:
        """Whether an upload has a row, and has not become a context."""
        return bool(await self._rows("id = ? AND context IS NULL", upload_id))

    async def remove(self, upload_id: str) -> None:
        """Remove a row."""
        await self._database.write(lambda db: _remove(db, upload_id))

    async def _rows(self, where: str, *values: str) -> list[UploadRow]:
        return await self._database.read(lambda db: [_row(row) for row in db.execute(_UPLOAD + where, values)])


_UPLOAD = (
    "SELECT id, tenant, request_id, name, size_bytes, sha256, documents, labels, changed_at, context FROM upload WHERE "
)
_IN_USE = """
SELECT coalesce(sum(size_bytes), 0), 0 FROM content WHERE tenant = ? AND deleted_at IS NULL
UNION ALL SELECT coalesce(sum(size_bytes), 0), count(*) FROM upload WHERE tenant = ? AND context IS NULL
"""


def _row(row: tuple[Any, ...]) -> UploadRow:
    upload_id, tenant, request_id, name, size, sha256, documents, labels, changed_at, context = row
    header = Header(tenant, request_id, name, size, sha256, documents, json.loads(labels))
    return UploadRow(upload_id, header, changed_at, context)


def _in_use(db: Connection, tenant: str) -> tuple[int, int]:
    (stored, _), (announced, uploads) = db.execute(_IN_USE, (tenant, tenant)).fetchall()
    return int(stored) + int(announced), int(uploads)


def _known(db: Connection, header: Header, quota: UploadQuota) -> UploadRow | None:
    """Return the row of the upload with this request id; None where there is none, and room for one."""
    known = db.execute(f"{_UPLOAD} tenant = ? AND request_id = ?", (header.tenant, header.request_id)).fetchone()
    if known:
        return _row(known)
    used, uploads = _in_use(db, header.tenant)
    (contexts,) = db.execute("SELECT count(*) FROM context WHERE tenant = ?", (header.tenant,)).fetchone()
    for unit, limit, have, asked in (
        ("context_bytes", quota.context_bytes, used, header.size_bytes),
        ("uploads", quota.uploads, uploads, 1),
        ("tenant_contexts", quota.contexts, contexts + uploads, 1),
    ):
        if have + asked > limit:
            raise ContextQuotaExceeded(unit, limit, have, asked)
    return None


def _begin(db: Connection, new_id: str, header: Header, at: int, quota: UploadQuota) -> UploadRow:
    known = _known(db, header, quota)
    if known is not None:
        return known
    db.execute(
        "INSERT INTO upload (id, tenant, request_id, name, size_bytes, sha256, documents, labels, changed_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (new_id, header.tenant, header.request_id, header.name, header.size_bytes, header.sha256, header.documents,
         json.dumps(dict(header.labels)), at),
    )  # fmt: skip
    return UploadRow(new_id, header, at, None)


def _remove(db: Connection, upload_id: str) -> None:
    db.execute("DELETE FROM upload WHERE id = ?", (upload_id,))
