"""The contents' files on this machine: a folder for each, with a corpus in `texts` and its index in `index`."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rlm_server.contexts.spool import CHUNK, PIECE, Spool, Stopped
from sandbox.corpora.corpus import Corpus, CorpusDamaged, Kind, Writer
from sandbox.corpora.text import Form

FILES = ("texts", "index")


class ContentDamaged(Exception):
    """The files of a content are not what was written."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as it was written."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """Both files of a content as they were written."""

    texts: WrittenFile
    index: WrittenFile

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.texts.size + self.index.size


class LocalContextFiles:
    """The folders. All methods block; only `write` and `clear` may take long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, content: str, file: str) -> Path:
        """Return where a file of a content is."""
        return self._folder / content / file

    def has(self, content: str) -> bool:
        """Whether a content's folder is here."""
        return (self._folder / content).is_dir()

    def names(self) -> set[str]:
        """Return the names in the folder: contents, and what dead processes left."""
        return {entry.name for entry in os.scandir(self._folder)}

    def corpus(self, content: str, files: WrittenFiles) -> Corpus:
        """Open a content. Its files must have the sizes and times with which they were written.

        Raises:
            ContentDamaged: a file is missing, cut short or changed.
        """
        for file, written in (("texts", files.texts), ("index", files.index)):
            try:
                seen = self.path(content, file).stat()
            except OSError as error:
                raise ContentDamaged(f"{file}: {error.strerror}") from None
            if seen.st_size != written.size:
                raise ContentDamaged(f"{file} has {seen.st_size} bytes, not {written.size}")
            if seen.st_mtime_ns != written.mtime_ns:
                raise ContentDamaged(f"{file} was changed after it was written")
        try:
            return Corpus(str(self.path(content, "texts")), str(self.path(content, "index")))
        except CorpusDamaged as error:
            raise ContentDamaged(str(error)) from None
        except OSError as error:
            raise ContentDamaged(f"index: {error.strerror}") from None

    def write(self, content: str, spool: Spool, stopped: Callable[[], bool]) -> WrittenFiles:
        """Write a complete upload durably as a content's folder.

        Raises:
            Stopped: `stopped` said so; nothing is left.
            OSError: it cannot be written; nothing is left.
        """
        making = self.begin(content)
        try:
            texts, index = _bind(spool, making / "texts", stopped)
            (making / "index").write_bytes(index)
            files = WrittenFiles(
                make_durable(making / "texts", texts), make_durable(making / "index", hashlib.sha256(index).hexdigest())
            )
            self.finish(content)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return files

    def begin(self, content: str) -> Path:
        """Make a folder to write a content's files in. `finish` moves it into place."""
        making = self._making(content)
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        return making

    def finish(self, content: str) -> None:
        """Move the folder that `begin` made into place, durably."""
        _sync(self._making(content))
        self._making(content).rename(self._folder / content)
        _sync(self._folder)

    def take_away(self, content: str) -> Path | None:
        """Move a content's folder aside, which takes no time. Return where it is now, to be cleared, or None."""
        aside = self._folder / f"{content}.gone-{secrets.token_hex(4)}"
        try:
            (self._folder / content).rename(aside)
        except FileNotFoundError:
            return None
        return aside

    def clear(self, name: str) -> None:
        """Remove an entry of the folder that belongs to no content, or to one that is gone."""
        path = self._folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _making(self, content: str) -> Path:
        return self._folder / f"{content}.making"


def make_durable(path: Path, sha256: str, mtime_ns: int | None = None) -> WrittenFile:
    """Make a file read-only and durable, with a time where one is given."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o400)
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        os.fsync(fd)
        seen = os.fstat(fd)
    finally:
        os.close(fd)
    return WrittenFile(seen.st_size, seen.st_mtime_ns, sha256)


class InPieces(io.FileIO):
    """A file that takes at most `PIECE` bytes at once, up to the next multiple of it."""

    def write(self, data: object, /) -> int:
        """Take what is left of the piece."""
        with memoryview(data).cast("B") as view:  # type: ignore[arg-type]
            return super().write(view[: PIECE - self.tell() % PIECE])


class _Hashed(io.BufferedWriter):
    """A file that hashes what is written to it."""

    def __init__(self, path: Path, mode: str, digest: hashlib._Hash) -> None:
        super().__init__(InPieces(path, mode), PIECE)
        self.digest = digest

    def write(self, data: object, /) -> int:
        self.digest.update(data)  # type: ignore[arg-type]
        return super().write(data)  # type: ignore[arg-type]


def _bind(spool: Spool, path: Path, stopped: Callable[[], bool]) -> tuple[str, bytes]:
    """Write an upload's documents as a corpus; return the file's SHA-256 and the index."""
    header = spool.header
    if header.kind is Kind.TEXT and spool.form(0) is Form.ASCII and _linked(spool.texts, path):
        # The file is the document already, and stays the upload's until the context is kept.
        with _Hashed(path, "a", spool.hash.copy()) as out:
            writer = Writer(out, header.kind)
            writer.write(Form.ASCII, spool.characters[0], ())
            index = writer.finish(())
        return out.digest.hexdigest(), index
    with spool.texts.open("rb", CHUNK) as source, _Hashed(path, "x", hashlib.sha256()) as out:
        writer = Writer(out, header.kind)
        for number, (size, characters) in enumerate(zip(spool.sizes, spool.characters, strict=True)):
            form = spool.form(number)
            writer.write(form, characters, _pieces(source, size, form, stopped))
        index = writer.finish(spool.names())
    return out.digest.hexdigest(), index


def _pieces(source: BinaryIO, size: int, form: Form, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the next `size` bytes of UTF-8 in the form the guest has."""
    decoder = getincrementaldecoder("utf-8")()
    while size:
        if stopped():
            raise Stopped
        data = source.read(min(size, CHUNK))
        if not data:
            raise OSError("an upload's file ends too early")
        size -= len(data)
        yield data if form is Form.ASCII else decoder.decode(data).encode(form.codec)


def _linked(source: Path, path: Path) -> bool:
    try:
        path.hardlink_to(source)
    except OSError:  # not every file system has links
        return False
    return True


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
