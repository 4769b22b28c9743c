"""The `rlm-server` command."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The compiled libraries print below Python's logging; these keep them to errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click
from rich.console import Console
from rich.status import Status

from rlm_server.commands.prices import prices
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.database.engine import DatabaseError
from sandbox.vm.image import ImageError, prepare


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlm-server")
def main() -> None:
    """Run Recursive Language Models, sandboxed and within budgets."""


main.add_command(prices)

# The server and the doctor take seconds to import, so that only the commands that need them do.


@main.command()
@click.option("--listen", help="Address to serve on, host:port; port 0 takes a free one. [default: 127.0.0.1:7400]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where to keep the database, texts and the key.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(listen: str | None, data_dir: Path | None, verbose: bool) -> None:
    """Serve until SIGINT or SIGTERM. More is set by RLM_… variables, or by the TOML file that RLM_CONFIG names."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)r"
    )
    given: dict[str, Any] = {}
    if listen is not None:
        given["listen"] = listen
    if data_dir is not None:
        given["data_dir"] = data_dir
    with _explained():
        asyncio.run(_serve(Settings.load(**given)))


async def _serve(settings: Settings) -> None:
    from rlm_server.server import serving

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a live session takes one, and its worker's sockets
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with _progress() as progress:
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


@main.command()
def doctor() -> None:
    """Say what holds on this machine: images, jail, data directory, models, prices."""
    from rlm_server.commands.doctor import examine

    holds = True
    with _explained(), _progress() as progress:
        for finding in examine(Settings.load(), progress):
            holds &= finding.holds
            click.echo(f"{'ok ' if finding.holds else 'NO '} {finding.part}: {finding.detail}")
    sys.exit(0 if holds else 1)


@main.group()
def image() -> None:
    """Golden images of the sandbox."""


@image.command()
def build() -> None:
    """Compile the guest and start its images once, unless that is done already."""
    from rlm_server.server import image_specs

    started = time.monotonic()
    with _explained(), _progress() as progress:
        loaded = prepare(image_specs(Settings.load()), progress=progress)
    loaded.program.clock.close()
    click.echo(f"images {', '.join(loaded.images)} are ready ({time.monotonic() - started:.1f} s)")


@contextmanager
def _progress() -> Iterator[Any]:
    """Show each long step: with its seconds on a terminal, as plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: click.echo(step, err=True)
        return
    with Status("starting", console=console) as status:
        yield lambda step: status.update(step)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ConfigError, ImageError, DatabaseError, OSError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
