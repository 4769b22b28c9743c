"""The cache of built images: a folder of entries, each a folder with a manifest of its files' hashes.

An entry that is incomplete, altered, or not this user's is never used: it is built anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.vm.file_hashes import FileHashes, file_hash

Progress = Callable[[str], None]
"""Called with what is being done, as each long step begins."""


class NotOurs(Exception):
    """A folder belongs to another user, or another can write to it, or this one cannot where it must."""


class ImageCache:
    """An open cache. No other process has it open. Made by `opened`."""

    def __init__(self, folder: Path, hashes: FileHashes, progress: Progress, *, read_only: bool) -> None:
        self._folder = folder
        self._hashes = hashes
        self._progress = progress
        self._read_only = read_only

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, progress: Progress) -> Iterator[ImageCache]:
        """Open the cache in a folder, which is made if it is missing. Waits until no other process has it open.

        One on a disk that is only read, as in a container, gives what it has, and nothing is built in it.

        Raises:
            NotOurs: another user can write to it, which is refused because code is loaded from it.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_ours(folder)
        try:
            lock = (folder / "lock").open("w")
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            yield cls(folder, FileHashes(folder / "hashes.json"), progress, read_only=True)
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for abandoned in folder.glob("building-*"):
                shutil.rmtree(abandoned)
            hashes = FileHashes(folder / "hashes.json")
            yield cls(folder, hashes, progress, read_only=False)
            hashes.keep()

    def entry(self, name: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of an entry. It is built anew unless its files are exactly as they were built.

        Raises:
            NotOurs: it has to be built, and the folder is only read.
        """
        entry = self._folder / name
        if entry.exists() and self._intact(entry):
            return entry
        if self._read_only:
            raise NotOurs(
                f"{self._folder} has no whole {name}, as this machine needs it, and is only read: name another folder "
                "in XDG_CACHE_HOME, where it is built once"
            )
        if entry.exists():
            self._progress(f"{name} in the cache is damaged: building it again")
            shutil.rmtree(entry)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="building-") as temporary:
            folder = Path(temporary) / "entry"
            folder.mkdir()
            build(folder)
            hashes = {path.name: _hash(path) for path in sorted(folder.iterdir())}
            (folder / "manifest.json").write_text(json.dumps({"entry": name, "blake2b": hashes}, indent=1))
            folder.rename(entry)
        return entry

    def _intact(self, entry: Path) -> bool:
        try:
            _check_ours(entry)
            manifest = json.loads((entry / "manifest.json").read_text())
            present = {path.name for path in entry.iterdir()} - {"manifest.json"}
            hashes: dict[str, str] = manifest["blake2b"]
            return (
                manifest["entry"] == entry.name
                and present == set(hashes)
                and all(self._hashes.verify(entry / name, expected) for name, expected in hashes.items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, NotOurs):
            return False


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_hash(file)


def _check_ours(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotOurs(f"{folder} must belong to this user and be writable by nobody else: code is loaded from it")
