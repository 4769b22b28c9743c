"""`rlm quota`: what the server lets the tenant have at once, and what of it is in use."""

from __future__ import annotations

import sys

import click
from rlm.v1 import server_pb2

from rlm_client.access import Access
from rlm_client.display import console_for
from rlm_client.output import json_option, print_json, say, write
from rlm_client.sanitize import sanitize_line

NEARLY = 80
"""Percent of a limit from which on the command says that it is nearly used up."""


@click.command()
@json_option
@click.pass_obj
def quota(access: Access, as_json: bool) -> None:
    """Show what you may have of the server at once, and what of it is in use."""
    with access.open() as (client, interrupts):
        quotas = interrupts.wait(client.get_quota)
    for one in quotas:
        if as_json:
            print_json(one)
        else:
            write(
                f"{sanitize_line(one.name, 40):<24}{one.used:>20,} of {one.limit:>20,} {sanitize_line(one.unit, 40)}\n"
            )
    for one in quotas:
        if _percent(one) >= NEARLY and not as_json:
            say(console_for(sys.stderr), f"{sanitize_line(one.name, 40)}: {_percent(one)} % are in use", "yellow")


def _percent(one: server_pb2.Quota) -> int:
    return one.used * 100 // one.limit if one.limit else 0
