"""The `rlm-server` command.

Each command imports what it needs when it begins: importing the server takes a second, too long for `--help`.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

# The compiled libraries print below Python's logging; these keep them to errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlm-server")
def main() -> None:
    """Run Recursive Language Models, sandboxed and within budgets."""


@main.command()
@click.option("--listen", help="Address to serve on, host:port; port 0 takes a free one. [default: 127.0.0.1:7400]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where to keep the database, texts and the key.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(listen: str | None, data_dir: Path | None, verbose: bool) -> None:
    """Serve until SIGINT or SIGTERM. More is set by RLM_… variables, or by the TOML file that RLM_CONFIG names."""
    from rlm_server.commands.serve import serve_until_stopped

    serve_until_stopped(listen, data_dir, verbose=verbose)


@main.command()
def doctor() -> None:
    """Say what holds on this machine: images, jail, data directory, models, prices."""
    from rlm_server.commands.doctor import report

    sys.exit(0 if report() else 1)


@main.group()
def image() -> None:
    """Golden images of the sandbox."""


@image.command()
def build() -> None:
    """Compile the guest and start its images once, unless that is done already."""
    from rlm_server.commands.image import build_images

    build_images()


class _Elsewhere(click.Group):
    """A group whose commands are in the module of its own name, which is imported when one of them is wanted."""

    @property
    def _commands(self) -> click.Group:
        commands: click.Group = import_module(f"rlm_server.commands.{self.name}").commands
        return commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._commands.list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._commands.get_command(ctx, cmd_name)


@main.group(cls=_Elsewhere)
def prices() -> None:
    """What models cost: the pinned table, and what you state beside it."""


@main.group(cls=_Elsewhere)
def tenant() -> None:
    """Tenants: make and delete them, and say what each may do and spend."""


@main.group(cls=_Elsewhere)
def key() -> None:
    """Keys, by which tenants and operators call: make, list and revoke them."""


if __name__ == "__main__":
    main()
