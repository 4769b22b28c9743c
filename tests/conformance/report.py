"""The tables that the command prints and `docs/conformance.md` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.conformance.expected import Expected
from tests.conformance.outcome import Outcome, Result

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- written by make conformance ARGS=--write -->", "<!-- end of what is written -->"
UNLISTED = "Not for this system, or not run unless asked for"


def line(name: str, outcomes: Iterable[Outcome]) -> str:
    """Return one line of counts, for the terminal."""
    return f"{name:28} {_counted(Counter(outcome.result for outcome in outcomes), '{:>5} {}')}"


def _counted(counts: Counter[Result], form: str) -> str:
    return " ".join(form.format(counts[result], result) for result in Result if counts[result])


def tables(expected: Expected, inside: Sequence[Outcome], native: Sequence[Outcome]) -> str:
    """Return both tables as Markdown; without native outcomes, without their column."""
    return f"{_areas(expected, inside, native)}\n\n{_causes(expected, inside)}"


def _areas(expected: Expected, inside: Sequence[Outcome], native: Sequence[Outcome]) -> str:
    results = [result for result in Result if any(outcome.result is result for outcome in inside)]
    rows = [("", "modules", "tests", *results, *(["passed natively"] if native else []))]
    for area, modules in [*expected.areas.items(), ("**all**", expected.modules)]:
        counts = Counter(outcome.result for outcome in inside if outcome.module in modules)
        names = f"{len(modules)}" if area == "**all**" else " ".join(name.removeprefix("test_") for name in modules)
        passed = sum(outcome.module in modules and outcome.result is Result.PASSED for outcome in native)
        numbers = [counts.total(), *(counts[result] for result in results), *([passed] if native else [])]
        rows.append((area, names, *(f"{number:,}" for number in numbers)))
    return _markdown(rows)


def _causes(expected: Expected, inside: Sequence[Outcome]) -> str:
    differing: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for outcome in inside:
        if outcome.result is not Result.PASSED:
            cause = expected.cause_of(outcome)
            kind = skipped if outcome.result is Result.SKIPPED else differing
            kind[cause.name if cause else UNLISTED] += 1
    rows = [("cause", "", "do not pass", "skip themselves")]
    for cause in expected.causes:
        rows.append((cause.name, cause.why, f"{differing[cause.name]:,}", f"{skipped[cause.name]:,}"))
    rows.append(
        (UNLISTED, "Natively they skip themselves as well.", f"{differing[UNLISTED]:,}", f"{skipped[UNLISTED]:,}")
    )
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    numbers = {i for i in range(len(rows[0])) if all(row[i].replace(",", "").isdigit() for row in rows[1:])}
    rule = ["---:" if i in numbers else "---" for i in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def write(text: str) -> None:
    """Put the tables into the page, between its marks."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
