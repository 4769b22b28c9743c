"""What is metered: money, tokens, calls and processor time, always as integers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

NANO = 1_000_000_000
"""Nano-US-dollars in one US dollar."""
MAX_BUDGET = 1 << 60
"""Of what a budget allows, in each of its units."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """A quantity of every metered unit.

    `nano_usd` is in nano-US-dollars, `tokens` counts input and output together, `calls` counts model calls,
    `cpu_ms` is the time that sandboxed code ran, in milliseconds.
    """

    nano_usd: int = 0
    tokens: int = 0
    calls: int = 0
    cpu_ms: int = 0

    def __add__(self, other: Self) -> Amounts:
        return Amounts(
            self.nano_usd + other.nano_usd,
            self.tokens + other.tokens,
            self.calls + other.calls,
            self.cpu_ms + other.cpu_ms,
        )

    def __sub__(self, other: Self) -> Amounts:
        return Amounts(
            self.nano_usd - other.nano_usd,
            self.tokens - other.tokens,
            self.calls - other.calls,
            self.cpu_ms - other.cpu_ms,
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """The most an account may spend of every unit; None where the account itself sets no limit."""

    nano_usd: int | None = None
    tokens: int | None = None
    calls: int | None = None
    cpu_ms: int | None = None


def numbers(of: Amounts | Limit) -> tuple[int | None, ...]:
    """The number of every unit, in the order of `UNITS`."""
    return of.nano_usd, of.tokens, of.calls, of.cpu_ms


UNITS = tuple(field.name for field in fields(Amounts))
"""The names of the units, in their order everywhere."""


def usd(nano_usd: int) -> str:
    """Format nano-US-dollars for people, exactly: `usd(1_500_000)` is `$0.0015`."""
    sign, nano = ("-", -nano_usd) if nano_usd < 0 else ("", nano_usd)
    whole, rest = divmod(nano, NANO)
    return f"{sign}${whole}.{str(rest).rjust(9, '0').rstrip('0').ljust(2, '0')}"
