"""All scenarios by name. A new one is a function in one of these modules, entered by `@TABLE.of(...)`."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.neighbours.scenario import Scenario
from benchmarks.neighbours.scenarios import (
    door,
    floods,
    model_calls,
    references,
    results,
    searches,
    sessions,
    streams,
    uploads,
)

SCENARIOS: Mapping[str, Scenario] = {
    name: scenario
    for module in (door, model_calls, references, searches, uploads, streams, results, sessions, floods)
    for name, scenario in module.TABLE.items()
}
