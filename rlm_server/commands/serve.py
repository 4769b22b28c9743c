"""`rlm-server serve`: the server, until it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rlm_server.commands import log_lines
from rlm_server.commands.console import explained, shown_progress
from rlm_server.config.settings import Settings
from rlm_server.server import serving
from rlm_server.tracing.spans import sending

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
        log_lines.set_up(
            logging.INFO if verbose else logging.WARNING, as_json=settings.log_json, calls=settings.log_calls
        )
        keep_to_itself()
        with sending():
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
    loop = asyncio.get_running_loop()
    log_lines.tell_of_lost_failures(loop)
    stop = _Stop(asyncio.Event(), asyncio.Event())
    task = asyncio.create_task(_serve_until(stop, settings))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.signalled, task)
    try:
        await task
    except asyncio.CancelledError:
        if not stop.asked.is_set():
            raise
        click.echo("stopped before it was ready")
        sys.stdout.flush()
        os._exit(0)  # a thread may be compiling the guest, which cannot be stopped; nothing of it is kept


@dataclass(slots=True)
class _Stop:
    """What signals have asked for: to stop, and then to stop at once."""

    asked: asyncio.Event
    hurry: asyncio.Event
    ready: bool = False

    def signalled(self, serving: asyncio.Task[None]) -> None:
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()
        if not self.ready:
            serving.cancel()


async def _serve_until(stop: _Stop, settings: Settings) -> None:
    def listening(address: str) -> None:
        click.echo(f"listening on {address}, not ready yet", err=True)

    with ExitStack() as shown:
        progress = shown.enter_context(shown_progress())
        async with serving(settings, progress=progress, listening=listening, hurry=stop.hurry) as running:
            shown.close()
            stop.ready = True
            click.echo(f"serving on {running.address}")
            click.echo(f"models: {running.models.model} (root), {running.models.sub_model} (sub-calls)")
            click.echo(f"key of the development tenant: in {settings.data_dir / 'development-key'}")
            sys.stdout.flush()
            await stop.asked.wait()
            click.echo("stopping; a second signal ends it at once")
            sys.stdout.flush()
