"""`rlm-server image`: the golden images, made before they are needed, and what each has."""

from __future__ import annotations

import json
import time

import click

from rlm_server.commands.console import explained, shown_progress
from rlm_server.config.settings import Settings
from rlm_server.server import image_specs
from sandbox.vm.image import ImageState, prepare, states


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


def list_images(as_json: bool) -> None:
    """Say of the images the settings ask for what each has, how large it is, and whether it is built.

    Raises:
        ClickException: a setting is wrong, or a wheel cannot be read.
    """
    with explained():
        found = states(image_specs(Settings.load()))
    if as_json:
        click.echo(json.dumps([_told(state) for state in found], indent=2))
        return
    for state in found:
        built = "not built" if state.size is None else f"built, {state.size >> 20} MiB"
        click.echo(f"{state.spec.name}: {built}")
        click.echo(f"  imports: {', '.join(state.spec.imports) or 'none'}")
        if state.wheels:
            click.echo(f"  wheels:  {', '.join(map(' '.join, state.wheels))}")


def _told(state: ImageState) -> dict[str, object]:
    return {
        "name": state.spec.name,
        "built": state.size is not None,
        "bytes": state.size,
        "imports": list(state.spec.imports),
        "wheels": [{"name": name, "version": version} for name, version in state.wheels],
    }
