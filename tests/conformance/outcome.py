"""What became of a test, by its module and its name in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    STOPPED = "stopped"
    """It ran into a limit or trapped; the rest of its module went on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test's result; `reason` is what it said when it did not pass."""

    module: str
    test: str
    result: Result
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.module} {self.test}: {self.result}: {self.reason}"
