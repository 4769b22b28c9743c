"""The `rlm` command. The answer alone goes to stdout; what happens is shown on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

import click
from rich.console import Console
from rlm.v1 import run_pb2, session_pb2

from rlm_client.access import Access
from rlm_client.account_command import account, labels_option
from rlm_client.asked import Guards, Sampling, Strategy
from rlm_client.cli_errors import FAILED, INTERRUPTED, ExplainingGroup
from rlm_client.client import Client
from rlm_client.context_command import context
from rlm_client.context_options import ContextOptions, context_options
from rlm_client.display import Display, console_for, state_name, stop_name
from rlm_client.errors import RlmError, Unavailable
from rlm_client.interrupts import Interrupts
from rlm_client.money import Budget
from rlm_client.output import json_option, print_json, say, write
from rlm_client.quota_command import quota
from rlm_client.report import print_report
from rlm_client.run_progress import Calls, spending
from rlm_client.session_command import session
from rlm_client.spending_command import budget, usage
from rlm_client.webhook_command import alerts, webhook

Command = TypeVar("Command", bound=Callable[..., object])

EXHAUSTED, CANCELLED = 3, 4

_EXIT_CODES = {
    run_pb2.RUN_STATE_SUCCEEDED: 0,
    run_pb2.RUN_STATE_FAILED: FAILED,
    run_pb2.RUN_STATE_EXHAUSTED: EXHAUSTED,
    run_pb2.RUN_STATE_CANCELLED: CANCELLED,
}

_LIMITS_OF_A_TURN = {session_pb2.STOP_REASON_TURN_TIME, session_pb2.STOP_REASON_STACK}

_image = click.option("--image", default="", metavar="NAME", help="Golden image of the REPL: core or data.")


@click.group(name="rlm", cls=ExplainingGroup)
@click.option("--server", metavar="HOST:PORT", help="Else RLM_SERVER, else 127.0.0.1:7400.")
@click.option("--key", metavar="KEY", help="Else RLM_API_KEY, else the key of a development server on this machine.")
@click.option("--tls", is_flag=True, help="Encrypt the connection.")
@click.option("--allow-plaintext", is_flag=True, help="Send the key unencrypted to another machine.")
@click.pass_context
def main(ctx: click.Context, server: str | None, key: str | None, tls: bool, allow_plaintext: bool) -> None:
    """Ask questions of texts larger than any model's window.

    Exit codes of run and watch: 0 succeeded, 1 failed, 2 wrong usage, 3 a limit ended it, 4 cancelled, 130
    interrupted.
    """
    ctx.obj = Access(server, key, tls, allow_plaintext)


main.add_command(account)
main.add_command(alerts)
main.add_command(context)
main.add_command(budget)
main.add_command(quota)
main.add_command(session)
main.add_command(usage)
main.add_command(webhook)


def _budget(_ctx: click.Context, _parameter: click.Parameter, amount: str | None) -> Budget | None:
    try:
        return None if amount is None else Budget(usd=amount)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _payer_options(command: Command) -> Command:
    command = labels_option("A label; may be repeated. Usage can be summed up by it.")(command)
    return click.option("--account", "account_id", default="", metavar="ID", help="The customer who pays.")(command)


def _budget_option(command: Command) -> Command:
    text = "The most it may spend, in US dollars."
    return click.option("--budget", metavar="USD", callback=_budget, help=text)(command)


@main.command()
@context_options
@click.option("--model", default="", help="The root model; the server's default otherwise.")
@click.option("--sub-model", default="", help="The model of llm_query and of child RLMs; the root model otherwise.")
@_budget_option
@click.option("--max-depth", type=click.IntRange(min=0), help="Levels of child RLMs; 0 for none.")
@click.option("--max-turns", type=click.IntRange(min=1), default=None, help="Turns of each RLM of the tree.")
@click.option("--wall-seconds", type=click.IntRange(min=1), default=None, help="Seconds the whole run may take.")
@click.option("--max-nodes", type=click.IntRange(min=1), help="RLMs in all, the root included.")
@click.option("--max-children", type=click.IntRange(min=1), help="Child RLMs at work at once, at each depth.")
@click.option("--max-errors", type=click.IntRange(min=1), help="Turns that fail one after another, which end an RLM.")
@click.option("--max-repeats", type=click.IntRange(min=2), help="Turns that do the same again, which end an RLM.")
@click.option("--schema", type=click.File(encoding="utf-8"), help="A JSON Schema: the answer is JSON that it takes.")
@click.option("--instructions", default="", metavar="TEXT", help="How to answer, in your own words.")
@click.option("--temperature", type=float, help="Of every model call, for models that take one.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of output of each model call.")
@click.option(
    "--strategy",
    type=click.Choice(["auto", "rlm", "direct"]),
    default="rlm",
    help="direct: one call with the whole text; auto: that where the text is short.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Models stop before this; may be repeated.")
@_image
@_payer_options
@json_option
@click.argument("question")
@click.pass_obj
def run(
    access: Access,
    options: ContextOptions,
    model: str,
    sub_model: str,
    budget: Budget | None,
    max_depth: int | None,
    max_turns: int | None,
    wall_seconds: int | None,
    max_nodes: int | None,
    max_children: int | None,
    max_errors: int | None,
    max_repeats: int | None,
    schema: TextIO | None,
    instructions: str,
    temperature: float | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    strategy: Strategy,
    image: str,
    account_id: str,
    labels: dict[str, str] | None,
    as_json: bool,
    question: str,
) -> None:
    """Answer QUESTION, over a text or documents if given. An interrupt (Ctrl-C) cancels the run on the server."""
    console, source = console_for(sys.stderr), options.source()
    with access.open() as (client, interrupts):
        context_id = options.context(source, client, interrupts, console, quiet=as_json)
        # Not interruptible: a run whose id is not known could not be cancelled.
        started = client.create_run(
            question,
            context_id,
            model=model,
            sub_model=sub_model,
            budget=budget,
            max_turns=max_turns,
            max_depth=max_depth,
            wall_seconds=wall_seconds,
            answer_schema=schema.read() if schema is not None else None,
            instructions=instructions,
            sampling=Sampling(temperature, max_tokens, stop),
            strategy=strategy,
            guards=Guards(max_repeats, max_errors, max_nodes, max_children),
            image=image,
            account_id=account_id,
            labels=labels,
        )
        if not as_json:
            say(console, f"run {started.run_id}")
        try:
            with _told_how_to_go_on(console, started.run_id, RlmError):
                ended = _follow(client, interrupts, console, started.run_id, 1, as_json)
        except KeyboardInterrupt:
            _cancel(client, interrupts, console, started.run_id, as_json)
            raise click.exceptions.Exit(INTERRUPTED) from None
        _conclude(client, interrupts, ended, as_json)


@main.command()
@click.argument("run_id")
@click.option("--from", "from_sequence", type=click.IntRange(min=1), default=1, help="The first event wanted.")
@json_option
@click.pass_obj
def watch(access: Access, run_id: str, from_sequence: int, as_json: bool) -> None:
    """Watch a run until it ends. An interrupt (Ctrl-C) ends the watch; the run goes on."""
    console = console_for(sys.stderr)
    with access.open() as (client, interrupts):
        with _told_how_to_go_on(console, run_id, Unavailable, KeyboardInterrupt):
            ended = _follow(client, interrupts, console, run_id, from_sequence, as_json)
        _conclude(client, interrupts, ended, as_json)


@main.command()
@click.argument("run_id")
@json_option
@click.pass_obj
def show(access: Access, run_id: str, as_json: bool) -> None:
    """Show a run as it is now: its state, tree, cost and answer. With --json first the run, then its nodes."""
    with access.open() as (client, interrupts):
        found = interrupts.wait(lambda: client.get_run(run_id))
        nodes = list(interrupts.stream(lambda: client.list_nodes(run_id)))
        if as_json:
            for message in (found, *nodes):
                print_json(message)
        else:
            answer = interrupts.wait(lambda: client.whole_answer(found))
            print_report(console_for(sys.stdout), found, nodes, answer)


@main.command(name="exec")
@context_options
@_image
@click.option("--sub-model", default="", help="The model of llm_query.")
@_budget_option
@_payer_options
@click.option("--session", "session_id", default="", metavar="ID", help="Run it in this session, which stays.")
@json_option
@click.argument("code")
@click.pass_obj
def execute(
    access: Access,
    options: ContextOptions,
    image: str,
    sub_model: str,
    budget: Budget | None,
    account_id: str,
    labels: dict[str, str] | None,
    session_id: str,
    as_json: bool,
    code: str,
) -> None:
    """Run CODE as one turn of a REPL made for it. Exit codes: 0 done, 1 it raised, 3 a limit stopped it."""
    console, source = console_for(sys.stderr), options.source()
    if session_id and (source is not None or image or sub_model or budget or account_id or labels is not None):
        raise click.UsageError("--session names a session that is there: leave out what a new one would have")
    with access.open() as (client, interrupts):
        used = session_id
        if not used:
            context_id = options.context(source, client, interrupts, console, quiet=True)
            used = client.create_session(
                context_id, image=image, sub_model=sub_model, budget=budget, account_id=account_id, labels=labels
            ).session_id
        try:
            result = _turn(interrupts.stream(lambda: client.execute(used, code)), console, as_json)
        finally:
            if not session_id:
                client.delete_session(used)
    raise click.exceptions.Exit(_exit_code(result))


def _turn(responses: Iterator[session_pb2.ExecuteResponse], console: Console, as_json: bool) -> session_pb2.TurnResult:
    result, calls = session_pb2.TurnResult(), Calls()
    for response in responses:
        if as_json:
            print_json(response)
        match response.WhichOneof("event"):
            case "output" if not as_json:
                write(response.output.text, err=response.output.stream == session_pb2.OUTPUT_STREAM_STDERR)
            case "turn_restarted" if not as_json:
                reason = response.turn_restarted.reason
                say(console, f"the code began again, and what it printed until here is void: {reason}", "yellow")
            case "left_out" if not as_json:
                left = response.left_out
                told = f"{left.event_count:,} calls and {left.character_count:,} characters of output"
                say(console, f"left out: {told}", "yellow")
            case "call_finished":
                calls.add(response.call_finished)
            case "untold_calls":
                calls.add_untold(response.untold_calls)
            case "result":
                result = response.result
    if calls.finished and not as_json:
        say(console, str(calls))
    if result.status != session_pb2.TURN_STATUS_OK and not as_json:
        _say_error(console, result)
    return result


def _say_error(console: Console, result: session_pb2.TurnResult) -> None:
    error = result.error
    if result.status == session_pb2.TURN_STATUS_ROLLED_BACK:
        say(console, f"rolled back: {stop_name(result.stop_reason)}: {error.message}", "red")
        return
    for line in (error.traceback.strip("\n") or f"{error.type}: {error.message}").split("\n"):
        say(console, line, "red")


def _exit_code(result: session_pb2.TurnResult) -> int:
    if result.status == session_pb2.TURN_STATUS_OK:
        return 0
    return EXHAUSTED if result.stop_reason in _LIMITS_OF_A_TURN else FAILED


def _follow(
    client: Client, interrupts: Interrupts, console: Console, run_id: str, from_sequence: int, as_json: bool
) -> run_pb2.Run:
    events = interrupts.stream(lambda: client.watch_run(run_id, from_sequence))
    if as_json:
        for event in events:
            print_json(event)
    else:
        with Display(console) as display:
            for event in events:
                display.show(event)
    return interrupts.wait(lambda: client.get_run(run_id))


@contextmanager
def _told_how_to_go_on(console: Console, run_id: str, *endings: type[BaseException]) -> Iterator[None]:
    """Say, where one of these ends a watch before its run, how to take it up again."""
    try:
        yield
    except endings:
        say(console, f"no longer watching; a run goes on by itself: rlm watch {run_id}")
        raise


def _cancel(client: Client, interrupts: Interrupts, console: Console, run_id: str, as_json: bool) -> None:
    say(console, f"interrupted: cancelling run {run_id}")
    try:
        ended = interrupts.wait(lambda: client.cancel_run(run_id))
    except (RlmError, KeyboardInterrupt) as error:
        say(console, f"could not cancel ({error or 'interrupted'}); it may go on: rlm show {run_id}", "red")
        return
    say(console, f"run {run_id} {state_name(ended.state)} · {spending(ended.spent, ended.budget)}")
    if as_json:
        print_json(ended)


def _conclude(client: Client, interrupts: Interrupts, ended: run_pb2.Run, as_json: bool) -> None:
    """Print the whole answer or, as JSON, the run; and exit as its state says."""
    if as_json:
        print_json(ended)
    elif ended.state == run_pb2.RUN_STATE_SUCCEEDED or (ended.state == run_pb2.RUN_STATE_EXHAUSTED and ended.answer):
        write(interrupts.wait(lambda: client.whole_answer(ended)) + "\n")
    raise click.exceptions.Exit(_EXIT_CODES.get(ended.state, FAILED))


if __name__ == "__main__":
    main()
