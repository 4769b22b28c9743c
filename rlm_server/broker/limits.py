"""How many model calls go on at once, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.limits import limit

MAX_OUTPUT_TOKENS = 1_000_000
"""No request may ask for more output than this. It is more than any model gives, and keeps every bound an int64."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of model calls."""

    call_seconds: float = limit(
        180.0, least=0.001, most=3_600, unit="seconds", doc="One attempt at a model call, once it is sent."
    )
    provider_calls: int = limit(
        1_024,
        least=1,
        most=10_000,
        unit="calls",
        doc="Calls in flight to one provider, with one key. One in sixteen is kept for tenants that have few. A model "
        "is given 288 of them at first, and then what its provider is learned to take.",
    )
    tenant_calls: int = limit(
        512,
        least=1,
        most=10_000,
        unit="calls",
        doc="Calls of one tenant that are under way, or wait for money or a provider; its others wait for these.",
    )
    run_calls: int = limit(256, least=1, most=10_000, unit="calls", doc="The same of one run.")
