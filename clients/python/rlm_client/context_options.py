"""What the command is given to read: its options, and the context made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rlm.v1 import context_pb2

from rlm_client.cli_errors import CliError, UsageError
from rlm_client.client import Client
from rlm_client.display import upload_bar
from rlm_client.documents import SourceChanged
from rlm_client.interrupts import Interrupts
from rlm_client.output import say
from rlm_client.sanitize import sanitize_line
from rlm_client.source import Source, name_of

Command = Callable[..., object]

PATH = click.Path(exists=True, allow_dash=True)

_STDIN = "-"
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Paths to upload as one context, and how to read them; or the id of a context that is there, or neither."""

    paths: tuple[str, ...]
    text_field: str
    name_field: str | None
    skip_binary: bool
    context_id: str = ""

    def source(self) -> Source | None:
        """Give what to upload, None where there is no path. Stdin is read here, where Ctrl-C still interrupts."""
        match self.paths:
            case ():
                return None
            case ("-",):
                return sys.stdin.buffer.read()
            case (path,):
                return Path(path)
        return [("stdin", sys.stdin.buffer.read()) if path == _STDIN else Path(path) for path in self.paths]

    def context(
        self, source: Source | None, client: Client, interrupts: Interrupts, console: Console, quiet: bool
    ) -> str:
        """Give the id of the context, uploaded if there is a source; empty where there is neither."""
        if source is None:
            return self.context_id
        return self.upload(source, client, interrupts, console, quiet).context_id

    def upload(
        self,
        source: Source,
        client: Client,
        interrupts: Interrupts,
        console: Console,
        quiet: bool,
        name: str | None = None,
        request_id: str | None = None,
    ) -> context_pb2.Context:
        """Upload, and say what; a `quiet` one says nothing.

        Raises:
            Complaint: a source changed meanwhile.
            Misuse: a source cannot be used.
        """
        shown = name if name is not None else name_of(["stdin" if path == _STDIN else path for path in self.paths])
        skipped: list[str] = []
        with upload_bar(console, shown, quiet) as progress:
            try:
                context = interrupts.wait(
                    lambda: client.upload(
                        source,
                        shown,
                        progress,
                        request_id=request_id,
                        text_field=self.text_field,
                        name_field=self.name_field,
                        skip_binary=self.skip_binary,
                        on_skip=skipped.append,
                    )
                )
            except SourceChanged as error:
                raise CliError(str(error)) from None
            except (OSError, ValueError, TypeError) as error:
                raise UsageError(f"cannot upload {shown}: {error}") from None
        if not quiet:
            _say_what(console, shown, context, skipped)
        return context


def context_options(command: Command) -> Command:
    """Add `--context`, `--context-id` and how to read. The command gets one `ContextOptions` named `options`."""
    several = "A file of UTF-8 text, a directory, or a .jsonl or .zip file; - reads stdin. Several are documents."

    @click.option("--context", "paths", multiple=True, type=PATH, metavar="PATH", help=several)
    @click.option("--context-id", default="", metavar="ID", help="A context that was uploaded before.")
    @reading_options
    @wraps(command)
    def checked(*args: Any, options: ContextOptions, context_id: str, **others: Any) -> object:
        if options.paths and context_id:
            raise click.UsageError("--context and --context-id exclude each other")
        whole = ContextOptions(options.paths, options.text_field, options.name_field, options.skip_binary, context_id)
        return command(*args, options=whole, **others)

    return checked


def reading_options(command: Command) -> Command:
    """Add how to read; the command, which has `paths`, gets all as one `ContextOptions` named `options`."""

    @click.option("--text-field", default="text", metavar="NAME", help="Of a .jsonl file's objects: the text.")
    @click.option("--name-field", metavar="NAME", help="Likewise: the name; else name, id or the line's number.")
    @click.option("--skip-binary", is_flag=True, help="Leave out files that are not UTF-8, of several.")
    @wraps(command)
    def gathered(
        *args: Any, paths: tuple[str, ...], text_field: str, name_field: str | None, skip_binary: bool, **others: Any
    ) -> object:
        if paths.count(_STDIN) > 1:
            raise click.UsageError("- can be given once: stdin can be read once")
        return command(*args, options=ContextOptions(paths, text_field, name_field, skip_binary), **others)

    return gathered


def _say_what(console: Console, name: str, context: context_pb2.Context, skipped: list[str]) -> None:
    if skipped:
        more = f" and {len(skipped) - _MAX_NAMED:,} more" if len(skipped) > _MAX_NAMED else ""
        say(console, f"left out, as they are not UTF-8: {', '.join(skipped[:_MAX_NAMED])}{more}", "yellow")
    is_text = context.kind != context_pb2.CONTEXT_KIND_DOCUMENTS
    documents = "" if is_text else f"{context.document_count:,} document{'s' if context.document_count != 1 else ''}, "
    say(console, f"uploaded {sanitize_line(name, 60)} ({documents}{context.size_bytes:,} bytes)")
