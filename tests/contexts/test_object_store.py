"""Where an object store keeps the contexts, the local folder is a cache of it: filled again, checked and trimmed."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from rlm_server.contexts import context_table
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import ContextDamaged, Contexts
from rlm_server.contexts.local_files import LocalContextFiles
from rlm_server.contexts.object_store import ObjectStore, ObjectStoreUnavailable
from rlm_server.contexts.spool import Header
from rlm_server.contexts.upload_table import UploadQuota
from rlm_server.contexts.uploads import Uploads
from rlm_server.database.database import Database
from rlm_server.database.engine import DatabaseFullError
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.shares.shares import Shares
from rlm_server.tenants.tenants import Tenants

TEXT = "Grüße aus 東京\n" * 100


class Store:
    """A store in memory, and how often it was asked; it fails where it is told to."""

    def __init__(self) -> None:
        self.kept = MemoryStore()
        self.asked: list[tuple[str, str]] = []
        self.failing: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., object]:
        async def call(key: str, *given: object, **named: object) -> object:
            self.asked.append((name, key))
            if name in self.failing:
                raise GenericError("the store is down")
            return await getattr(self.kept, name)(key, *given, **named)

        return call

    @property
    def names(self) -> set[str]:
        return {str(found["path"]) for page in self.kept.list() for found in page}


class Life:
    """One life of the server's store of contexts."""

    def __init__(self, contexts: Contexts, uploads: Uploads, folder: Path) -> None:
        self.contexts, self.uploads, self.folder = contexts, uploads, folder

    async def upload(self, text: str, request_id: str | None = None) -> Context:
        data = text.encode()
        header = Header("tenant", request_id, "name", len(data), hashlib.sha256(data).hexdigest(), 0)
        begun = await self.uploads.begin(header)
        if isinstance(begun, Context):
            return begun
        async with begun as upload:
            upload.spool.add(upload.spool.received, data[upload.spool.received :])
            return await upload.finish()

    async def read(self, context: Context) -> str:
        async with self.contexts.pinned(context) as corpus:
            return corpus[0].read(0, context.content.characters)

    @property
    def here(self) -> set[str]:
        return {path.name for path in (self.folder / "contexts").iterdir()}


Lives = Callable[..., AbstractAsyncContextManager[Life]]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def life(tmp_path: Path, store: Store) -> Lives:
    """Begin a life with the same database and the same store."""

    @asynccontextmanager
    async def begin(cache_bytes: int = 1 << 30, used: Store | None = None) -> AsyncIterator[Life]:
        objects = ObjectStore(used or store)  # type: ignore[arg-type]
        async with await Database.open(tmp_path / "db.sqlite", MIGRATIONS) as database:
            await Tenants(database).ensure("tenant")
            local_files, shares = LocalContextFiles(tmp_path / "contexts"), Shares.of()
            async with (
                Contexts(database, local_files, shares.threads, objects=objects, cache_bytes=cache_bytes) as contexts,
                Uploads(
                    database,
                    tmp_path / "uploads",
                    contexts,
                    shares,
                    quota=lambda _: UploadQuota(1 << 40, 100, 100),
                    reserve_bytes=0,
                    rest_seconds=1000,
                ) as uploads,
            ):
                yield Life(contexts, uploads, tmp_path)

    return begin


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def objects_of(*contexts: Context) -> set[str]:
    return {f"{context.id}.{file}" for context in contexts for file in ("texts", "index")}


async def test_a_context_is_in_the_store_before_it_is_kept_and_goes_with_it(life: Lives, store: Store) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
        assert store.names == objects_of(context)
        assert await now.read(context) == TEXT
        assert ("get_async", f"{context.id}.texts") not in store.asked, "it is in the folder"
        await now.contexts.delete("tenant", context.id)
        await eventually(lambda: not store.names and not now.here)


async def test_a_deletion_removes_the_files_though_its_caller_gave_up(life: Lives, store: Store) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
        deletion = asyncio.create_task(now.contexts.delete("tenant", context.id))
        await asyncio.sleep(0)
        deletion.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deletion
        await eventually(lambda: not store.names and not now.here)


async def test_the_same_content_is_kept_once(life: Lives, store: Store) -> None:
    async with life() as now:
        kept = await asyncio.gather(*(now.upload(TEXT) for _ in range(5)))
        assert len({context.id for context in kept}) == 5
        ((content, shared),) = Counter(context.content.id for context in kept).items()
        assert shared == 5
        files = {f"{content}.texts", f"{content}.index"}
        await eventually(lambda: store.names == files and now.here == {content})
        for context in kept[1:]:
            await now.contexts.delete("tenant", context.id)
        assert await now.read(kept[0]) == TEXT
        assert (store.names, now.here) == (files, {content})
        await now.contexts.delete("tenant", kept[0].id)
        await eventually(lambda: not store.names and not now.here)


async def test_what_is_damaged_in_the_store_is_mended_by_the_next_upload(life: Lives, store: Store) -> None:
    async with life() as now:
        damaged = await now.upload(TEXT)
        shutil.rmtree(now.folder / "contexts" / damaged.id)
        store.kept.delete(f"{damaged.id}.index")
        with pytest.raises(ContextDamaged, match="upload the same again, which mends it"):
            await now.read(damaged)
        new = await now.upload(TEXT)
        found = await now.contexts.get("tenant", damaged.id)
        assert found
        assert found.content == new.content != damaged.content
        assert await now.read(found) == await now.read(new) == TEXT
        await eventually(lambda: store.names == objects_of(new) and now.here == {new.id})


async def test_an_upload_of_what_a_store_has_waits_for_the_store(life: Lives, store: Store) -> None:
    async with life(cache_bytes=0) as now:
        first = await now.upload(TEXT)
        await eventually(lambda: not now.here)
        store.failing = {"get_async"}
        with pytest.raises(ObjectStoreUnavailable):
            await now.upload(TEXT, "mine")
        store.failing = set()
        again = await now.upload(TEXT, "mine")
        assert (again.content, again.id != first.id) == (first.content, True)


async def test_what_is_missing_here_is_brought_from_the_store_once(life: Lives, store: Store) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
    shutil.rmtree(now.folder / "contexts")
    async with life() as now:
        found = await now.contexts.get("tenant", context.id)
        assert found == context
        assert await asyncio.gather(*(now.read(found) for _ in range(5))) == [TEXT] * 5
        assert store.asked.count(("get_async", f"{context.id}.texts")) == 1
        assert now.here == {context.id}
    async with life() as now:
        assert await now.read(context) == TEXT


async def test_what_is_damaged_here_is_brought_again(life: Lives, store: Store) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
        (now.folder / "contexts" / context.id / "texts").unlink()
        assert await now.read(context) == TEXT


@pytest.mark.parametrize("file", ["texts", "index"])
async def test_an_object_that_is_damaged_or_missing_is_refused(life: Lives, store: Store, file: str) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
        shutil.rmtree(now.folder / "contexts" / context.id)
        key = f"{context.id}.{file}"
        whole = bytes(store.kept.get(key).bytes())
        store.kept.put(key, whole[:-1] + b"x")
        with pytest.raises(ContextDamaged, match=f"{file} in the object store is not what was written"):
            await now.read(context)
        store.kept.delete(key)
        with pytest.raises(ContextDamaged, match=f"{file} is missing in the object store"):
            await now.read(context)
        assert now.here == set()
        store.kept.put(key, whole)
        assert await now.read(context) == TEXT


async def test_the_folder_keeps_what_was_used_last_and_what_is_held(life: Lives, store: Store) -> None:
    async with life() as now:
        first = await now.upload("first " * 1000)
    async with life(cache_bytes=3 * first.content.files.size) as now:
        second, third = await now.upload("other1" * 1000), await now.upload("other2" * 1000)
        assert now.here == {first.id, second.id, third.id}
        await asyncio.sleep(0.002)  # times are in milliseconds
        await now.read(first)
        fourth = await now.upload("other3" * 1000)
        assert now.here == {first.id, third.id, fourth.id}
        async with now.contexts.pinned(third):
            await asyncio.sleep(0.002)
            await now.read(second)
            fifth = await now.upload("other4" * 1000)
            assert third.id in now.here
            assert now.here == {third.id, second.id, fifth.id}
        assert await now.read(first) == "first " * 1000
    async with life(cache_bytes=0) as now:
        await eventually(lambda: not now.here)
        async with now.contexts.pinned(first) as corpus:
            assert now.here == {first.id}
            assert corpus[0].read(0, 5) == "first"
            assert await now.read(second) == "other1" * 1000
            assert first.id in now.here
        assert store.names == objects_of(first, second, third, fourth, fifth)


async def test_an_upload_that_the_store_does_not_take_is_not_kept_and_can_be_finished_later(
    life: Lives, store: Store
) -> None:
    async with life() as now:
        store.failing = {"put_async"}
        for request_id in ("mine", None):
            with pytest.raises(ObjectStoreUnavailable, match="try again later"):
                await now.upload(TEXT, request_id)
        assert now.here == set()
        assert len(list((now.folder / "uploads").iterdir())) == 1
        progress = await now.uploads.status("tenant", "mine")
        assert progress
        assert progress.received_bytes == len(TEXT.encode())
        store.failing = set()
        context = await now.upload(TEXT, "mine")
        assert store.names == objects_of(context)
        assert await now.read(context) == TEXT


async def test_what_the_store_does_not_remove_is_removed_later(life: Lives, store: Store) -> None:
    async with life() as now:
        context = await now.upload(TEXT)
        store.failing = {"delete_async"}
        await now.contexts.delete("tenant", context.id)
        assert await now.contexts.get("tenant", context.id) is None
        await eventually(lambda: not now.here)
        again = await now.upload(TEXT)
    assert store.names == objects_of(context, again)
    store.failing = set()
    async with life() as now:
        await eventually(lambda: store.names == objects_of(again))


async def test_objects_of_an_upload_that_was_not_kept_go_with_it(
    life: Lives, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DatabaseFullError("the disk is full")

    async with life() as now:
        store.failing = {"delete_async"}
        with monkeypatch.context() as patched:
            patched.setattr(context_table, "_insert_content", fail)
            with pytest.raises(DatabaseFullError):
                await now.upload(TEXT)
        assert len(store.names) == 2
    store.failing = set()
    async with life() as now:
        await eventually(lambda: not store.names)
        assert now.here == set()


async def test_a_store_that_is_a_folder_keeps_them_as_well(life: Lives, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    objects = ObjectStore.at((tmp_path / "bucket").as_uri())
    async with life(used=objects._store) as now:
        context = await now.upload(TEXT)
        shutil.rmtree(now.folder / "contexts" / context.id)
        assert await now.read(context) == TEXT
        assert {path.name for path in (tmp_path / "bucket").iterdir()} == objects_of(context)
        await now.contexts.delete("tenant", context.id)
        await eventually(lambda: not list((tmp_path / "bucket").iterdir()))


@pytest.mark.parametrize("url", ["nonsense", "foo://bucket", "s3:///", "file:///not/there"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ObjectStore.at(url)
