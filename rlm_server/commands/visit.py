"""How commands on tenants and keys reach the database, beside the server that may have it, and how they answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from rlm_server.commands.console import explained
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.tenants.keys import Keys, KeyUnknown
from rlm_server.tenants.tenants import TenantExists, TenantInUse, Tenants, TenantUnknown
from rlm_server.tenants.terms import Terms

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def data_dir(command: F) -> F:
    """Give a command the option that says where the server keeps its data."""
    told = "Where the server keeps its data."
    return click.option("--data-dir", type=click.Path(path_type=Path), help=told)(command)


def as_json(command: F) -> F:
    """Give a command the option that has it answer in JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for machines.")(command)


@dataclass(frozen=True, slots=True)
class Visited:
    """The tenants and keys of a database, whether or not a server has it open."""

    tenants: Tenants
    keys: Keys
    terms: Terms


@asynccontextmanager
async def visiting(settings: Settings) -> AsyncIterator[Visited]:
    """Open the database that the settings name, beside the server that may have it."""
    if isinstance(settings.database, Path):
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with await Database.visit(settings.database, MIGRATIONS) as database:
        terms = settings.terms()
        tenants = Tenants(database, terms)
        await tenants.tell_all()
        yield Visited(tenants, Keys(database), terms)


def visit(data_dir: Path | None, work: Callable[[Visited], Coroutine[Any, Any, T]]) -> T:
    """Do a command's work on the database.

    Raises:
        ClickException: it cannot be done; the message says why.
    """
    with explained():
        settings = Settings.load(**({"data_dir": data_dir} if data_dir is not None else {}))

        async def visited() -> T:
            async with visiting(settings) as opened:
                return await work(opened)

        try:
            return asyncio.run(visited())
        except (TenantUnknown, TenantExists, TenantInUse, KeyUnknown) as error:
            raise click.ClickException(str(error)) from None


def time(milliseconds: int | None) -> str:
    """Write a time in Unix milliseconds, in UTC; nothing for None."""
    return "" if milliseconds is None else f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as their widest cell."""
    every = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    for row in every:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def labels_of(labels: Mapping[str, str]) -> str:
    """Write labels on one line."""
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items()))
