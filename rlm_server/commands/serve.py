"""`rlm-server serve`: the server, until it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import click

from rlm_server.commands import log_lines
from rlm_server.commands.console import explained, shown_progress
from rlm_server.config.settings import Settings
from rlm_server.server import serving

_PR_SET_DUMPABLE = 4
"""Of prctl(2)."""


def serve_until_stopped(listen: str | None, data_dir: Path | None, *, verbose: bool) -> None:
    """Serve until SIGINT or SIGTERM. An argument that is None is left to the settings.

    Raises:
        ClickException: the server cannot start.
    """
    overrides: dict[str, Any] = {}
    if listen is not None:
        overrides["listen"] = listen
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    with explained():
        settings = Settings.load(**overrides)
        log_lines.set_up(logging.INFO if verbose else logging.WARNING, as_json=settings.log_json)
        keep_to_itself()
        asyncio.run(_serve(settings))


def keep_to_itself() -> None:
    """Leave nothing of this process where others could read it: new files are its user's alone, and no memory of it,
    which has tenants' texts and keys, is dumped or shown to other processes of that user."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _serve(settings: Settings) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a live session takes one, and its worker's sockets
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    log_lines.tell_of_lost_failures(loop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with shown_progress() as progress:
        context = serving(settings, progress=progress)
        running = await context.__aenter__()
    try:
        click.echo(f"serving on {running.address}")
        click.echo(f"models: {running.models.model} (root), {running.models.sub_model} (sub-calls)")
        click.echo(f"key of the development tenant: in {settings.data_dir / 'development-key'}")
        sys.stdout.flush()
        await stopped.wait()
        click.echo("stopping")
    finally:
        await context.__aexit__(None, None, None)
