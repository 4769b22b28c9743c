"""A contestant: one thing that is measured. Its driver is a process that answers one-line requests."""

from __future__ import annotations

import json
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = "ours"
ANSWER_SECONDS = 120.0
END_SECONDS = 3.0


class DriverError(Exception):
    """A driver could not measure what it was asked to, or has gone; the message says why."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """How the driver of a contestant is started. Several drivers may share a name: they measure different things."""

    name: str
    command: tuple[str, ...]
    sessions_held: int = 0
    """How many sessions show what memory one needs; 0 where it is not asked."""


class Driver:
    """A running driver."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        try:
            self._process = subprocess.Popen(
                contestant.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise DriverError(f"the driver of {contestant.name} does not start: {error}") from None
        self.pid = self._process.pid
        try:
            ready = self._answer()
        except DriverError:
            self.close()
            raise
        self.about = str(ready["about"])
        self.measures: frozenset[str] = frozenset(ready["measures"])

    def ask(self, measure: str, **arguments: object) -> float:
        """Have something measured once, and return it: seconds, where the measure does not say otherwise.

        Raises:
            DriverError: it could not be measured.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": measure, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise DriverError(f"the driver of {self.contestant.name} has gone") from None
        answer = self._answer()
        if "error" in answer:
            raise DriverError(f"{self.contestant.name}, {measure}: {answer['error']}")
        return float(answer["value"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            raise DriverError(f"the driver of {self.contestant.name} said nothing for {ANSWER_SECONDS:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise DriverError(f"the driver of {self.contestant.name} ended by itself")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the driver, by force if it takes long."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.close()
            self._process.wait(timeout=END_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
