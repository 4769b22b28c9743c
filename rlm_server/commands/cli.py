"""The `rlm-server` command.

Each command imports what it needs when it begins: importing the server takes a second, too long for `--help`.
"""

from __future__ import annotations

import gc
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
    gc.disable()  # what is imported stays: to look through it again and again takes a fifth of the time
    from rlm_server.commands.serve import serve_until_stopped

    gc.enable()
    serve_until_stopped(listen, data_dir, verbose=verbose)


@main.command()
def doctor() -> None:
    """Say what holds on this machine: images, jail, data directory, database, models, prices."""
    from rlm_server.commands.doctor import report

    sys.exit(0 if report() else 1)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
def backup(path: Path) -> None:
    """Write all that the server keeps into the file PATH, while it runs or not."""
    from rlm_server.commands.backup import write_backup

    write_backup(path)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
def restore(path: Path) -> None:
    """Put the backup PATH where the settings say and nothing is yet."""
    from rlm_server.commands.backup import put_back

    put_back(path)


@main.command()
@click.option("--check", is_flag=True, help="Only say whether it is; exit with 1 where it is not.")
def migrate(check: bool) -> None:
    """Bring the database up to date, as the next start would. No server may run."""
    from rlm_server.commands.backup import migrate as bring_up_to_date

    sys.exit(0 if bring_up_to_date(only_check=check) else 1)


@main.command()
@click.option("--run-days", type=click.FloatRange(min=0), help="Forget runs that ended so many days ago or earlier.")
def prune(run_days: float | None) -> None:
    """Forget old runs, as a running server does by run_retention_days. No server may run."""
    from rlm_server.commands.prune import forget

    forget(run_days)


@main.command()
def health() -> None:
    """Ask the server that the settings describe for its health; exit with 1 where it does not serve."""
    from rlm_server.commands.health import report_health

    sys.exit(0 if report_health() else 1)


@main.group()
def image() -> None:
    """Golden images of the sandbox."""


@image.command()
def build() -> None:
    """Compile the guest and start its images once, unless that is done already."""
    from rlm_server.commands.image import build_images

    build_images()


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for machines.")
def list_all(as_json: bool) -> None:
    """Say what each image has: imports, wheels, size, and whether it is built."""
    from rlm_server.commands.image import list_images

    list_images(as_json)


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
