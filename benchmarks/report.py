"""What a run of the benchmark found, and its form as JSON and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.figure import FIGURES
from benchmarks.rounds import Answers

NOTHING = "\N{EN DASH}"


@dataclass(slots=True)
class Report:
    """What was measured of each contestant."""

    about: dict[str, str] = field(default_factory=dict)
    """What each contestant is, in the order of the table's columns."""
    figures: Answers = field(default_factory=dict)
    """By contestant and the figure's name, in the figure's unit."""
    slowdowns: Answers = field(default_factory=dict)
    """By contestant and program: how many times native CPython's time it takes."""

    def result(self) -> dict[str, float]:
        """Return the figures by the names they have in the result."""
        return {
            figure.of(contestant): round(self.figures[contestant, figure.name], 4)
            for contestant in self.about
            for figure in FIGURES
            if (contestant, figure.name) in self.figures
        }

    def table(self) -> str:
        """Return the figures, a contestant in each column, and what the contestants are."""
        columns = list(self.about)
        rows = [["", *columns]]
        rows += [
            [figure.shown, *(shown(self.figures.get((column, figure.name))) for column in columns)]
            for figure in FIGURES
        ]
        rows += [
            [f"  {program}", *(shown(self.slowdowns.get((column, program))) for column in columns)]
            for program in sorted({program for _, program in self.slowdowns})
        ]
        first, *others = (max(len(row[i]) for row in rows) for i in range(len(columns) + 1))
        lines = [
            row[0].ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))
            for row in rows
        ]
        return "\n".join([*lines, "", *(f"{name}: {about}" for name, about in self.about.items())])


def shown(value: float | None) -> str:
    """Return a number with three figures that count."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
