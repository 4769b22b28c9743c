"""What the command says when something goes wrong: one line, with what to do, and an exit code."""

from __future__ import annotations

from typing import Any

import click

from rlm_client.connection import find_target
from rlm_client.errors import (
    BudgetRefused,
    InvalidArgument,
    NoKey,
    NotFound,
    PlaintextRefused,
    ResourceExhausted,
    RlmError,
    Unauthenticated,
    Unavailable,
)
from rlm_client.sanitize import sanitize_line

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: the call failed; the command was used wrongly; the user interrupted it."""


class CliError(click.ClickException):
    """An error the user is told in one line, without the command's usage."""

    exit_code = FAILED

    def __init__(self, message: str) -> None:
        super().__init__(sanitize_line(message, 2000))


class UsageError(CliError):
    """The command was used wrongly."""

    exit_code = USAGE


class ExplainingGroup(click.Group):
    """A group of commands whose RlmErrors end in one line on stderr, and whose interrupts end with exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except RlmError as error:
            kind = UsageError if isinstance(error, InvalidArgument | PlaintextRefused) else CliError
            raise kind(describe(error, find_target(ctx.params.get("server")))) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def describe(error: RlmError, target: str) -> str:
    """Say in one line what was wrong, which limit it hit, and what to do."""
    said = error.message.rstrip(".")
    particulars = ", ".join(f"{name}={value}" for name, value in sorted(error.metadata.items()))
    if error.reason:
        said += f" [{error.reason}{': ' + particulars if particulars else ''}]"
    # A server's message often says what its details say.
    said += "".join(f"; {one.subject}: {one.description}" for one in error.violations if one.description not in said)
    advice = _advice(error, target)
    return f"{said}; {advice}" if advice else said


def _advice(error: RlmError, target: str) -> str:
    match error:
        case NoKey():
            return ""  # the message says what to do
        case Unauthenticated():
            return "check --key or RLM_API_KEY"
        case Unavailable():
            return f"is rlm-server serving at {target}? (--server, RLM_SERVER)"
        case NotFound():
            return "check the id, and that the key is of the tenant it belongs to"
        case BudgetRefused():
            return "ask for a smaller --budget, or have the tenant's raised"
        case ResourceExhausted(retry_seconds=float() as seconds):
            return f"try again in {seconds:.0f} s"
    return ""
