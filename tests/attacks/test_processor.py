"""A turn ends at its time, in Python code or within C, awake or asleep."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.limits import MIB
from sandbox.turn import Stop
from tests.attacks.attack import Attack, each, refused, shows, stopped
from tests.attacks.conftest import Withstand

ATTACKS = [
    stopped("a loop", "while True: pass"),
    stopped(
        "a loop that catches all", "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    stopped("a loop in finally", "try: 1 / 0\nfinally:\n    while True: pass"),
    stopped("a regular expression", "import re; re.match('(a+)+$', 'a' * 60 + 'b')"),
    stopped("another regular expression", "import regex; regex.match('(a|a)*$', 'a' * 60 + 'b')"),
    stopped("a large power", "10 ** 10 ** 8"),
    stopped("a factorial", "import math; math.factorial(10 ** 7)"),
    stopped("digits", "import sys; sys.set_int_max_str_digits(0); int('9' * 10 ** 7)"),
    stopped("showing digits", "import sys; sys.set_int_max_str_digits(0); str(1 << 10 ** 8)"),
    stopped("a sum", "sum(range(10 ** 12))"),
    stopped(
        "a sort",
        "import functools; sorted(range(10 ** 6), key=functools.cmp_to_key(lambda a, b: b - a))",
        memory_bytes=512 * MIB,
    ),
    stopped(
        "a search",
        "('a' * 10 ** 6 + 'b') in ('a' * 10 ** 7) or [('a' * 5000 + 'b' + 'a' * 5000) in 'a' * 10 ** 7 for _ in range(1000)]",
    ),
    stopped("copying memory", "x = bytearray(1 << 24)\nwhile True: x[:] = x[::-1]"),
    stopped("deque", "import collections\nd = collections.deque(maxlen=0)\nd.extend(iter(int, 1))"),
    stopped("itertools", "import itertools; collections = all(itertools.repeat(1))"),
    stopped("a product", "import itertools; max(itertools.product(range(100), repeat=8))"),
    stopped("comparison of nested tuples", "a = b = ()\nfor _ in range(60): a, b = (a, a), (b, b)\na == b or hash(a)"),
    Attack(
        "a bomb of zeros",
        "import zlib\nd = zlib.decompressobj()\nc = zlib.compress(bytes(1 << 24))\nlen([zlib.decompress(c) for _ in range(100)])",
        (Stop.TURN_TIME, "MemoryError"),
        limits={"turn_seconds": 0.3},
    ),
    stopped("repr", "class A:\n    def __repr__(self):\n        while True: pass\nA()"),
    stopped(
        "a message that never ends", "class A(Exception):\n    def __str__(self):\n        while True: pass\nraise A"
    ),
    stopped(
        "a stream that never flushes",
        "import sys\nclass S:\n    def flush(self):\n        while True: pass\nsys.stdout = S()",
    ),
    stopped("deletion", "class A:\n    def __del__(self):\n        while True: pass\nA()"),
    stopped(
        "imports",
        "import sys\nclass F:\n    def find_spec(self, *a):\n        while True: pass\nsys.meta_path.insert(0, F())\nimport nothing_of_that_name",
    ),
    stopped(
        "a class that hangs when made",
        "class M(type):\n    def __new__(m, *a):\n        while True: pass\nclass A(metaclass=M): pass",
    ),
    stopped("printing", "while True: print('x', flush=True)", output_bytes=1000),
    stopped("files", "while True: open('/tmp/a', 'w').write('x')"),
    stopped("clocks", "import time\nwhile True: time.time()"),
    stopped("randomness", "import os\nwhile True: os.urandom(1 << 16)"),
    stopped("sleep", "import time; time.sleep(1e9)"),
    stopped("sleep again and again", "import time\nwhile True: time.sleep(0.01)"),
    stopped("sleep of nothing", "import time\nwhile True: time.sleep(0)"),
    shows("reading the input", "import sys; sys.stdin.read()", "''"),
    refused("asking", "input()", "EOFError"),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
