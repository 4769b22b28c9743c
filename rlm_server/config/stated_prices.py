"""The prices an operator has stated with `rlm-server prices set`: a small file in the data directory.

A running server does not look at it; it is read when a server starts. It may be edited by hand: it is checked as a
whole whenever it is read, and an amount in it is exact, quoted or not.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from rlm_server.broker.prices.table import MAX_RATE, Price, Rates
from rlm_server.broker.providers.registry import PROVIDERS
from rlm_server.config.settings import ConfigError, UsdPerMillion, nano
from rlm_server.ledger.amounts import usd

FILE = "stated-prices.json"
"""In the data directory."""


class Key(NamedTuple):
    """Which model a price is for."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"

    @classmethod
    def parse(cls, name: str) -> Key:
        """Read PROVIDER/MODEL; the model's own name may have slashes.

        Raises:
            ValueError: it is no such name.
        """
        provider, slash, model = name.partition("/")
        if not slash or not 0 < len(model) <= 200 or not model.isprintable() or " " in model:
            raise ValueError(f"{name[:250]!r} is not PROVIDER/MODEL, as in openai/gpt-6-sol")
        if provider not in PROVIDERS:
            near = difflib.get_close_matches(provider, PROVIDERS, n=1)
            hint = f"; is it {near[0]}?" if near else ""
            raise ValueError(f"there is no provider {provider[:50]!r}: they are {', '.join(PROVIDERS)}{hint}")
        return cls(provider, model)


class StatedPrice(BaseModel):
    """What an operator says a model costs, in US dollars for 1,000,000 tokens, at most 9 decimal places."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    input: UsdPerMillion
    output: UsdPerMillion
    cache_read: UsdPerMillion | None = None
    cache_write: UsdPerMillion | None = None

    def price(self, provider: str) -> Price:
        """The price in the ledger's unit, of a model of this provider.

        A cache rate that is not stated is as dear as it can be: reading the cache then costs what input does, and
        writing it the most that this provider takes.
        """
        paid = nano(self.input)
        dearest_write = min(-(-paid * PROVIDERS[provider].prices.cache_write_percent // 100), MAX_RATE)
        return Price(
            Rates(
                input=paid,
                output=nano(self.output),
                cache_read=paid if self.cache_read is None else nano(self.cache_read),
                cache_write=dearest_write if self.cache_write is None else nano(self.cache_write),
            )
        )

    def amounts(self) -> dict[str, str]:
        """What is stated, as the file has it."""
        said = self.model_dump(exclude_none=True).items()
        return {rate: usd(nano(amount)).removeprefix("$") for rate, amount in said}


class StatedPrices:
    """The stated prices of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE

    def read(self) -> dict[Key, StatedPrice]:
        """Return what is stated; nothing where there is no file.

        Raises:
            ConfigError: the file is not as it must be; the message names the file and the field.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path} is not UTF-8: {error}") from None
        try:
            content = json.loads(text, parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self.path} is not JSON as it must be: {error}") from None
        try:
            prices = _Content.model_validate(content).prices
        except ValidationError as error:
            raise ConfigError(f"{self.path} is wrong: {_named(error)}") from None
        return {Key.parse(name): price for name, price in prices.items()}

    @contextmanager
    def changing(self) -> Iterator[dict[Key, StatedPrice]]:
        """Change what is stated: the dictionary given, as it is left without an error, replaces the file at once.

        Others who change it wait. The directory is made where it is missing; the file is for its owner alone.

        Raises:
            ConfigError: the file is not as it must be; it stays as it is.
            OSError: it cannot be written; it stays as it is.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            prices = self.read()
            yield prices
            self._replace(prices)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _replace(self, prices: Mapping[Key, StatedPrice]) -> None:
        descriptor, new = tempfile.mkstemp(dir=self.path.parent, prefix=f".{FILE}.")  # with mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(_written(prices))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except BaseException:
            os.unlink(new)
            raise


def _is_key(name: str) -> str:
    return str(Key.parse(name))


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    unit: Literal["USD per 1,000,000 tokens"]
    prices: dict[Annotated[str, AfterValidator(_is_key)], StatedPrice]


def _written(prices: Mapping[Key, StatedPrice]) -> str:
    """The file's text: one model to a line, so that a change reads as one line."""
    lines = ",\n".join(f"    {json.dumps(str(key))}: {json.dumps(prices[key].amounts())}" for key in sorted(prices))
    body = f"{{\n{lines}\n  }}" if lines else "{}"
    return f'{{\n  "unit": "USD per 1,000,000 tokens",\n  "prices": {body}\n}}\n'


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double[:250]!r} is there twice")
    return content


def _named(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_input=False, include_url=False)
    )
