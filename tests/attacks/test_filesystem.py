"""There are no files but the standard library and the session's own /tmp."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack, each, refused, shows
from tests.attacks.conftest import Withstand

ATTACKS = [
    refused("dot dot", "open('/tmp/../../../../etc/passwd')", "FileNotFoundError"),
    refused("dot dot out of the library", "open('/usr/local/lib/../../../../etc/shadow')", "FileNotFoundError"),
    refused("absolute", "open('/etc/passwd')", "FileNotFoundError"),
    refused("proc", "open('/proc/self/maps')", "FileNotFoundError"),
    refused("proc environment", "open('/proc/self/environ', 'rb')", "FileNotFoundError"),
    refused("devices", "open('/dev/mem', 'rb')", "FileNotFoundError"),
    refused("sys", "import os; os.listdir('/sys')", "FileNotFoundError", "NotADirectoryError"),
    refused("a zero byte in a path", "open('/tmp/a\\0/../../etc/passwd')", "ValueError"),
    refused("a path that is not UTF-8", "open(b'/tmp/\\xff\\xfe', 'wb')", "OSError"),
    refused("a path of a megabyte", "open('/' + 'a' * (1 << 20))", "OSError"),
    refused("symbolic links", "import os; os.symlink('/etc/passwd', '/tmp/link')", "PermissionError"),
    refused("hard links", "import os; os.link('/usr/local/lib/python315.zip', '/tmp/link')", "PermissionError"),
    refused(
        "rename over the library",
        "import os; open('/tmp/a', 'w').close(); os.rename('/tmp/a', '/usr/local/lib/python315.zip')",
        "OSError",
    ),
    refused("rename the library away", "import os; os.rename('/usr/local/lib/python315.zip', '/tmp/a')", "OSError"),
    refused("rename out of tmp", "import os; open('/tmp/a', 'w').close(); os.rename('/tmp/a', '/a')", "OSError"),
    refused("rename tmp itself", "import os; os.rename('/tmp', '/usr/tmp')", "OSError"),
    refused(
        "a directory into itself", "import os; os.makedirs('/tmp/a/b'); os.rename('/tmp/a', '/tmp/a/b/c')", "OSError"
    ),
    refused("write the library", "open('/usr/local/lib/python315.zip', 'r+b', buffering=0).write(b'x')", "OSError"),
    refused(
        "cut the library", "import os; os.truncate('/usr/local/lib/python315.zip', 0)", "OSError", "AttributeError"
    ),
    refused("cut the library on opening", "open('/usr/local/lib/python315.zip', 'wb')", "OSError"),
    refused("remove the library", "import os; os.remove('/usr/local/lib/python315.zip')", "OSError"),
    refused("write at the root", "open('/x', 'w')", "OSError"),
    refused("renumbering descriptors", "import os; os.dup2(3, 1)", "OSError", "AttributeError"),
    refused("reading the output", "import os; os.read(1, 10)", "OSError"),
    refused("a descriptor of the host's", "import os; [os.read(fd, 1) for fd in range(5, 64)]", "OSError"),
    shows(
        "descriptors that are not there",
        "import os\nn = 0\nfor fd in [-1, 4, 5, 63, 1 << 20, (1 << 31) - 1]:\n    try: os.read(fd, 1)\n    except (OSError, OverflowError): n += 1\nn",
        "6",
    ),
    shows("what there is", "import os; sorted(os.listdir('/'))", "['tmp', 'usr']"),
    shows(
        "closing every descriptor",
        "import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass",
        "",
    ),
    shows("everything in tmp goes with the session", "import os; os.listdir('/tmp')", "[]"),
    shows(
        "walking up from the opened root",
        "import os; fd = os.open('/', os.O_RDONLY); len(os.listdir('/..')) == len(os.listdir('/'))",
        "True",
    ),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
