"""Confines the process that runs guests, so that a guest that broke out of WebAssembly would find nothing.

A process puts itself into the jail once everything it needs is loaded. From then on it can compute, map memory without
making it executable, wait, and use the descriptors it has. It cannot open a file, make a socket, start a process, or
look at another one. The kernel enforces this in layers: no_new_privs, no capabilities, no root (`privileges`), Landlock
without a single path (Documentation/userspace-api/landlock.rst), and a seccomp filter that answers EPERM to all but a
short list of calls (Documentation/userspace-api/seccomp_filter.rst). Linux on x86-64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.memory import missing, pagetable, userfaultfd
from sandbox.worker import privileges

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1

_ARCHITECTURES = {"x86_64": (0xC000003E, 317, 0), "aarch64": (0xC00000B7, 277, 1)}
"""By machine: the kernel's audit number, the number of seccomp(2), and the column of `_ALLOWED`."""

_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "pwrite64": (18, 68), "preadv2": (327, 286), "pwritev2": (328, 287),
    "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "sendto": (44, 206), "recvfrom": (45, 207),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "exit": (60, 93), "gettid": (186, 178),
    "getrusage": (98, 165), "sigaltstack": (131, 132), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "ppoll": (271, 73), "poll": (7, -1), "set_robust_list": (273, 99), "getrandom": (318, 278),
    "membarrier": (324, 283), "rseq": (334, 293), "getcpu": (309, 168),
}  # fmt: skip
_MMAP, _MPROTECT = (9, 222), (10, 226)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_IOCTL = (16, 29)
_TGKILL = (234, 131)
_PROT_EXEC = 4
_CLONE_THREAD = 0x00010000
_IOCTLS = (pagetable.PAGEMAP_SCAN, userfaultfd.UFFDIO_REGISTER, missing.UFFDIO_ZEROPAGE, missing.UFFDIO_WAKE)

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06

_libc = ctypes.CDLL(None, use_errno=True)


class JailError(Exception):
    """This machine lacks a layer of the jail, or a layer does not hold; the message names it."""


@dataclass(frozen=True, slots=True)
class Confined:
    """What the self-test needs: a descriptor of /proc/self/status, and the sets of capabilities that must be empty.

    The descriptor is -1 where there is no such file.
    """

    status: int = -1
    empty: frozenset[str] = frozenset()


def confine() -> Confined:
    """Put this process into the jail, for good. To be called while it has a single thread.

    Raises:
        JailError: this machine lacks a layer; the process may be half confined and must not go on.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        raise JailError(f"there is no jail for {sys.platform} on {platform.machine()}")
    _limit_resources()
    try:
        confined = Confined(os.open(privileges.STATUS, os.O_RDONLY | os.O_CLOEXEC), privileges.give_up())
    except OSError as error:
        raise JailError(f"privileges cannot be given up: {error}") from None
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _restrict_files()
    _filter_calls()
    return confined


def self_test(confined: Confined) -> None:
    """Try what the jail forbids, and look for capabilities that are left. Closes the descriptor.

    Raises:
        JailError: something forbidden worked, or a capability is left.
    """
    for name, attempt in _FORBIDDEN.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError as error:
            raise JailError(f"{name} failed, but not because of the jail: {error}") from None
        raise JailError(f"{name} works inside the jail")
    if confined.status >= 0:
        kept = privileges.kept(os.pread(confined.status, 1 << 16, 0).decode(), confined.empty)
        os.close(confined.status)
        if kept:
            raise JailError(f"capabilities were kept: {', '.join(kept)}")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


_FORBIDDEN: dict[str, Callable[[], object]] = {
    "opening a file": lambda: os.open("/", os.O_RDONLY),
    "making a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "making a unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close(),
    "starting a process": _fork,
    "replacing the program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
    "signalling another process": lambda: os.kill(1, 0),
    "listing a directory": lambda: os.listdir("/"),
    "mapping executable memory": lambda: _mapped_executable(),
}


def _mapped_executable() -> None:
    _libc.mmap.restype = ctypes.c_void_p
    if _libc.mmap(None, 4096, 1 | _PROT_EXEC, 0x22, -1, 0) == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise JailError(f"{what}: {os.strerror(number)}")
    return result


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def raise_addresses() -> None:
    """Raise the soft limit of addresses, which the server may have for itself: each guest reserves 4 GiB of them."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _restrict_files() -> None:
    """Forbid all access to files and, where the kernel can, TCP and signals to others: a rule set without a path."""
    version = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1), "Landlock")
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    attributes = struct.pack("<QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0), "Landlock")
    try:
        _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0), "Landlock")
    finally:
        os.close(rules)


def _filter_calls() -> None:
    audit, seccomp, column = _ARCHITECTURES[platform.machine()]
    program = b"".join(_filter(audit, column))

    class _Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    made = _Program(len(program) // 8, program)
    flags = _SECCOMP_FILTER_FLAG_TSYNC
    _check(_libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(made)), "seccomp")


def _filter(audit: int, column: int) -> list[bytes]:
    """Write the filter as BPF. `seccomp_data`: the call's number at 0, the machine at 4, argument n at 16 + 8 n."""
    denied = _ERRNO | errno.EPERM
    program = [_step(_LOAD, 4), _step(_EQUAL, audit, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    if column == 0:  # x86-64's other numbering, x32, has this bit
        program += [_step(_ANY_BIT, 0x40000000, 0, 1), _step(_RETURN, _KILL)]
    for name in sorted(_ALLOWED):
        number = _ALLOWED[name][column]
        if number >= 0:
            program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    program += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    # Memory without execution; threads, not processes; some ioctls; signals to this process only.
    for number in (_MMAP[column], _MPROTECT[column]):
        program += _only(number, [_step(_LOAD, 32), _step(_ANY_BIT, _PROT_EXEC, 1, 0), _step(_RETURN, _ALLOW)], denied)
    program += _only(
        _CLONE[column], [_step(_LOAD, 16), _step(_ANY_BIT, _CLONE_THREAD, 0, 1), _step(_RETURN, _ALLOW)], denied
    )
    known = [step for ioctl in _IOCTLS for step in (_step(_EQUAL, ioctl, 0, 1), _step(_RETURN, _ALLOW))]
    program += _only(_IOCTL[column], [_step(_LOAD, 24), *known], denied)
    itself = [_step(_LOAD, 16), _step(_EQUAL, os.getpid(), 0, 1), _step(_RETURN, _ALLOW)]
    program += _only(_TGKILL[column], itself, denied)
    return [*program, _step(_RETURN, denied)]


def _only(number: int, checks: list[bytes], otherwise: int) -> list[bytes]:
    """Write the checks of one call. A call that passes none of them is answered `otherwise`."""
    return [_step(_EQUAL, number, 0, len(checks) + 1), *checks, _step(_RETURN, otherwise)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
