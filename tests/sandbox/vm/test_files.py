"""The guest's files against the host's own: any history of operations leaves the same tree."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.limits import Limits
from sandbox.vm import clocks, files
from sandbox.vm.files import (
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
from sandbox.wire.files import read_files, write_files

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
        failed = 0
        try:
            real = theirs()
        except OSError as error:
            failed = error.errno or 0
        if not failed:
            return ours(), real
        with pytest.raises(FileError) as caught:
            ours()
        assert caught.value.errno == ERRNO[errno.errorcode[failed]]
        return None

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

    @rule(which=st.integers(0, 99), at=st.integers(0, 50), data=st.binary(max_size=20))
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
TestFilesAreLikeRealOnes.settings = settings(max_examples=60, stateful_step_count=40)


# ---- paths and identities --------------------------------------------------------------------------------------------

LIBRARY = {"/usr/lib/x": Inode(2, b"abc")}


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
        (4, "//usr", "/usr"),
        (4, "//", "/"),
    ],
)
def test_paths_never_leave_the_root(fd: int, path: str, found: str) -> None:
    tree = Files(Limits(), LIBRARY)
    assert tree.open_path("/tmp", 0, 0, READ) == 4
    assert tree.resolve(fd, path) == found


def test_no_path_grows_beyond_its_limit() -> None:
    tree = Files(Limits(), {})
    half = "/tmp" + f"/{'d' * 250}" * 9
    for top in ("/tmp/a", "/tmp/b"):
        for depth in range(10):
            tree.make_directory(top + half[4 : 4 + 251 * depth])
    with pytest.raises(FileError) as error:
        tree.rename("/tmp/a", f"/tmp/b{half[4:]}/a")
    assert error.value.errno == files.NAMETOOLONG
    assert tree.lookup(f"/tmp/a{half[4:]}").directory
    assert tree.open_path(f"/tmp/b{half[4:]}", 0, 0, READ) == 4
    with pytest.raises(FileError) as error:
        tree.resolve(4, "x/" * 1000)
    assert error.value.errno == files.NAMETOOLONG


def test_directories_above_the_library_are_themselves_and_each_another() -> None:
    tree = Files(Limits(), LIBRARY)
    numbers = [tree.lookup(path).number for path in ("/", "/usr", "/usr/lib", "/usr/lib/x", "/tmp")]
    assert len(set(numbers)) == len(numbers)
    assert [tree.lookup(path).number for path in ("/", "/usr", "/usr/lib", "/usr/lib/x", "/tmp")] == numbers
    assert {name: inode.number for name, inode in tree.names("/").items()} == {"tmp": numbers[4], "usr": numbers[1]}
    assert tree.at(3).inode.number == numbers[0]


@pytest.mark.parametrize(
    ("path", "oflags", "rights", "errno"),
    [
        ("/usr/lib/x", 0, READ, None),
        ("/usr/lib/x", 0, WRITE, files.ROFS),
        ("/usr/lib/x", TRUNCATE, READ, files.ROFS),
        ("/usr/lib/y", CREATE, WRITE, files.ROFS),
        ("/usr/lib/x/y", CREATE, WRITE, files.NOTDIR),
        ("/usr/lib", 0, READ, None),
        ("/usr/lib", 0, WRITE, files.ISDIR),
        ("/tmp", 0, READ | WRITE, files.ISDIR),
        ("/tmp", CREATE, READ, files.ISDIR),
        ("/tmp", TRUNCATE, READ, files.ISDIR),
        ("/tmp/new", CREATE | DIRECTORY, READ, files.INVAL),
    ],
)
def test_what_cannot_be_written_is_refused_when_it_is_opened(
    path: str, oflags: int, rights: int, errno: int | None
) -> None:
    tree = Files(Limits(), LIBRARY)
    before = tree.copy()
    if errno is None:
        assert tree.at(tree.open_path(path, oflags, 0, rights)).path == path
        return
    with pytest.raises(FileError) as error:
        tree.open_path(path, oflags, 0, rights)
    assert error.value.errno == errno
    assert tree == before


def test_a_descriptor_of_a_directory_moves_with_it() -> None:
    tree = Files(Limits(), {})
    tree.make_directory("/tmp/a")
    tree.make_directory("/tmp/a/b")
    fd = tree.open_path("/tmp/a/b", 0, 0, READ)
    tree.rename("/tmp/a", "/tmp/c")
    assert tree.resolve(fd, "x") == "/tmp/c/b/x"


# ---- quotas ----------------------------------------------------------------------------------------------------------


def test_the_quota_is_of_all_files_together() -> None:
    tree = Files(Limits(file_bytes=100), {})
    first, second = (tree.at(tree.open_path(f"/tmp/{name}", CREATE, 0)).inode for name in "ab")
    tree.write(first, 0, bytes(60))
    with pytest.raises(FileError) as error:
        tree.write(second, 0, bytes(41))
    assert error.value.errno == files.NOSPC
    assert len(second.data) == 0
    tree.resize(first, 59)
    tree.write(second, 0, bytes(41))
    assert tree.used_bytes == 100


def test_files_and_directories_are_counted_together() -> None:
    tree = Files(Limits(files=4), {})
    tree.make_directory("/tmp/a")
    tree.open_path("/tmp/b", CREATE, 0)
    tree.make_directory("/tmp/c")
    for make in (lambda: tree.open_path("/tmp/d", CREATE, 0), lambda: tree.make_directory("/tmp/d")):
        with pytest.raises(FileError) as error:
            make()
        assert error.value.errno == files.NOSPC
    assert sorted(tree.names("/tmp")) == ["a", "b", "c"]


# ---- times -----------------------------------------------------------------------------------------------------------


class Hours:
    """A clock that moves on when told to."""

    def __init__(self) -> None:
        self.now = LONG_AGO

    def __call__(self) -> int:
        return self.now

    def next(self) -> int:
        self.now += 3600 * 10**9
        return self.now


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    made = Hours()
    monkeypatch.setattr(clocks, "time_of_day", made)
    return made


def times(tree: Files, path: str) -> tuple[int, int, int]:
    inode = tree.lookup(path)
    return inode.accessed, inode.modified, inode.changed


def test_making_writing_and_cutting_a_file_are_noted_in_it(hours: Hours) -> None:
    tree = Files(Limits(), {})
    made = hours.next()
    inode = tree.at(tree.open_path("/tmp/f", CREATE, 0)).inode
    assert times(tree, "/tmp/f") == (made, made, made)
    for change in (
        lambda: tree.write(inode, 0, b"abc"),
        lambda: tree.write(inode, 1, b"b"),
        lambda: tree.resize(inode, 1),
        lambda: tree.resize(inode, 1),
        lambda: tree.open_path("/tmp/f", TRUNCATE, 0),
    ):
        now = hours.next()
        change()
        assert times(tree, "/tmp/f") == (made, now, now)
    tree.write(inode, 5, b"")
    assert times(tree, "/tmp/f") == (made, now, now)
    assert times(tree, "/tmp")[1] == made


def test_what_fails_is_not_noted(hours: Hours) -> None:
    tree = Files(Limits(file_bytes=10, files=2), {})
    inode = tree.at(tree.open_path("/tmp/f", CREATE, 0)).inode
    before = tree.copy()
    hours.next()
    for fails in (
        lambda: tree.write(inode, 0, bytes(11)),
        lambda: tree.open_path("/tmp/g", CREATE, 0),
        lambda: tree.make_directory("/tmp/f"),
        lambda: tree.rename("/tmp/f", "/tmp/g/h"),
        lambda: tree.unlink("/tmp/none"),
    ):
        with pytest.raises(FileError):
            fails()
    assert tree == before


def test_what_is_made_moved_or_removed_is_noted_in_its_directory(hours: Hours) -> None:
    tree = Files(Limits(), {})
    tree.make_directory("/tmp/a")
    tree.make_directory("/tmp/b")
    for change, noted in (
        (lambda: tree.open_path("/tmp/a/f", CREATE, 0), "a"),
        (lambda: tree.make_directory("/tmp/b/d"), "b"),
        (lambda: tree.rename("/tmp/a/f", "/tmp/b/f"), "ab"),
        (lambda: tree.rename("/tmp/b/d", "/tmp/b/e"), "b"),
        (lambda: tree.unlink("/tmp/b/f"), "b"),
        (lambda: tree.remove_directory("/tmp/b/e"), "b"),
    ):
        now = hours.next()
        change()
        assert [name for name in "ab" if times(tree, f"/tmp/{name}")[1:] == (now, now)] == list(noted)


def test_moving_changes_no_contents_and_removing_leaves_no_name(hours: Hours) -> None:
    tree = Files(Limits(), {})
    made = hours.next()
    inode = tree.at(tree.open_path("/tmp/f", CREATE, 0)).inode
    moved = hours.next()
    tree.rename("/tmp/f", "/tmp/g")
    assert times(tree, "/tmp/g") == (made, made, moved)
    assert inode.links == 1
    removed = hours.next()
    tree.unlink("/tmp/g")
    assert (inode.links, inode.modified, inode.changed) == (0, made, removed)


def test_the_library_is_of_1980() -> None:
    tree = Files(Limits(), LIBRARY)
    for path in ("/", "/usr", "/usr/lib/x", "/tmp"):
        assert times(tree, path) == (LONG_AGO,) * 3


# ---- for another process ---------------------------------------------------------------------------------------------


def busy() -> Files:
    """Files in all their forms: moved, removed and still open, open twice, read-only."""
    tree = Files(Limits(), LIBRARY)
    tree.make_directory("/tmp/d")
    one = tree.open_path("/tmp/d/one", CREATE, files.APPEND, WRITE)
    tree.write(tree.at(one).inode, 0, b"one")
    tree.at(tree.open_path("/tmp/d/one", 0, 0, READ)).position = 2
    gone = tree.open_path("/tmp/gone", CREATE, 4, READ | WRITE)
    tree.write(tree.at(gone).inode, 5, b"gone")
    tree.unlink("/tmp/gone")
    tree.make_directory("/tmp/left")
    tree.open_path("/tmp/left", 0, 0, READ)
    tree.remove_directory("/tmp/left")
    tree.open_path("/usr/lib/x", 0, 0, READ)
    tree.open_path("/usr/lib", 0, 0, ALL_RIGHTS & ~WRITE)
    inode = tree.lookup("/tmp/d")
    inode.accessed, inode.modified = 1, (1 << 64) - 1
    return tree


def test_another_process_reads_all_there_is() -> None:
    tree = busy()
    there = carried(tree)
    assert there == tree
    assert there.at(4).inode is there.at(5).inode is there.lookup("/tmp/d/one")
    assert there.at(8).inode is LIBRARY["/usr/lib/x"]


def test_a_copy_is_the_same_and_shares_nothing_that_changes() -> None:
    tree = busy()
    copy = tree.copy()
    assert copy == tree
    for inode in copy.own_inodes():
        if not inode.directory:
            copy.write(inode, 0, b"other")
        inode.modified = 7
    copy.at(4).position = 99
    assert tree == replace(busy(), writable=tree.writable, open=tree.open)
    assert bytes(tree.lookup("/tmp/d/one").data) == b"one"
    assert tree.at(4).position == 0
    assert LIBRARY["/usr/lib/x"] == Inode(2, b"abc")


PLACES = ["inodes", "writable", "open", "next"]
"""What is written, and where in it a worker may lie: in any number, text or list."""


def lies(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was written with each part of it in turn replaced by what it cannot be."""
    found = []
    wrong: Any
    for wrong in (None, -1, 1 << 64, 1.5, True, "x", "/a/../b", "/a\0", "/\ud800", [], {}, [[]], [1]):
        found += [said | {key: wrong} for key in PLACES]
        for key in ("inodes", "writable", "open"):
            for row, entry in enumerate(said[key]):
                for column in range(len(entry)):
                    rows = [list(each) for each in said[key]]
                    rows[row][column] = wrong
                    found.append(said | {key: rows})
                found.append(said | {key: [*said[key][:row], wrong, *said[key][row + 1 :]]})
    return found + [{key: said[key] for key in PLACES if key != left} for left in PLACES]


def test_what_a_worker_may_say_is_refused_or_read_as_files_that_work() -> None:
    said, contents = write_files(busy())
    read = 0
    for lie in lies(said):
        try:
            tree = read_files(lie, contents, Files(Limits(), LIBRARY))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            continue
        read += 1
        assert carried(tree) == tree.copy() == tree
        for path, inode in tree.writable.items():
            assert tree.find(path) is inode
        with suppress(FileError):
            tree.make_directory("/tmp/more")
    assert read < len(lies(said)) / 4


@pytest.mark.parametrize("contents", [b"", b"one", b"one\0\0\0\0\0gone!"])
def test_contents_that_are_not_what_was_written_are_refused(contents: bytes) -> None:
    with pytest.raises(ValueError, match="contents of"):
        read_files(write_files(busy())[0], contents, Files(Limits(), LIBRARY))
