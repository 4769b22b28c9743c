"""`rlm alerts` and `rlm webhook`: the soft limits that were crossed, and where you have them told."""

from __future__ import annotations

from datetime import datetime

import click
from rlm.v1 import budget_pb2, types_pb2

from rlm_client.access import Access
from rlm_client.account_command import SPAN_NAMES
from rlm_client.cli_errors import FAILED
from rlm_client.money import usd
from rlm_client.output import json_option, print_json, write
from rlm_client.sanitize import sanitize_line

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
_UNITS = {
    types_pb2.BUDGET_UNIT_TOKENS: "tokens",
    types_pb2.BUDGET_UNIT_CALLS: "calls",
    types_pb2.BUDGET_UNIT_CPU_MS: "ms of cpu time",
}
_STATES = {
    budget_pb2.DELIVERY_STATE_NONE: "",
    budget_pb2.DELIVERY_STATE_PENDING: "to be sent",
    budget_pb2.DELIVERY_STATE_DELIVERED: "sent",
    budget_pb2.DELIVERY_STATE_GIVEN_UP: "given up",
}


@click.command()
@click.option("--account", "account_id", default="", metavar="ID", help="Only this customer and those under it.")
@click.option("--since", type=click.DateTime(_TIMES), help="At this time (UTC) or later.")
@click.option("--until", type=click.DateTime(_TIMES), help="Before this time (UTC).")
@json_option
@click.pass_obj
def alerts(access: Access, account_id: str, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """List the soft limits that were crossed; `rlm account set --soft` sets them."""
    with access.open() as (client, interrupts):
        for one in interrupts.stream(lambda: client.list_budget_events(account_id, since=since, until=until)):
            if as_json:
                print_json(one)
            else:
                write(sanitize_line(_line(one), 600) + "\n")


def _line(event: budget_pb2.BudgetEvent) -> str:
    of = f" with {event.model}" if event.model else ""
    window = f" in the {SPAN_NAMES.get(event.span, 'window')} {event.window_label}" if event.span else ""
    percent = f" ({event.percent} % of {_amount(event.unit, event.limit)})" if event.percent else ""
    reached = f"{_amount(event.unit, event.used)} of {_amount(event.unit, event.threshold)}{percent}"
    state = _STATES.get(event.delivery_state, "")
    failed = f": {event.failure}" if event.failure else ""
    sent = f"  [{state}{failed}]" if state else ""
    return f"{event.time.ToDatetime():%Y-%m-%d %H:%M:%SZ}  {event.account_id}{of}{window}: {reached}{sent}"


def _amount(unit: types_pb2.BudgetUnit.ValueType, amount: int) -> str:
    return usd(amount) if unit == types_pb2.BUDGET_UNIT_NANO_USD else f"{amount:,} {_UNITS.get(unit, '')}"


@click.group()
def webhook() -> None:
    """Have the soft limits that are crossed posted to a URL of yours, signed."""


@webhook.command(name="set")
@click.argument("url")
@click.option("--rotate", is_flag=True, help="Make a new secret; the former one signs beside it for a day.")
@json_option
@click.pass_obj
def set_webhook(access: Access, url: str, rotate: bool, as_json: bool) -> None:
    """Post them to URL from now on. The secret that signs is shown this once."""
    with access.open() as (client, interrupts):
        made = interrupts.wait(lambda: client.set_webhook(url, rotate_secret=rotate))
    if as_json:
        print_json(made)
        return
    _show(made.webhook)
    if made.secret:
        write("the secret, which is not shown again:\n", err=True)
        write(f"{made.secret}\n")


@webhook.command()
@json_option
@click.pass_obj
def show(access: Access, as_json: bool) -> None:
    """Show where they are posted."""
    with access.open() as (client, interrupts):
        found = interrupts.wait(client.get_webhook)
    print_json(found) if as_json else _show(found)


@webhook.command()
@json_option
@click.pass_obj
def test(access: Access, as_json: bool) -> None:
    """Post an event of the type `webhook.test`, once, and say what came of it."""
    with access.open() as (client, interrupts):
        tested = interrupts.wait(client.test_webhook)
    if as_json:
        print_json(tested)
    else:
        write("it was taken\n" if tested.taken else f"it was not taken: {sanitize_line(tested.failure, 400)}\n")
    if not tested.taken:
        raise SystemExit(FAILED)


@webhook.command()
@json_option
@click.pass_obj
def disable(access: Access, as_json: bool) -> None:
    """Post nothing more, until it is set again."""
    with access.open() as (client, interrupts):
        disabled = interrupts.wait(client.disable_webhook)
    print_json(disabled) if as_json else _show(disabled)


def _show(one: budget_pb2.Webhook) -> None:
    write(f"{sanitize_line(one.url, 2_000)}{'' if one.enabled else ' (disabled)'}\n", err=False)
