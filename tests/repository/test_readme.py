"""The commands of README.md are real: each is there to be run, and the cheap ones are run here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?:sh|shell|bash|console)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z][a-z-]*):.*## ", re.MULTILINE)
PROGRAMS = ("rlm", "rlm-server")


def commands(markdown: str) -> list[list[str]]:
    """Return the commands in the fenced shell blocks, as words: prompts, comments, variables set before and whatever
    follows a pipe, a redirection or a semicolon are left out; in a block with prompts so are the lines without one."""
    found = []
    for block in FENCE.findall(markdown):
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
        for line in prompted or lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.wordchars += "$:,@%{}"
            try:
                words = list(lexer)
            except ValueError:  # a quotation that goes on in the next line
                words = line.split()
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            stop = next((i for i, word in enumerate(words) if set(word) <= set("();<>|&")), len(words))
            if words[:stop]:
                found.append(words[:stop])
    return found


def targets() -> set[str]:
    """Return the Makefile's targets that `make help` explains."""
    return set(TARGET.findall((ROOT / "Makefile").read_text()))


README = commands((ROOT / "README.md").read_text())
PROGRAM_CALLS = [words for words in README if words[0].removeprefix(".venv/bin/") in PROGRAMS]


def test_the_readme_says_how_to_see_it_work_and_how_to_test_it() -> None:
    assert ["make", "demo"] in README
    assert ["make", "test"] in README


def test_every_target_the_readme_names_exists() -> None:
    in_text = re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text())
    in_commands = [word for words in README if words[0] == "make" for word in words[1:] if "=" not in word]
    assert {*in_text, *in_commands} <= targets()


def test_make_help_explains_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE)) == set(phony[1].split()) == targets()


@pytest.mark.parametrize("words", PROGRAM_CALLS, ids=" ".join)
def test_every_call_of_a_program_is_one_it_takes(words: list[str]) -> None:
    # With --help added it checks its subcommand and options, says how they are used, and does nothing.
    program = Path(sys.executable).with_name(Path(words[0]).name)
    result = subprocess.run([program, *words[1:], "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_commands_are_read_as_a_shell_would() -> None:
    markdown = """
```console
$ rlm run --context book.txt "what \\
  happens?" | tee answer   # prints it
It ends.
$ KEY=a make test ARGS=-x
```
```python
make nothing
```
```sh
# a comment
.venv/bin/rlm-server serve &
```
"""
    assert commands(markdown) == [
        ["rlm", "run", "--context", "book.txt", "what    happens?"],
        ["make", "test", "ARGS=-x"],
        [".venv/bin/rlm-server", "serve"],
    ]
