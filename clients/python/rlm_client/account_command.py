"""`rlm account`: the accounts of your customers, and what each may spend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import click
from rlm.v1 import budget_pb2, types_pb2

from rlm_client.access import Access
from rlm_client.money import Budget, usd
from rlm_client.output import json_option, print_json, write
from rlm_client.sanitize import sanitize_line

Command = TypeVar("Command", bound=Callable[..., object])

SPANS = {
    "minute": budget_pb2.WINDOW_SPAN_MINUTE,
    "hour": budget_pb2.WINDOW_SPAN_HOUR,
    "day": budget_pb2.WINDOW_SPAN_DAY,
    "month": budget_pb2.WINDOW_SPAN_MONTH,
}
"""The spans of windows by their names."""
SPAN_NAMES = {span: name for name, span in SPANS.items()}
_KINDS = {
    budget_pb2.ACCOUNT_KIND_TENANT: "your own",
    budget_pb2.ACCOUNT_KIND_CUSTOMER: "a customer's",
    budget_pb2.ACCOUNT_KIND_WORK: "a run's, session's or node's",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What the options say of an account. A limit of a span that is None was not named; an empty one lifts it.

    With a `model` the limits are on the calls of such models.
    """

    name: str | None
    labels: Mapping[str, str] | None
    limit: types_pb2.Budget | None
    windows: Mapping[int, types_pb2.Budget]
    model: str = ""
    soft: Sequence[budget_pb2.SoftLimit] | None = None

    def over(self, account: budget_pb2.Account) -> tuple[budget_pb2.Account, list[str]]:
        """Give an account with what is said of it, and which of its fields that is."""
        new, fields = budget_pb2.Account(account_id=account.account_id, parent_id=account.parent_id), []
        if self.name is not None:
            new.name = self.name
            fields.append("name")
        if self.labels is not None:
            new.labels.update(self.labels)
            fields.append("labels")
        if self.soft is not None:
            for one in account.soft_limits:
                if one.model != self.model:
                    new.soft_limits.append(one)
            for one in self.soft:
                new.soft_limits.add(model=self.model).MergeFrom(one)
            fields.append("soft_limits")
        if self.model:
            self._limit_model(new, account)
            return new, [*fields, "model_limits"]
        if self.limit is not None:
            new.limit.CopyFrom(self.limit)
            fields.append("limit")
        if self.windows:
            limits = {one.span: one.limit for one in account.window_limits} | dict(self.windows)
            for span, limit in sorted(limits.items()):
                if limit != types_pb2.Budget():
                    new.window_limits.add(span=budget_pb2.WindowSpan.ValueType(span), limit=limit)
            fields.append("window_limits")
        return new, fields

    def _limit_model(self, new: budget_pb2.Account, before: budget_pb2.Account) -> None:
        limits = {(one.model, one.span): one.limit for one in before.model_limits}
        if self.limit is not None:
            limits[self.model, budget_pb2.WINDOW_SPAN_UNSPECIFIED] = self.limit
        for span, limit in self.windows.items():
            limits[self.model, budget_pb2.WindowSpan.ValueType(span)] = limit
        for (model, span), limit in sorted(limits.items()):
            if limit != types_pb2.Budget():
                new.model_limits.add(model=model, span=span, limit=limit)


def _labels(_ctx: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> dict[str, str] | None:
    """Read labels as they are written: KEY=VALUE each; None where there are none."""
    pairs = [one.partition("=") for one in given]
    for key, sign, _ in pairs:
        if not key or not sign:
            raise click.BadParameter("write it like team=search")
    return {key: value for key, _, value in pairs} or None


def labels_option(help: str, name: str = "--label") -> Callable[[Command], Command]:
    """Make the option of labels, which may be given several times: `labels`, or None where there are none."""
    return click.option(name, "labels", multiple=True, metavar="KEY=VALUE", callback=_labels, help=help)


_IN_UNITS: Mapping[str, Callable[[str], Budget]] = {
    "usd": lambda amount: Budget(usd=amount),
    "tokens": lambda amount: Budget(tokens=int(amount)),
    "calls": lambda amount: Budget(calls=int(amount)),
    "cpu_seconds": lambda amount: Budget(cpu_ms=int(amount) * 1000),
}


def _limit(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> types_pb2.Budget | None:
    """Read a budget: dollars, or amounts with their units, joined by commas; `none` for no limit."""
    if text is None:
        return None
    limit = types_pb2.Budget()
    for part in text.split(",") if text != "none" else ():
        amount, _, unit = part.strip().partition(" ")
        read = _IN_UNITS.get(unit.strip() or "usd")
        if read is None:
            raise click.BadParameter(f"there is no unit {unit!r}: write usd, tokens, calls or cpu_seconds")
        try:
            limit.MergeFrom(read(amount).message())
        except ValueError as error:
            raise click.BadParameter(f"{error}; write it like 5, or like '5 usd, 100000 tokens'") from None
    return limit


def _soft(
    ctx: click.Context, parameter: click.Parameter, given: Sequence[str]
) -> Sequence[budget_pb2.SoftLimit] | None:
    """Read soft limits: a span where it is not for good, and a share of the limit or amounts; None where none is."""
    if not given:
        return None
    found = []
    for text in given if list(given) != ["none"] else ():
        name, _, rest = text.strip().partition(" ")
        whole = budget_pb2.WINDOW_SPAN_UNSPECIFIED
        span, amount = (SPANS[name], rest) if name in SPANS else (whole, text.strip())
        if amount.endswith("%"):
            if not amount[:-1].strip().isdigit():
                raise click.BadParameter("write a share like 80%")
            found.append(budget_pb2.SoftLimit(span=span, percent=int(amount[:-1])))
        else:
            found.append(budget_pb2.SoftLimit(span=span, amount=_limit(ctx, parameter, amount)))
    return found


def _terms(command: Command) -> Command:
    """Give a command the options that describe an account."""
    for span in reversed(SPANS):
        text = f"The most it may spend in every {span}."
        command = click.option(f"--{span}", span, metavar="LIMIT", callback=_limit, help=text)(command)
    text = "The most it may spend in all: US dollars, or amounts like '5 usd, 100 calls'; none for no limit."
    command = click.option("--limit", metavar="LIMIT", callback=_limit, help=text)(command)
    text = (
        "Be told when so much is spent, in all or in every window: '80%', 'day 50%', 'month 400 usd'; may be repeated. "
        "Those that it had are gone; none for none."
    )
    command = click.option("--soft", multiple=True, metavar="[SPAN] AMOUNT", callback=_soft, help=text)(command)
    text = "Have the limits be on the calls of this model alone, or of this pattern, like 'gpt-*'."
    command = click.option("--model", default="", metavar="NAME", help=text)(command)
    command = labels_option("A label; may be repeated. Those that it had are gone.")(command)
    return click.option("--name", default=None, help="A name to show.")(command)


def _said(
    name: str | None,
    labels: dict[str, str] | None,
    limit: types_pb2.Budget | None,
    model: str,
    soft: Sequence[budget_pb2.SoftLimit] | None,
    **spans: types_pb2.Budget | None,
) -> Said:
    windows: dict[int, types_pb2.Budget] = {SPANS[span]: most for span, most in spans.items() if most is not None}
    if model and limit is None and not windows and soft is None:
        raise click.UsageError("--model needs a limit: --limit, one of a window, or --soft")
    return Said(name, labels, limit, windows, model, soft)


@click.group()
def account() -> None:
    """Keep accounts for your customers, each with its own limits."""


@account.command()
@click.argument("account_id")
@click.option("--parent", "parent_id", default="", metavar="ID", help="The customer that it is under.")
@_terms
@json_option
@click.pass_obj
def create(
    access: Access,
    /,
    account_id: str,
    parent_id: str,
    name: str | None,
    labels: dict[str, str] | None,
    limit: types_pb2.Budget | None,
    model: str,
    soft: Sequence[budget_pb2.SoftLimit] | None,
    as_json: bool,
    **spans: types_pb2.Budget | None,
) -> None:
    """Make an account for a customer. Others are made after the one that is called `default`, when a run names them."""
    new, _ = _said(name, labels, limit, model, soft, **spans).over(
        budget_pb2.Account(account_id=account_id, parent_id=parent_id)
    )
    with access.open() as (client, interrupts):
        made = interrupts.wait(lambda: client.create_account(new))
    _show(made, as_json)


@account.command(name="set")
@click.argument("account_id")
@_terms
@click.option("--reset", type=click.Choice(list(SPANS)), multiple=True, help="Have the window around now begin anew.")
@json_option
@click.pass_obj
def change(
    access: Access,
    /,
    account_id: str,
    name: str | None,
    labels: dict[str, str] | None,
    limit: types_pb2.Budget | None,
    model: str,
    soft: Sequence[budget_pb2.SoftLimit] | None,
    reset: Sequence[str],
    as_json: bool,
    **spans: types_pb2.Budget | None,
) -> None:
    """Change a customer's account. What is changed holds at once, and what is not named stays."""
    with access.open() as (client, interrupts):
        before = interrupts.wait(lambda: client.get_budget(account_id)).account
        new, fields = _said(name, labels, limit, model, soft, **spans).over(before)
        resets = [SPANS[span] for span in reset]
        changed = interrupts.wait(lambda: client.update_account(new, fields, reset_windows=resets))
    _show(changed, as_json)


@account.command(name="list")
@click.option("--parent", "parent_id", default="", metavar="ID", help="Only those directly under this customer.")
@labels_option("Only those with this label.")
@json_option
@click.pass_obj
def list_accounts(access: Access, parent_id: str, labels: dict[str, str] | None, as_json: bool) -> None:
    """List your customers' accounts."""
    with access.open() as (client, interrupts):
        for one in interrupts.stream(lambda: client.list_accounts(parent_id, labels)):
            if as_json:
                print_json(one)
                continue
            spent = usd(one.posted.nano_usd + one.overrun.nano_usd)
            most = usd(one.limit.nano_usd) if one.limit.HasField("nano_usd") else "no limit"
            closed = "  closed" if one.closed else ""
            name = sanitize_line(one.name, 60)
            write(f"{sanitize_line(one.account_id, 63):<24}  {spent:>14} of {most:>14}  {name}{closed}".rstrip() + "\n")


@account.command()
@click.argument("account_id")
@json_option
@click.pass_obj
def show(access: Access, account_id: str, as_json: bool) -> None:
    """Show an account's name, labels and limits; `rlm budget` shows where it stands."""
    with access.open() as (client, interrupts):
        found = interrupts.wait(lambda: client.get_budget(account_id)).account
    _show(found, as_json)


@account.command()
@click.argument("account_id")
@json_option
@click.pass_obj
def close(access: Access, account_id: str, as_json: bool) -> None:
    """Close a customer's account and those under it: nothing more can be spent on them."""
    with access.open() as (client, interrupts):
        closed = interrupts.wait(lambda: client.close_account(account_id))
    _show(closed, as_json)


def _show(one: budget_pb2.Account, as_json: bool) -> None:
    if as_json:
        print_json(one)
        return
    closed = " (closed)" if one.closed else ""
    write(f"account {sanitize_line(one.account_id)}{closed}, {_KINDS.get(one.kind, 'of another kind')}\n")
    lines = {
        "under": one.parent_id,
        "name": one.name,
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items())),
        "limit": _written(one.limit),
        **{_every(each.span): _written(each.limit) for each in one.window_limits},
        **{_of_model(each): _written(each.limit) for each in one.model_limits},
        "told at": "; ".join(map(_written_soft, one.soft_limits)),
        "left": _written(one.left),
    }
    for head, text in lines.items():
        if text:
            write(f"  {head:<14}{sanitize_line(text, 400)}\n")


def _every(span: budget_pb2.WindowSpan.ValueType) -> str:
    return f"every {SPAN_NAMES.get(span, 'window')}"


def _of_model(limit: budget_pb2.ModelLimit) -> str:
    return f"{sanitize_line(limit.model, 200)} {_every(limit.span) if limit.span else 'in all'}"


def _written_soft(limit: budget_pb2.SoftLimit) -> str:
    model = f" with {sanitize_line(limit.model, 200)}" if limit.model else ""
    at = f"{limit.percent} %" if limit.WhichOneof("at") == "percent" else _written(limit.amount)
    return f"{at} {_every(limit.span) if limit.span else 'in all'}{model}"


def _written(limit: types_pb2.Budget | budget_pb2.Allowance) -> str:
    parts = [
        usd(limit.nano_usd) if limit.HasField("nano_usd") else "",
        f"{limit.token_count:,} tokens" if limit.HasField("token_count") else "",
        f"{limit.call_count:,} calls" if limit.HasField("call_count") else "",
        f"{limit.cpu_time.ToMilliseconds() / 1000:,.1f} cpu seconds" if limit.HasField("cpu_time") else "",
    ]
    return ", ".join(part for part in parts if part)
