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


COUNTS = tuple(field.name for field in fields(Usage))
"""The names of what is counted, in their order everywhere."""
