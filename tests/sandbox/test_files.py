"""The guest's files against the host's own: any history of operations leaves the same tree."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.files import CREATE, EXCLUSIVE, NOSPC, TRUNCATE, FileError, Files, Inode
from sandbox.limits import Limits

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
FLAGS = {
    0: 0,
    CREATE: os.O_CREAT,
    CREATE | EXCLUSIVE: os.O_CREAT | os.O_EXCL,
    CREATE | TRUNCATE: os.O_CREAT | os.O_TRUNC,
}


def tree_of(files: Files) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {path: None for path in files.directories if path != "/tmp"}
    found |= {path: bytes(inode.data) for path, inode in files.writable.items()}
    return {path.removeprefix("/tmp/"): content for path, content in found.items()}


class FilesAreLikeRealOnes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = Files(Limits(), {})
        self.real = Path(tempfile.mkdtemp())
        self.open: list[tuple[int, int]] = []

    def teardown(self) -> None:
        for _, real in self.open:
            os.close(real)
        shutil.rmtree(self.real)

    def both(self, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[object, object] | None:
        """Do the same thing in both places; either both succeed or both fail."""
        try:
            real = theirs()
        except OSError:
            with pytest.raises(FileError):
                ours()
            return None
        return ours(), real

    @rule(name=NAMES, flags=st.sampled_from(sorted(FLAGS)))
    def open_file(self, name: str, flags: int) -> None:
        if (self.real / name).is_dir():
            return
        made = self.both(
            lambda: self.files.open_path(f"/tmp/{name}", flags, 0),
            lambda: os.open(self.real / name, os.O_RDWR | FLAGS[flags]),
        )
        if made:
            self.open.append(made)  # type: ignore[arg-type]

    @rule(which=st.integers(0, 99), at=st.integers(0, 50), data=st.binary(min_size=1, max_size=20))
    def write(self, which: int, at: int, data: bytes) -> None:
        if self.open:
            fd, real = self.open[which % len(self.open)]
            inode = self.files.at(fd).inode
            assert inode is not None
            self.files.write(inode, at, data)
            os.pwrite(real, data, at)

    @rule(which=st.integers(0, 99), size=st.integers(0, 50))
    def truncate(self, which: int, size: int) -> None:
        if self.open:
            fd, real = self.open[which % len(self.open)]
            inode = self.files.at(fd).inode
            assert inode is not None
            self.files.resize(inode, size)
            os.ftruncate(real, size)

    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        if self.open:
            fd, real = self.open.pop(which % len(self.open))
            del self.files.open[fd]
            os.close(real)

    @rule(name=NAMES)
    def make_directory(self, name: str) -> None:
        self.both(lambda: self.files.make_directory(f"/tmp/{name}"), lambda: os.mkdir(self.real / name))

    @rule(name=NAMES)
    def remove_directory(self, name: str) -> None:
        self.both(lambda: self.files.remove_directory(f"/tmp/{name}"), lambda: os.rmdir(self.real / name))

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        self.both(lambda: self.files.unlink(f"/tmp/{name}"), lambda: os.unlink(self.real / name))

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        self.both(
            lambda: self.files.rename(f"/tmp/{old}", f"/tmp/{new}"), lambda: os.rename(self.real / old, self.real / new)
        )

    @rule(name=NAMES)
    def list_directory(self, name: str) -> None:
        if (self.real / name).is_dir():
            listed = [(entry, folder) for entry, folder, _ in self.files.names(f"/tmp/{name}")]
            assert listed == sorted((entry.name, entry.is_dir()) for entry in (self.real / name).iterdir())

    @rule()
    def copy(self) -> None:
        """A copy goes on like the original, which changes no more."""
        before, self.files = self.files, self.files.copy()
        for path, inode in before.writable.items():
            assert inode is not self.files.writable[path]

    @invariant()
    def the_trees_are_equal(self) -> None:
        paths = list(self.real.rglob("*"))
        real = {str(p.relative_to(self.real)): None if p.is_dir() else p.read_bytes() for p in paths}
        assert tree_of(self.files) == real

    @invariant()
    def open_files_hold_the_same(self) -> None:
        for fd, real in self.open:
            inode = self.files.at(fd).inode
            assert inode is not None
            assert bytes(inode.data) == os.pread(real, 1000, 0)

    @invariant()
    def the_quota_counts_every_file_once(self) -> None:
        inodes = {os.stat(p).st_ino: os.stat(p).st_size for p in self.real.rglob("*") if p.is_file()}
        inodes |= {os.fstat(real).st_ino: os.fstat(real).st_size for _, real in self.open}
        assert self.files.used_bytes == sum(inodes.values())


TestFilesAreLikeRealOnes = FilesAreLikeRealOnes.TestCase
TestFilesAreLikeRealOnes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("fd", "path", "found"),
    [
        (3, "tmp/a", "/tmp/a"),
        (3, "/tmp/a", "/tmp/a"),
        (3, "../../tmp/../tmp/./a", "/tmp/a"),
        (3, "", "/"),
        (3, "..", "/"),
        (4, "a", "/tmp/a"),
        (4, "../usr", "/usr"),
    ],
)
def test_paths_never_leave_the_root(fd: int, path: str, found: str) -> None:
    files = Files(Limits(), {"/usr/x": Inode(2, b"")})
    assert files.open_path("/tmp", 0, 0) == 4
    assert files.resolve(fd, path) == found


def test_the_quota_is_of_all_files_together() -> None:
    files = Files(Limits(file_bytes=100), {})
    first, second = (files.at(files.open_path(f"/tmp/{name}", CREATE, 0)).inode for name in "ab")
    assert first is not None
    assert second is not None
    files.write(first, 0, bytes(60))
    with pytest.raises(FileError) as error:
        files.write(second, 0, bytes(41))
    assert error.value.errno == NOSPC
    assert len(second.data) == 0
    files.resize(first, 59)
    files.write(second, 0, bytes(41))
    assert files.used_bytes == 100
