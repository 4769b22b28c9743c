"""Nothing of the host can be seen: no environment, arguments, names, paths, processes or network."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import os

import pytest

from tests.attacks.attack import Attack, each, shows
from tests.attacks.conftest import Withstand

ATTACKS = [
    shows("environment", "import os; [k for k in os.environ if k not in ('LC_CTYPE', 'PYTHONHOME')]", "[]"),
    shows("arguments", "import sys; [a for a in sys.argv + sys.orig_argv if '/work' in a or 'worker' in a]", "[]"),
    Attack(
        "host name",
        "import socket; socket.gethostname()",
        ("OSError", "AttributeError", "ImportError", "ModuleNotFoundError", "ok"),
        check=lambda t: os.uname().nodename not in t.stdout,
    ),
    Attack(
        "uname",
        "import os; os.uname()",
        ("AttributeError", "ok"),
        check=lambda t: os.uname().nodename not in t.stdout and os.uname().release not in t.stdout,
    ),
    Attack(
        "platform", "import platform; platform.uname()", ("ok",), check=lambda t: os.uname().release not in t.stdout
    ),
    Attack(
        "paths in tracebacks",
        "import _door; _door.call(object())",
        ("TypeError",),
        check=lambda t: "/work" not in repr(t) and "site-packages" not in repr(t),
    ),
    Attack(
        "paths in modules",
        "import sys; print([getattr(m, '__file__', '') for m in sys.modules.values()], sys.path, sys.executable, sys.prefix)",
        check=lambda t: "/work" not in t.stdout and "/root" not in t.stdout and ".venv" not in t.stdout,
    ),
    Attack(
        "user",
        "import getpass; getpass.getuser()",
        ("OSError", "KeyError", "ImportError", "ModuleNotFoundError", "AttributeError"),
    ),
    Attack(
        "processes",
        "import subprocess; subprocess.run(['/bin/true'])",
        ("OSError", "AttributeError", "ImportError", "ModuleNotFoundError", "NotImplementedError"),
    ),
    Attack("system", "import os; os.system('true')", ("OSError", "AttributeError")),
    Attack("fork", "import os; os.fork()", ("OSError", "AttributeError")),
    Attack("exec", "import os; os.execv('/bin/true', ['true'])", ("OSError", "AttributeError")),
    Attack("kill", "import os; os.kill(1, 9)", ("OSError", "AttributeError")),
    Attack(
        "threads", "import _thread; _thread.start_new_thread(print, ())", ("RuntimeError", "AttributeError", "OSError")
    ),
    shows("threads that are none", "import threading; threading.Thread(target=print, args=(1,)).start()", "1"),
    Attack(
        "sockets",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        ("OSError", "AttributeError", "ImportError", "ModuleNotFoundError"),
    ),
    Attack(
        "http",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1/')",
        ("OSError", "URLError", "AttributeError", "ImportError", "ModuleNotFoundError"),
    ),
    Attack(
        "foreign functions",
        "import ctypes; ctypes.CDLL(None)",
        ("OSError", "AttributeError", "ImportError", "ModuleNotFoundError", "TypeError"),
    ),
    Attack(
        "extension modules from tmp",
        "import sys; open('/tmp/evil.so', 'wb').write(b'\\x7fELF'); sys.path.insert(0, '/tmp'); import evil",
        ("ImportError", "ModuleNotFoundError"),
    ),
    Attack(
        "memory map",
        "import mmap; mmap.mmap(-1, 4096)",
        ("OSError", "AttributeError", "ImportError", "ModuleNotFoundError", "MemoryError", "ok"),
    ),
    shows("clocks are coarse", "import time; {time.time_ns() % 100_000, time.monotonic_ns() % 100_000} <= {0}", "True"),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
