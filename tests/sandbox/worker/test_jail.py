"""The jail holds: what it forbids fails inside for its sake and works outside, and what a worker needs still works."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.limits import MIB, Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from sandbox.worker.privileges import kept
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_pool import run

X86_64 = platform.machine() == "x86_64"
"""The numbers of calls below are this machine's; on another the attempts that use them are left out."""

PRELUDE = f"""
import ctypes, errno, json, mmap, os, socket, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from sandbox.worker import jail
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
here, page, own = os.getpid(), ctypes.create_string_buffer(4096), mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(own))
parent = os.getppid()
reader, writer = os.pipe()
spare, closing = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
stored = os.open(jail.__file__, os.O_RDONLY)

def call(number, *arguments):
    words = [a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result

def forked(number, *arguments):
    result = call(number, *arguments)
    if result == 0:
        os._exit(0)
    return min(result, 1)

def attempt(what):
    try:
        result = eval(what)
    except OSError as error:
        return -error.errno
    return result if type(result) is int else 0
"""


def child(program: str, argument: object = None) -> Any:
    """Run a program in a process of its own and return what it prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + program, json.dumps(argument)],
        env={}, capture_output=True, timeout=60, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    return json.loads(done.stdout)


WORKS = "works"
"""Outside the jail the attempt succeeds."""
UNTRIED = "untried"
"""What it does outside depends on the machine, or would hurt the test."""
BAD_FD, FAULT, NO_PROCESS, INVALID = -errno.EBADF, -errno.EFAULT, -errno.ESRCH, -errno.EINVAL
"""It is given something impossible, and outside the jail the kernel gets as far as noticing that."""

FORBIDDEN: dict[str, tuple[str, int | str]] = {
    "open": ("call(2, b'/etc/passwd', 0, 0)", WORKS),
    "openat": ("call(257, -100, b'/etc/passwd', 0, 0)", WORKS),
    "openat2": ("call(437, -100, b'/etc/passwd', bytes(24), 24)", WORKS),
    "os.open for writing": ("os.open('/dev/null', os.O_WRONLY)", WORKS),
    "os.listdir": ("os.listdir('/')", WORKS),
    "stat": ("call(4, b'/', page)", WORKS),
    "statx": ("call(332, -100, b'/', 0, 0x7ff, page)", WORKS),
    "newfstatat": ("call(262, -100, b'/', page, 0)", WORKS),
    "access": ("call(21, b'/', 0)", WORKS),
    "readlink": ("call(89, b'/proc/self/exe', page, 4096)", WORKS),
    "getdents64": ("call(217, -1, page, 4096)", BAD_FD),
    "chdir": ("call(80, b'/')", WORKS),
    "chroot": ("call(161, 0)", UNTRIED),
    "getcwd": ("call(79, page, 4096)", WORKS),
    "mkdir": ("call(83, 0, 0)", FAULT),
    "unlink": ("call(87, 0)", FAULT),
    "rename": ("call(82, 0, 0)", FAULT),
    "link": ("call(86, 0, 0)", FAULT),
    "symlink": ("call(88, 0, 0)", FAULT),
    "chmod": ("call(90, 0, 0)", FAULT),
    "mknod": ("call(133, 0, 0, 0)", UNTRIED),
    "truncate": ("call(76, 0, 0)", FAULT),
    "name_to_handle_at": ("call(303, -1, b'x', page, page, 0)", UNTRIED),
    "open_by_handle_at": ("call(304, -1, page, 0)", UNTRIED),
    "inotify_init1": ("call(294, 0)", WORKS),
    "fanotify_init": ("call(300, 0, 0)", UNTRIED),
    "memfd_create": ("call(319, b'x', 0)", WORKS),
    "memfd_secret": ("call(447, 0)", UNTRIED),
    "socket, internet": ("call(41, 2, 1, 0)", WORKS),
    "socket, datagrams": ("call(41, 2, 2, 0)", WORKS),
    "socket, unix": ("call(41, 1, 1, 0)", WORKS),
    "socket, netlink": ("call(41, 16, 3, 0)", WORKS),
    "socket, vsock": ("call(41, 40, 1, 0)", UNTRIED),
    "socket, packet": ("call(41, 17, 3, 0)", UNTRIED),
    "socketpair": ("call(53, 1, 1, 0, page)", WORKS),
    "connect": ("call(42, -1, page, 16)", BAD_FD),
    "bind": ("call(49, -1, page, 16)", BAD_FD),
    "listen": ("call(50, -1, 1)", BAD_FD),
    "accept4": ("call(288, -1, 0, 0, 0)", BAD_FD),
    "fork": ("forked(57)", WORKS),
    "os.fork": ("os.fork() or os._exit(0)", WORKS),
    "vfork": ("call(58)", UNTRIED),
    "clone as fork": ("forked(56, 17, 0, 0, 0, 0)", WORKS),
    "clone with shared memory, no thread": ("call(56, 0x100 | 0x4000 | 17, 0, 0, 0, 0)", UNTRIED),
    "clone into a new user namespace": ("forked(56, 0x10000000 | 17, 0, 0, 0, 0)", UNTRIED),
    "execve": ("call(59, b'/nothing', 0, 0)", -errno.ENOENT),
    "execveat": ("call(322, -1, b'', 0, 0, 0x1000)", BAD_FD),
    "kill of another process": ("call(62, parent, 0)", WORKS),
    "kill of every process": ("call(62, -1, 0)", UNTRIED),
    "tkill": ("call(200, parent, 0)", WORKS),
    "tgkill of another process": ("call(234, parent, parent, 0)", WORKS),
    "rt_sigqueueinfo": ("call(129, parent, 0, page)", UNTRIED),
    "pidfd_open": ("call(434, parent, 0)", WORKS),
    "pidfd_send_signal": ("call(424, -1, 0, 0, 0)", BAD_FD),
    "pidfd_getfd": ("call(438, -1, 0, 0)", BAD_FD),
    "ptrace": ("call(101, 16, 1 << 22, 0, 0)", NO_PROCESS),
    "process_vm_readv": ("call(310, 1 << 22, page, 1, page, 1, 0)", NO_PROCESS),
    "process_vm_writev": ("call(311, 1 << 22, page, 1, page, 1, 0)", NO_PROCESS),
    "process_madvise": ("call(440, -1, page, 1, 0, 0)", BAD_FD),
    "kcmp": ("call(312, here, here, 0, 0, 0)", UNTRIED),
    "mmap, executable": ("min(call(9, 0, 4096, 5, 0x22, -1, 0), 0)", WORKS),
    "mmap, writable and executable": ("min(call(9, 0, 4096, 7, 0x22, -1, 0), 0)", WORKS),
    "mprotect, executable": ("call(10, address, 4096, 5)", WORKS),
    "pkey_mprotect, executable": ("call(329, address, 4096, 5, -1)", WORKS),
    "personality, so that reading is executing": ("call(135, 0x0400000)", WORKS),
    "shmget": ("call(29, 0, 4096, 0o600 | 0o1000)", UNTRIED),
    "mount": ("call(165, 0, 0, 0, 0, 0)", FAULT),
    "umount2": ("call(166, 0, 0)", UNTRIED),
    "pivot_root": ("call(155, 0, 0)", UNTRIED),
    "setns": ("call(308, -1, 0)", BAD_FD),
    "unshare": ("call(272, 0)", WORKS),
    "unshare of the user namespace": ("call(272, 0x10000000)", UNTRIED),
    "bpf": ("call(321, 0, page, 128)", UNTRIED),
    "perf_event_open": ("call(298, page, 0, -1, -1, 0)", UNTRIED),
    "userfaultfd": ("call(323, 1)", UNTRIED),
    "io_uring_setup": ("call(425, 1, page)", UNTRIED),
    "io_uring_enter": ("call(426, -1, 0, 0, 0, 0, 0)", UNTRIED),
    "io_setup": ("call(206, 0, page)", INVALID),
    "keyctl": ("call(250, 0, -3, 0)", UNTRIED),
    "add_key": ("call(248, 0, 0, 0, 0, 0)", UNTRIED),
    "init_module": ("call(175, 0, 0, 0)", UNTRIED),
    "finit_module": ("call(313, -1, 0, 0)", UNTRIED),
    "kexec_load": ("call(246, 0, 0, 0, 0)", UNTRIED),
    "reboot": ("call(169, 0, 0, 0, 0)", UNTRIED),
    "syslog": ("call(103, 10, 0, 0)", UNTRIED),
    "swapon": ("call(167, 0, 0)", UNTRIED),
    "sethostname": ("call(170, 0, -1)", UNTRIED),
    "settimeofday": ("call(164, 0, 0)", UNTRIED),
    "iopl": ("call(172, 9)", UNTRIED),
    "modify_ldt": ("call(154, 9, 0, 0)", UNTRIED),
    "prctl, dumpable again": ("call(157, 4, 1, 0, 0, 0)", WORKS),
    "prctl, any": ("call(157, 3, 0, 0, 0, 0)", WORKS),
    "setuid": ("call(105, os.getuid())", WORKS),
    "setresuid": ("call(117, -1, -1, -1)", WORKS),
    "capset": ("call(126, 0, 0)", FAULT),
    "setrlimit": ("call(160, 4, 0)", FAULT),
    "prlimit64 of another process": ("call(302, parent, 4, 0, page)", WORKS),
    "setpriority": ("call(141, 0, 0, 0)", WORKS),
    "sched_setaffinity": ("call(203, 0, 0, 0)", INVALID),
    "seccomp, another filter": ("call(317, 1, 0, 0)", FAULT),
    "landlock_create_ruleset": ("call(444, 0, 0, 1)", UNTRIED),
    "uname": ("call(63, page)", WORKS),
    "sysinfo": ("call(99, page)", WORKS),
    "dup": ("call(32, spare)", WORKS),
    "dup2 over another descriptor": ("call(33, spare, spare + 1)", WORKS),
    "fcntl": ("call(72, spare, 3)", WORKS),
    "sendfile": ("call(40, -1, -1, 0, 1)", BAD_FD),
    "splice": ("call(275, -1, 0, -1, 0, 1, 0)", BAD_FD),
    "ioctl of a terminal": ("call(16, spare, 0x5412, page)", -errno.ENOTTY),
    "pipe": ("call(22, page)", WORKS),
    "eventfd2": ("call(290, 0, 0)", WORKS),
    "epoll_create1": ("call(291, 0)", WORKS),
    "timerfd_create": ("call(283, 1, 0)", WORKS),
    "signalfd4": ("call(289, -1, 0, 8, 0)", UNTRIED),
    "a call that does not exist": ("call(1000)", -errno.ENOSYS),
}
if not X86_64:
    FORBIDDEN = {name: case for name, case in FORBIDDEN.items() if case[0].startswith("os.")}


ALLOWED: dict[str, str] = {
    "reading a descriptor": "len(os.read(spare, 10))",
    "reading at a place": "call(17, spare, page, 1, 0)",
    "writing to a pipe and reading it": "os.write(writer, b'x') and len(os.read(reader, 1))",
    "closing": "os.close(closing) or 0",
    "anonymous memory": "mmap.mmap(-1, 1 << 20).write(b'x')",
    "memory of a descriptor": "min(call(9, 0, 4096, 1, 0x02, stored, 0), 0)",
    "making memory unreadable": "call(10, address, 4096, 0) or call(10, address, 4096, 3)",
    "time": "int(time.time() > 0 and time.monotonic() > 0)",
    "waiting": "time.sleep(0.001)",
    "randomness": "len(os.urandom(16))",
    "one's own number": "os.getpid()",
    "a signal to oneself": "call(234, here, threading.get_native_id(), 0)",
    "a thread": "[t := threading.Thread(target=int), t.start(), t.join()] and 0",
}
if not X86_64:
    ALLOWED = {name: what for name, what in ALLOWED.items() if "call(" not in what}


@pytest.fixture(scope="module")
def inside() -> dict[str, int]:
    """What each attempt gives inside."""
    program = "jail.self_test(jail.confine())\nasked = json.loads(sys.argv[1])\n"
    program += "print(json.dumps({name: attempt(what) for name, what in asked.items()}), flush=True)\nos._exit(0)"
    asked = {name: what for name, (what, _) in FORBIDDEN.items()} | ALLOWED | {"clone3": "call(435, page, 88)"}
    answered: dict[str, int] = child(program, asked)
    return answered


@pytest.fixture(scope="module")
def outside() -> dict[str, int]:
    """What each harmless attempt gives outside."""
    program = "asked = json.loads(sys.argv[1])\n"
    program += "print(json.dumps({name: attempt(what) for name, what in asked.items()}), flush=True)\nos._exit(0)"
    asked = {name: what for name, (what, expected) in FORBIDDEN.items() if expected != UNTRIED}
    answered: dict[str, int] = child(program, asked)
    return answered


@pytest.mark.parametrize("name", FORBIDDEN)
def test_it_is_refused_inside(inside: dict[str, int], name: str) -> None:
    assert inside[name] == -errno.EPERM


@pytest.mark.parametrize("name", [name for name, (_, expected) in FORBIDDEN.items() if expected != UNTRIED])
def test_it_is_the_jail_that_refuses(outside: dict[str, int], name: str) -> None:
    expected = FORBIDDEN[name][1]
    assert outside[name] >= 0 if expected == WORKS else outside[name] == expected


def test_clone3_does_not_exist_inside_so_that_libraries_fall_back_to_clone(inside: dict[str, int]) -> None:
    assert inside["clone3"] == -errno.ENOSYS  # 435 on both machines


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_worker_needs_works_inside(inside: dict[str, int], name: str) -> None:
    assert inside[name] >= 0


def test_the_jail_covers_threads_started_before_it_and_after() -> None:
    program = """
results, confined = {}, threading.Event()
def early():
    confined.wait()
    results["early"] = [attempt("os.open('/', 0)"), attempt("call(41, 2, 1, 0)"), attempt("forked(57)")]
def late():
    results["late"] = [attempt("os.open('/', 0)"), attempt("call(41, 2, 1, 0)"), attempt("forked(57)")]
first = threading.Thread(target=early)
first.start()
jail.confine()
confined.set()
second = threading.Thread(target=late)
second.start()
first.join()
second.join()
print(json.dumps(results), flush=True)
os._exit(0)
"""
    assert child(program) == {"early": [-errno.EPERM] * 3, "late": [-errno.EPERM] * 3}


def test_the_self_test_fails_outside_the_jail() -> None:
    program = """
try:
    jail.self_test(jail.Confined())
except jail.JailError as error:
    print(json.dumps(str(error)))
"""
    assert child(program) == "opening a file works inside the jail"


def test_the_self_test_does_not_take_another_error_for_the_jail() -> None:
    program = """
def refuse(): raise FileNotFoundError(2, "gone")
jail._FORBIDDEN["opening a file"] = refuse
try:
    jail.self_test(jail.Confined())
except jail.JailError as error:
    print(json.dumps(str(error)))
"""
    assert "not because of the jail" in child(program)


def test_a_machine_without_a_jail_says_so() -> None:
    program = """
jail.platform.machine = lambda: "pdp11"
try:
    jail.confine()
except jail.JailError as error:
    print(json.dumps(str(error)))
"""
    assert child(program) == "there is no jail for linux on pdp11"


@pytest.mark.parametrize("number", ["0x40000000 | 39", "0x40000000 | 2"])
def test_the_other_numbering_of_calls_ends_the_process(number: str) -> None:
    program = PRELUDE + f"jail.confine()\ncall({number}, 0, 0, 0)"
    done = subprocess.run([sys.executable, "-I", "-c", program], env={}, timeout=60, check=False)
    assert done.returncode == -signal.SIGSYS


# ---- privileges ------------------------------------------------------------------------------------------------------

ROOT = os.geteuid() == 0
NO_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb", *(("CapBnd",) if ROOT else ()))
"""Who is not root has none to give up, and cannot lower the bounds of what it will never get."""

GIVEN_UP = """
status = os.open("/proc/self/status", os.O_RDONLY)
{first}
try:
    jail.self_test(jail.confine())
    problem = ""
except jail.JailError as error:
    problem = str(error)
lines = (line.split(":\\t", 1) for line in os.pread(status, 1 << 16, 0).decode().splitlines())
found = {{line[0]: line[1].split() for line in lines if len(line) == 2}}
names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid", "Groups")
print(json.dumps({{name: found[name] for name in names}} | {{"problem": problem}}), flush=True)
os._exit(0)
"""
CAPSET = """
import struct, platform
def lose(capability, *, inherit=0):
    lines = open("/proc/self/status").read().splitlines()
    held = int(next(line for line in lines if line.startswith("CapPrm")).split()[1], 16) & ~(1 << capability)
    sets = [(bits & 0xFFFFFFFF, bits >> 32) for bits in (held, held, held & inherit)]
    data = struct.pack("<6I", *(bits[half] for half in (0, 1) for bits in sets))
    number = {"x86_64": 126, "aarch64": 91}[platform.machine()]
    assert call(number, struct.pack("<Ii", 0x20080522, 0), data) == 0
"""


def given_up(first: str = "") -> dict[str, Any]:
    """What a process has after it has confined itself, having done something before."""
    found: dict[str, Any] = child(GIVEN_UP.format(first=first))
    return found


def test_all_capabilities_are_given_up_and_root_as_well() -> None:
    found = given_up()
    assert found["problem"] == ""
    for name in NO_CAPABILITIES:
        assert found[name] == ["0" * 16]
    if ROOT:
        assert found["Uid"] == found["Gid"] == ["65534"] * 4
        assert found["Groups"] == []
    else:
        assert found["Uid"] == [str(os.getuid())] * 4


if ROOT:  # nobody else has something to give up

    def test_an_ordinary_user_stays_who_it_is() -> None:
        found = given_up("os.setgroups([7])\nos.setresgid(6, 6, 6)\nos.setresuid(5, 5, 5)")
        assert found["problem"] == ""
        assert (found["Uid"], found["Gid"], found["Groups"]) == (["5"] * 4, ["6"] * 4, ["7"])
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert found[name] == ["0" * 16]

    @pytest.mark.parametrize("without", [5, 6, 7])
    def test_root_that_could_not_be_ended_as_another_user_stays_root_without_a_capability(without: int) -> None:
        found = given_up(f"{CAPSET}\nlose({without})")
        assert found["problem"] == ""
        assert found["Uid"] == ["0"] * 4
        for name in NO_CAPABILITIES:
            assert found[name] == ["0" * 16]

    def test_root_with_room_for_few_threads_stays_root_without_a_capability() -> None:
        found = given_up("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))")
        assert (found["problem"], found["Uid"]) == ("", ["0"] * 4)
        assert found["CapEff"] == found["CapBnd"] == ["0" * 16]

    def test_ambient_and_inheritable_capabilities_are_given_up() -> None:
        found = given_up(f"{CAPSET}\nlose(63, inherit=1 << 13)\nassert libc.prctl(47, 2, 13, 0, 0) == 0")
        assert found["problem"] == ""
        for name in NO_CAPABILITIES:
            assert found[name] == ["0" * 16]

    @pytest.mark.parametrize(
        ("broken", "kept"),
        [
            ("jail.privileges._libc.syscall = lambda *_: 0\njail.privileges._become_nobody = lambda: None", "CapEff"),
            ("jail.privileges._empty_bounding_set = lambda: None", "CapBnd"),
        ],
    )
    def test_the_self_test_finds_capabilities_that_were_kept(broken: str, kept: str) -> None:
        class_of_its_own = (
            "class Library:\n    def __getattr__(self, name): return getattr(libc, name)\n"
            "jail.privileges._libc = Library()\n"
        )
        problem = given_up(class_of_its_own + broken)["problem"]
        assert problem.startswith("capabilities were kept: ")
        assert kept in problem


def test_a_set_of_capabilities_that_is_not_told_of_counts_as_kept() -> None:
    status = "Name:\tpython\nCapInh:\t0000000000000000\nCapEff:\t0000000000000001\n"
    assert kept(status, frozenset({"CapInh", "CapEff", "CapBnd"})) == ["CapBnd", "CapEff"]
    assert kept(status, frozenset({"CapInh"})) == []


# ---- a live worker ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def session(loaded: Loaded, text: MakeText, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerSession]:
    monkeypatch.setenv("SECRET_KEY", "canary-of-the-server")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    pool = WorkerPool(loaded, sessions=1, spares=0)
    made = await pool.create("a", "core", Limits(memory_bytes=96 * MIB))
    await made.attach("context", text("abc" * 1000))
    assert (await run(made, "len(context)")).status is Status.OK
    os.close(secret)
    yield made
    await pool.close()


def proc(session: WorkerSession) -> Path:
    assert session._process is not None
    return Path(f"/proc/{session._process._process.pid}")


async def test_a_worker_is_in_the_jail(session: WorkerSession) -> None:
    assert session._process is not None
    assert session._process.unconfined == ""
    for task in (proc(session) / "task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert [status[name] for name in NO_CAPABILITIES] == ["0" * 16] * len(NO_CAPABILITIES)
        assert os.geteuid() != 0 or set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}


async def test_a_worker_knows_nothing_of_the_servers_environment(session: WorkerSession) -> None:
    try:
        environment = (proc(session) / "environ").read_bytes()
    except PermissionError:  # not dumpable, and we are not privileged: nobody's eyes
        assert os.geteuid() != 0
        return
    assert environment == b""
    assert b"canary" not in (proc(session) / "cmdline").read_bytes()


async def test_a_worker_holds_only_the_descriptors_it_needs(session: WorkerSession, loaded: Loaded) -> None:
    try:
        held = {int(fd.name): os.readlink(fd) for fd in (proc(session) / "fd").iterdir()}
    except PermissionError:
        assert os.geteuid() != 0
        return
    assert held.pop(0) == "/dev/null"
    assert held.pop(1) == "/dev/null"
    assert held.pop(2).startswith("pipe:")
    kinds = [
        "socket" if target.startswith("socket:")
        else "pagemap" if target.endswith("/pagemap")
        else "memory" if target.startswith("/memfd:")
        else target
        for target in held.values()
    ]  # fmt: skip
    images = {os.readlink(f"/proc/self/fd/{image.fd}") for image in loaded.images.values()}
    files = {str(loaded.stdlib), str(loaded.compiled), *images}
    assert kinds.count("socket") == 2
    assert kinds.count("pagemap") == 1
    assert set(kinds) <= {"socket", "pagemap", "memory", "anon_inode:[userfaultfd]"} | files
    for fd, target in held.items():
        flags = int((proc(session) / "fdinfo" / str(fd)).read_text().split("flags:\t")[1].split()[0], 8)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        assert not writable or target.startswith(("socket:", "/memfd:", "anon_inode:[userfaultfd]")), target


async def test_what_several_workers_share_cannot_be_written_or_cut_by_any(session: WorkerSession) -> None:
    import fcntl

    sealed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    try:
        held = [(fd, os.readlink(fd)) for fd in (proc(session) / "fd").iterdir()]
    except PermissionError:
        assert os.geteuid() != 0
        return
    shared = [fd for fd, target in held if target.startswith("/memfd:") and not target.startswith("/memfd:pages")]
    assert shared
    for path in shared:
        fd = os.open(path, os.O_RDONLY)
        try:
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & sealed == sealed
        finally:
            os.close(fd)
