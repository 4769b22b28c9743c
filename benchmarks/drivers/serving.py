"""The driver's side of the protocol: one line asks, one line answers. Runs in every contestant's own environment.

A driver first says `{"about": what it is, "measures": [names]}`. Then `{"do": name, ...}` is answered by
`{"value": number}` (seconds, where a measure does not say otherwise) or by `{"error": text}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping

Measure = Callable[..., float]
"""Measures once. What a request holds besides `do` becomes its keyword arguments."""


def serve(about: str, measures: Mapping[str, Measure]) -> None:
    """Answer requests from stdin until it is closed. What is measured may print: that goes to stderr."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        print(json.dumps({"about": about, "measures": sorted(measures)}), file=answers)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer: dict[str, object] = {"value": measures[request.pop("do")](**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers)


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def expect(value: object, wanted: object) -> None:
    """Make sure that what was measured worked.

    Raises:
        ValueError: it did not.
    """
    if value != wanted:
        raise ValueError(f"{value!r} instead of {wanted!r}")
