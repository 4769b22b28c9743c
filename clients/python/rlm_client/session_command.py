"""`rlm session`: the sessions there are, and what can be done with one."""

from __future__ import annotations

import sys
from itertools import islice

import click
from rlm.v1 import session_pb2, types_pb2

from rlm_client.access import Access
from rlm_client.account_command import labels_option
from rlm_client.display import console_for
from rlm_client.output import json_option, print_json, say, write
from rlm_client.run_progress import spending
from rlm_client.sanitize import sanitize_line

_STATES = {
    name.removeprefix("SESSION_STATE_").lower(): number
    for name, number in session_pb2.SessionState.items()
    if number != session_pb2.SESSION_STATE_UNSPECIFIED
}
_NAMES = {number: name for name, number in _STATES.items()}


@click.group(name="session")
def session() -> None:
    """List, show, change, interrupt and end sessions; `rlm exec --session ID` runs code in one."""


@session.command()
@click.option("--image", default="", metavar="NAME", help="Golden image of the REPL: core or data.")
@click.option("--context", "context_id", default="", metavar="ID", help="A stored context, the variable `context`.")
@click.option("--sub-model", default="", help="The model of llm_query.")
@click.option("--account", "account_id", default="", metavar="ID", help="The customer who pays.")
@labels_option("A label; may be repeated. Usage can be summed up by it.")
@click.option("--idle-seconds", type=click.FloatRange(min=0.001), help="It ends after so long without a turn.")
@click.option("--life-seconds", type=click.FloatRange(min=0.001), help="It ends after so long.")
@json_option
@click.pass_obj
def create(
    access: Access,
    image: str,
    context_id: str,
    sub_model: str,
    account_id: str,
    labels: dict[str, str] | None,
    idle_seconds: float | None,
    life_seconds: float | None,
    as_json: bool,
) -> None:
    """Make a session, and print its id."""
    with access.open() as (client, _):
        made = client.create_session(
            context_id,
            image=image,
            sub_model=sub_model,
            account_id=account_id,
            labels=labels,
            idle_seconds=idle_seconds,
            life_seconds=life_seconds,
        )
    if as_json:
        print_json(made)
    else:
        write(made.session_id + "\n")


@session.command(name="list")
@click.option("--state", "states", multiple=True, type=click.Choice(list(_STATES)), help="May be repeated; else all.")
@click.option("--account", "account_id", default="", metavar="ID", help="Only those that this customer pays for.")
@labels_option("Only those with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
@json_option
@click.pass_obj
def list_(
    access: Access,
    states: tuple[str, ...],
    account_id: str,
    labels: dict[str, str] | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the sessions, the newest first; those that ended within the last day, too."""
    wanted = [_STATES[name] for name in states]
    with access.open() as (client, interrupts):
        found = interrupts.stream(
            lambda: islice(client.list_sessions(wanted, labels=labels, account_id=account_id), limit)
        )
        for one in found:
            if as_json:
                print_json(one)
            else:
                write(_line(one) + "\n")


@session.command()
@click.argument("session_id")
@json_option
@click.pass_obj
def show(access: Access, session_id: str, as_json: bool) -> None:
    """Show a session."""
    with access.open() as (client, interrupts):
        found = interrupts.wait(lambda: client.get_session(session_id))
    if as_json:
        print_json(found)
    else:
        _print(found)


@session.command()
@click.argument("session_id")
@labels_option("A label; may be repeated. These replace those it has.")
@click.option("--idle-seconds", type=click.FloatRange(min=0.001), help="It ends after so long without a turn.")
@click.option("--life-seconds", type=click.FloatRange(min=0.001), help="It ends so long after it was made.")
@json_option
@click.pass_obj
def update(
    access: Access,
    session_id: str,
    labels: dict[str, str] | None,
    idle_seconds: float | None,
    life_seconds: float | None,
    as_json: bool,
) -> None:
    """Change a session's labels, and how long it may rest and live."""
    if labels is None and idle_seconds is None and life_seconds is None:
        raise click.UsageError("nothing to change: give --label, --idle-seconds or --life-seconds")
    with access.open() as (client, _):
        changed = client.update_session(session_id, labels=labels, idle_seconds=idle_seconds, life_seconds=life_seconds)
    if as_json:
        print_json(changed)
    else:
        _print(changed)


@session.command()
@click.argument("session_id")
@click.pass_obj
def interrupt(access: Access, session_id: str) -> None:
    """Stop the turn under way, and roll it back."""
    with access.open() as (client, _):
        stopped = client.interrupt_session(session_id)
    say(console_for(sys.stderr), "the turn was stopped, and is rolled back" if stopped else "no turn was under way")


@session.command()
@click.argument("session_id")
@json_option
@click.pass_obj
def delete(access: Access, session_id: str, as_json: bool) -> None:
    """End a session, and say what it spent."""
    with access.open() as (client, _):
        spent = client.delete_session(session_id)
    if as_json:
        print_json(spent)
    else:
        say(console_for(sys.stderr), f"ended · {spending(spent, types_pb2.Budget())}")


def _line(one: session_pb2.Session) -> str:
    made = one.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
    labels = sanitize_line(" ".join(f"{key}={value}" for key, value in sorted(one.labels.items())), 200)
    state = _NAMES.get(one.state, "")
    return f"{one.session_id}  {made}  {state:<6}  {one.turn_count:>7,} turns  {one.image}  {labels}".rstrip()


def _print(one: session_pb2.Session) -> None:
    write(_line(one) + "\n")
    if one.end_message:
        write(f"ended {one.end_time.ToDatetime():%Y-%m-%d %H:%M:%S}: {one.end_message}\n")
    else:
        write(f"ends {one.life_expire_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC at the latest\n")
    write(f"{spending(one.spent, one.budget)}\n")
