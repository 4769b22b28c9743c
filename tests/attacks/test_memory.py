"""Memory ends at its limit, that of the guest and what the host holds on its behalf."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.attacks.attack import Attack, each, refused, shows, stopped
from tests.attacks.conftest import Withstand

ITS_FIRST_PAGE = """
import numpy
block = numpy.zeros(1 << 20, numpy.uint8)
at = block.__array_interface__['data'][0]
everything_below = numpy.lib.stride_tricks.as_strided(block, (at,), (-1,))[::-1]
"""

ATTACKS = [
    refused("two gigabytes at once", "bytearray(2 ** 31)", "MemoryError", "OverflowError"),
    refused("the largest size", "import sys; bytes(sys.maxsize)", "MemoryError", "OverflowError"),
    refused("a long text", "'a' * (1 << 30)", "MemoryError"),
    refused("a list", "[None] * (1 << 28)", "MemoryError"),
    Attack(
        "slow growth",
        "x = []\nwhile True: x.append(bytearray(1 << 18))",
        ("MemoryError",),
        check=lambda t: str(64 << 20) in repr(t.error),
        limits={"memory_bytes": 64 << 20},
    ),
    refused("doubling", "x = 'ab'\nwhile True: x += x", "MemoryError", memory_bytes=64 << 20),
    refused("a number", "1 << (1 << 31)", "MemoryError", "OverflowError"),
    refused("joining", "','.join(['x' * (1 << 20)] * 1000)", "MemoryError"),
    refused("formatting", "'%*d' % (1 << 30, 1)", "MemoryError"),
    refused("padding", "'x'.ljust(1 << 30)", "MemoryError"),
    refused("repeating a tuple", "((),) * (1 << 29)", "MemoryError"),
    refused("many descriptors", "x = [open(f'/tmp/{i}', 'w') for i in range(100)]", "OSError"),
    refused("one file opened over and over", "x = [open('/tmp/a', 'w') for i in range(100)]", "OSError"),
    refused("many files", "for i in range(100): open(f'/tmp/{i}', 'w').close()", "OSError", files=50),
    refused("many directories", "import os\nfor i in range(100): os.mkdir(f'/tmp/{i}')", "OSError", files=50),
    refused("a sparse file", "f = open('/tmp/a', 'wb', buffering=0)\nf.seek(1 << 40)\nf.write(b'x')", "OSError"),
    refused(
        "a sparse file at the end of numbers",
        "f = open('/tmp/a', 'wb', buffering=0)\nf.seek((1 << 63) - 1)\nf.write(b'x')",
        "OSError",
        "OverflowError",
    ),
    refused("a file extended", "f = open('/tmp/a', 'wb')\nf.truncate(1 << 50)", "OSError"),
    refused(
        "a written gap",
        "import os\nfd = os.open('/tmp/a', os.O_CREAT | os.O_RDWR)\nos.pwrite(fd, b'x', 1 << 45)",
        "OSError",
        "AttributeError",
    ),
    refused(
        "a disk that fills",
        "f = open('/tmp/a', 'wb', buffering=0)\nwhile True: f.write(bytes(1 << 16))",
        "OSError",
        file_bytes=1 << 20,
    ),
    refused(
        "removed files that stay open",
        "import os\nx = []\nwhile True:\n    x.append(open('/tmp/a', 'wb', buffering=0))\n    x[-1].write(bytes(1 << 16))\n    os.remove('/tmp/a')",
        "OSError",
        file_bytes=1 << 20,
    ),
    refused("a huge draw of randomness", "import os; os.urandom(1 << 30)", "MemoryError", "OSError", "OverflowError"),
    shows("many draws of randomness", "import os; len({os.urandom(16) for _ in range(1000)})", "1000"),
    Attack("many vectors", "import os; os.writev(1, [b''] * 5000)", ("OSError", "AttributeError")),
    stopped(
        "reading its first page",
        f"{ITS_FIRST_PAGE}\nwhile True: block[:] = everything_below[:1 << 20]",
        Stop.TRAP,
        turn_seconds=20.0,
    ),
    stopped(
        "writing its first page",
        f"{ITS_FIRST_PAGE}\nwhile True: everything_below[:1 << 20] = block",
        Stop.TRAP,
        turn_seconds=20.0,
    ),
    stopped(
        "reading its first page byte by byte",
        f"{ITS_FIRST_PAGE}\nwhile True: everything_below[:4000:3].sum()",
        turn_seconds=3.0,
    ),
    Attack(
        "many subscriptions",
        "import select; select.select(list(range(5000)), [], [], 0)",
        ("OSError", "ValueError", "AttributeError", "ImportError", "ModuleNotFoundError"),
    ),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
