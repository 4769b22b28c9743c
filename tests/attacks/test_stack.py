"""A stack that runs out costs the turn at most."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.attacks.attack import Attack, each
from tests.attacks.conftest import Withstand

ATTACKS = [
    *[
        Attack(
            name,
            code,
            (
                "RecursionError",
                "MemoryError",
                "ok",
                "SyntaxError",
                "IndentationError",
                "EOFError",
                "XMLSyntaxError",
                "error",
                "PatternError",
                "OverflowError",
                "NameError",
                Stop.STACK,
                Stop.TURN_TIME,
                Stop.TRAP,
            ),
            limits={"turn_seconds": 1.0, "memory_bytes": 256 << 20},
        )
        for name, code in [
            ("recursion", "def f(n): return f(n + 1)\nf(0)"),
            ("recursion without a limit", "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
            (
                "recursion in C",
                "import sys; sys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
            ),
            ("attributes", "class A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\nA().a"),
            ("comparison", "a, b = [], []\na.append(b); b.append(a)\na == b"),
            ("nested JSON", "import json; json.loads('[' * 1_000_000)"),
            ("JSON to write", "import json\na = []\nfor _ in range(100_000): a = [a]\njson.dumps(a)"),
            ("repr", "a = []\nfor _ in range(200_000): a = [a]\nrepr(a)"),
            ("a tree", "import ast; ast.parse('-' * 200_000 + '1')"),
            ("literal", "import ast; ast.literal_eval('[' * 10_000 + ']' * 10_000)"),
            ("parentheses", "eval('(' * 100_000 + ')' * 100_000)"),
            ("an expression", "eval('+'.join(['x'] * 100_000))"),
            (
                "compiled statements",
                "compile('if 1:\\n' + ''.join(' ' * i + 'if 1:\\n' for i in range(1, 120)) + ' ' * 120 + 'x', '', 'exec')",
            ),
            ("a regular expression", "import re; re.compile('(' * 50_000 + ')' * 50_000)"),
            ("pickle", "import pickle\na = []\nfor _ in range(100_000): a = [a]\npickle.dumps(a)"),
            ("unpickle", "import pickle; pickle.loads(b'(' * 1_000_000)"),
            ("deletion of a chain", "a = None\nfor _ in range(500_000): a = (a,)\ndel a"),
            ("hash", "a = ()\nfor _ in range(500_000): a = (a,)\nhash(a)"),
            ("isinstance", "a = int\nfor _ in range(100_000): a = (a,)\nisinstance(1, a)"),
            (
                "exception chain",
                "e = None\nfor i in range(50_000):\n    n = ValueError(i); n.__cause__ = e; e = n\nraise e",
            ),
            ("xml", "import lxml.etree as e; e.fromstring('<a>' * 100_000)"),
            ("generators", "def g(i): yield from g(i + 1)\nlist(g(0))"),
            ("exception group", "e = ValueError()\nfor _ in range(20_000): e = ExceptionGroup('', [e])\nraise e"),
        ]
    ],
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
