"""The system a guest sees: `wasi_snapshot_preview1`, answered from memory. It reaches no file or stream of the host.

Every function takes the `Guest` and unsigned integers, and returns a WASI errno. Addresses and lengths come
from the guest and are checked against its memory before use. (WASI preview 1: `docs.md` of WebAssembly/WASI, `legacy`.)
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sandbox.vm import clocks
from sandbox.vm.chance import Chance
from sandbox.vm.engine import Direct, HostFunction
from sandbox.vm.files import (
    ALL_RIGHTS,
    APPEND,
    BADF,
    INVAL,
    ISDIR,
    MAX_PATH_BYTES,
    NAMETOOLONG,
    NOTDIR,
    PERM,
    READ,
    ROFS,
    WRITE,
    FileError,
    Files,
    Inode,
    OpenFile,
)
from sandbox.vm.guest_memory import BadAddress

SUCCESS, FAULT, ILSEQ, NOSYS = 0, 21, 25, 52
CHARACTER_DEVICE, DIRECTORY, REGULAR_FILE = 2, 3, 4
ACCESSED, ACCESSED_NOW, MODIFIED, MODIFIED_NOW = 1, 2, 4, 8
"""WASI fstflags."""
FDFLAGS = 31
MAX_NAME_BYTES, MAX_BYTES_AT_ONCE, MAX_RANDOM_BYTES = 255, 64 << 20, 1 << 20
MAX_VECTORS, MAX_SUBSCRIPTIONS = 1024, 64


class Memory(Protocol):
    """What the system needs of a guest's memory."""

    def read(self, address: int, size: int) -> bytes:
        """Copy out of it; raises `BadAddress`."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Copy into it; raises `BadAddress`."""
        ...

    def write_long(self, address: int, value: int) -> None:
        """Write a number of 64 bits; raises `BadAddress`."""
        ...


class Guest(Protocol):
    """What the system needs of the guest it serves."""

    chance: Chance
    """Where its clocks and random bytes come from."""

    @property
    def memory(self) -> Memory:
        """The guest's memory."""
        ...

    @property
    def files(self) -> Files:
        """The guest's files. The caller may change them."""
        ...

    def printed(self, stream: int, data: bytes) -> None:
        """Take what the guest wrote to descriptor 1 or 2."""
        ...

    def sleep(self, seconds: float) -> bool:
        """Wait, but no longer than the turn may run. Return False where the guest must stop."""
        ...

    def exited(self, code: int) -> None:
        """Note that the guest ended its process."""
        ...


def _pack(guest: Guest, address: int, form: str, *values: int) -> int:
    guest.memory.write(address, struct.pack(form, *values))
    return SUCCESS


def _path(guest: Guest, address: int, size: int) -> str:
    if size > MAX_PATH_BYTES:
        raise FileError(NAMETOOLONG)
    path = guest.memory.read(address, size)
    if b"\0" in path:
        raise FileError(INVAL)
    if max(map(len, path.split(b"/"))) > MAX_NAME_BYTES:
        raise FileError(NAMETOOLONG)
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise FileError(ILSEQ) from None


def _resolved(guest: Guest, fd: int, address: int, size: int, *, making_directory: bool = False) -> str:
    return guest.files.resolve(fd, _path(guest, address, size), making_directory=making_directory)


def _vectors(guest: Guest, address: int, count: int) -> list[tuple[int, int]]:
    if count > MAX_VECTORS:
        raise FileError(INVAL)
    return list(struct.iter_unpack("<II", guest.memory.read(address, 8 * count)))


def _kind(inode: Inode) -> int:
    return DIRECTORY if inode.directory else REGULAR_FILE


def _stat(guest: Guest, out: int, kind: int, inode: Inode) -> int:
    times = inode.accessed, inode.modified, inode.changed
    return _pack(guest, out, "<QQB7xQQQQQ", 1, inode.number, kind, inode.links, len(inode.data), *times)


def args_sizes_get(guest: Guest, count: int, size: int) -> int:
    return _pack(guest, count, "<I", 1) or _pack(guest, size, "<I", 7)


def args_get(guest: Guest, argv: int, buffer: int) -> int:
    guest.memory.write(buffer, b"python\0")
    return _pack(guest, argv, "<I", buffer)


def environ_sizes_get(guest: Guest, count: int, size: int) -> int:
    return _pack(guest, count, "<I", 0) or _pack(guest, size, "<I", 0)


def environ_get(_guest: Guest, _environ: int, _buffer: int) -> int:
    return SUCCESS


def clock_res_get(guest: Guest, clock: int, out: int) -> int:
    return _pack(guest, out, "<Q", clocks.TICK_NANOSECONDS) if clock < 4 else INVAL


def clock_time_get(guest: Guest, words: Sequence[int]) -> int:
    """Write the time where the guest wants it. Python reads clocks far more often than it calls anything else.

    Clock 0 is the time of day, 1 the session's own; 2 and 3, processor time, tell how long the turn has run.
    """
    clock = words[0]
    if clock > 3:
        return INVAL
    try:
        guest.memory.write_long(words[8], guest.chance.clock(clock))
    except BadAddress:
        return FAULT
    return SUCCESS


def random_get(guest: Guest, address: int, size: int) -> int:
    if size > MAX_RANDOM_BYTES:
        return INVAL
    guest.memory.write(address, guest.chance.random(size))
    return SUCCESS


def sched_yield(_guest: Guest) -> int:
    return SUCCESS


def proc_exit(guest: Guest, code: int) -> None:
    guest.exited(code)


def poll_oneoff(guest: Guest, subscriptions: int, events: int, count: int, out: int) -> int | None:
    """Wait for the nearest clock; descriptors are always ready."""
    if not 0 < count <= MAX_SUBSCRIPTIONS:
        return INVAL
    wanted = [struct.unpack("<QB7xI4xQQH6x", guest.memory.read(subscriptions + 48 * i, 48)) for i in range(count)]
    delays = []
    for _user, kind, clock, timeout, _precision, flags in wanted:
        if kind != 0:
            delays.append(0.0)
            continue
        if flags & 1 and clock > 3:
            return INVAL
        delays.append(max(0, timeout - guest.chance.clock(clock) if flags & 1 else timeout) / 1e9)
    wait = min(delays)
    if wait and not guest.sleep(wait):
        return None
    ready = [(user, kind) for (user, kind, *_), delay in zip(wanted, delays, strict=True) if delay <= wait]
    for i, (user, kind) in enumerate(ready):
        guest.memory.write(events + 32 * i, struct.pack("<QHB5xQH6x", user, 0, kind, 0, 0))
    return _pack(guest, out, "<I", len(ready))


def fd_prestat_get(guest: Guest, fd: int, out: int) -> int:
    """One directory is open from the start: `/`, in memory."""
    return _pack(guest, out, "<B3xI", 0, 1) if fd == 3 else BADF


def fd_prestat_dir_name(guest: Guest, fd: int, address: int, size: int) -> int:
    if fd != 3 or size < 1:
        return BADF
    guest.memory.write(address, b"/")
    return SUCCESS


def fd_fdstat_get(guest: Guest, fd: int, out: int) -> int:
    kind, flags, rights = CHARACTER_DEVICE, 0, ALL_RIGHTS
    if fd > 2:
        file = guest.files.at(fd)
        kind, flags, rights = _kind(file.inode), file.flags, file.rights
    return _pack(guest, out, "<BxHxxxxQQ", kind, flags, rights, ALL_RIGHTS)


def fd_fdstat_set_flags(guest: Guest, fd: int, flags: int) -> int:
    if flags & ~FDFLAGS:
        return INVAL
    if fd > 2:
        guest.files.at(fd).flags = flags
    return SUCCESS


def fd_filestat_get(guest: Guest, fd: int, out: int) -> int:
    if fd < 3:
        return _stat(guest, out, CHARACTER_DEVICE, Inode(fd))
    inode = guest.files.at(fd).inode
    return _stat(guest, out, _kind(inode), inode)


def path_filestat_get(guest: Guest, fd: int, _lookup: int, path: int, size: int, out: int) -> int:
    inode = guest.files.lookup(_resolved(guest, fd, path, size))
    return _stat(guest, out, _kind(inode), inode)


def _set_times(guest: Guest, inode: Inode, accessed: int, modified: int, flags: int) -> int:
    if (flags & ACCESSED and flags & ACCESSED_NOW) or (flags & MODIFIED and flags & MODIFIED_NOW):
        return INVAL
    if not inode.own:
        return ROFS
    inode.changed = guest.files.now()
    if flags & (ACCESSED | ACCESSED_NOW):
        inode.accessed = accessed if flags & ACCESSED else inode.changed
    if flags & (MODIFIED | MODIFIED_NOW):
        inode.modified = modified if flags & MODIFIED else inode.changed
    return SUCCESS


def fd_filestat_set_times(guest: Guest, fd: int, accessed: int, modified: int, flags: int) -> int:
    return _set_times(guest, guest.files.at(fd).inode, accessed, modified, flags)


def path_filestat_set_times(
    guest: Guest, fd: int, _lookup: int, path: int, size: int, accessed: int, modified: int, flags: int
) -> int:
    return _set_times(guest, guest.files.lookup(_resolved(guest, fd, path, size)), accessed, modified, flags)


def fd_filestat_set_size(guest: Guest, fd: int, size: int) -> int:
    file = guest.files.at(fd)
    if not file.rights & WRITE or file.inode.directory or size >> 62:
        return INVAL
    guest.files.resize(file.inode, size)
    return SUCCESS


def path_open(
    guest: Guest, fd: int, _lookup: int, path: int, size: int, oflags: int, rights: int, _inherit: int, fdflags: int,
    out: int,
) -> int:  # fmt: skip
    if fdflags & ~FDFLAGS:
        return INVAL
    opened = guest.files.open_path(_resolved(guest, fd, path, size), oflags, fdflags, rights)
    return _pack(guest, out, "<I", opened)


def fd_close(guest: Guest, fd: int) -> int:
    if fd > 3:
        guest.files.at(fd)
        del guest.files.open[fd]
    return SUCCESS


def fd_tell(guest: Guest, fd: int, out: int) -> int:
    return _pack(guest, out, "<Q", guest.files.at(fd).position)


def fd_seek(guest: Guest, fd: int, offset: int, whence: int, out: int) -> int:
    file = guest.files.at(fd)
    if file.inode.directory or whence > 2:
        return INVAL
    signed = offset - 2**64 if offset >> 63 else offset
    position = (0, file.position, len(file.inode.data))[whence] + signed
    if not 0 <= position < 2**62:
        return INVAL
    file.position = position
    return _pack(guest, out, "<Q", position)


def _read(guest: Guest, fd: int, vectors: int, count: int, at: int | None, out: int) -> int:
    if fd == 0:
        return _pack(guest, out, "<I", 0)
    file = guest.files.at(fd)
    if file.inode.directory:
        return ISDIR
    if not file.rights & READ:
        return BADF
    position = start = file.position if at is None else at
    for address, size in _vectors(guest, vectors, count):
        data = bytes(file.inode.data[position : position + min(size, MAX_BYTES_AT_ONCE)])
        guest.memory.write(address, data)
        position += len(data)
        if len(data) < size:
            break
    if at is None:
        file.position = position
    return _pack(guest, out, "<I", position - start)


def fd_read(guest: Guest, fd: int, vectors: int, count: int, out: int) -> int:
    return _read(guest, fd, vectors, count, None, out)


def fd_pread(guest: Guest, fd: int, vectors: int, count: int, offset: int, out: int) -> int:
    return _read(guest, fd, vectors, count, offset, out)


def _gather(guest: Guest, vectors: int, count: int) -> bytes:
    """Copy the bytes to be written. Of more than is written at once, copy the first part."""
    parts, room = [], MAX_BYTES_AT_ONCE
    for address, size in _vectors(guest, vectors, count):
        parts.append(guest.memory.read(address, min(size, room)))
        room -= len(parts[-1])
    return b"".join(parts)


def _writable(guest: Guest, fd: int) -> OpenFile:
    file = guest.files.at(fd)
    if file.inode.directory or not file.rights & WRITE:
        raise FileError(BADF)
    return file


def fd_write(guest: Guest, fd: int, vectors: int, count: int, out: int) -> int:
    data = _gather(guest, vectors, count)
    if fd in (1, 2):
        guest.printed(fd, data)
        return _pack(guest, out, "<I", len(data))
    file = _writable(guest, fd)
    if file.flags & APPEND:
        file.position = len(file.inode.data)
    guest.files.write(file.inode, file.position, data)
    file.position += len(data)
    return _pack(guest, out, "<I", len(data))


def fd_pwrite(guest: Guest, fd: int, vectors: int, count: int, offset: int, out: int) -> int:
    file = _writable(guest, fd)
    if offset >> 62:
        return INVAL
    data = _gather(guest, vectors, count)
    guest.files.write(file.inode, offset, data)
    return _pack(guest, out, "<I", len(data))


def _listing(files: Files, directory: OpenFile) -> tuple[bytes, ...]:
    """Return a directory's entries as the guest receives them, each with the cookie of the next."""
    above = files.find(posixpath.dirname(directory.path)) or directory.inode
    names = {".": directory.inode, "..": above} | files.names(directory.path)
    encoded = [(name.encode(), inode) for name, inode in names.items()]
    return tuple(
        struct.pack("<QQIB3x", i, inode.number, len(name), _kind(inode)) + name
        for i, (name, inode) in enumerate(encoded, start=1)
    )


def fd_readdir(guest: Guest, fd: int, buffer: int, size: int, cookie: int, out: int) -> int:
    """Write the entries a directory had when its listing began, so that removing some meanwhile makes it miss none."""
    file = guest.files.at(fd)
    if not file.inode.directory:
        return NOTDIR
    if cookie == 0 or not file.listing:
        file.listing = _listing(guest.files, file)
    entries = bytearray()
    for entry in file.listing[cookie:]:
        entries += entry
        if len(entries) >= size:
            break
    guest.memory.write(buffer, bytes(entries[:size]))
    return _pack(guest, out, "<I", min(len(entries), size))


def path_create_directory(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.make_directory(_resolved(guest, fd, path, size, making_directory=True))
    return SUCCESS


def path_remove_directory(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.remove_directory(_resolved(guest, fd, path, size))
    return SUCCESS


def path_unlink_file(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.unlink(_resolved(guest, fd, path, size))
    return SUCCESS


def path_rename(guest: Guest, fd: int, old: int, old_size: int, new_fd: int, new: int, new_size: int) -> int:
    source = _resolved(guest, fd, old, old_size)
    directory = guest.files.lookup(source).directory
    guest.files.rename(source, _resolved(guest, new_fd, new, new_size, making_directory=directory))
    return SUCCESS


def path_link(_guest: Guest, *_arguments: int) -> int:
    return PERM


def path_symlink(_guest: Guest, *_arguments: int) -> int:
    return PERM


def path_readlink(guest: Guest, fd: int, path: int, size: int, _buffer: int, _room: int, _out: int) -> int:
    guest.files.lookup(_resolved(guest, fd, path, size))
    return INVAL  # it is no link


def _accepted(_guest: Guest, *_arguments: int) -> int:
    return SUCCESS


def missing(_guest: Guest, *_arguments: int) -> int:
    """Answer calls that are not offered: sockets and anything unknown."""
    return NOSYS


def _guarded(function: Callable[..., int | None]) -> Callable[..., int | None]:
    def call(guest: Any, *arguments: int) -> int | None:
        try:
            return function(guest, *arguments)
        except FileError as error:
            return error.errno
        except BadAddress:
            return FAULT

    return call


_SERVED = (
    args_sizes_get, args_get, environ_sizes_get, environ_get, clock_res_get, random_get, sched_yield,
    proc_exit, poll_oneoff, fd_prestat_get, fd_prestat_dir_name, fd_fdstat_get, fd_fdstat_set_flags, fd_filestat_get,
    fd_filestat_set_size, fd_filestat_set_times, fd_close, fd_tell, fd_seek, fd_read, fd_pread, fd_write, fd_pwrite,
    fd_readdir, path_open, path_filestat_get, path_filestat_set_times, path_create_directory, path_remove_directory,
    path_unlink_file, path_rename, path_link, path_symlink, path_readlink,
)  # fmt: skip

MODULE = "wasi_snapshot_preview1"
FUNCTIONS: dict[tuple[str, str], HostFunction | Direct] = {
    **{(MODULE, function.__name__): _guarded(function) for function in _SERVED},
    **{(MODULE, name): _accepted for name in ("fd_sync", "fd_datasync", "fd_advise")},
    (MODULE, "clock_time_get"): Direct(clock_time_get),
}
