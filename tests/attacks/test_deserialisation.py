"""Code hidden in data runs where the data is read: inside, never in the host."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.attacks.attack import Attack, each, shows
from tests.attacks.conftest import Withstand

ATTACKS = [
    shows(
        "pickle runs inside",
        "import pickle\nclass A:\n    def __reduce__(self): return (eval, ('6 * 7',))\npickle.loads(pickle.dumps(A()))",
        "42",
    ),
    Attack(
        "pickle of a command",
        "import pickle; pickle.loads(b\"cposix\\nsystem\\n(S'touch /tmp/x'\\ntR.\")",
        ("AttributeError", "ModuleNotFoundError", "OSError"),
    ),
    Attack(
        "pickle given to the host",
        "import pickle, _door\nclass A:\n    def __reduce__(self): return (exit, ())\n_door.call('a', x=A())",
        ("TypeError",),
    ),
    Attack(
        "marshal",
        "import marshal; marshal.loads(b'\\xe3' + bytes(200))",
        ("ValueError", "EOFError", "TypeError", "SystemError", Stop.TRAP, Stop.STACK),
    ),
    Attack(
        "marshal at random",
        "import marshal, random\nr = random.Random(3)\nfor _ in range(500):\n    try: marshal.loads(r.randbytes(40))\n    except Exception: pass",
        ("ok", "MemoryError", Stop.TRAP, Stop.STACK, Stop.TURN_TIME),
    ),
    Attack(
        "yaml",
        "import yaml; yaml.load('!!python/object/apply:os.system [\"true\"]', yaml.UnsafeLoader)",
        ("AttributeError", "ConstructorError", "OSError", "ModuleNotFoundError", "ImportError"),
    ),
    Attack(
        "yaml aliases",
        "import yaml\nd = 'a: &a [x,x,x,x,x,x,x,x,x]\\n' + ''.join(f'{chr(98 + i)}: &{chr(98 + i)} [' + ','.join([f'*{chr(97 + i)}'] * 9) + ']\\n' for i in range(9))\nlen(repr(yaml.safe_load(d)))",
        ("MemoryError", Stop.TURN_TIME),
        limits={"turn_seconds": 0.5},
    ),
    Attack(
        "xml entities",
        "import lxml.etree as e\nd = '<!DOCTYPE a [<!ENTITY l \"lol\">' + ''.join(f'<!ENTITY l{i} \"' + f'&l{i - 1 if i else \"\"};' * 10 + '\">' for i in range(9)) + ']><a>&l8;</a>'\nlen(e.fromstring(d).text or '')",
        ("XMLSyntaxError", "MemoryError", "ok", Stop.TURN_TIME),
        limits={"turn_seconds": 2.0},
    ),
    Attack(
        "xml files",
        "import lxml.etree as e\ne.fromstring('<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><a>&x;</a>', e.XMLParser(resolve_entities=True, load_dtd=True, no_network=False)).text",
        ("XMLSyntaxError", "ok"),
        check=lambda t: "root:" not in repr(t),
    ),
    Attack(
        "zip out of its folder",
        "import zipfile, io, os\nb = io.BytesIO()\nz = zipfile.ZipFile(b, 'w'); z.writestr('../../../../x', 'x'); z.close()\nzipfile.ZipFile(b).extractall('/tmp/d'); sorted(os.listdir('/'))",
        ("ok",),
        "['tmp', 'usr']",
    ),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
