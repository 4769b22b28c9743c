"""What every command shows: the progress of a long step, and in one line why the command failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from rlm_server.backup.archive import BackupError
from rlm_server.config.settings import ConfigError
from rlm_server.database.engine import DatabaseError
from sandbox.vm.image import ImageError
from sandbox.vm.image_cache import Progress


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Show each long step: with a spinner on a terminal, as plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda step: click.echo(step, err=True)
        return
    with ExitStack() as shown:
        yield _Spinner(shown)


class _Spinner:
    """A spinner that turns while a step is under way. It starts with the first step, as most commands have none."""

    def __init__(self, shown: ExitStack) -> None:
        self._shown = shown
        self._update: Progress | None = None

    def __call__(self, step: str) -> None:
        if self._update is None:
            # Imported here, because a server whose images are there starts without it.
            from rich.console import Console
            from rich.status import Status

            self._update = self._shown.enter_context(Status(step, console=Console(stderr=True))).update
        self._update(step)


@contextmanager
def explained() -> Iterator[None]:
    """Say without a traceback why a command failed, where the operator can put it right.

    Raises:
        ClickException: the configuration, an image, the database, or the machine is not as it must be.
    """
    try:
        yield
    except (ConfigError, ImageError, DatabaseError, BackupError, OSError) as error:
        raise click.ClickException(str(error)) from None
