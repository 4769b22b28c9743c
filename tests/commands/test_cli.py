"""The command itself: what it offers, and what it need not load to say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("anthropic", "asyncio", "grpc", "google.protobuf", "numpy", "obstore", "openai", "prometheus_client", "psycopg"),
    *("pydantic", "re2", "rich", "wasmtime", "zstandard"),
}


def loaded_by(program: str) -> set[str]:
    """The heavy packages that a program in a process of its own has loaded at its end."""
    program += f"\nimport sys; print(sorted(set(sys.modules) & {HEAVY!r}))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(eval(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["serve", "--help"], ["image", "--help"]], ids=" ".join)
def test_help_loads_nothing_that_a_server_needs(words: list[str]) -> None:
    program = f"from rlm_server.commands.cli import main; main({words!r}, standalone_mode=False)"
    assert loaded_by(program) == set()


def test_a_server_starts_without_what_only_some_need() -> None:
    program = "import rlm_server.commands.serve"
    assert loaded_by(program).isdisjoint({"numpy", "prometheus_client", "psycopg", "rich"})


def test_every_command_is_shown() -> None:
    told = CliRunner().invoke(main, ["--help"]).output
    commands = told.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands] == [
        *("backup", "doctor", "health", "image", "key", "migrate", "prices", "prune", "restore", "serve", "tenant")
    ]
    told = CliRunner().invoke(main, ["prices", "--help"]).output
    assert [line.split()[0] for line in told.partition("Commands:\n")[2].splitlines() if line[2] != " "] == [
        *("check", "set", "show", "unset")
    ]


@pytest.mark.parametrize("words", [["nothing"], ["prices", "nothing"], ["image", "nothing"]])
def test_a_command_that_is_none_is_refused(words: list[str]) -> None:
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "No such command 'nothing'" in refused.output


def test_what_is_the_operators_to_put_right_is_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_LISTEN", "nowhere")
    for words in (["serve"], ["doctor"], ["image", "build"]):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 1
        assert refused.output.startswith("Error: the configuration is wrong: listen: ")
        assert "Traceback" not in refused.output
