"""The pages are true where that can be checked: the index, commands, configuration, variables, and tables of names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rlm.v1.run_pb2 import RunEvent
from rlm_client.cli import main as rlm

from rlm_server.commands.cli import main as rlm_server
from rlm_server.config.settings import Settings
from rlm_server.config.sources import OTHER_VARIABLES
from rlm_server.repl.limits import RunLimits
from sandbox.limits import Limits, declared
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.repository.arrows import ALLOWED
from tests.repository.test_readme import commands, targets

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"])
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
PROGRAMS = {"rlm": rlm, "rlm-server": rlm_server}
CALLS = [(name, words) for name, text in TEXTS.items() for words in commands(text)]
PROGRAM_CALLS = [
    pytest.param(words, id=f"{name}: {' '.join(words)}")
    for name, words in CALLS
    if words[0].removeprefix(".venv/bin/") in PROGRAMS
]


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table below a heading."""
    below = TEXTS[page].partition(f"\n{heading}\n")[2]
    assert below, f"{page} has no {heading}"
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]]


def names(cells: list[list[str]]) -> set[str]:
    """Return what stands in backticks in the first cells: names, without arguments."""
    return {name for row in cells for name in re.findall(r"`(\w+(?:\.\w+)*)[^`]*`", row[0])}


# ---- the index ---------------------------------------------------------------------------------------------------


def test_the_index_lists_every_page() -> None:
    listed = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXTS["docs/README.md"])}
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - listed == set()


def test_the_index_of_decisions_lists_each_by_its_title() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    titles = [page.read_text().partition("\n")[0].removeprefix("# ") for page in decisions]
    expected = [f"| [{page.name[:4]}]({page.name}) | {title} |" for page, title in zip(decisions, titles, strict=True)]
    assert [line for line in TEXTS["docs/decisions/README.md"].splitlines() if line.startswith("| [0")] == expected
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))


# ---- commands and configuration ----------------------------------------------------------------------------------


def test_every_target_that_a_page_names_exists() -> None:
    named = {(name, target) for name, text in TEXTS.items() for target in re.findall(r"`make ([a-z-]+)", text)}
    named |= {(name, words[1]) for name, words in CALLS if words[0] == "make"}
    assert ("README.md", "demo") in named
    assert {(name, target) for name, target in named if target not in targets()} == set()


@pytest.mark.parametrize("words", PROGRAM_CALLS)
def test_every_call_of_a_program_is_one_it_takes(words: list[str]) -> None:
    program = PROGRAMS[words[0].removeprefix(".venv/bin/")]
    done = CliRunner().invoke(program, [*words[1:], "--help"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Usage: ")


TOML = [
    pytest.param(block, id=name) for name, t in TEXTS.items() for block in re.findall(r"```toml\n(.*?)```", t, re.S)
]


@pytest.mark.parametrize("block", TOML)
def test_every_configuration_that_a_page_shows_is_taken(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.toml").write_text(block)
    monkeypatch.setenv("RLM_CONFIG", str(tmp_path / "server.toml"))
    assert Settings.load().model_fields_set


def test_every_variable_that_a_page_names_is_one() -> None:
    known = {f"RLM_{name.upper()}" for name in Settings.model_fields} | set(OTHER_VARIABLES)
    # What follows two underscores is the name of a setting within a table.
    named = {(name, one) for name, text in TEXTS.items() for one in re.findall(r"\bRLM_[A-Z]+(?:_[A-Z]+)*", text)}
    assert ("docs/money.md", "RLM_DAY_BUDGET_USD") in named
    assert {(name, one) for name, one in named if one not in known} == set()


# ---- tables of names ---------------------------------------------------------------------------------------------


def test_the_rooms_are_those_of_the_table_of_arrows() -> None:
    assert names(rows("docs/architecture.md", "## Rooms and arrows")) == set(ALLOWED)


def test_the_events_are_those_of_a_run() -> None:
    bodies = {field.name for field in RunEvent.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert names(rows("docs/runs.md", "## Events")) == bodies


def test_the_functions_for_code_are_those_of_the_guest(images: Loaded) -> None:
    session = Session(images.program, images.images["core"], Limits())
    try:
        turn = session.execute("import _runner; print(*_runner.reserved, 'answer')")
    finally:
        session.close()
    assert turn.error is None
    assert names(rows("docs/runs.md", "## What code may use")) == set(turn.stdout.split())


def test_the_limits_of_a_run_are_those_that_are_declared() -> None:
    operators = {
        name for row in rows("docs/runs.md", "## The limits of a run") for name in re.findall(r"`(\w+)`", row[3])
    }
    assert operators - {"run_budget_usd", "default_depth"} == declared(RunLimits).keys()


# ---- the nouns of the protocol -----------------------------------------------------------------------------------

PROTOCOL = [
    importlib.import_module(f"rlm.v1.{path.stem}_pb2").DESCRIPTOR for path in (ROOT / "proto/rlm/v1").glob("*.proto")
]


def test_every_service_has_its_nouns_and_their_ids_are_fields() -> None:
    nouns = rows("docs/concepts.md", "## Where each lives")
    services = {name for file in PROTOCOL for name in file.services_by_name}
    assert {name for row in nouns for name in re.findall(r"`(\w+)`", row[2])} == services
    fields = {field.name for file in PROTOCOL for one in file.message_types_by_name.values() for field in one.fields}
    assert {name for row in nouns for name in re.findall(r"`(\w+)`", row[1])} - fields == set()


def test_every_state_of_the_protocol_is_told() -> None:
    states = {
        enum.name: [value.name.removeprefix(prefix) for value in enum.values][1:]
        for file in PROTOCOL
        for enum in file.enum_types_by_name.values()
        if enum.name.endswith(("State", "Status"))
        for prefix in [re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"]
    }
    told = rows("docs/concepts.md", "## States")
    assert {name: re.findall(r"`(\w+)`", row[1]) for row in told for name in names([row])} == states


# ---- the laws ----------------------------------------------------------------------------------------------------


def test_each_of_the_nine_laws_names_its_tests() -> None:
    laws = rows("docs/guarantees.md", "## The nine laws")
    assert [row[0] for row in laws] == [str(number) for number in range(1, 10)]
    for _, law, shown_by in laws:
        assert law.startswith("**")
        assert re.search(r"`tests/[\w/]+\.py`", shown_by), law
