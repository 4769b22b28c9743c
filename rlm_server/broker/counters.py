"""Counts of what the broker has done since the start, for the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlm_server.broker.provider import Failure


@dataclass(slots=True)
class Counters:
    """The counts.

    `failures` counts calls that failed, `failed_attempts` attempts, also those that another followed. `retries` counts
    attempts after the first at the same model, and `fallbacks` calls that another model answered. `overruns` counts
    calls that cost more than their hold: a defect of the bound. `unsettled` counts holds that could not be resolved
    because the database failed; they stay as they are until the next start.
    """

    calls: int = 0
    attempts: int = 0
    retries: int = 0
    fallbacks: int = 0
    failures: Counter[Failure] = field(default_factory=Counter)
    failed_attempts: Counter[Failure] = field(default_factory=Counter)
    overruns: int = 0
    unsettled: int = 0
