"""What model calls cost: a pinned table of prices, exact in integers, in which an unknown model has no price.

The table `prices.json` is written by `generate`, by families of prices; the registry of providers says which provider
has which. It holds the standard price of a plain call: no batch, no priority or fast tier, no regional surcharge, the
five-minute cache; the providers pin their requests to that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from typing import Any, Self

from rlm_server.broker.providers.registry import PROVIDERS
from rlm_server.ledger import Usage

PER = 1_000_000
"""Rates are in nano-US-dollars for this many tokens. One US dollar for a million tokens is 1_000_000_000."""

TABLE_FILE, TABLE_HASH_FILE = "prices.json", "prices.json.sha256"
"""The files of the pinned table, beside this module. The second is as `sha256sum` writes and checks it."""

MAX_RATE = 1_000_000_000_000_000
"""No rate is above this: $1,000,000 for a million tokens. With it, whatever a call may use costs less than an int64."""

_DATE = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


class PricesConflict(ValueError):
    """Two different prices are stated for one model, under two of its names."""

    def __init__(self, provider: str, models: tuple[str, ...]) -> None:
        super().__init__(f"{' and '.join(models)} are names of one model of {provider}, with different prices stated")
        self.provider = provider
        self.models = models


class NoPrice(LookupError):
    """A model has no price, so no call to it can be bounded. The operator may state one, 0 included."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(f"no price is known for model {model!r} of provider {provider!r}; state one to use it")
        self.provider = provider
        self.model = model


@dataclass(frozen=True, slots=True)
class Rates:
    """What tokens cost, in nano-US-dollars for a million. A cache rate of None means that input costs `input`.

    Raises:
        TypeError: a rate is no integer: money is never a float.
        ValueError: a rate is negative, or above `MAX_RATE`.
    """

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None

    def __post_init__(self) -> None:
        for rate in self.numbers():
            if type(rate) is not int:
                raise TypeError(f"a rate is a whole number of nano-dollars, not {rate!r}")
            if not 0 <= rate <= MAX_RATE:
                raise ValueError(f"a rate cannot be negative, nor above {MAX_RATE} nano-dollars")

    @property
    def read(self) -> int:
        """The rate of input read from the cache."""
        return self.input if self.cache_read is None else self.cache_read

    @property
    def write(self) -> int:
        """The rate of input written to the cache."""
        return self.input if self.cache_write is None else self.cache_write

    def numbers(self) -> tuple[int, int, int, int]:
        """The rates of input, output, reading and writing the cache."""
        return self.input, self.output, self.read, self.write


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

    def numbers(self) -> list[int]:
        """All numbers of this price, in an order that tells them apart: two prices with the same are the same."""
        tiers = [number for tier in self.tiers for number in (tier.above, *tier.rates.numbers())]
        return [*self.rates.numbers(), *tiers]


FREE = Price(Rates(input=0, output=0))
"""The price an operator may state for a model they host themselves."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the table under one of its names. `stated` says whether an operator stated the price."""

    provider: str
    model: str
    price: Price
    stated: bool
    context_window: int | None


class Prices:
    """A table of prices that does not change while it is used.

    `table` has its rows by family; every provider of the registry has those of the family it names.
    `stated` maps (provider, model) to what an operator says a model costs. It goes before the pinned table, for every
    name that the table has for that model: a model does not get cheaper by its other name. `version` is the same for
    two tables exactly if every model costs the same by both; `source` and `as_of` say where the pinned prices are from.

    Raises:
        PricesConflict: different prices are stated for names of one model.
    """

    def __init__(self, table: Mapping[str, Any], stated: Mapping[tuple[str, str], Price] | None = None) -> None:
        self.source = str(table["source"])
        self.as_of = date.fromisoformat(table["as_of"])
        self._stated = dict(stated or {})
        self._exact: dict[tuple[str, str], Price] = {}
        self._dated: dict[tuple[str, str], Price] = {}
        self._windows: dict[tuple[str, str], int] = {}
        self._names: dict[tuple[str, str], tuple[str, ...]] = {}
        for provider, spec in PROVIDERS.items():
            for row in table["providers"].get(spec.prices.name, ()):
                self._add(provider, row)
        self._exact |= self._stated
        self.version = self._digest()

    @classmethod
    def load(cls, stated: Mapping[tuple[str, str], Price] | None = None) -> Self:
        """Read the pinned table that is part of this package."""
        return cls(json.loads(_packaged(TABLE_FILE)), stated)

    def price(self, provider: str, model: str) -> Price:
        """The price of a provider's model, by the name the provider knows it by.

        Raises:
            NoPrice: the table has no such model. No other model's price stands in for it.
        """
        return self.listing(provider, model).price

    def listing(self, provider: str, model: str) -> Listed:
        """What the table has of a provider's model, or of the dated snapshot of one.

        Raises:
            NoPrice: it has no such model.
        """
        window, of = self.context_window(provider, model), (provider, model)
        if (price := self._exact.get(of)) is None:
            of = (provider, _DATE.sub("", model))
            price = self._dated.get(of) if of[1] != model else None
        if price is None:
            raise NoPrice(provider, model)
        return Listed(provider, model, price, of in self._stated, window)

    def models(self, provider: str) -> tuple[str, ...]:
        """The names of a provider's models that have a price, sorted."""
        return tuple(sorted(model for of, model in self._exact if of == provider))

    def names(self, provider: str, model: str) -> tuple[str, ...]:
        """All names that the pinned table has for a model that has this name, sorted; none where it has not this."""
        return self._names.get((provider, model), ())

    def listed(self) -> tuple[Listed, ...]:
        """Every model under each of its names, sorted by provider and name."""
        return tuple(self.listing(*key) for key in sorted(self._exact))

    def context_window(self, provider: str, model: str) -> int | None:
        """The most input a model takes, in tokens, or None where the table does not say."""
        window = self._windows.get((provider, model))
        return window if window is not None else self._windows.get((provider, _DATE.sub("", model)))

    def _add(self, provider: str, row: Mapping[str, Any]) -> None:
        price = self._stated_for(provider, row["names"]) or _pinned(row)
        for name in row["names"]:
            self._exact[provider, name] = price
            self._names[provider, name] = tuple(sorted(row["names"]))
            if row.get("context_window"):
                self._windows[provider, name] = row["context_window"]
        for name in row.get("dated_names", ()):
            self._dated[provider, name] = price

    def _stated_for(self, provider: str, names: list[str]) -> Price | None:
        """What is stated for a model, by whichever of its names; then it is for all of them."""
        said = {name: self._stated[provider, name] for name in sorted(names) if (provider, name) in self._stated}
        if len({tuple(price.numbers()) for price in said.values()}) > 1:
            raise PricesConflict(provider, tuple(said))
        self._stated |= {(provider, name): price for price in said.values() for name in names}
        return next(iter(said.values()), None)

    def _digest(self) -> str:
        kinds = (("exact", self._exact), ("dated", self._dated))
        lines = sorted([kind, *key, *price.numbers()] for kind, prices in kinds for key, price in prices.items())
        return hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()[:16]


def table_hashes() -> tuple[str, str]:
    """The SHA-256 of `prices.json` as it is, and as it was generated. They differ where it was edited since."""
    generated = _packaged(TABLE_HASH_FILE).decode("ascii", "replace")
    return hashlib.sha256(_packaged(TABLE_FILE)).hexdigest(), generated.partition(" ")[0]


def _packaged(name: str) -> bytes:
    return resources.files("rlm_server.broker.prices").joinpath(name).read_bytes()


def _pinned(row: Mapping[str, Any]) -> Price:
    tiers = [Tier(tier["above"], _rates(tier)) for tier in row.get("tiers", ())]
    return Price(_rates(row), tuple(sorted(tiers, key=lambda tier: tier.above)))


def _rates(row: Mapping[str, Any]) -> Rates:
    return Rates(row["input"], row["output"], row.get("cache_read"), row.get("cache_write"))


def _rounded_up(nano_usd_times_per: int) -> int:
    return -(-nano_usd_times_per // PER)
