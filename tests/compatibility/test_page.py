"""The page of compatibility has a row for each case, and names no other; a row that differs says why."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

from tests.compatibility import (
    test_answers,
    test_calls,
    test_children,
    test_code,
    test_contexts,
    test_limits,
    test_names,
    test_replies,
)
from tests.compatibility.theatre import Case

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
MODULES = {
    "Reading a reply": test_replies,
    "Answers": test_answers,
    "Names": test_names,
    "Code and its output": test_code,
    "Contexts": test_contexts,
    "Sub-calls": test_calls,
    "Children": test_children,
    "Limits": test_limits,
}
"""The modules of cases, by the heading of their tables."""


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the rows of a table: what is so here, in the reference, why it differs, and the case."""
    below = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def cases(module: ModuleType) -> list[str]:
    """Return the names of what a module tries: its cases, and its tests that are none."""
    tried: list[Case] = list(module.CASES)
    tests = [name for name, test in vars(module).items() if name.startswith("test_") and inspect.isfunction(test)]
    own = [name for name in tests if "played_case" not in inspect.signature(getattr(module, name)).parameters]
    return [case.name for case in tried] + own


def test_every_module_of_cases_has_a_table() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).stem}
    assert {module.__name__.rpartition(".")[2] for module in MODULES.values()} == files


def test_every_case_has_one_row_and_every_row_a_case() -> None:
    for heading, module in MODULES.items():
        named = Counter(row[3].strip("`") for row in rows(heading))
        assert named == Counter(cases(module)), heading
        assert f"`tests/compatibility/{module.__name__.rpartition('.')[2]}.py`" in PAGE


def test_a_row_says_why_it_differs_where_it_does() -> None:
    for heading in MODULES:
        for here, reference, why, name in rows(heading):
            assert here, name
            assert (reference == "same") == (not why), name
