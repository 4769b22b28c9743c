"""Every example runs against a real server, and prints what it says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.real_server import SECONDS, RealServer, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with running(tmp_path_factory.mktemp("data")) as started:
        yield started


def printed(server: RealServer, name: str, *arguments: str, ends: int = 0) -> str:
    """Run an example and return what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env={**os.environ, "RLM_SERVER": server.target, "RLM_API_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ends, ""), done.stdout
    return done.stdout


def test_a_folder_is_asked(server: RealServer, tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    (folder / "2026").mkdir(parents=True)
    (folder / "2026" / "acme.txt").write_text("Dear customer,\nAcme now wants payment in 30 days.\n")
    (folder / "2026" / "other.txt").write_text("Nothing has changed here.\n")
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00")
    told = printed(server, "ask_a_folder.py", str(folder), "Which supplier wants payment, and when?")
    assert "picture.bin" in told.splitlines()[0]
    assert "2 documents with" in told
    assert "RUN_STATE_SUCCEEDED" in told
    assert "looked at 100% of the folder" in told
    assert told.endswith("2026/acme.txt: Acme now wants payment in 30 days.\n")


def test_a_session_keeps_its_state_and_undoes_a_stopped_turn(server: RealServer) -> None:
    told = printed(server, "repl_session.py")
    turns = dict(turn.rpartition("\n")[0].split("\n", 1) for turn in re.split(r"^>>> ", told, flags=re.M)[1:-1])
    assert turns["len(context), context[:20]"] == "(4013, '001 rain 14\\n002 sun ')"
    assert turns["days[400]"] == "IndexError: list index out of range"
    assert turns["warm.clear()"] == "... while True: pass\nundone: TURN_TIME: the turn ran longer than 0.5 seconds"
    assert "\n>>> len(warm)\n365\n" in told
    assert "\n001 rain 14\n" in told, "the model was asked, and answered"
    assert re.search(r"it cost \$0\.\d+ for 1 call, and \d+ ms of processor time\n$", told)


def test_budgets_refuse_what_they_cannot_cover(server: RealServer) -> None:
    told = printed(server, "budgets.py")
    assert re.search(r"RUN_STATE_EXHAUSTED: budget\.nano_usd: .*\n  spent \$0\.00 of \$0\.0001, in 0 calls", told)
    assert re.search(r"RUN_STATE_EXHAUSTED: budget\.calls: .*\n  spent .*, in 5 calls", told)
    assert told.count("scripted       held $") == 5, "every call of that run has an entry"
    assert re.search(r"RUN_STATE_SUCCEEDED\n  spent \$0\.0\d+ of \$1\.00", told)
    assert "LimitExceeded: " in told
    assert "3 of 5 calls were answered, and the code went on" in told
    assert re.search(r"^  BUDGET_EXCEEDED: ", told, re.M)


def test_a_run_calls_a_function_of_the_program(server: RealServer) -> None:
    told = printed(server, "client_tools.py")
    assert told.splitlines() == [
        "asked for prices: What do apples and quinces cost?",
        "prices: {'apples': 0.35, 'quinces': 1.2}",
    ]


def test_an_example_says_how_it_is_used(server: RealServer) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / "ask_a_folder.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "FOLDER QUESTION" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_how_to_run_it_and_is_listed(path: Path) -> None:
    assert f".venv/bin/python examples/{path.name}" in path.read_text()
    listed = (ROOT / "examples" / "README.md").read_text()
    assert f"[`{path.name}`]({path.name})" in listed
    assert f".venv/bin/python examples/{path.name}" in listed
