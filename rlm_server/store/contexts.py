"""Contexts: texts kept in the form the guest maps, one file each, one row each."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rlm_server.store.database import Database
from sandbox.text import Form, Text

CHUNK = 1 << 20
"""The most bytes of an upload that may come at once."""


class UploadRefused(Exception):
    """An upload is not what its header said; `field` names what is wrong. Nothing of it is kept."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Context:
    """A stored text. `size_bytes` counts UTF-8, `characters` what `len()` gives in the guest."""

    id: str
    tenant: str
    name: str
    sha256: str
    size_bytes: int
    characters: int
    form: Form
    created_at: int


class Contexts:
    """The texts of every tenant; each sees only its own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.uploading*"):
            left.unlink()  # of a process that died

    def begin(self, tenant: str, name: str, size_bytes: int, sha256: str) -> Upload:
        """Start an upload; its owner must `close` it."""
        return Upload(self._folder / f"{secrets.token_hex(16)}.uploading", tenant, name, size_bytes, sha256)

    async def finish(self, upload: Upload) -> Context:
        """Check an upload and keep it; the same text of the same tenant is kept once.

        Raises:
            UploadRefused: too short, another hash, or text that ends in the middle of a character.
        """
        form, characters = await asyncio.to_thread(upload.finish)
        context = Context(
            "ctx_" + secrets.token_hex(16), upload.tenant, upload.name, upload.sha256, upload.size_bytes, characters,
            form, time.time_ns() // 1_000_000,
        )  # fmt: skip
        known = await self._same(context)
        if known is not None:
            return known
        await asyncio.to_thread(_keep, upload.finished, self._folder / context.id)

        def write(connection: sqlite3.Connection) -> Context:
            connection.execute(
                "INSERT OR IGNORE INTO context VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (context.id, context.tenant, context.name, context.sha256, context.size_bytes, context.characters,
                 context.form.name, context.created_at),
            )  # fmt: skip
            return _one(connection, "tenant = ? AND sha256 = ?", (context.tenant, context.sha256)) or context

        kept = await self._database.write(write)
        if kept.id != context.id:
            (self._folder / context.id).unlink()
        return kept

    async def _same(self, context: Context) -> Context | None:
        asked = (context.tenant, context.sha256)
        return await self._database.read(lambda connection: _one(connection, "tenant = ? AND sha256 = ?", asked))

    async def get(self, tenant: str, context_id: str) -> Context | None:
        """Return a tenant's context, or None: another tenant's does not exist for this one."""
        asked = (tenant, context_id)
        return await self._database.read(lambda connection: _one(connection, "tenant = ? AND id = ?", asked))

    def text(self, context: Context) -> Text:
        """Return a context's text for mapping."""
        return Text(str(self._folder / context.id), context.form, context.characters)


def _one(connection: sqlite3.Connection, where: str, values: tuple[str, ...]) -> Context | None:
    row = connection.execute(
        "SELECT id, tenant, name, sha256, size_bytes, characters, form, created_at FROM context "  # noqa: S608
        f"WHERE {where}", values,
    ).fetchone()  # fmt: skip
    if row is None:
        return None
    context_id, tenant, name, sha256, size_bytes, characters, form, created_at = row
    return Context(context_id, tenant, name, sha256, size_bytes, characters, Form[form], created_at)


def _keep(finished: Path, final: Path) -> None:
    finished.rename(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Upload:
    """A text on its way in: checked as it comes, written as it comes, never held in memory."""

    def __init__(self, path: Path, tenant: str, name: str, size_bytes: int, sha256: str) -> None:
        self.tenant, self.name, self.size_bytes, self.sha256 = tenant, name, size_bytes, sha256
        self.finished = path.with_suffix(".uploading-finished")
        self.received = 0
        self._path = path
        self._file: BinaryIO = path.open("xb")
        self._hash = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._widest = "\0"
        self._characters = 0

    def add(self, offset: int, data: bytes) -> None:
        """Take the next chunk.

        Raises:
            UploadRefused: a gap, a chunk too long, more than announced, or not UTF-8 (the byte is named).
        """
        if offset != self.received:
            raise UploadRefused("chunk.offset", f"the next chunk must start at {self.received}, not {offset}")
        if len(data) > CHUNK:
            raise UploadRefused("chunk.data", f"a chunk may have {CHUNK} bytes, not {len(data)}")
        if self.received + len(data) > self.size_bytes:
            raise UploadRefused("header.size_bytes", f"more than the {self.size_bytes} bytes announced arrived")
        self._decode(data, final=False)
        self._hash.update(data)
        self._file.write(data)
        self.received += len(data)

    def _decode(self, data: bytes, *, final: bool) -> None:
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            at = self.received - held + error.start
            raise UploadRefused("chunk.data", f"the text is not UTF-8 at byte {at}: {error.reason}") from None
        self._characters += len(text)
        if not (text.isascii() and self._widest < "\x80"):
            self._widest = max(self._widest, max(text, default="\0"))

    def finish(self) -> tuple[Form, int]:
        """Check the whole and write it in the guest's form to `finished`; return the form and its characters."""
        if self.received != self.size_bytes:
            raise UploadRefused("header.size_bytes", f"{self.size_bytes} bytes announced, {self.received} arrived")
        self._decode(b"", final=True)
        if self._hash.hexdigest() != self.sha256:
            raise UploadRefused("header.sha256", f"the text's SHA-256 is {self._hash.hexdigest()}, not {self.sha256}")
        form = Form.of(ord(self._widest))
        self._file.close()
        with self._path.open("rb") as source, self.finished.open("xb") as made:
            decoder = codecs.getincrementaldecoder("utf-8")("strict")
            while data := source.read(CHUNK):
                made.write(data if form is Form.ASCII else decoder.decode(data).encode(form.codec))
            made.write(bytes(form.width))
            made.flush()
            os.fsync(made.fileno())
        return form, self._characters

    def close(self) -> None:
        """Remove what was not kept."""
        self._file.close()
        self._path.unlink(missing_ok=True)
        self.finished.unlink(missing_ok=True)
