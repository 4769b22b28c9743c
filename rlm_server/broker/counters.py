"""What the broker has done since the start, for whoever watches it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlm_server.broker.calls import Failure


@dataclass(slots=True)
class Counters:
    """`failures` are of calls, `failed_attempts` of attempts, those that were followed by another included.

    `retries` are attempts after the first at the same model, `fallbacks` the calls that another model answered.
    `overruns` cost more than their hold: a defect of the bound. `unsettled` are holds that could not be resolved
    because the database failed; they stay in the books as they are until the next start.
    """

    calls: int = 0
    attempts: int = 0
    retries: int = 0
    fallbacks: int = 0
    failures: Counter[Failure] = field(default_factory=Counter)
    failed_attempts: Counter[Failure] = field(default_factory=Counter)
    overruns: int = 0
    unsettled: int = 0
