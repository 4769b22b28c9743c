"""Whatever goes through the door is checked; a request is what it says or is refused."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.attacks.attack import Attack, each, refused, shows
from tests.attacks.conftest import Withstand

ATTACKS = [
    *[
        shows(name, f"import _host, json\njson.loads(_host.call({frame}))['error']['type']", "'ValueError'")
        for name, frame in [
            ("nothing", "b''"),
            ("no JSON", "b'hello'"),
            ("a list", "b'[]'"),
            ("no op", "b'{}'"),
            ("an op that is a number", "b'{\"op\":1}'"),
            ("an op that is nothing", "b'{\"op\":null}'"),
            ("a key twice", 'b\'{"op":"a","op":"b"}\''),
            ("an inner key twice", 'b\'{"op":"a","x":{"y":1,"y":2}}\''),
            ("not a number", 'b\'{"op":"a","x":NaN}\''),
            ("infinity", 'b\'{"op":"a","x":-Infinity}\''),
            ("too large a number", 'b\'{"op":"a","x":1e999}\''),
            ("a million digits", "b'{\"op\":\"a\",\"x\":' + b'9' * 1_000_000 + b'}'"),
            ("a lone surrogate", 'b\'{"op":"\\\\ud800"}\''),
            ("invalid UTF-8", 'b\'{"op":"\\xff"}\''),
            ("overlong UTF-8", 'b\'{"op":"\\xc0\\x80"}\''),
            ("another encoding", "'{\"op\":\"a\"}'.encode('utf-16')"),
            ("deep nesting", "b'{\"op\":\"a\",\"x\":' + b'[' * 40 + b']' * 40 + b'}'"),
            ("a million levels", "b'[' * 1_000_000"),
            ("something behind", 'b\'{"op":"a"} x\''),
            ("two requests", 'b\'{"op":"a"}{"op":"b"}\''),
        ]
    ],
    shows(
        "a zero byte is a character like others",
        "import _door; _door.call('a\\0b', x='\\0')",
        "{'op': 'a\\x00b', 'arguments': {'x': '\\x00'}}",
    ),
    shows(
        "arguments named like the host's",
        "import _door; _door.call('__class__', __init__=1, self=2)",
        "{'op': '__class__', 'arguments': {'__init__': 1, 'self': 2}}",
    ),
    Attack(
        "fuzz",
        'import _host, random, json\nr = random.Random(1)\nn = 0\nfor _ in range(300):\n    f = bytearray(b\'{"op":"a","x":[1,2.5,"y",null]}\')\n    for _ in range(r.randint(1, 4)): f[r.randrange(len(f))] = r.randrange(256)\n    json.loads(_host.call(bytes(f))); n += 1\nn',
        shows="300",
    ),
    refused("too many requests", "import _door\nfor _ in range(100): _door.call('a')", "LimitExceeded", door_calls=10),
    refused("too large a request", "import _door; _door.call('a', x='y' * 10_000)", "LimitExceeded", frame_bytes=1000),
    refused("too large a reply", "import _door; _door.call('a', x='y' * 970)", "LimitExceeded", frame_bytes=1000),
    refused(
        "too much in all",
        "import _door\nfor _ in range(100): _door.call('a', x='y' * 900)",
        "LimitExceeded",
        door_bytes=10_000,
    ),
    refused(
        "limits that are caught",
        "import _door\nfor _ in range(100):\n    try: _door.call('a')\n    except Exception: pass\n_door.call('a')",
        "LimitExceeded",
        door_calls=10,
    ),
    *(
        refused(
            f"a document with {change}",
            "import _door, _documents as d\nasked = {'corpus': 0, 'document': 0, 'count': 1, "
            f"'templates': d._addresses, 'box': id(d._box)}}\n_door.call('sandbox.document', **asked | {change})",
            *ends,
        )
        for change, ends in {
            "{'corpus': 1}": ("ValueError",),
            "{'corpus': -1}": ("TypeError",),
            "{'corpus': 'x'}": ("TypeError",),
            "{'document': 2}": ("IndexError", "ValueError"),
            "{'document': (1 << 32) - 1}": ("IndexError", "ValueError"),
            "{'document': 1 << 32}": ("TypeError",),
            "{'box': 1 << 32}": ("TypeError",),
            "{'box': True}": ("TypeError",),
            "{'templates': []}": ("ok", "ValueError"),
            "{'templates': None}": ("ok", "ValueError"),
        }.items()
    ),
    *(
        Attack(
            f"a document at {change}",
            "import _door, _documents as d\nasked = {'corpus': 0, 'document': 0, 'count': 1, "
            f"'templates': d._addresses, 'box': id(d._box)}}\n_door.call('sandbox.document', **asked | {change})",
            ("OSError", "RuntimeError", "ok", Stop.TRAP, Stop.DAMAGED),
        )
        for change in (
            "{'box': (1 << 32) - 1}",
            "{'box': 0}",
            "{'box': id(d)}",
            "{'templates': [(1 << 32) - 1] * 4}",
            "{'templates': [0] * 4}",
        )
    ),
    *(
        Attack(
            f"locating at {at}",
            f"import _door, _documents as d\nprint(_door.call('sandbox.locate', at={at}, templates=d._addresses))",
            ("ok", "OSError", "RuntimeError", "TypeError"),
        )
        for at in ("0", "1", "(1 << 32) - 1", "1 << 32", "id(context)", "id(d)", "id(context) + 4")
    ),
    Attack(
        "locating a string that says it is longer than memory",
        "import _door, _documents as d\ns = bytearray(d._door._host and 4096)\n"
        "print(_door.call('sandbox.locate', at=(1 << 32) - 4096, templates=d._addresses))",
        ("ok", "OSError", "RuntimeError", "TypeError"),
    ),
    shows("a report of one's own", "import _door; _door.call('sandbox.report', error=None, variables=[])", ""),
    Attack(
        "a report that lies about a stop",
        "import _door\n_door.call('sandbox.report', error={'type': 'TURN_TIME', 'message': '', 'traceback': ''}, variables=[])\n1 / 0",
        ("ZeroDivisionError",),
    ),
    Attack(
        "a report of nonsense",
        "import _door\n_door.call('sandbox.report', error=[1], variables='abc')\nprint('x')",
        ("ok", Stop.DAMAGED),
        "x",
    ),
    Attack(
        "a report of nonsense and then none",
        "import _door, _runner\nreport = _door.call\n_door.call = lambda *a, **k: report('sandbox.report', error=5, variables=7)",
        (Stop.DAMAGED, "ok"),
    ),
    Attack(
        "a report of a stop that did not come",
        "import _door\nreport = _door.call\n_door.call = lambda *a, **k: report('sandbox.report', error={'type': 'WORKER_LOST', 'message': 'x', 'traceback': ''}, variables=[])",
        ("WORKER_LOST",),
    ),
    Attack(
        "an exception with the name of a stop",
        "import os\nif os.path.exists('/tmp/once'): 1 / 0\nopen('/tmp/once', 'w').close()\nraise type('WORKER_LOST', (Exception,), {})()",
        ("WORKER_LOST",),
        check=lambda t: not isinstance(t.error and t.error.type, Stop),
    ),
    Attack(
        "an enormous report",
        "import _door\nreport = _door.call\n_door.call = lambda *a, **k: report('sandbox.report', error=None, variables=[['x' * 1000, 'y', 1]] * 5000)",
        ("ok", "LimitExceeded", Stop.DAMAGED),
    ),
    refused("an object that is no JSON", "import _door; _door.call('a', x=object())", "TypeError"),
    refused("an argument that is no bytes", "import _host; _host.call('text')", "TypeError"),
    refused("a call without a request", "import _host; _host.call()", "TypeError"),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
