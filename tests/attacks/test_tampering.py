"""A guest may break its own interpreter: that costs its turn, and the host believes nothing it says."""

# ruff: noqa: E501 - an attack is a line

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.attacks.attack import Attack, each, stopped
from tests.attacks.conftest import Withstand

ATTACKS = [
    *[
        Attack(
            name,
            code,
            (
                "ok",
                "TypeError",
                "AttributeError",
                "NameError",
                "RuntimeError",
                "KeyError",
                "ImportError",
                "ValueError",
                "ZeroDivisionError",
                "SystemExit",
                Stop.DAMAGED,
                Stop.EXIT,
                Stop.TRAP,
                Stop.STACK,
            ),
        )
        for name, code in [
            ("built-ins gone", "import builtins; builtins.__dict__.clear()"),
            (
                "built-ins replaced",
                "import builtins; builtins.print = builtins.len = builtins.compile = builtins.exec = None",
            ),
            ("built-ins of the program", "__builtins__ = {}"),
            ("modules gone", "import sys; sys.modules.clear()"),
            ("modules replaced", "import sys; sys.modules = {}"),
            ("runner removed", "import sys; del sys.modules['_runner'], sys.modules['_door']"),
            ("the program's names", "globals().clear()"),
            ("streams gone", "import sys; del sys.stdout, sys.stderr"),
            ("streams closed", "import sys, os; sys.stdout.close(); sys.stderr.close(); os.close(1)"),
            ("json replaced", "import json; json.JSONEncoder.encode = json.JSONDecoder.decode = None"),
            ("excepthook", "import sys; sys.excepthook = None; sys.displayhook = None"),
            ("tracing", "import sys; sys.settrace(lambda *a: 1 / 0); sys.setprofile(lambda *a: 1 / 0)"),
            (
                "collector",
                "import gc; gc.disable(); gc.freeze(); [o.clear() for o in gc.get_objects() if type(o) is dict and 'reserved' in o]",
            ),
            (
                "import system",
                "import sys; sys.meta_path.clear(); sys.path_hooks.clear(); sys.path.clear(); sys.path_importer_cache.clear()",
            ),
            ("exit", "import sys; sys.exit(3)"),
            ("exit handlers", "import atexit, os; atexit.register(lambda: 1 / 0); atexit._run_exitfuncs()"),
        ]
    ],
    Attack("variables replaced", "import _runner; _runner.variables = lambda: [['x', 'y', 'z']]", ("ok", Stop.DAMAGED)),
    Attack("runner that does nothing", "import _runner; _runner.commands['turn'] = lambda *_: None", ("ok",)),
    Attack("entry that does nothing", "import _reactor; _reactor._enter = lambda *_: 0", ("ok",)),
    stopped("process exit", "import os; os._exit(0)", Stop.EXIT, turn_seconds=10),
    stopped("abort", "import os; os.abort()", Stop.EXIT, Stop.TRAP, turn_seconds=10),
    Attack(
        "a bad code object",
        "def f(): pass\nf.__code__ = f.__code__.replace(co_code=bytes([255, 255] * 20), co_stacksize=0)\nf()",
        (
            "SystemError",
            "TypeError",
            "ok",
            "ValueError",
            Stop.TRAP,
            Stop.STACK,
            Stop.EXIT,
            Stop.TURN_TIME,
            Stop.DAMAGED,
        ),
        limits={"turn_seconds": 1.0},
    ),
    Attack(
        "a code object that reads past its constants",
        "def f(): pass\nf.__code__ = f.__code__.replace(co_code=bytes([83, 255] * 20), co_consts=())\nf()",
        (
            "SystemError",
            "TypeError",
            "ok",
            "ValueError",
            Stop.TRAP,
            Stop.STACK,
            Stop.EXIT,
            Stop.TURN_TIME,
            Stop.DAMAGED,
        ),
        limits={"turn_seconds": 1.0},
    ),
    Attack(
        "segmentation",
        "import ctypes; ctypes.string_at(0)",
        ("OSError", "ModuleNotFoundError", "ImportError", "ok", Stop.TRAP),
    ),
    Attack(
        "fault handler",
        "import faulthandler; faulthandler._sigsegv()",
        ("ModuleNotFoundError", "ImportError", "AttributeError", Stop.TRAP, Stop.EXIT, "ok"),
    ),
    Attack(
        "signals",
        "import signal; signal.raise_signal(9)",
        ("ModuleNotFoundError", "ImportError", "AttributeError", "OSError", "ValueError", Stop.TRAP, Stop.EXIT),
    ),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
