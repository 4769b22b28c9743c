"""The files a guest sees, all in memory: the standard library, which is read-only, and a small writable /tmp."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from mmap import mmap
from zlib import crc32

from sandbox.limits import Limits
from sandbox.vm import clocks


def host_time() -> int:
    """Return the time of day: that of changes which no turn makes, or one of which nothing is noted."""
    return clocks.time_of_day()


class FileError(Exception):
    """A file operation failed with a WASI errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


BADF, EXIST, INVAL, ISDIR, MFILE, NAMETOOLONG, NOENT, NOSPC, NOTDIR, NOTEMPTY, PERM, ROFS = (
    8, 20, 28, 31, 33, 37, 44, 51, 54, 55, 63, 69,
)  # fmt: skip
"""WASI preview 1 errno values."""

ROOT, TMP = "/", "/tmp"  # noqa: S108 - the guest's, in memory
STDLIB_PATH = "/usr/local/lib/python315.zip"
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
"""WASI oflags."""
APPEND = 1
"""WASI fdflags."""
READ, WRITE, ALL_RIGHTS = 1 << 1, 1 << 6, (1 << 64) - 1
"""WASI rights."""

MAX_PATH_BYTES = 4096
LONG_AGO = 315_532_800 * 10**9
"""1980, as early as a zip can say: the time of all that no session made. Times are in nanoseconds since 1970."""


@dataclass(slots=True)
class Inode:
    """A file with its contents, or a directory. `number` identifies it. A session's own file holds a `bytearray`."""

    number: int
    data: bytes | bytearray | memoryview | mmap = b""
    directory: bool = False
    accessed: int = LONG_AGO
    modified: int = LONG_AGO
    changed: int = LONG_AGO
    links: int = 1

    @property
    def own(self) -> bool:
        """Whether it is the session's own, so that the session may change it."""
        return isinstance(self.data, bytearray)

    def touch(self, now: int) -> None:
        """Set the time of its last change."""
        self.modified = self.changed = now

    def copy(self) -> Inode:
        """Return an independent copy of a session's own file or directory."""
        return Inode(
            self.number, bytearray(self.data), self.directory, self.accessed, self.modified, self.changed, self.links
        )  # fmt: skip


def _implied(path: str) -> Inode:
    """Return a directory that exists only because files lie below it. Its number is derived from its path."""
    return Inode(1 << 40 | crc32(path.encode()), directory=True)


@dataclass(slots=True)
class OpenFile:
    """A descriptor: a file and a position in it, or a directory and its entries at the time its listing began."""

    path: str
    inode: Inode
    rights: int = ALL_RIGHTS
    flags: int = 0
    position: int = 0
    listing: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Files:
    """A session's files and open descriptors. `writable` maps paths to the session's own files and directories."""

    limits: Limits
    read_only: dict[str, Inode]
    writable: dict[str, Inode] = field(default_factory=lambda: {TMP: Inode(99, bytearray(), directory=True)})
    open: dict[int, OpenFile] = field(default_factory=lambda: {3: OpenFile(ROOT, _implied(ROOT))})
    next_number: int = 100
    now: Callable[[], int] = field(default=host_time, compare=False, repr=False)
    """Tells the time of day to those that change a file."""

    def copy(self) -> Files:
        """Return an independent copy with the host's time of day. Descriptors that share a file share its copy."""
        copies = {id(inode): inode.copy() for inode in self.own_inodes()}
        return replace(
            self,
            writable={path: copies[id(inode)] for path, inode in self.writable.items()},
            open={
                fd: replace(file, inode=copies.get(id(file.inode), file.inode)) for fd, file in self.open.items()
            },
            now=host_time,
        )  # fmt: skip

    def own_inodes(self) -> list[Inode]:
        """Return all files and directories of the session's own, each once. Removed ones that are open are included."""
        opened = (file.inode for file in self.open.values() if file.inode.own)
        return list({id(inode): inode for inode in (*self.writable.values(), *opened)}.values())

    @property
    def used_bytes(self) -> int:
        """Bytes in all writable files. Removed files that are open are included."""
        return sum(len(inode.data) for inode in self.own_inodes())

    # ---- what is there -------------------------------------------------------------------------------------------

    def at(self, fd: int) -> OpenFile:
        """Return an open descriptor, or fail with BADF."""
        if fd not in self.open:
            raise FileError(BADF)
        return self.open[fd]

    def resolve(self, fd: int, path: str, *, making_directory: bool = False) -> str:
        """Return `path`, which is relative to the directory `fd`, as an absolute path.

        There are no links, so `..` is resolved in the text. A path that ends in a slash must be a directory, unless
        that directory is about to be made.
        """
        directory = self.at(fd)
        if not directory.inode.directory:
            raise FileError(NOTDIR)
        joined = posixpath.join(directory.path, path.lstrip("/") if fd == 3 else path)
        resolved = ROOT + posixpath.normpath(joined).lstrip("/")
        if len(resolved.encode()) > MAX_PATH_BYTES:
            raise FileError(NAMETOOLONG)
        if path.endswith(("/", "/.")) and not making_directory and not self.lookup(resolved).directory:
            raise FileError(NOTDIR)
        return resolved

    def find(self, path: str) -> Inode | None:
        """Return the file or directory at `path`, or None. The directories above the read-only files exist too."""
        found = self.writable.get(path) or self.read_only.get(path)
        if found is None and (path == ROOT or any(known.startswith(f"{path}/") for known in self.read_only)):
            return _implied(path)
        return found

    def lookup(self, path: str) -> Inode:
        """Return the file or directory at `path`. Fail with NOENT, or NOTDIR where the path goes through a file."""
        found = self.find(path)
        if found is not None:
            return found
        while (path := posixpath.dirname(path)) != ROOT:
            if path in self.read_only or (path in self.writable and not self.writable[path].directory):
                raise FileError(NOTDIR)
        raise FileError(NOENT)

    def names(self, path: str) -> dict[str, Inode]:
        """Return the entries of a directory by their names, sorted."""
        prefix = path.rstrip("/") + "/"
        below = (known[len(prefix) :] for known in (*self.read_only, *self.writable) if known.startswith(prefix))
        return {name: self.lookup(prefix + name) for name in sorted({known.partition("/")[0] for known in below})}

    # ---- making, changing and removing ---------------------------------------------------------------------------

    def open_path(self, path: str, oflags: int, fdflags: int, rights: int = READ | WRITE) -> int:
        """Open a file or directory, and return its descriptor. `rights` say whether it may be read and written."""
        if len(self.open) >= self.limits.open_files:
            raise FileError(MFILE)
        if oflags & CREATE and oflags & DIRECTORY:
            raise FileError(INVAL)
        inode = self.find(path)
        if inode is not None:
            self._check_opening(inode, oflags, rights)
        else:
            inode = self._make(path) if oflags & CREATE else self.lookup(path)
        if oflags & TRUNCATE:
            self.resize(inode, 0)
        fd = next(n for n in range(4, 4 + self.limits.open_files) if n not in self.open)
        self.open[fd] = OpenFile(path, inode, rights, fdflags)
        return fd

    def _check_opening(self, inode: Inode, oflags: int, rights: int) -> None:
        if oflags & CREATE and oflags & EXCLUSIVE:
            raise FileError(EXIST)
        if inode.directory and (oflags & (CREATE | TRUNCATE) or rights & WRITE):
            raise FileError(ISDIR)
        if oflags & DIRECTORY and not inode.directory:
            raise FileError(NOTDIR)
        if not inode.directory and not inode.own and (oflags & TRUNCATE or rights & WRITE):
            raise FileError(ROFS)

    def _parent(self, path: str) -> Inode:
        """Return the directory that `path` may be made, moved or removed in."""
        parent = self.lookup(posixpath.dirname(path))
        if not parent.directory:
            raise FileError(NOTDIR)
        if not parent.own:
            raise FileError(ROFS)
        return parent

    def _make(self, path: str, *, directory: bool = False) -> Inode:
        parent = self._parent(path)
        if len(self.writable) >= self.limits.files:
            raise FileError(NOSPC)
        self.next_number += 1
        now = self.now()
        parent.touch(now)
        made = self.writable[path] = Inode(self.next_number, bytearray(), directory, now, now, now)
        return made

    def _remove(self, path: str) -> None:
        parent, removed = self._parent(path), self.writable.pop(path)
        parent.touch(self.now())
        removed.links, removed.changed = 0, parent.changed

    def write(self, inode: Inode, at: int, data: bytes) -> None:
        """Write at a position. A gap before it is filled with zeros. Writing no bytes changes nothing."""
        if not data:
            return
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
        inode.touch(self.now())

    def make_directory(self, path: str) -> None:
        """Create a directory below /tmp."""
        if self.find(path) is not None:
            raise FileError(EXIST)
        self._make(path, directory=True)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory below /tmp."""
        inode = self.lookup(path)
        if not inode.directory:
            raise FileError(NOTDIR)
        if not inode.own:
            raise FileError(ROFS)
        if path == TMP or self.names(path):
            raise FileError(PERM if path == TMP else NOTEMPTY)
        self._remove(path)

    def unlink(self, path: str) -> None:
        """Remove a file. Descriptors of it stay usable."""
        inode = self.lookup(path)
        if inode.directory:
            raise FileError(ISDIR)
        if not inode.own:
            raise FileError(ROFS)
        self._remove(path)

    def rename(self, old: str, new: str) -> None:
        """Move a file, or a directory with all below it, within /tmp. Whatever is at `new` is replaced."""
        left, entered = self._parent(old), self._parent(new)
        moving, there = self.lookup(old), self.find(new)
        if new == old:
            return
        if new.startswith(f"{old}/"):
            raise FileError(INVAL)
        if there is not None and there.directory != moving.directory:
            raise FileError(ISDIR if there.directory else NOTDIR)
        if there is not None and there.directory and self.names(new):
            raise FileError(NOTEMPTY)
        if any(len(_moved(path, old, new).encode()) > MAX_PATH_BYTES for path in self.writable):
            raise FileError(NAMETOOLONG)
        if there is not None:
            self._remove(new)
        self.writable = {_moved(path, old, new): inode for path, inode in self.writable.items()}
        for file in self.open.values():
            file.path = _moved(file.path, old, new)
        moving.changed = self.now()
        for parent in left, entered:
            parent.touch(moving.changed)


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path
