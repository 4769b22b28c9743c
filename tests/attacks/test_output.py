"""What a guest prints is counted, kept within its limit, and is nothing but text."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack, each, refused
from tests.attacks.conftest import Withstand

ATTACKS = [
    Attack(
        "much output",
        "for _ in range(2000): print('x' * 10_000)",
        check=lambda t: t.truncated and t.output_bytes == 2000 * 10_001 and len(t.stdout) < 70_000,
    ),
    Attack(
        "one long line",
        "print('x' * (1 << 24))",
        check=lambda t: t.truncated and t.output_bytes == (1 << 24) + 1 and len(t.stdout) < 70_000,
    ),
    Attack(
        "much on both streams",
        "import sys\nfor _ in range(200): print('x' * 10_000); print('y' * 10_000, file=sys.stderr)",
        check=lambda t: len(t.stdout) + len(t.stderr) < 70_000,
    ),
    Attack(
        "invalid UTF-8",
        "import os; _ = os.write(1, bytes(range(128, 256)))",
        check=lambda t: t.stdout == "\ufffd" * 128 or "\ufffd" in t.stdout,
    ),
    Attack("half a character", "import os; _ = os.write(1, b'\\xf0\\x9f')", check=lambda t: "\ufffd" in t.stdout),
    Attack(
        "lone surrogates", "print('\\ud800')", ("ok", "UnicodeEncodeError"), check=lambda t: "\ud800" not in t.stdout
    ),
    Attack(
        "surrogates in an error", "raise ValueError('\\ud800')", ("ValueError",), check=lambda t: bool(repr(t).encode())
    ),
    Attack(
        "surrogates in names", "globals()['\\ud800'] = 1", check=lambda t: all(v.name.encode() for v in t.variables)
    ),
    Attack("escape sequences stay text", "print('\\x1b[2J\\x1b]0;owned\\x07')", shows="\x1b[2J\x1b]0;owned\x07"),
    Attack("lines for the log", "print('x\\r\\nERROR root: all is lost')", check=lambda t: "ERROR root" in t.stdout),
    Attack(
        "frames of the worker's",
        "import os, struct\nf = struct.pack('<BIIIQ', 33, 1, 1, 2, 0) + b'{}'\nfor fd in range(64):\n    try: os.write(fd, f)\n    except OSError: pass",
        check=lambda t: t.door_calls == 0,
    ),
    refused("other descriptors", "import os; os.write(3, b'x')", "OSError"),
    refused("an endless message", "raise ValueError('x' * (1 << 22))", "ValueError"),
    Attack("an endless type", "raise type('x' * 100_000, (Exception,), {})()", ("x" * 16_000,)),
    Attack("a message that raises", "class A(Exception):\n    def __str__(self): raise ValueError\nraise A", ("A",)),
    Attack(
        "many names", "globals().update({f'n{i}': i for i in range(100_000)})", check=lambda t: len(t.variables) <= 200
    ),
    Attack(
        "long names", "globals()['x' * (1 << 20)] = 1", check=lambda t: all(len(v.name) <= 200 for v in t.variables)
    ),
    Attack(
        "lengths that lie",
        "import collections\nclass L(collections.UserList):\n    def __len__(self): return 1 << 70\nx = L()",
    ),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
