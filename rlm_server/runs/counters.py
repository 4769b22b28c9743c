"""Counts of the runs since the start, for the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlm_server.clock import Durations
from rlm_server.runs.state import RunState

BOUNDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
"""Seconds that runs are sorted by."""


@dataclass(slots=True)
class RunCounters:
    """The counts. `seconds` are from a run's creation to its end; `nano_usd` is what those that ended have spent."""

    started: int = 0
    ended: Counter[RunState] = field(default_factory=Counter)
    seconds: Durations = field(default_factory=lambda: Durations(BOUNDS))
    nano_usd: int = 0
