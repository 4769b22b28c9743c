"""The files a guest sees: the standard library, read-only, and a small writable /tmp, all of it in memory."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from mmap import mmap
from typing import Any

from sandbox.limits import Limits


class FileError(Exception):
    """A file operation failed with a WASI errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


BADF, EXIST, INVAL, ISDIR, MFILE, NOENT, NOSPC, NOTDIR, NOTEMPTY, PERM, ROFS = (
    8, 20, 28, 31, 33, 44, 51, 54, 55, 63, 69,
)  # fmt: skip
"""WASI preview 1 errno values."""

ROOT, TMP = "/", "/tmp"  # noqa: S108 - the guest's, in memory
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
"""WASI oflags."""
APPEND = 1
"""WASI fdflags."""


@dataclass(slots=True)
class Inode:
    """A file's contents. `number` is its identity; one that can be written holds a `bytearray`."""

    number: int
    data: bytes | bytearray | mmap


@dataclass(slots=True)
class OpenFile:
    """A descriptor: a file and a position in it, or a directory."""

    path: str
    inode: Inode | None
    position: int = 0
    append: bool = False


@dataclass(slots=True)
class Files:
    """A session's files and open descriptors."""

    limits: Limits
    read_only: dict[str, Inode]
    writable: dict[str, Inode] = field(default_factory=dict)
    directories: set[str] = field(default_factory=lambda: {TMP})
    open: dict[int, OpenFile] = field(default_factory=lambda: {3: OpenFile(ROOT, None)})
    next_number: int = 100

    def copy(self) -> Files:
        """Return an independent copy; descriptors of one file still share it."""
        inodes = {id(inode): Inode(inode.number, bytes(inode.data)) for inode in self._inodes()}
        for inode in inodes.values():
            inode.data = bytearray(inode.data)
        return replace(
            self,
            writable={path: inodes[id(inode)] for path, inode in self.writable.items()},
            directories=set(self.directories),
            open={
                fd: replace(file, inode=inodes.get(id(file.inode), file.inode)) for fd, file in self.open.items()
            },
        )  # fmt: skip

    def read(self, said: dict[str, Any], contents: bytes) -> Files:
        """Read what `write_files` wrote, over the same read-only files.

        Raises:
            KeyError, TypeError, ValueError, IndexError, AttributeError: somebody else wrote it.
        """
        made = replace(
            self, writable={}, directories=set(said["directories"]), open={}, next_number=int(said["next"])
        )  # fmt: skip
        inodes: list[Inode] = []
        taken = 0
        for size in said["sizes"]:
            inodes.append(Inode(0, bytearray(contents[taken : taken + size])))
            taken += size
        for path, number, held in said["writable"]:
            inodes[held].number = number
            made.writable[path] = inodes[held]
        for fd, path, number, held, position, append in said["open"]:
            inode = self.read_only.get(path) if held is None and number is not None else None
            if held is not None:
                inode = inodes[held]
                inode.number = number
            made.open[fd] = OpenFile(path, inode, position, append)
        return made

    def _inodes(self) -> list[Inode]:
        unlinked = [f.inode for f in self.open.values() if f.inode and isinstance(f.inode.data, bytearray)]
        return list({id(inode): inode for inode in [*self.writable.values(), *unlinked]}.values())

    @property
    def used_bytes(self) -> int:
        """Bytes all writable files hold, removed ones still open included."""
        return sum(len(inode.data) for inode in self._inodes())

    def at(self, fd: int) -> OpenFile:
        """Return an open descriptor, or fail with BADF."""
        if fd not in self.open:
            raise FileError(BADF)
        return self.open[fd]

    def resolve(self, fd: int, path: str) -> str:
        """Return the absolute path of `path` relative to the directory `fd`. There are no links, so `..` is textual."""
        directory = self.at(fd)
        if directory.inode is not None:
            raise FileError(NOTDIR)
        return posixpath.normpath(posixpath.join(ROOT, directory.path, path.lstrip("/") if fd == 3 else path))

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory at `path`: /tmp and below, and those above the read-only files."""
        below = path.rstrip("/") + "/"
        return path == ROOT or path in self.directories or any(known.startswith(below) for known in self.read_only)

    def lookup(self, path: str) -> Inode | None:
        """Return the file at `path`, None for a directory, or fail with NOENT."""
        inode = self.read_only.get(path) or self.writable.get(path)
        if inode is None and not self.is_directory(path):
            raise FileError(NOENT)
        return inode

    def _check_parent(self, path: str) -> None:
        parent = posixpath.dirname(path)
        if not self.is_directory(parent):
            raise FileError(NOTDIR if parent in self.writable else NOENT)
        if parent not in self.directories:
            raise FileError(ROFS)

    def _check_new(self, path: str) -> None:
        self._check_parent(path)
        if len(self.writable) + len(self.directories) >= self.limits.files:
            raise FileError(NOSPC)

    def open_path(self, path: str, oflags: int, fdflags: int) -> int:
        """Open a file or directory and return its descriptor."""
        if len(self.open) >= self.limits.open_files:
            raise FileError(MFILE)
        exists = path in self.read_only or path in self.writable or self.is_directory(path)
        if exists and oflags & CREATE and oflags & EXCLUSIVE:
            raise FileError(EXIST)
        if not exists and oflags & CREATE:
            self._check_new(path)
            self.next_number += 1
            self.writable[path] = Inode(self.next_number, bytearray())
        inode = self.lookup(path)
        if inode is not None and oflags & DIRECTORY:
            raise FileError(NOTDIR)
        if inode is not None and oflags & TRUNCATE:
            self.resize(inode, 0)
        fd = next(n for n in range(4, 4 + self.limits.open_files) if n not in self.open)
        self.open[fd] = OpenFile(path, inode, append=bool(fdflags & APPEND))
        return fd

    def write(self, inode: Inode, at: int, data: bytes) -> None:
        """Write at a position; a gap before it is filled with zeros."""
        self.resize(inode, max(len(inode.data), at + len(data)))
        if isinstance(inode.data, bytearray):
            inode.data[at : at + len(data)] = data

    def resize(self, inode: Inode, size: int) -> None:
        """Cut a file or extend it with zeros, within the quota."""
        if not isinstance(inode.data, bytearray):
            raise FileError(ROFS)
        more = size - len(inode.data)
        if more <= 0:
            del inode.data[size:]
        elif self.used_bytes + more > self.limits.file_bytes:
            raise FileError(NOSPC)
        else:
            inode.data.extend(bytes(more))

    def make_directory(self, path: str) -> None:
        """Create a directory below /tmp."""
        if path in self.writable or self.is_directory(path):
            raise FileError(EXIST)
        self._check_new(path)
        self.directories.add(path)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory below /tmp."""
        if path not in self.directories:
            raise FileError(NOTDIR if self.lookup(path) else ROFS)
        if path == TMP or self.names(path):
            raise FileError(PERM if path == TMP else NOTEMPTY)
        self.directories.remove(path)

    def unlink(self, path: str) -> None:
        """Remove a file; descriptors of it stay usable."""
        if self.lookup(path) is None:
            raise FileError(ISDIR)
        if path not in self.writable:
            raise FileError(ROFS)
        del self.writable[path]

    def rename(self, old: str, new: str) -> None:
        """Move a file, or a directory with all below it, within /tmp."""
        inode = self.lookup(old)
        if old == TMP or new in self.read_only or (old not in self.writable and old not in self.directories):
            raise FileError(ROFS)
        if new == old:
            return
        if inode is not None:
            if self.is_directory(new):
                raise FileError(ISDIR)
            if new not in self.writable:
                self._check_parent(new)
            self.writable[new] = self.writable.pop(old)
            return
        if new in self.writable:
            raise FileError(NOTDIR)
        if new.startswith(old + "/"):
            raise FileError(INVAL)
        if new in self.directories and self.names(new):
            raise FileError(NOTEMPTY)
        if new not in self.directories:
            self._check_parent(new)
        self.writable = {_moved(path, old, new): inode for path, inode in self.writable.items()}
        self.directories = {_moved(path, old, new) for path in self.directories}

    def names(self, path: str) -> list[tuple[str, bool, int]]:
        """List a directory: (name, whether it is a directory, inode number), sorted by name."""
        prefix = path.rstrip("/") + "/"
        found: dict[str, tuple[bool, int]] = {}
        for known, inode in [*self.read_only.items(), *self.writable.items()]:
            if known.startswith(prefix):
                name, deeper, _ = known[len(prefix) :].partition("/")
                found.setdefault(name, (bool(deeper), 1 if deeper else inode.number))
        for known in self.directories:
            if known.startswith(prefix):
                found[known[len(prefix) :].partition("/")[0]] = (True, 1)
        return [(name, *found[name]) for name in sorted(found)]


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path


# ---- for another process -------------------------------------------------------------------------------------------


def write_files(files: Files) -> tuple[dict[str, Any], bytes]:
    """Write files for another process: what there is as JSON, and the contents one after another."""
    numbers: dict[int, int] = {}
    contents: list[bytes] = []

    def number(inode: Inode) -> int:
        if id(inode) not in numbers:
            numbers[id(inode)] = len(contents)
            contents.append(bytes(inode.data))
        return numbers[id(inode)]

    writable = [[path, inode.number, number(inode)] for path, inode in files.writable.items()]
    opened = []
    for fd, file in files.open.items():
        own = file.inode is not None and isinstance(file.inode.data, bytearray)
        held = number(file.inode) if own and file.inode else None
        opened.append([fd, file.path, file.inode.number if file.inode else None, held, file.position, file.append])
    said = {
        "writable": writable,
        "directories": sorted(files.directories),
        "open": opened,
        "next": files.next_number,
        "sizes": [len(content) for content in contents],
    }
    return said, b"".join(contents)
