"""The system a guest sees: `wasi_snapshot_preview1`, answered from memory. No file, clock or stream of the host's.

Every function takes the guest's `System` and unsigned integers, and returns a WASI errno. Addresses and lengths come
from the guest and are checked against its memory before use. (WASI preview 1: `docs.md` of WebAssembly/WASI, `legacy`.)
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol

from sandbox.files import BADF, INVAL, NOTDIR, FileError, Files, Inode

SUCCESS, FAULT, NOSYS, NAMETOOLONG = 0, 21, 52, 37
CHARACTER_DEVICE, DIRECTORY, REGULAR_FILE = 2, 3, 4
TICK_NANOSECONDS = 100_000
"""Clocks are this coarse: finer ones help only to observe neighbours."""
MOST_PATH_BYTES, MOST_READ_BYTES, MOST_RANDOM_BYTES = 4096, 64 << 20, 1 << 20
MOST_VECTORS, MOST_SUBSCRIPTIONS = 1024, 64


class Guest(Protocol):
    """What the system needs of the guest it serves."""

    files: Files

    def read(self, address: int, size: int) -> bytes:
        """Copy out of guest memory; raises `BadAddress`."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Copy into guest memory; raises `BadAddress`."""
        ...

    def printed(self, stream: int, data: bytes) -> None:
        """Take what the guest wrote to descriptor 1 or 2."""
        ...

    def sleep(self, seconds: float) -> bool:
        """Wait, no longer than the turn may run; False where the guest must stop."""
        ...

    def exited(self, code: int) -> None:
        """Note that the guest ended its process."""
        ...


class BadAddress(Exception):
    """The guest named memory it does not have."""


def _pack(guest: Guest, address: int, form: str, *values: int) -> int:
    guest.write(address, struct.pack(form, *values))
    return SUCCESS


def _path(guest: Guest, address: int, size: int) -> str:
    if size > MOST_PATH_BYTES:
        raise FileError(NAMETOOLONG)
    try:
        path = guest.read(address, size).decode()
    except UnicodeDecodeError:
        raise FileError(INVAL) from None
    if "\0" in path:
        raise FileError(INVAL)
    return path


def _resolved(guest: Guest, fd: int, address: int, size: int) -> str:
    return guest.files.resolve(fd, _path(guest, address, size))


def _vectors(guest: Guest, address: int, count: int) -> list[tuple[int, int]]:
    if count > MOST_VECTORS:
        raise FileError(INVAL)
    return list(struct.iter_unpack("<II", guest.read(address, 8 * count)))


def _stat(guest: Guest, out: int, kind: int, number: int, size: int) -> int:
    return _pack(guest, out, "<QQB7xQQQQQ", 1, number, kind, 1, size, 0, 0, 0)


def _inode_stat(guest: Guest, out: int, inode: Inode | None) -> int:
    if inode is None:
        return _stat(guest, out, DIRECTORY, 1, 0)
    return _stat(guest, out, REGULAR_FILE, inode.number, len(inode.data))


def args_sizes_get(guest: Guest, count: int, size: int) -> int:
    return _pack(guest, count, "<I", 1) or _pack(guest, size, "<I", 7)


def args_get(guest: Guest, argv: int, buffer: int) -> int:
    guest.write(buffer, b"python\0")
    return _pack(guest, argv, "<I", buffer)


def environ_sizes_get(guest: Guest, count: int, size: int) -> int:
    return _pack(guest, count, "<I", 0) or _pack(guest, size, "<I", 0)


def environ_get(_guest: Guest, _environ: int, _buffer: int) -> int:
    return SUCCESS


def clock_res_get(guest: Guest, clock: int, out: int) -> int:
    return _pack(guest, out, "<Q", TICK_NANOSECONDS) if clock < 4 else INVAL


def clock_time_get(guest: Guest, clock: int, _precision: int, out: int) -> int:
    if clock > 3:
        return INVAL
    now = time.time_ns() if clock == 0 else time.monotonic_ns()
    return _pack(guest, out, "<Q", now - now % TICK_NANOSECONDS)


def random_get(guest: Guest, address: int, size: int) -> int:
    if size > MOST_RANDOM_BYTES:
        return INVAL
    guest.write(address, os.urandom(size))
    return SUCCESS


def sched_yield(_guest: Guest) -> int:
    return SUCCESS


def proc_exit(guest: Guest, code: int) -> None:
    guest.exited(code)


def poll_oneoff(guest: Guest, subscriptions: int, events: int, count: int, out: int) -> int | None:
    """Wait for the nearest clock; descriptors are always ready."""
    if not 0 < count <= MOST_SUBSCRIPTIONS:
        return INVAL
    wanted = [struct.unpack("<QB7xI4xQQH6x", guest.read(subscriptions + 48 * i, 48)) for i in range(count)]
    delays = []
    for _user, kind, clock, timeout, _precision, flags in wanted:
        if kind != 0:
            delays.append(0.0)
            continue
        now = time.time_ns() if clock == 0 else time.monotonic_ns()
        delays.append(max(0, timeout - now if flags & 1 else timeout) / 1e9)
    wait = min(delays)
    if wait and not guest.sleep(wait):
        return None
    ready = [(user, kind) for (user, kind, *_), delay in zip(wanted, delays, strict=True) if delay <= wait]
    for i, (user, kind) in enumerate(ready):
        guest.write(events + 32 * i, struct.pack("<QHB5xQH6x", user, 0, kind, 0, 0))
    return _pack(guest, out, "<I", len(ready))


def fd_prestat_get(guest: Guest, fd: int, out: int) -> int:
    """One directory is open from the start: `/`, in memory."""
    return _pack(guest, out, "<B3xI", 0, 1) if fd == 3 else BADF


def fd_prestat_dir_name(guest: Guest, fd: int, address: int, size: int) -> int:
    if fd != 3 or size < 1:
        return BADF
    guest.write(address, b"/")
    return SUCCESS


def fd_fdstat_get(guest: Guest, fd: int, out: int) -> int:
    kind = CHARACTER_DEVICE if fd < 3 else DIRECTORY if guest.files.at(fd).inode is None else REGULAR_FILE
    flags = 1 if fd > 3 and guest.files.at(fd).append else 0
    return _pack(guest, out, "<BxHxxxxQQ", kind, flags, 2**64 - 1, 2**64 - 1)


def fd_fdstat_set_flags(guest: Guest, fd: int, flags: int) -> int:
    if fd > 3:
        guest.files.at(fd).append = bool(flags & 1)
    return SUCCESS


def fd_filestat_get(guest: Guest, fd: int, out: int) -> int:
    if fd < 3:
        return _stat(guest, out, CHARACTER_DEVICE, fd, 0)
    inode = guest.files.at(fd).inode
    return _inode_stat(guest, out, inode)


def path_filestat_get(guest: Guest, fd: int, _flags: int, path: int, size: int, out: int) -> int:
    inode = guest.files.lookup(_resolved(guest, fd, path, size))
    return _inode_stat(guest, out, inode)


def fd_filestat_set_size(guest: Guest, fd: int, size: int) -> int:
    inode = guest.files.at(fd).inode
    if inode is None or size >> 62:
        return INVAL
    guest.files.resize(inode, size)
    return SUCCESS


def path_open(
    guest: Guest, fd: int, _dirflags: int, path: int, size: int, oflags: int, _rights: int, _inherit: int, fdflags: int,
    out: int,
) -> int:  # fmt: skip
    return _pack(guest, out, "<I", guest.files.open_path(_resolved(guest, fd, path, size), oflags, fdflags))


def fd_close(guest: Guest, fd: int) -> int:
    if fd > 3:
        guest.files.at(fd)
        del guest.files.open[fd]
    return SUCCESS


def fd_tell(guest: Guest, fd: int, out: int) -> int:
    return _pack(guest, out, "<Q", guest.files.at(fd).position)


def fd_seek(guest: Guest, fd: int, offset: int, whence: int, out: int) -> int:
    file = guest.files.at(fd)
    if file.inode is None or whence > 2:
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
    if file.inode is None:
        return INVAL
    position = start = file.position if at is None else at
    for address, size in _vectors(guest, vectors, count):
        data = bytes(file.inode.data[position : position + min(size, MOST_READ_BYTES)])
        guest.write(address, data)
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
    data = bytearray()
    for address, size in _vectors(guest, vectors, count):
        if len(data) + size > MOST_READ_BYTES:
            raise FileError(INVAL)
        data += guest.read(address, size)
    return bytes(data)


def fd_write(guest: Guest, fd: int, vectors: int, count: int, out: int) -> int:
    data = _gather(guest, vectors, count)
    if fd in (1, 2):
        guest.printed(fd, data)
        return _pack(guest, out, "<I", len(data))
    file = guest.files.at(fd)
    if file.inode is None:
        return BADF
    if file.append:
        file.position = len(file.inode.data)
    guest.files.write(file.inode, file.position, data)
    file.position += len(data)
    return _pack(guest, out, "<I", len(data))


def fd_pwrite(guest: Guest, fd: int, vectors: int, count: int, offset: int, out: int) -> int:
    file = guest.files.at(fd)
    if file.inode is None or offset >> 62:
        return INVAL
    data = _gather(guest, vectors, count)
    guest.files.write(file.inode, offset, data)
    return _pack(guest, out, "<I", len(data))


def fd_readdir(guest: Guest, fd: int, buffer: int, size: int, cookie: int, out: int) -> int:
    file = guest.files.at(fd)
    if file.inode is not None:
        return NOTDIR
    entries = bytearray()
    names = [(".", True, 1), ("..", True, 1), *guest.files.names(file.path)]
    for i, (name, is_directory, number) in enumerate(names[cookie:], start=cookie):
        encoded = name.encode()
        entries += struct.pack("<QQIB3x", i + 1, number, len(encoded), DIRECTORY if is_directory else REGULAR_FILE)
        entries += encoded
        if len(entries) >= size:
            break
    guest.write(buffer, bytes(entries[:size]))
    return _pack(guest, out, "<I", min(len(entries), size))


def path_create_directory(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.make_directory(_resolved(guest, fd, path, size))
    return SUCCESS


def path_remove_directory(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.remove_directory(_resolved(guest, fd, path, size))
    return SUCCESS


def path_unlink_file(guest: Guest, fd: int, path: int, size: int) -> int:
    guest.files.unlink(_resolved(guest, fd, path, size))
    return SUCCESS


def path_rename(guest: Guest, fd: int, old: int, old_size: int, new_fd: int, new: int, new_size: int) -> int:
    guest.files.rename(_resolved(guest, fd, old, old_size), _resolved(guest, new_fd, new, new_size))
    return SUCCESS


def _accepted(_guest: Guest, *_arguments: int) -> int:
    return SUCCESS


def missing(_guest: Guest, *_arguments: int) -> int:
    """Answer what is not offered: links, sockets and anything unknown."""
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
    args_sizes_get, args_get, environ_sizes_get, environ_get, clock_res_get, clock_time_get, random_get, sched_yield,
    proc_exit, poll_oneoff, fd_prestat_get, fd_prestat_dir_name, fd_fdstat_get, fd_fdstat_set_flags, fd_filestat_get,
    path_filestat_get, fd_filestat_set_size, path_open, fd_close, fd_tell, fd_seek, fd_read, fd_pread, fd_write,
    fd_pwrite, fd_readdir, path_create_directory, path_remove_directory, path_unlink_file, path_rename,
)  # fmt: skip

MODULE = "wasi_snapshot_preview1"
FUNCTIONS: dict[tuple[str, str], Callable[..., int | None]] = {
    (MODULE, function.__name__): _guarded(function) for function in _SERVED
} | {
    (MODULE, name): _accepted
    for name in ("fd_sync", "fd_datasync", "fd_advise", "fd_filestat_set_times", "path_filestat_set_times")
}
