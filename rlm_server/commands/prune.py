"""`rlm-server prune`: forgets old runs while no server runs."""

from __future__ import annotations

import asyncio

import click

from rlm_server.commands.console import explained
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.runs.journal import Journal
from rlm_server.runs.retention import Retention
from rlm_server.shares.limits import TenantLimits
from rlm_server.tenants.tenants import Tenants

NOW = 1e-9
"""Days: runs that have ended are as old."""


def forget(run_days: float | None) -> None:
    """Forget runs that ended so many days ago; without a number each tenant's as long ago as its limits say.

    Raises:
        ClickException: a server runs.
    """
    with explained():
        click.echo(f"{asyncio.run(_forgotten(Settings.load(), run_days))} runs were forgotten")


async def _forgotten(settings: Settings, run_days: float | None) -> int:
    async with await Database.open(settings.database, MIGRATIONS) as database:
        terms, journal = settings.terms(), Journal(database)
        await Tenants(database, terms).tell_all()

        def days(tenant: str) -> float:
            kept: float = (
                terms.limits(tenant, kind=TenantLimits).run_retention_days if run_days is None else max(run_days, NOW)
            )
            return kept

        return await Retention(journal, days, journal.forget).remove_old()
