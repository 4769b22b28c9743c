"""What the endpoint's log says of a run: what went by between an answer and the next request is the loop's own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from itertools import pairwise
from statistics import median

from benchmarks.loop.endpoint import BATCH, SUBCALLS, TURNS, Log


def of_turns(log: Log) -> float:
    """Return the seconds between the answer of a turn and the next turn's request: the median of a run's turns.

    Raises:
        ValueError: the run did not take the turns that it was to take.
    """
    calls = _calls(log, "turns", TURNS + 1)
    return median(after - answered for (_, answered), (after, _) in pairwise(calls))


def of_subcalls(log: Log) -> float:
    """Return the seconds from one of the sequential sub-calls to the next: all of them divided by their number.

    Raises:
        ValueError: there were not so many.
    """
    calls = _calls(log, "quick", SUBCALLS)
    return (calls[-1][0] - calls[0][0]) / (SUBCALLS - 1)


def of_batch(log: Log) -> float:
    """Return the seconds from the first request of the batch to its last answer.

    Raises:
        ValueError: not all were asked.
    """
    calls = _calls(log, "slow", BATCH)
    return max(answered for _, answered in calls) - calls[0][0]


class Runs(ABC):
    """What is measured of every loop alike."""

    @abstractmethod
    def _run(self, model: str, sub_model: str = "quick") -> Log:
        """Make a run and return what the endpoint saw of it."""

    def turn(self) -> float:
        return of_turns(self._run("turns"))

    def subcall(self) -> float:
        return of_subcalls(self._run("subcalls"))

    def batch(self) -> float:
        return of_batch(self._run("batch", "slow"))

    def create(self) -> float:
        """Return the seconds from asking for a run to its first request."""
        started = time.monotonic()
        return self._run("end")["end"][0][0] - started


def _calls(log: Log, model: str, number: int) -> list[tuple[float, float]]:
    calls = sorted((received, answered) for received, answered in log.get(model, []))
    if len(calls) != number:
        raise ValueError(f"{model} was asked {len(calls)} times, not {number}")
    return calls
