"""The guest's files against the host's own: any history of operations leaves the same tree."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox import clocks, files
from sandbox.files import (
    ALL_RIGHTS,
    CREATE,
    DIRECTORY,
    EXCLUSIVE,
    LONG_AGO,
    READ,
    TRUNCATE,
    WRITE,
    FileError,
    Files,
    Inode,
)
from sandbox.limits import Limits
from sandbox.written_files import read_files, write_files

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
SLASHES = st.sampled_from(["", "", "", "/"])
FLAGS = {
    0: 0,
    CREATE: os.O_CREAT,
    CREATE | EXCLUSIVE: os.O_CREAT | os.O_EXCL,
    CREATE | TRUNCATE: os.O_CREAT | os.O_TRUNC,
    DIRECTORY: os.O_DIRECTORY,
}
RIGHTS = {READ: os.O_RDONLY, WRITE: os.O_WRONLY, READ | WRITE: os.O_RDWR}
ERRNO = {
    name: getattr(files, name.removeprefix("E"))
    for name in errno.errorcode.values()
    if hasattr(files, name.removeprefix("E"))
}


def carried(state: Files) -> Files:
    """Write files for another process, and read them as if there."""
    said, contents = write_files(state)
    return read_files(json.loads(json.dumps(said)), contents, Files(state.limits, state.read_only))


class FilesAreLikeRealOnes(RuleBasedStateMachine):
    """Every operation succeeds in both places, or fails with the same error."""

    def __init__(self) -> None:
        super().__init__()
        self.files = Files(Limits(), {})
        self.real = Path(tempfile.mkdtemp())
        self.open: list[tuple[int, int]] = []
        self.identities: dict[int, int] = {}

    def teardown(self) -> None:
        for _, real in self.open:
            os.close(real)
        shutil.rmtree(self.real)

    def both(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any] | None:
        """Do the same thing in both places, and return what both returned where they did not fail."""
        try:
            real = theirs()
        except OSError as error:
            with pytest.raises(FileError) as caught:
                ours()
            assert error.errno is not None
            assert caught.value.errno == ERRNO[errno.errorcode[error.errno]]
            return None
        return ours(), real

    def path(self, name: str, *, making_directory: bool = False) -> str:
        return self.files.resolve(3, f"tmp/{name}", making_directory=making_directory)

    def at(self, name: str) -> str:
        return f"{self.real}/{name}"

    @rule(name=NAMES, flags=st.sampled_from(sorted(FLAGS)), rights=st.sampled_from(sorted(RIGHTS)))
    def open_file(self, name: str, flags: int, rights: int) -> None:
        made = self.both(
            lambda: self.files.open_path(self.path(name), flags, 0, rights),
            lambda: os.open(self.at(name), RIGHTS[rights] | FLAGS[flags]),
        )
        if made:
            self.open.append(made)

    def opened(self, which: int) -> tuple[int, Inode, int] | None:
        """Choose an open file."""
        if not self.open:
            return None
        fd, real = self.open[which % len(self.open)]
        inode = self.files.at(fd).inode
        return None if inode.directory else (fd, inode, real)

    @rule(which=st.integers(0, 99), at=st.integers(0, 50), data=st.binary(min_size=1, max_size=20))
    def write(self, which: int, at: int, data: bytes) -> None:
        if chosen := self.opened(which):
            fd, inode, real = chosen
            if self.files.at(fd).rights & WRITE:
                self.files.write(inode, at, data)
                os.pwrite(real, data, at)

    @rule(which=st.integers(0, 99), size=st.integers(0, 50))
    def truncate(self, which: int, size: int) -> None:
        if chosen := self.opened(which):
            fd, inode, real = chosen
            if self.files.at(fd).rights & WRITE:
                self.files.resize(inode, size)
                os.ftruncate(real, size)

    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        if self.open:
            fd, real = self.open.pop(which % len(self.open))
            del self.files.open[fd]
            os.close(real)

    @rule(name=NAMES, slash=SLASHES)
    def make_directory(self, name: str, slash: str) -> None:
        self.both(
            lambda: self.files.make_directory(self.path(name + slash, making_directory=True)),
            lambda: os.mkdir(self.at(name + slash)),
        )

    @rule(name=NAMES, slash=SLASHES)
    def remove_directory(self, name: str, slash: str) -> None:
        self.both(lambda: self.files.remove_directory(self.path(name + slash)), lambda: os.rmdir(self.at(name + slash)))

    @rule(name=NAMES, slash=SLASHES)
    def unlink(self, name: str, slash: str) -> None:
        self.both(lambda: self.files.unlink(self.path(name + slash)), lambda: os.unlink(self.at(name + slash)))

    @rule(name=NAMES, slash=SLASHES)
    def stat(self, name: str, slash: str) -> None:
        found = self.both(lambda: self.files.lookup(self.path(name + slash)), lambda: os.stat(self.at(name + slash)))
        if found and not found[0].directory:
            assert len(found[0].data) == found[1].st_size

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        self.both(
            lambda: self.files.rename(self.path(old), self.path(new)), lambda: os.rename(self.at(old), self.at(new))
        )

    @rule(name=NAMES)
    def list_directory(self, name: str) -> None:
        if (self.real / name).is_dir():
            listed = [(entry, inode.directory) for entry, inode in self.files.names(f"/tmp/{name}").items()]
            assert listed == sorted((entry.name, entry.is_dir()) for entry in (self.real / name).iterdir())

    @rule()
    def copy(self) -> None:
        """A copy goes on like the original, which changes no more."""
        before, self.files = self.files, self.files.copy()
        for path, inode in before.writable.items():
            assert inode is not self.files.writable[path]

    @rule()
    def carry(self) -> None:
        """What another process reads is the same, and goes on alike."""
        before, self.files = self.files, carried(self.files)
        assert self.files == before

    @invariant()
    def the_trees_are_equal(self) -> None:
        paths = list(self.real.rglob("*"))
        real = {f"/tmp/{p.relative_to(self.real)}": None if p.is_dir() else p.read_bytes() for p in paths}
        ours = {p: None if i.directory else bytes(i.data) for p, i in self.files.writable.items() if p != "/tmp"}
        assert ours == real

    @invariant()
    def what_is_one_there_is_one_here_and_stays_it(self) -> None:
        pairs = [(os.stat(self.real / path[5:]).st_ino, i.number) for path, i in self.files.writable.items()]
        assert len(dict(pairs)) == len({number for _, number in pairs}) == len(pairs)
        assert all(self.identities.get(real, number) == number for real, number in pairs)
        self.identities = dict(pairs)

    @invariant()
    def open_files_are_the_same(self) -> None:
        for fd, real in self.open:
            inode, status = self.files.at(fd).inode, os.fstat(real)
            assert (inode.links == 0) == (status.st_nlink == 0)
            if not inode.directory and self.files.at(fd).rights & READ:
                assert bytes(inode.data) == os.pread(real, 1000, 0)

    @invariant()
    def the_quota_counts_every_file_once(self) -> None:
        found = [os.stat(p) for p in self.real.rglob("*")] + [os.fstat(real) for _, real in self.open]
        sizes = {status.st_ino: status.st_size for status in found if not status.st_mode & 0o040000}
        assert self.files.used_bytes == sum(sizes.values())


TestFilesAreLikeRealOnes = FilesAreLikeRealOnes.TestCase
TestFilesAreLikeRealOnes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
