"""`rlm-server image build`: the golden images, made before they are needed."""

from __future__ import annotations

import time

import click

from rlm_server.commands.console import explained, shown_progress
from rlm_server.config.settings import Settings
from rlm_server.server import image_specs
from sandbox.vm.image import prepare


def build_images() -> None:
    """Build the images the settings ask for, where they are not in the cache, and say so.

    Raises:
        ClickException: an image cannot be built or loaded.
    """
    started = time.monotonic()
    with explained(), shown_progress() as progress:
        loaded = prepare(image_specs(Settings.load()), progress=progress)
    loaded.program.clock.close()
    click.echo(f"images {', '.join(loaded.images)} are ready ({time.monotonic() - started:.1f} s)")
