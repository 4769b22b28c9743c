"""`rlm-server prices`: what models cost here, whether that holds, and what the operator states of it."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from rlm_server.broker.prices.table import Listed, NoPrice, Price, Prices, Rates, table_hashes
from rlm_server.broker.providers.registry import COMPATIBLE, PROVIDERS, with_keys
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.config.price_list import PriceList, age
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.config.stated_prices import Key, StatedPrice, StatedPrices
from rlm_server.ledger.amounts import usd

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = ("PROVIDER", "MODEL", "INPUT OVER", "INPUT", "OUTPUT", "CACHE READ", "CACHE WRITE", "WINDOW", "PRICE")
"""Tokens and US dollars for 1,000,000 of them. A model's later lines are its tiers."""

_WORDS = frozenset({"PROVIDER", "MODEL", "PRICE"})
_LATER = "a server that runs keeps its prices until its next start"
_MARKS = {True: "ok", False: "NO", None: "--"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. `holds` is None for something worth knowing that is not a fault."""

    holds: bool | None
    text: str


commands = click.Group()
"""What `rlm-server prices` can be followed by."""


def _data_dir(command: F) -> F:
    told = "Where the server keeps its data, and the prices you state."
    return click.option("--data-dir", type=click.Path(path_type=Path), help=told)(command)


@commands.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--json", "as_json", is_flag=True, help="For machines: rates in nano-USD for 1,000,000 tokens.")
@_data_dir
def show(models: tuple[str, ...], as_json: bool, data_dir: Path | None) -> None:
    """Show what models cost, all or those named (MODEL or PROVIDER/MODEL), in USD for 1,000,000 tokens."""
    listed = _price_list(_settings(data_dir))
    table = listed.prices
    shown = _found(table, models) if models else table.listed()
    if as_json:
        click.echo(json.dumps(_as_json(listed, shown), indent=2))
        return
    for line in _aligned([COLUMNS, *(row for one in shown for row in _rows(one, listed.origin(one)))]):
        click.echo(line)
    click.echo(f"pinned: {table.source} {age(table, _today())}; version of all prices: {table.version}")


@commands.command()
@click.option("--strict", is_flag=True, help="Fail too where genai-prices says something else, or is not there.")
@_data_dir
def check(strict: bool, data_dir: Path | None) -> None:
    """Say whether every model has a price, and the pinned ones are as they were made and as their source has them."""
    settings = _settings(data_dir)
    listed = _price_list(settings)
    holds = True
    for finding in (_offered(settings), _table(), *_stated(listed, settings), *_source(strict)):
        holds &= finding.holds is not False
        click.echo(f"{_MARKS[finding.holds]} {finding.text}")
    sys.exit(0 if holds else 1)


def _providers() -> str:
    own = ", ".join(spec.name for spec in with_keys())
    return f"PROVIDER is one of {own}, or {COMPATIBLE.name} for a model of the configuration's."


def _cache_write() -> str:
    told = "For input written to the cache; else as --input"
    for percent in sorted({spec.prices.cache_write_percent for spec in PROVIDERS.values()} - {100}):
        takers = [spec.name for spec in PROVIDERS.values() if spec.prices.cache_write_percent == percent]
        told += f", and {percent} % of it at {', '.join(takers)}"
    return f"{told}."


@commands.command(name="set", epilog=_providers())
@click.argument("name", metavar="PROVIDER/MODEL")
@click.option("--input", "paid_input", required=True, metavar="USD", help="For 1,000,000 tokens of input, 0 included.")
@click.option("--output", "paid_output", required=True, metavar="USD", help="For 1,000,000 tokens of output.")
@click.option("--cache-read", metavar="USD", help="For input read from the cache; else as --input.")
@click.option("--cache-write", metavar="USD", help=_cache_write())
@_data_dir
def set_(
    name: str, paid_input: str, paid_output: str, cache_read: str | None, cache_write: str | None, data_dir: Path | None
) -> None:
    """State what a model costs; it goes before the pinned price, and makes a new model one that is offered.

    One rate is for every length of input: where a model has tiers, state the dearest.
    """
    key = _key(name)
    price = _stated_price(input=paid_input, output=paid_output, cache_read=cache_read, cache_write=cache_write)
    settings = _settings(data_dir)
    if key in PriceList.of(settings, kept={}).configured:
        raise click.ClickException(
            f"the configuration states a price at models.{key.model}, which goes before this one: change it there"
        )
    with _explained(), StatedPrices(settings.data_dir).changing() as kept:
        kept[key] = price
        listed = PriceList.of(settings, SCRIPTS, kept)
    click.echo(f"{key} costs {_told(listed.prices.price(*key))}")
    for note in _notes(key, settings):
        click.echo(note)
    click.echo(f"the version of all prices is now {listed.prices.version}; {_LATER}")


@commands.command()
@click.argument("names", nargs=-1, required=True, metavar="PROVIDER/MODEL...")
@_data_dir
def unset(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Take back what you stated of models, which then have their pinned price or none."""
    keys = dict.fromkeys(map(_key, names))
    settings = _settings(data_dir)
    with _explained(), StatedPrices(settings.data_dir).changing() as kept:
        if unknown := [str(key) for key in keys if key not in kept]:
            messages = [f"no price is stated for {name}{_near(name, map(str, kept))}" for name in unknown]
            raise click.ClickException("; ".join(messages))
        for key in keys:
            del kept[key]
        listed = PriceList.of(settings, SCRIPTS, kept)
    for key in keys:
        try:
            click.echo(f"{key} costs {_told(listed.prices.price(*key))}")
        except NoPrice:
            click.echo(f"{key} has no price now, and is not offered without one")
    click.echo(f"the version of all prices is now {listed.prices.version}; {_LATER}")


def _settings(data_dir: Path | None) -> Settings:
    with _explained():
        return Settings.load(**({"data_dir": data_dir} if data_dir else {}))


def _price_list(settings: Settings) -> PriceList:
    with _explained():
        return PriceList.of(settings, SCRIPTS)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _today() -> date:
    return datetime.now(UTC).date()


def _key(name: str) -> Key:
    try:
        return Key.parse(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _stated_price(**amounts: str | None) -> StatedPrice:
    try:
        return StatedPrice.model_validate(amounts)
    except ValidationError as error:
        wrong = [f"--{str(one['loc'][0]).replace('_', '-')}: {one['msg']}" for one in error.errors(include_url=False)]
        raise click.UsageError("; ".join(wrong)) from None


def _found(table: Prices, names: Iterable[str]) -> list[Listed]:
    """Return the models of these names. Dated names of snapshots count."""
    listed = table.listed()
    matching, unknown = [], []
    for name in dict.fromkeys(names):
        hits = [one for one in listed if name in (one.model, f"{one.provider}/{one.model}")] or _snapshots(table, name)
        matching += hits
        if not hits:
            near = _near(name, [text for one in listed for text in (one.model, f"{one.provider}/{one.model}")])
            unknown.append(f"no price is known for {name[:250]!r}{near}")
    if unknown:
        raise click.ClickException("; ".join(unknown))
    return matching


def _snapshots(table: Prices, name: str) -> list[Listed]:
    provider, slash, model = name.partition("/")
    pairs = [(provider, model)] if slash and provider in PROVIDERS else [(one, name) for one in PROVIDERS]
    found = []
    for pair in pairs:
        with suppress(NoPrice):
            found.append(table.listing(*pair))
    return found


def _near(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the known names that are close to it."""
    near = difflib.get_close_matches(name.lower(), list(known), n=5)
    return f"; near names: {', '.join(near)}" if near else ""


def _rows(one: Listed, origin: str) -> Iterator[tuple[str, ...]]:
    window = f"{one.context_window:,}" if one.context_window is not None else ""
    yield (one.provider, one.model, "", *_amounts(one.price.rates), window, origin)
    for tier in one.price.tiers:
        yield (one.provider, one.model, f"{tier.above:,}", *_amounts(tier.rates), "", "")


def _amounts(rates: Rates) -> tuple[str, ...]:
    return tuple(usd(rate) for rate in rates.numbers())


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines in columns as wide as their widest cell. Words are aligned left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(COLUMNS, row, widths, strict=True)
        yield "  ".join(cell.ljust(w) if name in _WORDS else cell.rjust(w) for name, cell, w in cells).rstrip()


def _as_json(listed: PriceList, models: Iterable[Listed]) -> dict[str, Any]:
    table = listed.prices
    return {
        "unit": "nano-USD per 1,000,000 tokens",
        "source": table.source,
        "as_of": table.as_of.isoformat(),
        "version": table.version,
        "models": [
            {
                "provider": one.provider,
                "model": one.model,
                **_rates_as_json(one.price.rates),
                "tiers": [{"above": tier.above, **_rates_as_json(tier.rates)} for tier in one.price.tiers],
                "context_window": one.context_window,
                "price": listed.origin(one),
            }
            for one in models
        ],
    }


def _rates_as_json(rates: Rates) -> dict[str, int]:
    return dict(zip(("input", "output", "cache_read", "cache_write"), rates.numbers(), strict=True))


def _told(price: Price | None) -> str:
    """Return a price in words."""
    if price is None:
        return "no price"
    parts = [_rates_told(price.rates), *(f"over {t.above:,} of input {_rates_told(t.rates)}" for t in price.tiers)]
    return "; ".join(parts)


def _rates_told(rates: Rates) -> str:
    return "{} input, {} output, {} cache read, {} cache write".format(*_amounts(rates))


def _notes(key: Key, settings: Settings) -> Iterator[str]:
    """Yield what else the operator must know who states a price for a model."""
    pinned = Prices.load()
    if key.provider == COMPATIBLE.name:
        if key.model not in settings.models:
            yield f"the configuration has no models.{key.model} yet, which this is for"
        return
    if others := [name for name in pinned.names(*key) if name != key.model]:
        yield f"the same goes for its other names: {', '.join(others)}"
    try:
        price = pinned.price(*key)
    except NoPrice:
        yield f"it is not in the pinned table{_near(key.model, pinned.models(key.provider))}; check its name"
        return
    yield f"instead of pinned: {_told(price)}"
    if price.tiers:
        yield "the pinned price rises with the length of the input, the stated one does not: is it the dearest?"


def _offered(settings: Settings) -> Finding:
    from rlm_server.config.model_catalog import build_models

    try:
        models = build_models(settings, SCRIPTS)
    except ConfigError as error:
        return Finding(False, f"models: {error}")
    return Finding(True, f"models: {len(models.routes.models)} offered, each with a price")


def _table() -> Finding:
    table, (found, generated) = Prices.load(), table_hashes()
    told = f"table: {table.source} {age(table, _today())}"
    if found == generated:
        return Finding(True, f"{told}, as it was made (SHA-256 {found})")
    return Finding(
        False,
        f"{told}, but prices.json was edited since: its SHA-256 was {generated}, and is {found}; install the package "
        "anew, and state prices with rlm-server prices set",
    )


def _stated(listed: PriceList, settings: Settings) -> Iterator[Finding]:
    if listed.kept:
        yield Finding(True, f"stated: {len(listed.kept)} in {StatedPrices(settings.data_dir).path}")
    for key in listed.overruled:
        yield Finding(None, f"stated: {key} to no effect, as the configuration's own price goes before it")
    for key in sorted(listed.kept):
        if key.provider == COMPATIBLE.name and key.model not in settings.models:
            yield Finding(None, f"stated: {key} to no effect, as the configuration has no models.{key.model}")


def _source(strict: bool) -> Iterator[Finding]:
    pinned, differs = Prices.load(), False if strict else None
    names = len(pinned.listed())
    try:
        from rlm_server.broker.prices import drift

        today = drift.source_today(_today())
    except ModuleNotFoundError as error:
        if error.name != "genai_prices":
            raise
        not_compared = f"genai-prices is not installed: the prices of {names} names were not compared with today's"
        yield Finding(differs, f"source: {not_compared}")
        return
    except (ImportError, ValueError) as error:  # a newer one may have another form, or prices that are none here
        yield Finding(differs, f"source: {names} names cannot be compared with the genai-prices installed: {error}")
        return
    differences = list(drift.differences(pinned, today))
    if not differences:
        yield Finding(True, f"source: {today.source} has the same prices today, for {names} names")
    for one in differences:
        models = f"{one.provider} {', '.join(one.models)}"
        yield Finding(differs, f"source: {models}: pinned {_told(one.pinned)}; {today.source} {_told(one.today)}")
