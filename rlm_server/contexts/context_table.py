"""The rows of contexts and contents in the database.

A content is the files of one text, or of one sequence of documents. A context is a content under a name, with labels,
and with an id of its own. Equal contents of one tenant are one, however many contexts are of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlm_server.clock import now
from rlm_server.contexts.local_files import WrittenFile, WrittenFiles
from rlm_server.database import labels, requests
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request
from sandbox.corpora.corpus import Kind

LABELS = "context"
"""The kind of contexts' labels."""
DELETED_AT_ONCE = 200
"""Contexts that are deleted in one transaction, so that other writes get their turn."""


class ContextUnknown(Exception):
    """The tenant has no such context, or no longer."""

    def __init__(self, context: str) -> None:
        super().__init__(f"there is no context {context!r}")
        self.context = context


@dataclass(frozen=True, slots=True)
class Content:
    """The files that contexts of one tenant share. `size_bytes` counts UTF-8, `characters` what `len()` gives in the
    guest. Contents with the same `identity` are one.
    """

    id: str
    tenant: str
    identity: str
    kind: Kind
    sha256: str
    size_bytes: int
    characters: int
    documents: int
    files: WrittenFiles


@dataclass(frozen=True, slots=True)
class Context:
    """A stored context. `number` is its place in the list of contexts. `created_at` is in Unix milliseconds."""

    id: str
    tenant: str
    name: str
    labels: Mapping[str, str]
    created_at: int
    content: Content
    number: int = field(default=0, compare=False)
    run: str | None = field(default=None, compare=False)
    """The run that it goes with, empty before that is made. It is in no list."""


@dataclass(frozen=True, slots=True)
class ContextFilter:
    """Which of a tenant's contexts are listed. All that is given must hold; times are Unix milliseconds, `until`
    excluded. An empty name is any.
    """

    tenant: str
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class ContentUse:
    """How many bytes the files of a context have, and when it was last used, as its row says, in Unix milliseconds."""

    context_id: str
    content_id: str
    used_at: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion of contexts left: the `contents` that are no context's any more, and perhaps `more` to delete."""

    contents: tuple[str, ...]
    more: bool = False


class ContextTable:
    """The rows. That of a content which is no context's any more stays, marked, until its files are gone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- contexts ------------------------------------------------------------------------------------------------

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """Return a tenant's context, or None: another tenant's does not exist for this one."""
        return await self._database.read(lambda db: _find(db, tenant, context_id))

    async def check(self, context: Context) -> None:
        """Make sure that a context is still there.

        Raises:
            ContextUnknown: it was deleted.
        """
        await self._database.read(lambda db: _get(db, context.tenant, context.id))

    async def page(self, asked: ContextFilter, before: int | None, most: int) -> list[Context]:
        """Return a tenant's contexts, the newest first: those whose number is below `before`, or all."""
        where, values = _where(asked, before)
        where += " ORDER BY context.number DESC LIMIT ?"
        return await self._database.read(lambda db: _contexts(db, where, (*values, most)))

    async def uses(self) -> list[ContentUse]:
        """Return the size and the last use of every tenant's contexts."""
        return await self._database.read(lambda db: [ContentUse(*row) for row in db.execute(_USES)])

    async def insert(self, context: Context, upload: str) -> Context | None:
        """Write the row of the context that an upload became, of a content that is there, and return it as it is now.

        None where the content went meanwhile.
        """
        return await self._database.write(lambda db: _insert_of_known(db, context, upload))

    async def insert_new(self, context: Context, upload: str, damaged: str = "") -> Context:
        """Write the rows of the context that an upload became and of its content, and return it as it is now.

        Where the tenant has the same content already, the context is of that. The row of the new content is then marked
        from the start, for its files to be removed. But a content that is found `damaged` makes way to the new one.
        """
        return await self._database.write(lambda db: _insert_new(db, context, upload, damaged))

    async def update(self, tenant: str, context_id: str, change: Mapping[str, Any], request: Request | None) -> Context:
        """Change a context's `name` or `labels`, or both.

        Raises:
            ContextUnknown: the tenant has none of this id.
            RequestIdReused: the request asked for something else before.
        """
        return await self._database.write(lambda db: _update(db, tenant, context_id, change, request))

    async def delete(self, tenant: str, context_id: str, request: Request | None) -> Deleted:
        """Delete a tenant's context.

        Raises:
            ContextUnknown: the tenant has none of this id.
            RequestIdReused: the request asked for something else before.
        """
        return await self._database.write(lambda db: _delete_one(db, tenant, context_id, request))

    async def delete_unused_since(self, tenant: str, at: int) -> Deleted:
        """Delete some of a tenant's contexts that were last used before a time (Unix milliseconds)."""
        return await self._database.write(partial(_delete, where="tenant = ? AND used_at < ?", values=(tenant, at)))

    async def delete_passed(self, at: int) -> Deleted:
        """Delete some contexts that go with a run which has ended, or was not made since before `at` (milliseconds)."""
        return await self._database.write(partial(_delete, where=_PASSED, values=(at,)))

    async def give_to_run(self, context_id: str, run: str) -> None:
        """Have a context go with a run."""
        await self._database.write(lambda db: db.execute("UPDATE context SET run = ? WHERE id = ?", (run, context_id)))

    async def delete_all(self, tenant: str) -> Deleted:
        """Delete some of a tenant's contexts, whichever."""
        return await self._database.write(partial(_delete, where="tenant = ?", values=(tenant,)))

    async def tenants(self) -> list[str]:
        """Return the tenants that have contexts."""
        query = "SELECT DISTINCT tenant FROM context"
        return await self._database.read(lambda db: [tenant for (tenant,) in db.execute(query).fetchall()])

    async def count(self, tenant: str) -> int:
        """Return how many contexts a tenant has."""
        query = "SELECT count(*) FROM context WHERE tenant = ?"
        return await self._database.read(lambda db: int(db.execute(query, (tenant,)).fetchone()[0]))

    async def record_use(self, used: dict[str, int]) -> None:
        """Write when contexts were last used, in Unix milliseconds."""
        rows = [(at, context_id) for context_id, at in used.items()]
        await self._database.write(lambda db: db.executemany("UPDATE context SET used_at = ? WHERE id = ?", rows))

    # ---- contents ------------------------------------------------------------------------------------------------

    async def content(self, tenant: str, identity: str) -> Content | None:
        """Return the tenant's content of an identity, if there is one."""
        return await self._database.read(lambda db: _content_of(db, tenant, identity))

    async def has_content(self, content_id: str) -> bool:
        """Whether there is a row of this content, marked as deleted or not."""
        query = "SELECT count(*) FROM content WHERE id = ?"
        (count,) = await self._database.read(lambda db: db.execute(query, (content_id,)).fetchone())
        return bool(count)

    async def all_contents(self) -> dict[str, bool]:
        """Return the id of every content, and whether it is marked as deleted."""
        query = "SELECT id, deleted_at IS NOT NULL FROM content"
        return await self._database.read(lambda db: dict(db.execute(query).fetchall()))

    async def remove_content(self, content_id: str) -> None:
        """Remove the row of a content whose files are gone."""
        await self._database.write(lambda db: db.execute("DELETE FROM content WHERE id = ?", (content_id,)))


_CONTENT = (
    "id", "tenant", "identity", "kind", "sha256", "size_bytes", "characters", "documents", "texts_size",
    "texts_mtime_ns", "texts_sha256", "index_size", "index_mtime_ns", "index_sha256",
)  # fmt: skip
_OF_CONTENT = ", ".join(f"content.{column}" for column in _CONTENT)
_CONTEXTS = (
    "SELECT context.number, context.id, context.tenant, context.name, context.created_at, "  # noqa: S608
    f"{_OF_CONTENT} FROM context JOIN content ON content.id = context.content WHERE "
)
_USES = """
SELECT context.id, content.id, context.used_at, content.texts_size + content.index_size
FROM context JOIN content ON content.id = context.content
"""
_PASSED = """
run IS NOT NULL AND (run <> '' OR created_at < ?)
AND NOT EXISTS (SELECT 1 FROM run AS going WHERE going.id = context.run AND going.ended_at IS NULL)
"""


def _contexts(db: Connection, where: str, values: tuple[object, ...]) -> list[Context]:
    rows = db.execute(_CONTEXTS + where, values).fetchall()
    labelled = labels.of(db, LABELS, [row[1] for row in rows])
    return [
        Context(id, tenant, name, labelled[id], created_at, _content(content), number)
        for number, id, tenant, name, created_at, *content in rows
    ]


def _find(db: Connection, tenant: str, context_id: str) -> Context | None:
    found = _contexts(db, "context.tenant = ? AND context.id = ?", (tenant, context_id))
    return next(iter(found), None)


def _get(db: Connection, tenant: str, context_id: str) -> Context:
    found = _find(db, tenant, context_id)
    if found is None:
        raise ContextUnknown(context_id)
    return found


def _where(asked: ContextFilter, before: int | None) -> tuple[str, list[Any]]:
    conditions, values = ["context.tenant = ?", "context.run IS NULL"], [asked.tenant]
    bounds: list[Any] = []
    for condition, value in (
        ("context.name = ?", asked.name or None),
        ("context.created_at >= ?", asked.since),
        ("context.created_at < ?", asked.until),
        ("context.number < ?", before),
    ):
        if value is not None:
            conditions.append(condition)
            bounds.append(value)
    labelled, named = labels.having((LABELS,), "context.id", asked.labels)
    return " AND ".join([*conditions, labelled]), [*values, *bounds, *named]


def _content(row: list[Any]) -> Content:
    content_id, tenant, identity, kind, sha256, size, characters, documents, *files = row
    written = WrittenFiles(WrittenFile(*files[:3]), WrittenFile(*files[3:]))
    return Content(content_id, tenant, identity, Kind(kind), sha256, size, characters, documents, written)


def _content_of(db: Connection, tenant: str, identity: str) -> Content | None:
    query = f"SELECT {_OF_CONTENT} FROM content WHERE tenant = ? AND identity = ? AND deleted_at IS NULL"  # noqa: S608
    row = db.execute(query, (tenant, identity)).fetchone()
    return _content(list(row)) if row else None


def _insert_of_known(db: Connection, new: Context, upload: str) -> Context | None:
    known = _content_of(db, new.tenant, new.content.identity)
    if known is None or known.id != new.content.id:
        return None
    return _insert(db, new, upload)


def _insert_new(db: Connection, new: Context, upload: str, damaged: str) -> Context:
    known = _content_of(db, new.tenant, new.content.identity)
    replaced = known if known is not None and known.id == damaged else None
    if replaced:
        db.execute("UPDATE content SET deleted_at = ? WHERE id = ?", (now(), replaced.id))
    shared = known if known is not None and not replaced else None
    _insert_content(db, new.content, now() if shared else None)
    if replaced:
        db.execute("UPDATE context SET content = ? WHERE content = ?", (new.content.id, replaced.id))
    return _insert(db, replace(new, content=shared or new.content), upload)


def _insert_content(db: Connection, new: Content, deleted_at: int | None) -> None:
    texts, index = new.files.texts, new.files.index
    values = (
        new.id, new.tenant, new.identity, int(new.kind), new.sha256, new.size_bytes, new.characters, new.documents,
        texts.size, texts.mtime_ns, texts.sha256, index.size, index.mtime_ns, index.sha256, deleted_at,
    )  # fmt: skip
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO content ({', '.join(_CONTENT)}, deleted_at) VALUES ({marks})", values)  # noqa: S608


def _insert(db: Connection, new: Context, upload: str) -> Context:
    (number,) = db.execute(
        "INSERT INTO context (id, tenant, content, name, created_at, used_at, run) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "RETURNING number",
        (new.id, new.tenant, new.content.id, new.name, new.created_at, new.created_at, new.run),
    ).fetchone()
    labels.put(db, LABELS, new.id, new.labels)
    # Only an upload with a request id is remembered.
    db.execute("DELETE FROM upload WHERE id = ? AND request_id IS NULL", (upload,))
    db.execute("UPDATE upload SET context = ?, changed_at = ? WHERE id = ?", (new.id, now(), upload))
    return replace(new, number=number)


def _update(
    db: Connection, tenant: str, context_id: str, change: Mapping[str, Any], request: Request | None
) -> Context:
    if requests.answered(db, request) is None:
        before = _get(db, tenant, context_id)
        after = replace(before, **change)
        db.execute("UPDATE context SET name = ? WHERE id = ?", (after.name, context_id))
        if after.labels != before.labels:
            labels.put(db, LABELS, context_id, after.labels)
        requests.answer(db, request, context_id, now(), thing=context_id)
    return _get(db, tenant, context_id)


def _delete_one(db: Connection, tenant: str, context_id: str, request: Request | None) -> Deleted:
    if requests.answered(db, request) is not None:
        return Deleted(())
    _get(db, tenant, context_id)
    deleted = _delete(db, "tenant = ? AND id = ?", (tenant, context_id))
    requests.answer_deletion(db, request, now())
    return deleted


def _delete(db: Connection, where: str, values: tuple[object, ...]) -> Deleted:
    """Delete up to `DELETED_AT_ONCE` contexts, and mark the contents that are left without any."""
    query = f"SELECT id, tenant, content FROM context WHERE {where} LIMIT ?"  # noqa: S608
    rows = db.execute(query, (*values, DELETED_AT_ONCE)).fetchall()
    for context_id, tenant, _ in rows:
        db.execute("DELETE FROM upload WHERE context = ?", (context_id,))
        db.execute("DELETE FROM context WHERE id = ?", (context_id,))
        labels.forget(db, (LABELS,), (context_id,))
        requests.forget_about(db, tenant, context_id)
    left: list[str] = []
    for content_id in {content for _, _, content in rows}:
        (contexts,) = db.execute("SELECT count(*) FROM context WHERE content = ?", (content_id,)).fetchone()
        if not contexts:
            db.execute("UPDATE content SET deleted_at = ? WHERE id = ?", (now(), content_id))
            left.append(content_id)
    return Deleted(tuple(left), more=len(rows) == DELETED_AT_ONCE)
