"""An object store. Where there is one, it keeps the contents, and the local folder is only a cache of them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, ParamSpec, Self, TypeVar

from obstore.exceptions import BaseError
from obstore.store import ObjectStore as Store
from obstore.store import from_url

from rlm_server.contexts.local_files import (
    FILES,
    ContentDamaged,
    InPieces,
    LocalContextFiles,
    WrittenFiles,
    make_durable,
)
from rlm_server.contexts.spool import PIECE
from sandbox.cancellation import run_to_completion

log = logging.getLogger(__name__)

PART = 8 << 20
"""Bytes that are read at once, and that are sent at once at least."""
MAX_PARTS = 9_000
"""S3 takes 10,000: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
PARTS_AT_ONCE = 3

_FILES = ThreadPoolExecutor(4, thread_name_prefix="object-store")
"""Threads that read and write the local files, while parts come over the network."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ObjectStoreUnavailable(Exception):
    """The object store failed; a later try may succeed."""


class ObjectStore:
    """Both files of every content in a store: `<content id>.texts` and `<content id>.index`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def at(cls, url: str) -> Self:
        """Open the store at a URL: of S3, Google's, Azure's, `file:///…` or `memory:///`; keys come from their usual
        environment variables.

        Raises:
            ValueError: there is no store of that kind.
        """
        try:
            return cls(from_url(url))
        except BaseError as error:
            raise ValueError(str(error).partition("\n")[0]) from None

    async def put(self, content: str, local: LocalContextFiles) -> None:
        """Copy a content's files into the store.

        Raises:
            ObjectStoreUnavailable: the store failed.
            OSError: a file cannot be read.
        """
        for file in FILES:
            path = local.path(content, file)
            part = max(PART, -(-path.stat().st_size // MAX_PARTS))
            try:
                await self._store.put_async(_key(content, file), path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
            except BaseError as error:
                raise _unavailable("keep", content, error) from error

    async def fetch(self, content: str, files: WrittenFiles, local: LocalContextFiles) -> None:
        """Bring a content's files to the local folder, checked.

        Raises:
            ContentDamaged: an object is missing, or not what was written.
            ObjectStoreUnavailable: the store failed.
            OSError: a file cannot be written.
        """
        making = await run_to_completion(_in_thread(local.begin, content))
        try:
            for file, written in (("texts", files.texts), ("index", files.index)):
                path, sha256 = making / file, written.sha256
                await self._download(content, file, path, sha256)
                await run_to_completion(_in_thread(make_durable, path, sha256, written.mtime_ns))
            await run_to_completion(_in_thread(local.finish, content))
        except BaseException:
            await run_to_completion(_in_thread(local.clear, making.name))
            raise

    async def _download(self, content: str, file: str, path: Path, sha256: str) -> None:
        digest = hashlib.sha256()
        try:
            coming = (await self._store.get_async(_key(content, file))).stream(min_chunk_size=PART)
            with io.BufferedWriter(InPieces(path, "x"), PIECE) as out:
                async for data in coming:
                    await run_to_completion(_in_thread(_take, out, digest, data))
        except FileNotFoundError:
            raise ContentDamaged(f"{file} is missing in the object store") from None
        except BaseError as error:
            raise _unavailable("bring", content, error) from error
        if digest.hexdigest() != sha256:
            raise ContentDamaged(f"{file} in the object store is not what was written")

    async def remove(self, content: str) -> None:
        """Remove a content's files. It is no failure where they are not there.

        Raises:
            ObjectStoreUnavailable: the store failed.
        """
        for file in FILES:
            try:
                await self._store.delete_async(_key(content, file))
            except FileNotFoundError:
                pass
            except BaseError as error:
                raise _unavailable("remove", content, error) from error


async def _in_thread(work: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
    return await asyncio.wrap_future(_FILES.submit(work, *args, **named))


def _take(out: BinaryIO, digest: hashlib._Hash, data: bytes) -> None:
    out.write(data)
    digest.update(data)


def _key(content: str, file: str) -> str:
    return f"{content}.{file}"


def _unavailable(verb: str, content: str, error: BaseError) -> ObjectStoreUnavailable:
    log.error("the object store could not %s %s: %s", verb, content, error)
    return ObjectStoreUnavailable(f"the object store could not {verb} the files of a context; try again later")
