"""`rlm-server backup`, `restore` and `migrate`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from rlm_server.backup.archive import Contents
from rlm_server.backup.backup import FILES, back_up, restore
from rlm_server.commands.console import explained
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.engine import unseen
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.snapshot import snapshot


def write_backup(path: Path) -> None:
    """Write a backup.

    Raises:
        ClickException: it cannot be written.
    """
    with explained():
        settings = Settings.load()
        contents = back_up(settings, path)
        click.echo(f"{path}: {_told(contents)}")
        if settings.context_store:
            click.echo(f"without the contexts, which are in {settings.context_store}")


def put_back(path: Path) -> None:
    """Put a backup back.

    Raises:
        ClickException: it cannot be put back.
    """
    os.umask(0o077)
    with explained():
        contents = asyncio.run(restore(Settings.load(), path))
        click.echo(f"restored {_told(contents)}, made by version {contents.version} at {contents.created}")


def migrate(*, only_check: bool) -> bool:
    """Bring the database up to date, or only say whether it is. Returns whether it was.

    Raises:
        ClickException: it cannot be read or written, or a newer version has used it.
    """
    with explained():
        at = Settings.load().database
        if only_check:
            with snapshot(at) as found:
                left = len(unseen(MIGRATIONS, found.schema))
            click.echo(f"the database has schema version {found.schema} of {len(MIGRATIONS)}")
            return not left
        asyncio.run(_opened(at))
        click.echo(f"the database has schema version {len(MIGRATIONS)}")
        return True


async def _opened(at: str | Path) -> None:
    async with await Database.open(at, MIGRATIONS):
        pass


def _told(contents: Contents) -> str:
    contexts = sum(member.name.startswith("contexts/") for member in contents.members) // len(FILES)
    size = sum(member.size for member in contents.members)
    return f"{contexts} contexts, {size} bytes in all"
