"""How the pinned prices differ from what their source, `genai-prices`, says today. Needs that package."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from rlm_server.broker.prices import generate as generate_prices
from rlm_server.broker.prices.table import Listed, Price, Prices


@dataclass(frozen=True, slots=True)
class Difference:
    """A model that costs something else than it is pinned at; a price is None where there is none."""

    provider: str
    models: tuple[str, ...]
    """Its names, sorted."""
    pinned: Price | None
    today: Price | None


def source_today(today: date) -> Prices:
    """The table as it would be generated on this day from the package that is installed; nothing is fetched."""
    return Prices(generate_prices.table(today))


def differences(pinned: Prices, today: Prices) -> Iterator[Difference]:
    """Yield what two tables price differently, names with the same two prices together."""
    before, after = _by_name(pinned.listed()), _by_name(today.listed())
    moved = defaultdict(list)
    for key in sorted(before.keys() | after.keys()):
        provider, model = key
        pair = before.get(key), after.get(key)
        if _numbers(pair[0]) != _numbers(pair[1]):
            moved[provider, *pair].append(model)
    for (provider, old, new), models in moved.items():
        yield Difference(provider, tuple(models), old, new)


def _by_name(listed: tuple[Listed, ...]) -> dict[tuple[str, str], Price]:
    return {(one.provider, one.model): one.price for one in listed}


def _numbers(price: Price | None) -> list[int] | None:
    return None if price is None else price.numbers()
