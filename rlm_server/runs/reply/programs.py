"""Programs as models write them into blocks: indented as a whole, with the prompts of a console, or as notebooks do."""

from __future__ import annotations

import re
from dataclasses import dataclass

OUTPUT_LEFT_OUT = "Prompts were taken off your code, and lines without a prompt, taken for output, did not run."
CELLS = frozenset({"python", "python3", "py", "repl", "time", "timeit", "capture", "prun"})
"""Notebook cells that hold Python."""

_CONSOLE = re.compile(r"(>>>|\.\.\.)(?: |$)")
_NOTEBOOK = re.compile(r"\s*+(?:In ?\[\d*+\]:|\.{3,}+:)(?: |$)")
_CELL = re.compile(r"%%(\S*+)")
_MAGIC = re.compile(r"\s*+[!%]")


@dataclass(frozen=True, slots=True)
class Program:
    """A block's code, or what it is instead (`cell`): a notebook's cell of another language. `told` is for the model.

    `magic` says that it may have lines for a notebook, which only the guest can tell from Python.
    """

    code: str
    cell: str = ""
    told: str = ""
    magic: bool = False


def program(lines: list[str], *, ended: bool) -> Program:
    """Read the lines of a block. `ended` says that the last one has an end of line."""
    told = cell = ""
    lines = _dedented(lines)
    first = _first(lines)
    if first is not None and (prompt := _prompt(lines[first])) is not None:
        lines, told = _without_prompts(lines[first:], prompt)
        first = _first(lines)
    if first is not None and (found := _CELL.match(lines[first])):
        cell = "" if found[1].lower() in CELLS else found[0][:40]
        lines = _dedented(lines[:first] + lines[first + 1 :])
    code = "\n".join(lines) + ("\n" if ended and lines else "")
    return Program(code, cell, told, any(map(_MAGIC.match, lines)))


def without_magics(code: str, numbers: list[int]) -> str:
    """Replace lines for a notebook, counted from 0, by statements that do nothing."""
    lines = code.split("\n")
    for number in numbers:
        if number < len(lines):
            bare = lines[number].lstrip()
            lines[number] = f"{lines[number][: len(lines[number]) - len(bare)]}pass  # {bare}"
    return "\n".join(lines)


def _first(lines: list[str]) -> int | None:
    """Return the number of the first line that is neither blank nor a comment."""
    return next((number for number, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"), None)


def _dedented(lines: list[str]) -> list[str]:
    """Take off the indentation that all lines share."""
    written = [line for line in lines if line.strip()]
    if not written or not written[0][0].isspace():
        return lines
    first, last = min(written), max(written)  # what these two share, all do
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or a not in " \t"), 0)
    shared = first[:size]
    return [line[len(shared) :] if line.startswith(shared) else "" for line in lines] if shared else lines


def _prompt(line: str) -> re.Pattern[str] | None:
    """Return the pattern of the prompts of a program, by its first line."""
    if line.startswith(">>>"):
        return _CONSOLE
    return _NOTEBOOK if line.lstrip().startswith("In") and _NOTEBOOK.match(line) else None


def _without_prompts(lines: list[str], prompt: re.Pattern[str]) -> tuple[list[str], str]:
    kept, left_out, whole_cell = [], False, False
    for line in lines:
        found = prompt.match(line)
        if found is not None:
            kept.append(line[found.end() :])
            whole_cell = prompt is _NOTEBOOK and not kept[-1].strip() and not line.lstrip().startswith(".")
        elif whole_cell and not line.startswith("Out["):
            kept.append(line)
        else:
            whole_cell = False
            left_out = left_out or bool(line.strip())
    return kept, OUTPUT_LEFT_OUT if left_out else ""
