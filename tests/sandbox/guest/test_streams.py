"""What code puts in place of its streams lasts for its turn. Then they are put back, and print again."""

from __future__ import annotations

import pytest

from tests.sandbox.repl import Repl

REPLACED = 'sys.stdout is the server\'s name and is put back; what your code gave that name is in kept["sys.stdout"]'


@pytest.mark.parametrize("ending", ["", "\n1 / 0", "\nraise SystemExit"])
def test_a_stream_that_code_replaced_is_put_back_and_what_it_caught_is_kept(repl: Repl, ending: str) -> None:
    turn = repl.run(f"import io, sys\nsys.stdout = io.StringIO()\nprint('caught'){ending}")
    assert (turn.stdout, turn.stderr) == ("", f"[{REPLACED}]\n")
    assert repl.show("print('seen'); kept['sys.stdout'].getvalue()") == "seen\n'caught\\n'"


@pytest.mark.parametrize(
    "code",
    [
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
        "sys.stdout = codecs.getwriter('utf-8')(sys.stdout.buffer)",
        "sys.stdout = sys.stderr = None",
        "del sys.stdout",
        "sys.stdout.close()",
        "sys.stdout.detach()",
        "sys.stdout.buffer.close()",
    ],
)
def test_a_stream_that_is_wrapped_closed_or_gone_prints_again(repl: Repl, code: str) -> None:
    repl.run(f"import codecs, gc, io, sys\n{code}")
    assert repl.show("_ = gc.collect()\nprint('one')") == "one"
    turn = repl.run("print('two', file=sys.stderr)\nprint('three')")
    assert (turn.stdout, turn.stderr) == ("three\n", "two\n")


def test_a_stream_that_fails_at_everything_is_put_back(repl: Repl) -> None:
    fail = "class Fails:\n    def __getattr__(self, name): raise SystemExit(name)"
    repl.run(f"import sys\n{fail}\nsys.stdout = Fails()")
    assert repl.show("print('seen')") == "seen"
