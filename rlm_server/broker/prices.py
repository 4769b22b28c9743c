"""What model calls cost: a pinned table of prices, exact in integers, in which an unknown model has no price.

The table `prices.json` is written by `generate_prices`. It holds the standard price of a plain call: no batch, no
priority or fast tier, no regional surcharge, the five-minute cache; the providers pin their requests to that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

from rlm_server.ledger import Usage

PER = 1_000_000
"""Rates are in nano-US-dollars for this many tokens. One US dollar for a million tokens is 1_000_000_000."""

_DATE = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


class NoPrice(LookupError):
    """A model has no price, so no call to it can be bounded. The operator may state one, 0 included."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(f"no price is known for model {model!r} of provider {provider!r}; state one to use it")
        self.provider = provider
        self.model = model


@dataclass(frozen=True, slots=True)
class Rates:
    """What tokens cost, in nano-US-dollars for a million. A cache rate of None means that input costs `input`."""

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None

    def __post_init__(self) -> None:
        if min(self.input, self.output, self.read, self.write) < 0:
            raise ValueError("a rate cannot be negative")

    @property
    def read(self) -> int:
        """The rate of input read from the cache."""
        return self.input if self.cache_read is None else self.cache_read

    @property
    def write(self) -> int:
        """The rate of input written to the cache."""
        return self.input if self.cache_write is None else self.cache_write


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of every token of a request whose input is more than `above` tokens."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """What calls to one model cost. `tiers` are in ascending order of `above`."""

    rates: Rates
    tiers: tuple[Tier, ...] = ()

    def bound(self, input_tokens: int, max_tokens: int) -> int:
        """The most a call can cost, in nano-US-dollars, rounded up.

        `input_tokens` and `max_tokens` are upper bounds: fewer tokens may fall into a dearer or a cheaper tier, so
        the dearest rate of every tier within reach is taken.
        """
        reachable = [self.rates, *(tier.rates for tier in self.tiers if input_tokens > tier.above)]
        dearest_input = max(max(rates.input, rates.read, rates.write) for rates in reachable)
        dearest_output = max(rates.output for rates in reachable)
        return _rounded_up(input_tokens * dearest_input + max_tokens * dearest_output)

    def cost(self, usage: Usage) -> int:
        """What a call with this usage cost, in nano-US-dollars, rounded up to a whole one."""
        rates = self.rates
        for tier in self.tiers:
            if usage.input > tier.above:
                rates = tier.rates
        plain = usage.input - usage.cache_read - usage.cache_write
        return _rounded_up(
            plain * rates.input
            + usage.cache_read * rates.read
            + usage.cache_write * rates.write
            + usage.output * rates.output
        )


FREE = Price(Rates(input=0, output=0))
"""The price an operator may state for a model they host themselves."""


class Prices:
    """A table of prices that does not change while it is used.

    `stated` maps (provider, model) to what an operator says a model costs; it goes before the pinned table.
    """

    def __init__(self, table: Mapping[str, Any], stated: Mapping[tuple[str, str], Price] | None = None) -> None:
        self._stated = dict(stated or {})
        self._exact: dict[tuple[str, str], Price] = {}
        self._dated: dict[tuple[str, str], Price] = {}
        self._windows: dict[tuple[str, str], int] = {}
        for provider, models in table["providers"].items():
            for row in models:
                self._add(provider, row)
        self.version = self._digest(table)

    @classmethod
    def load(cls, stated: Mapping[tuple[str, str], Price] | None = None) -> Self:
        """Read the pinned table that is part of this package."""
        text = resources.files("rlm_server.broker").joinpath("prices.json").read_text(encoding="utf-8")
        return cls(json.loads(text), stated)

    def price(self, provider: str, model: str) -> Price:
        """The price of a provider's model, by the name the provider knows it by.

        Raises:
            NoPrice: the table has no such model. No other model's price stands in for it.
        """
        if (found := self._stated.get((provider, model))) is not None:
            return found
        if (found := self._exact.get((provider, model))) is not None:
            return found
        if (found := self._dated.get((provider, _DATE.sub("", model)))) is not None and _DATE.search(model):
            return found
        raise NoPrice(provider, model)

    def models(self, provider: str) -> tuple[str, ...]:
        """The names of a provider's models that have a price, sorted."""
        return tuple(sorted(model for of, model in {**self._exact, **self._stated} if of == provider))

    def context_window(self, provider: str, model: str) -> int | None:
        """The most input a model takes, in tokens, or None where the table does not say."""
        return self._windows.get((provider, model)) or self._windows.get((provider, _DATE.sub("", model)))

    def _add(self, provider: str, row: Mapping[str, Any]) -> None:
        tiers = tuple(Tier(tier["above"], _rates(tier)) for tier in row.get("tiers", ()))
        price = Price(_rates(row), tiers)
        for name in row["names"]:
            self._exact[provider, name] = price
            if row.get("context_window"):
                self._windows[provider, name] = row["context_window"]
        for name in row.get("dated_names", ()):
            self._dated[provider, name] = price

    def _digest(self, table: Mapping[str, Any]) -> str:
        stated = [[*key, repr(price)] for key, price in sorted(self._stated.items())]
        canonical = json.dumps([table, stated], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _rates(row: Mapping[str, Any]) -> Rates:
    return Rates(row["input"], row["output"], row.get("cache_read"), row.get("cache_write"))


def _rounded_up(nano_usd_times_per: int) -> int:
    return -(-nano_usd_times_per // PER)
