"""A backup as one file: a tar whose last member lists all others with their hashes, so that a cut one is known."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

FORMAT = 1
"""Of the file. A server reads this one alone."""
LIST = "list.json"
"""The last member."""


class BackupError(Exception):
    """A backup cannot be made or put back; the message says why, and that nothing was changed."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member as it was written. `mtime_ns` is that of the file it was."""

    name: str
    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds. `schema` is how many migrations its database had seen."""

    format: int
    version: str
    schema: int
    created: str
    members: tuple[Member, ...]


class Writer:
    """Writes a backup. Made by `written`."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar, self._members = tar, list[Member]()

    def add(self, name: str, file: IO[bytes]) -> None:
        """Add all of an open file, from its beginning to the end that it has now."""
        found = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = found.st_size, 0o600, int(found.st_mtime)
        file.seek(0)
        hashed = _Hashed(file, found.st_size)
        self._tar.addfile(info, hashed)
        self._members.append(Member(name, found.st_size, hashed.sha256.hexdigest(), found.st_mtime_ns))

    def finish(self, version: str, schema: int, created: str) -> Contents:
        """Add the list of all members, without which a backup is none. Return what it says."""
        contents = Contents(FORMAT, version, schema, created, tuple(self._members))
        text = json.dumps(asdict(contents)).encode()
        info = tarfile.TarInfo(LIST)
        info.size, info.mode = len(text), 0o600
        self._tar.addfile(info, io.BytesIO(text))
        return contents


@contextmanager
def written(path: Path) -> Iterator[Writer]:
    """Write a backup that is at its path once it is whole and on the disk, and not before.

    Raises:
        BackupError: there is something at the path already, or it cannot be written.
    """
    if path.exists():
        raise BackupError(f"{path} is there already: name another file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                yield Writer(tar)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # which fails where something has come to be there
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def checked(path: Path) -> Iterator[tuple[Contents, tarfile.TarFile]]:
    """Open a backup all of which is as it was written.

    Raises:
        BackupError: it cannot be read, or was cut or changed, or is of another format.
    """
    damaged = f"{path} is not a whole backup: nothing of it was used"
    try:
        with ExitStack() as opened:
            try:
                tar = opened.enter_context(tarfile.open(path, "r:"))
                contents = _whole(tar, path, damaged)
            except OSError as error:  # one of whoever has it open is no fault of the backup's
                raise BackupError(f"{path} cannot be read: {error.strerror}") from error
            yield contents, tar
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise BackupError(damaged) from error


def _whole(tar: tarfile.TarFile, path: Path, damaged: str) -> Contents:
    """Return what a backup holds, all of which was checked."""
    found = {info.name: info for info in tar.getmembers() if info.isfile()}
    if LIST not in found:
        raise BackupError(f"{damaged}; its end is missing")
    contents = _contents(json.loads(_read(tar, found[LIST])), path)
    if set(found) != {LIST, *(member.name for member in contents.members)}:
        raise BackupError(f"{damaged}; it does not hold what it lists")
    for member in contents.members:
        file: Any = tar.extractfile(found[member.name])
        if hashlib.file_digest(file, "sha256").hexdigest() != member.sha256:
            raise BackupError(f"{damaged}; {member.name} is not as it was written")
    return contents


def _contents(said: dict[str, Any], path: Path) -> Contents:
    if said["format"] != FORMAT:
        raise BackupError(f"{path} has format {said['format']}, this version reads {FORMAT}: use the version it is of")
    members = tuple(Member(**member) for member in said.pop("members"))
    return Contents(**said, members=members)


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file: Any = tar.extractfile(info)
    return bytes(file.read())


class _Hashed(io.RawIOBase):
    """Hashes what is read of a file, and takes one that became shorter for a failure."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self.sha256 = file, size, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(data)
        self.sha256.update(data)
        return data
