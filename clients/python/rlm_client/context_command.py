"""`rlm context`: the texts and documents that are stored."""

from __future__ import annotations

import sys
import uuid
from functools import partial
from itertools import islice

import click
from rlm.v1 import context_pb2

from rlm_client.access import Access
from rlm_client.context_options import PATH, ContextOptions, reading_options
from rlm_client.display import console_for
from rlm_client.errors import Aborted, Unavailable
from rlm_client.output import json_option, print_json, say, write
from rlm_client.sanitize import sanitize_line

_SHOWN_DOCUMENTS = 20
_READ_CHARACTERS = 1 << 18  # at once, so that a long text is never whole in memory


@click.group(name="context")
def context() -> None:
    """Upload, list, read, search and delete what questions are asked about."""


@context.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("--name", help="The context's name; else made from the paths.")
@click.option("--request-id", metavar="ID", help="Goes on with an upload that broke off.")
@reading_options
@json_option
@click.pass_obj
def upload(access: Access, options: ContextOptions, name: str | None, request_id: str | None, as_json: bool) -> None:
    """Store files as one context, and print its id.

    A single file is one text. A directory, a .jsonl or .zip file, or several paths are documents; - reads stdin.
    """
    console, source = console_for(sys.stderr), options.source()
    chosen = str(uuid.uuid4()) if request_id is None else request_id
    with access.open() as (client, interrupts):
        try:
            stored = options.upload(
                "" if source is None else source, client, interrupts, console, as_json, name, chosen
            )
        except (Unavailable, Aborted, KeyboardInterrupt):
            say(console, f"what has arrived is kept for a while: the same again with --request-id {chosen} goes on")
            raise
    if as_json:
        print_json(stored)
    else:
        write(stored.context_id + "\n")


@context.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
@json_option
@click.pass_obj
def list_(access: Access, limit: int | None, as_json: bool) -> None:
    """List the contexts, the newest first."""
    with access.open() as (client, interrupts):
        for one in interrupts.stream(lambda: islice(client.list_contexts(), limit)):
            if as_json:
                print_json(one)
            else:
                size = f"{one.character_count:>15,} characters  {one.document_count:>9,} {_unit(one):<9}"
                write(f"{one.context_id}  {_created(one)}  {size}  {sanitize_line(one.name, 200)}\n")


@context.command()
@click.argument("context_id")
@click.option("--documents", "all_documents", is_flag=True, help="All documents, and not only the first.")
@json_option
@click.pass_obj
def show(access: Access, context_id: str, all_documents: bool, as_json: bool) -> None:
    """Show a context and its documents."""
    with access.open() as (client, interrupts):
        stored = interrupts.wait(lambda: client.get_context(context_id))
        if as_json:
            print_json(stored)
        else:
            _write_context(stored)
        if stored.kind != context_pb2.CONTEXT_KIND_DOCUMENTS or (as_json and not all_documents):
            return
        most = None if all_documents else _SHOWN_DOCUMENTS
        for one in interrupts.stream(lambda: islice(client.list_documents(context_id), most)):
            if as_json:
                print_json(one)
            else:
                write(f"{one.number:>9,}  {one.character_count:>13,} characters  {sanitize_line(one.name, 500)}\n")
    if not all_documents and stored.document_count > _SHOWN_DOCUMENTS:
        say(console_for(sys.stderr), f"… and {stored.document_count - _SHOWN_DOCUMENTS:,} more: --documents shows them")


@context.command()
@click.argument("context_id")
@click.option("--document", type=click.IntRange(min=0), default=0, help="Its place in the context, from 0.")
@click.option("--start", type=click.IntRange(min=0), default=0, help="The first character wanted, from 0.")
@click.option("--end", type=click.IntRange(min=0), default=None, help="The first no longer wanted; else the end.")
@json_option
@click.pass_obj
def read(access: Access, context_id: str, document: int, start: int, end: int | None, as_json: bool) -> None:
    """Print the characters of a text or of one document."""
    if end is not None and end < start:
        raise click.BadParameter(f"{end} is before --start {start}", param_hint="'--end'")
    with access.open() as (client, interrupts):
        while True:
            upto = start + _READ_CHARACTERS if end is None else min(start + _READ_CHARACTERS, end)
            text = interrupts.wait(partial(client.read_context, context_id, start, upto, document))
            if as_json:
                print_json({"document": document, "start": start, "end": start + len(text), "text": text})
            else:
                write(text)
            start += len(text)
            if start < upto or start == end:
                return


@context.command()
@click.argument("context_id")
@click.argument("pattern")
@click.option("--document", "documents", multiple=True, type=click.IntRange(min=0), help="Only in this; repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many matches.")
@json_option
@click.pass_obj
def search(
    access: Access, context_id: str, pattern: str, documents: tuple[int, ...], limit: int, as_json: bool
) -> None:
    """Print where PATTERN, a regular expression of RE2, matches: document:start-end: what matched."""
    with access.open() as (client, interrupts):
        response = interrupts.wait(lambda: client.search_context(context_id, pattern, documents, limit))
    for match in response.matches:
        if as_json:
            print_json(match)
        else:
            write(f"{match.document}:{match.start}-{match.end}: {sanitize_line(match.text)}\n")
    if response.next_page_token and not as_json:
        say(console_for(sys.stderr), f"there may be more than these {len(response.matches):,}: --limit, --document")


@context.command()
@click.argument("context_id")
@json_option
@click.pass_obj
def delete(access: Access, context_id: str, as_json: bool) -> None:
    """Take a context away from everybody; what reads it already keeps it until it ends."""
    with access.open() as (client, interrupts):
        interrupts.wait(lambda: client.delete_context(context_id))
    if as_json:
        print_json({"context_id": context_id})
    else:
        say(console_for(sys.stderr), f"deleted {context_id}")


def _write_context(context: context_pb2.Context) -> None:
    write(f"context {sanitize_line(context.context_id)}\n")
    kind = "documents" if context.kind == context_pb2.CONTEXT_KIND_DOCUMENTS else "text"
    for field, value in (
        ("name", sanitize_line(context.name, 200)),
        ("created", _created(context)),
        ("kind", kind),
        ("documents", f"{context.document_count:,}"),
        ("characters", f"{context.character_count:,}"),
        ("bytes", f"{context.size_bytes:,}"),
        ("sha256", sanitize_line(context.sha256)),
    ):
        write(f"  {field}: {value}\n")


def _created(one: context_pb2.Context) -> str:
    return f"{one.create_time.ToDatetime():%Y-%m-%d %H:%M:%SZ}"


def _unit(one: context_pb2.Context) -> str:
    if one.kind != context_pb2.CONTEXT_KIND_DOCUMENTS:
        return "text"
    return "document" if one.document_count == 1 else "documents"
