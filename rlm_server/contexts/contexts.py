"""Contexts: documents kept in the form the guest maps, a row and a folder for each, every tenant's its own.

The order of things is what keeps them whole: files are durable before their row is written, a context is nobody's
before its files go, and its row goes last. What a process that died left between two steps, the next start undoes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from rlm_server.clock import now
from rlm_server.contexts.lineage import Lineage
from rlm_server.contexts.local_files import ContextDamaged, Files, LocalContextFiles, Written
from rlm_server.contexts.object_store import ObjectStore
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus, Kind

log = logging.getLogger(__name__)

UPKEEP_SECONDS = 300.0
"""Between two looks at what has become too old, or too much."""
REMOVAL_SECONDS = 10.0
"""For removals under way when the server stops; the next start does what is left."""
_DAY = 86_400_000


class ContextGone(Exception):
    """The context was deleted."""

    def __init__(self, context: str) -> None:
        super().__init__(f"there is no context {context!r}")
        self.context = context


@dataclass(frozen=True, slots=True)
class Context:
    """A stored context. `size_bytes` counts UTF-8, `characters` what `len()` gives in the guest.

    `number` is its place in the list of contexts, and `identity` what makes another upload the same context.
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
    files: Files
    created_at: int
    number: int = field(default=0, compare=False)


class Contexts:
    """The contexts of every tenant; each sees only its own.

    An async context manager: it begins with what a former process left undone. All that holds a context must have let
    go of it before the end.
    """

    def __init__(
        self,
        database: Database,
        local_files: LocalContextFiles,
        *,
        objects: ObjectStore | None = None,
        cache_bytes: int = 1 << 62,
        retention_days: float = 0,
    ) -> None:
        """`cache_bytes` is for the local files where `objects` keep the contexts. `retention_days` 0 means for ever."""
        self.local_files = local_files
        self._database, self._objects = database, objects
        self._cache_bytes, self._retention_ms = cache_bytes, round(retention_days * _DAY)
        self._holds: Counter[str] = Counter()
        self._used: dict[str, int] = {}  # when, where the row does not know it yet
        self._deleted: set[str] = set()  # their files are still there
        self._removing: set[str] = set()
        self._bringing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tracing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stack = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._upkeep: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        rows = await self._rows("SELECT id, deleted_at FROM context")
        self._deleted = {context for context, deleted_at in rows if deleted_at is not None}
        known = {context for context, _ in rows}
        for name in await asyncio.to_thread(self.local_files.names) - known:
            await asyncio.to_thread(self.local_files.clear, name)
        await self._stack.enter_async_context(self._group)
        self._remove_deleted()
        self._upkeep = self._group.create_task(self._keep_up())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._removals:
            await asyncio.wait(self._removals, timeout=REMOVAL_SECONDS)
        for task in (self._upkeep, *self._removals):
            if task:
                task.cancel()
        await self._stack.__aexit__(None, None, None)
        await self._note_use()

    # ---- what there is -------------------------------------------------------------------------------------------

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """Return a tenant's context, or None: another tenant's does not exist for this one."""
        return await self._one("tenant = ? AND id = ?", tenant, context_id)

    async def same(self, tenant: str, identity: str) -> Context | None:
        """Return the tenant's context of the same content, if there is one."""
        return await self._one("tenant = ? AND identity = ?", tenant, identity)

    async def page(self, tenant: str, before: int | None, most: int) -> list[Context]:
        """Return a tenant's contexts, the newest first: those whose number is below `before`, or all."""
        asked = (tenant, before if before is not None else 1 << 62, most)
        where = "tenant = ? AND number < ? ORDER BY number DESC LIMIT ?"
        return await self._database.read(lambda db: [_context(row) for row in db.execute(_LIVE + where, asked)])

    async def _one(self, where: str, *values: str) -> Context | None:
        return await self._database.read(lambda db: _first(db, where, values))

    async def _rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda db: db.execute(question, values).fetchall())

    # ---- reading -------------------------------------------------------------------------------------------------

    async def hold(self, context: Context) -> None:
        """Keep a context's files until `release`, even where it is deleted meanwhile; they are here and whole.

        Raises:
            ContextGone: it was deleted before.
            ContextDamaged: a file is not what was written.
            ObjectsUnavailable: the object store, where it is, failed.
        """
        self._holds[context.id] += 1
        try:
            await self._check_is_there(context)
            await self._bring(context)
            self.corpus(context)
        except BaseException:
            self.release(context)
            raise

    async def _check_is_there(self, context: Context) -> None:
        if await self.get(context.tenant, context.id) is None:
            raise ContextGone(context.id)

    def release(self, context: Context) -> None:
        """End a hold."""
        self._used[context.id] = now()
        self._holds[context.id] -= 1
        if not self._holds[context.id]:
            del self._holds[context.id]
            self._remove_deleted()

    @asynccontextmanager
    async def held(self, context: Context) -> AsyncIterator[Corpus]:
        """Hold a context and yield its corpus; raises as `hold` does."""
        await self.hold(context)
        try:
            yield self.corpus(context)
        finally:
            self.release(context)

    def corpus(self, context: Context) -> Corpus:
        """Return the corpus of a context that is held.

        Raises:
            ContextDamaged: a file is not what was written, as far as its size and time tell.
        """
        return self.local_files.corpus(context.id, context.files)

    async def lineage(self, context: Context) -> Lineage:
        """Return what finds parts of a held context in prompts; made when it is first wanted, and kept beside it.

        Raises:
            ContextDamaged: as `corpus` does.
            OSError: it cannot be written.
        """
        lock = self._tracing.setdefault(context.id, asyncio.Lock())
        folder = self.local_files.path(context.id, "lineage")
        async with lock:
            await asyncio.to_thread(folder.mkdir, exist_ok=True)
            return await asyncio.to_thread(Lineage.open, self.corpus(context), folder)

    async def _bring(self, context: Context) -> None:
        """Fill the local folder again where the object store alone has the context, or has it whole."""
        if self._objects is None:
            return
        lock = self._bringing.setdefault(context.id, asyncio.Lock())
        async with lock:
            if self.local_files.has(context.id):
                if self._holds[context.id] > 1 or self._is_whole(context):
                    return
                await self._clear(context.id)
            await self._objects.fetch(context.id, context.files, self.local_files)
            await self._trim()

    def _is_whole(self, context: Context) -> bool:
        try:
            self.corpus(context)
        except ContextDamaged:
            return False
        return True

    # ---- keeping -------------------------------------------------------------------------------------------------

    async def keep(self, context: Context, upload: str) -> Context:
        """Keep a context whose files are local, as what an upload became; return it, or the one of the same
        content that was there first.

        Raises:
            ObjectsUnavailable: the object store failed; what it has of the context is taken away by `undo`.
        """
        try:
            if self._objects:
                await self._objects.put(context.id, self.local_files)
            kept = await run_to_completion(self._database.write(lambda db: _keep(db, context, upload)))
        except Exception:
            await self._clear(context.id)
            raise
        self._used[kept.id] = now()
        if kept.id != context.id:
            self._deleted.add(context.id)
            self._remove_deleted()
        elif self._objects:
            await self._trim()
        return kept

    async def undo(self, context_id: str) -> None:
        """Take away what there is of a context that was never kept; one that is kept stays.

        Raises:
            ObjectsUnavailable: the object store failed.
        """
        if not await self._rows("SELECT 1 FROM context WHERE id = ?", context_id):
            await self._erase(context_id)

    async def _erase(self, context_id: str) -> None:
        await self._clear(context_id)
        if self._objects:
            await self._objects.remove(context_id)

    async def adopt(self, context: Context, upload: str) -> Context | None:
        """Note that an upload became a context that was there; None where that was deleted meanwhile."""
        kept = await self._database.write(lambda db: _adopt(db, context, upload))
        if kept:
            self._used[kept.id] = now()
        return kept

    # ---- deleting ------------------------------------------------------------------------------------------------

    async def delete(self, tenant: str, context_id: str) -> bool:
        """Take a tenant's context away from everybody; return whether it was there. Its files go when none holds it."""
        return await self._delete("tenant = ? AND id = ?", tenant, context_id) > 0

    async def _delete(self, where: str, *values: object) -> int:
        deleted = await run_to_completion(self._database.write(lambda db: _delete(db, where, values)))
        self._deleted.update(deleted)
        self._remove_deleted()
        return len(deleted)

    def _remove_deleted(self) -> None:
        """Begin to remove what is deleted and held by nobody."""
        for context_id in self._deleted - self._removing:
            if not self._holds[context_id]:
                self._removing.add(context_id)
                task = self._group.create_task(self._remove(context_id))
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _remove(self, context_id: str) -> None:
        try:
            await self._erase(context_id)
            await self._database.write(lambda db: _forget(db, context_id))
            self._deleted.discard(context_id)
            self._used.pop(context_id, None)
        except Exception:
            log.exception("the files of %s could not be removed; it is tried again later", context_id)
        finally:
            self._removing.discard(context_id)

    async def _clear(self, context_id: str) -> None:
        gone = self.local_files.take_away(context_id)
        if gone:
            await run_to_completion(asyncio.to_thread(self.local_files.clear, gone.name))

    # ---- upkeep --------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._note_use()
                await self._forget_unused()
                await self._trim()
                self._remove_deleted()
            except Exception:
                log.exception("the contexts could not be kept up; it is tried again later")
            await asyncio.sleep(min(UPKEEP_SECONDS, self._retention_ms / 1000 or UPKEEP_SECONDS))

    async def _note_use(self) -> None:
        used = {**self._used, **dict.fromkeys(self._holds, now())}
        if used:
            await self._database.write(lambda db: _note_use(db, used))
        for context_id, at in used.items():
            if self._used.get(context_id) == at:
                del self._used[context_id]

    async def _forget_unused(self) -> None:
        if self._retention_ms:
            await self._delete("used_at < ?", now() - self._retention_ms)

    async def _trim(self) -> None:
        """Where the object store has everything, keep only so much here: what was used last, and what is held."""
        if self._objects is None:
            return
        rows = await self._rows(_SIZES)
        here = await asyncio.to_thread(self.local_files.names)
        local = sorted((self._used.get(name, at), name, size) for name, at, size in rows if name in here)
        over = sum(size for _, _, size in local) - self._cache_bytes
        for _, name, size in local:
            if over > 0 and not self._holds[name]:
                over -= size
                await self._clear(name)


_COLUMNS = """id, tenant, identity, name, kind, sha256, size_bytes, characters, documents, texts_size, texts_mtime_ns,
texts_sha256, index_size, index_mtime_ns, index_sha256, created_at"""
_LIVE = f"SELECT number, {_COLUMNS} FROM context WHERE deleted_at IS NULL AND "  # noqa: S608
_SIZES = "SELECT id, used_at, texts_size + index_size FROM context WHERE deleted_at IS NULL"


def _first(db: Connection, where: str, values: tuple[object, ...]) -> Context | None:
    row = db.execute(_LIVE + where, values).fetchone()
    return _context(row) if row else None


def _context(row: tuple[Any, ...]) -> Context:
    number, context_id, tenant, identity, name, kind, sha256, size, characters, documents, *files, created_at = row
    written = Files(Written(*files[:3]), Written(*files[3:]))
    return Context(
        context_id, tenant, identity, name, Kind(kind), sha256, size, characters, documents, written, created_at, number
    )


def _keep(db: Connection, new: Context, upload: str) -> Context:
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
    _became(db, upload, kept.id)
    return kept


def _adopt(db: Connection, context: Context, upload: str) -> Context | None:
    known = _first(db, "tenant = ? AND id = ?", (context.tenant, context.id))
    if known:
        _became(db, upload, known.id)
    return known


def _became(db: Connection, upload: str, context_id: str) -> None:
    """An upload is finished; only one with a request id is remembered."""
    db.execute("DELETE FROM upload WHERE id = ? AND request_id IS NULL", (upload,))
    db.execute("UPDATE upload SET context = ?, changed_at = ? WHERE id = ?", (context_id, now(), upload))


def _delete(db: Connection, where: str, values: tuple[object, ...]) -> list[str]:
    found = db.execute(f"SELECT id FROM context WHERE deleted_at IS NULL AND {where}", values).fetchall()  # noqa: S608
    for (context_id,) in found:
        db.execute("UPDATE context SET deleted_at = ? WHERE id = ?", (now(), context_id))
        db.execute("DELETE FROM upload WHERE context = ?", (context_id,))
    return [context_id for (context_id,) in found]


def _forget(db: Connection, context_id: str) -> None:
    db.execute("DELETE FROM context WHERE id = ?", (context_id,))


def _note_use(db: Connection, used: dict[str, int]) -> None:
    db.executemany("UPDATE context SET used_at = ? WHERE id = ?", [(at, context_id) for context_id, at in used.items()])
