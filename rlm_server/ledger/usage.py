"""What a provider says a call used."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a provider counted. `input` includes both cache parts; `output` includes `reasoning`."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


def counts(of: Usage) -> tuple[int, ...]:
    """What was counted, in the order of `COUNTS`."""
    return of.input, of.output, of.cache_read, of.cache_write, of.reasoning


COUNTS = tuple(field.name for field in fields(Usage))
"""The names of what is counted, in their order everywhere."""
