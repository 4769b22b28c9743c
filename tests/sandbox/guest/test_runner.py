"""Code may break whatever runs turns: a later turn then still runs, or says that it failed. It never only says so."""

from __future__ import annotations

import pytest

from sandbox.turn import Stop
from tests.sandbox.conftest import MakeText
from tests.sandbox.repl import Repl, Repls, on_thread

MODULES = ("_runner", "_loop", "_door", "_requests", "_documents", "_reactor", "_host")
FATES = {
    "deleted": "del module.__dict__[name]",
    "nothing": "module.__dict__[name] = None",
    "a function that does nothing": "module.__dict__[name] = lambda *_, **__: None",
    "a function that says yes": "module.__dict__[name] = lambda *_, **__: True",
    "a function that says zero": "module.__dict__[name] = lambda *_, **__: 0",
    "a function that returns nothing to do": "module.__dict__[name] = lambda *_, **__: []",
    "a coroutine that does nothing": "async def nothing(*_, **__): pass\nmodule.__dict__[name] = nothing",
    "the code of a function that does nothing": "value.__code__ = (lambda *_, **__: None).__code__",
    "a closed generator": "gone = (n for n in ()); gone.close(); module.__dict__[name] = gone",
    "closed": "value.close()",
    "emptied": "value.clear()",
}
SPOIL = """
def spoil():
    import sys
    module = sys.modules[{module!r}]
    for name in {names!r}:
        try:
            exec({fate!r}, {{"module": module, "name": name, "value": module.__dict__.get(name)}})
        except Exception:
            pass
spoil()
"""
EFFECTS = (
    "open('/tmp/n', 'w').write('{n}')",
    "with open('/tmp/n', 'w') as file:\n    _ = file.write('{n}')",
    "import asyncio\nawait asyncio.sleep(0)\nopen('/tmp/n', 'w').write('{n}')",
)


def names_of(repl: Repl, module: str) -> list[str]:
    listed = repl.show(f"import {module}; ' '.join(n for n in {module}.__dict__ if not n.startswith('__'))")
    return listed.strip("'").split()


def written(repl: Repl) -> str:
    """What the host finds in the file, whatever the guest says."""
    return bytes(repl.session.checkpoint.files.writable["/tmp/n"].data).decode()


def try_turns(start: Repls, module: str, names: list[str], fate: str) -> None:
    repl = start(turn_seconds=0.5)
    repl.show("open('/tmp/n', 'w').close()")
    repl.run(SPOIL.format(module=module, names=names, fate=FATES[fate]))
    for number, code in enumerate(EFFECTS):
        turn = repl.run(code.format(n=number))
        assert turn.error is not None or written(repl) == str(number), (module, names, fate, code)
    repl.session.close()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("fate", FATES)
def test_a_turn_whose_runner_is_broken_runs_or_says_that_it_failed(start: Repls, module: str, fate: str) -> None:
    names = names_of(start(), module)
    for name in names:
        try_turns(start, module, [name], fate)
    try_turns(start, module, names, fate)


@pytest.mark.parametrize("kind", ["eval", "compile", "print"])
def test_a_name_that_hides_a_builtin_from_the_runner_is_taken_away(start: Repls, kind: str) -> None:
    repl = start()
    repl.show(f"import _runner; _runner.{kind} = lambda *_, **__: None")
    assert repl.show("21 * 2") == "42"


def test_a_text_is_not_attached_where_nothing_attaches_it(repl: Repl, text: MakeText) -> None:
    repl.show("import _runner; _runner.commands['attach'] = lambda *_: None")
    turn = on_thread(lambda: repl.session.attach("context", text("a text"))).result(60)
    assert turn.error is not None
    assert turn.error.type is Stop.DAMAGED


@pytest.mark.parametrize("place", ["builtins.__dict__['sum']", "sys.modules['json']"])
def test_what_cannot_be_compared_in_the_place_of_a_builtin_or_module_breaks_no_later_turn(
    repl: Repl, place: str
) -> None:
    repl.show(
        "import builtins, sys\n"
        "class Neither:\n"
        "    def __eq__(self, other): raise ValueError('ambiguous')\n"
        f"{place} = Neither()"
    )
    assert repl.show("sum([1, 2])") == "3"
    assert repl.show("import json\njson is sys.modules['json']") == "True"


def test_modules_that_were_taken_away_are_put_back_and_new_ones_stay(repl: Repl) -> None:
    assert repl.show("import sys, json\nsys.modules['own'] = json\nfirst = json\ndel sys.modules['json']") == ""
    assert repl.show("import json, own\njson is first is own") == "True"
    assert repl.show("sys.modules.clear()") == ""
    assert repl.show("import json, math\njson is first, math.pi > 3") == "(True, True)"
