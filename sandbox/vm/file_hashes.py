"""Remembered hashes of files: a file that has not changed since it was hashed need not be read again.

A hash is remembered with the file's identity: its device, inode, size, owner and times. Any change to a file changes
its `ctime`, which only the kernel can set. There are three gaps. Two changes can fall into the same tick of the clock,
so a file that was changed just now is not remembered. A decaying disk changes no time, so a hash is trusted for only a
day. And a process that can write to this user's files can also write to the file of hashes: no hash kept beside the
files helps against that.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

BELIEVED_SECONDS = 86_400.0
SETTLED_SECONDS = 2.0
"""A file is remembered if it was last changed so long ago. No file system in use has a coarser clock."""


class Identity(NamedTuple):
    """The identity of an unchanged file. Another file, or this one after any change, has another identity."""

    device: int
    inode: int
    size: int
    owner: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: BufferedReader) -> Identity:
        """Return the identity of an open file."""
        status = os.fstat(file.fileno())
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_uid, status.st_mtime_ns, status.st_ctime_ns
        )  # fmt: skip


class _Remembered(NamedTuple):
    identity: Identity
    hash: str
    at: float
    """When the file was hashed, in Unix seconds."""


def file_hash(file: BufferedReader) -> str:
    """Return the BLAKE2b of an open file's bytes, in hexadecimal."""
    return hashlib.file_digest(file, "blake2b").hexdigest()


class FileHashes:
    """The hashes of some files, remembered in another file. If that is unusable, it is treated as missing."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = _read(memory)
        self._changed = False

    def verify(self, path: Path, expected: str) -> bool:
        """Return whether a file has this hash. The file is read unless it is remembered to have it.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            identity, now = Identity.of(file), time.time()
            known = self._known.get(str(path))
            if known and known[:2] == (identity, expected) and 0 <= now - known.at < BELIEVED_SECONDS:
                return True
            digest = file_hash(file)
            if max(identity.modified, identity.changed) / 1e9 < now - SETTLED_SECONDS:
                self._known[str(path)] = _Remembered(identity, digest, now)
                self._changed = True
            return digest == expected

    def keep(self) -> None:
        """Write new hashes down, and drop those that are too old. If the file cannot be written, it stays as it is."""
        if not self._changed:
            return
        now = time.time()
        kept = {name: one for name, one in self._known.items() if 0 <= now - one.at < BELIEVED_SECONDS}
        new = self._memory.with_name(self._memory.name + ".new")
        with suppress(OSError):
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(kept, file)
            new.rename(self._memory)
            self._changed = False


def _read(memory: Path) -> dict[str, _Remembered]:
    """Return the remembered hashes. There are none where the file is damaged, or another user can have written it."""
    try:
        with os.fdopen(os.open(memory, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return {}
            held = json.load(file)
        return {
            name: _Remembered(Identity(*map(int, identity)), str(digest), float(at))
            for name, (identity, digest, at) in held.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
