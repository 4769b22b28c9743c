"""Money and budgets: exact, from US dollars as people write them to the protocol's nano-US-dollars."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from rlm.v1 import types_pb2

from rlm_client.durations import milliseconds

NANO = 1_000_000_000
"""Nano-US-dollars in one US dollar."""

_MAX_NANO = 2**63 - 1  # the protocol's int64


def nano_usd(amount: Decimal | str | int) -> int:
    """Convert US dollars to nano-US-dollars, exactly: `nano_usd("0.50")` is 500,000,000.

    Raises:
        TypeError: the amount is a float, which cannot hold most decimal amounts.
        ValueError: it is not a positive number, is finer than a nano-dollar, or is more than the protocol carries.
    """
    if isinstance(amount, bool) or not isinstance(amount, Decimal | str | int):
        raise TypeError(
            f"money is a Decimal, a decimal string or an int of US dollars, not {type(amount).__name__}: "
            'a float is not exact; write usd="0.50"'
        )
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"{amount!r} is not an amount of US dollars; write it like 0.50") from None
    if not value.is_finite() or value <= 0:
        raise ValueError(f"a budget must be more than 0 US dollars, not {amount}")
    # The magnitude is checked first: a number like 1e999999999 would be written out in full below.
    if value.adjusted() > 10:
        raise ValueError(f"{amount} US dollars is more than the protocol can carry")
    if value.adjusted() < -9:
        raise ValueError(f"{amount} US dollars is finer than a nano-dollar (0.000000001)")
    numerator, denominator = value.as_integer_ratio()
    nano, rest = divmod(numerator * NANO, denominator)
    if rest:
        raise ValueError(f"{amount} US dollars is finer than a nano-dollar (0.000000001)")
    if nano > _MAX_NANO:
        raise ValueError(f"{amount} US dollars is more than the protocol can carry")
    return nano


def usd(nano: int) -> str:
    """Write nano-US-dollars as US dollars, exactly: `usd(1_500_000)` is `$0.0015`."""
    sign, size = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(size, NANO)
    return f"{sign}${whole:,}.{str(rest).rjust(9, '0').rstrip('0').ljust(2, '0')}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent; a field left out is not limited here, and the tenant's own limits always hold.

    `usd` is in US dollars (never a float), `tokens` counts input and output together, `calls` counts model calls,
    `cpu_ms` is the time that sandboxed code runs, in milliseconds. Each is more than 0.

    Raises:
        TypeError: `usd` is a float.
        ValueError: a field is not more than 0, or `usd` is finer than a nano-dollar.
    """

    usd: Decimal | str | int | None = None
    tokens: int | None = None
    calls: int | None = None
    cpu_ms: int | None = None

    def __post_init__(self) -> None:
        if self.usd is not None:
            nano_usd(self.usd)
        for unit, limit in (("tokens", self.tokens), ("calls", self.calls), ("cpu_ms", self.cpu_ms)):
            if limit is not None and limit <= 0:
                raise ValueError(f"a budget must be more than 0 {unit}, not {limit}")

    def message(self) -> types_pb2.Budget:
        """Give the protocol's form, with money in nano-US-dollars."""
        nano = None if self.usd is None else nano_usd(self.usd)
        return types_pb2.Budget(
            nano_usd=nano,
            token_count=self.tokens,
            call_count=self.calls,
            cpu_time=None if self.cpu_ms is None else milliseconds(self.cpu_ms),
        )
