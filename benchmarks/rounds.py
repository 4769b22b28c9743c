"""Rounds: in each, every contestant is asked for everything once, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.contestant import OURS, Driver, DriverError
from benchmarks.progress import Progress

PATIENCE_SECONDS = 8.0
FEWEST_SAMPLES = 3
"""A contestant that has taken so long over one question, and answered it so often, is not asked it again."""
QUICK_SECONDS = 0.05
"""What takes no longer is measured twice, and the second counts: the first finds its neighbours' data in the caches."""

Answers = dict[tuple[str, str], float]
"""Medians, by contestant and question."""


@dataclass(frozen=True, slots=True)
class Question:
    """What every driver that has the measure is asked, in at most so many rounds."""

    name: str
    measure: str
    rounds: int
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class _Samples:
    values: list[float] = field(default_factory=list)
    spent: float = 0.0
    failed: bool = False

    @property
    def enough(self) -> bool:
        return self.failed or (self.spent > PATIENCE_SECONDS and len(self.values) >= FEWEST_SAMPLES)


def alternate(drivers: Sequence[Driver], questions: Sequence[Question], rounds: int, progress: Progress) -> Answers:
    """Ask all drivers all questions in turn, again and again. A peer's failure is reported, and its figure left out.

    Raises:
        DriverError: ours failed.
    """
    taken: dict[tuple[str, str], _Samples] = {}
    for round_ in range(rounds):
        if round_ % max(1, rounds // 5) == 0:
            progress(f"round {round_ + 1} of {rounds}")
        for question in questions:
            for driver in drivers:
                samples = taken.setdefault((driver.contestant.name, question.name), _Samples())
                if question.measure in driver.measures and round_ < question.rounds and not samples.enough:
                    _ask(driver, question, samples, progress)
    return {cell: median(samples.values) for cell, samples in taken.items() if samples.values and not samples.failed}


def _ask(driver: Driver, question: Question, samples: _Samples, progress: Progress) -> None:
    started = time.perf_counter()
    try:
        value = driver.ask(question.measure, **question.arguments)
        if time.perf_counter() - started < QUICK_SECONDS:
            value = driver.ask(question.measure, **question.arguments)
        samples.values.append(value)
    except DriverError as error:
        if driver.contestant.name == OURS:
            raise
        samples.failed = True
        progress(f"left out: {error}")
    samples.spent += time.perf_counter() - started
