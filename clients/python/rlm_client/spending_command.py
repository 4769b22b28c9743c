"""`rlm budget` and `rlm usage`: what may be spent, and what was."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import cast

import click
from rlm.v1 import budget_pb2, types_pb2

from rlm_client.access import Access
from rlm_client.account_command import SPAN_NAMES, labels_option
from rlm_client.display import console_for
from rlm_client.durations import milliseconds
from rlm_client.money import usd
from rlm_client.output import json_option, print_json, say, write
from rlm_client.sanitize import sanitize_line
from rlm_client.spending import Entries, Format, Grouping

NEARLY = 80
"""Percent of a limit from which on the command says that it is nearly used up."""

_UNITS = {"nano_usd": "US dollars", "token_count": "tokens", "call_count": "model calls", "cpu_time": "cpu seconds"}
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


@click.command()
@click.argument("account_id", default="")
@json_option
@click.pass_obj
def budget(access: Access, account_id: str, as_json: bool) -> None:
    """Show what may be spent, was spent and is left: by you, or by the customer, run, session or node named."""
    with access.open() as (client, interrupts):
        response = interrupts.wait(lambda: client.get_budget(account_id))
    if as_json:
        print_json(response)
        return
    account = response.account
    closed = " (ended)" if account.closed else ""
    write(f"account {sanitize_line(account.account_id)}{closed}\n")
    _write_account(account)
    for window in response.windows:
        ends = f", ends {window.end_time.ToDatetime():%Y-%m-%d %H:%MZ}" if window.HasField("end_time") else ""
        write(f"\n{_window_name(window)}{ends}\n")
        _write_account(window)
    for warning in _nearly_used(response):
        say(console_for(sys.stderr), warning, "yellow")


@click.command()
@click.option(
    "--by",
    type=click.Choice(["day", "model", "run", "account", "label"]),
    help="What to sum up by.  [default: day]",
)
@click.option("--label", default="", metavar="KEY", help="The label that --by label sums up by.")
@click.option("--entries", "listed", is_flag=True, help="Every call and turn that was paid for, one a line.")
@click.option("--export", "format", type=click.Choice(["csv", "jsonl"]), help="The same as a file, on stdout.")
@click.option("--since", type=click.DateTime(_TIMES), help="Posted at this time (UTC) or later.")
@click.option("--until", type=click.DateTime(_TIMES), help="Posted before this time (UTC).")
@click.option("--run", "run_id", default="", metavar="ID", help="Only this run or session.")
@click.option("--node", "node_id", default="", metavar="ID", help="Only this node of a run.")
@click.option("--account", "account_id", default="", metavar="ID", help="Only this customer and those under it.")
@labels_option("Only runs with this label.", "--having")
@click.option("--model", default=None, help="Only this model; '' for turns of sandboxed code.")
@click.option("--ambiguous", is_flag=True, help="Only calls whose cost is not known, and was counted in full.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only entries after this one.")
@json_option
@click.pass_obj
def usage(
    access: Access,
    by: str | None,
    label: str,
    listed: bool,
    format: str | None,
    since: datetime | None,
    until: datetime | None,
    run_id: str,
    node_id: str,
    account_id: str,
    labels: dict[str, str] | None,
    model: str | None,
    ambiguous: bool,
    after: int,
    as_json: bool,
) -> None:
    """Show what was spent: summed up by day, model, run, account or label, or entry by entry."""
    if (by is not None) + listed + (format is not None) > 1:
        raise click.UsageError("--by, --entries and --export exclude each other")
    if (by == "label") != bool(label):
        raise click.UsageError("--by label goes with --label KEY")
    entries = Entries(run_id, node_id, model, since, until, ambiguous, after, account_id, labels or {})
    if format is not None:
        if as_json:
            raise click.UsageError("--json does not go with --export: --export jsonl is JSON")
        _export(access, cast(Format, format), entries)
    elif listed:
        _list(access, entries, as_json)
    else:
        _sum_up(access, cast(Grouping, "day" if by is None else by), entries, label, as_json)


def _sum_up(access: Access, by: Grouping, asked: Entries, label: str, as_json: bool) -> None:
    with access.open() as (client, interrupts):
        found = interrupts.stream(lambda: client.list_usage(by, asked, label=label))
        if as_json:
            for row in found:
                print_json(row)
            return
        rows = list(found)
    heads = (label or by, "cost", "tokens", "calls", "cpu s", "entries", "ambiguous", "of the cost")
    _write_table([heads, *(_usage_cells(row, by) for row in rows), _usage_cells(_sum(rows), by)])


def _usage_cells(row: budget_pb2.UsageRow, by: str) -> tuple[str, ...]:
    key = row.key or ("(sandbox)" if by == "model" else "")
    doubt = usd(row.ambiguous_amounts.nano_usd) if row.ambiguous_entry_count else ""
    return (key, *_amounts(row.amounts), f"{row.entry_count:,}", f"{row.ambiguous_entry_count:,}", doubt)


def _sum(rows: Iterable[budget_pb2.UsageRow]) -> budget_pb2.UsageRow:
    total = budget_pb2.UsageRow(key="in all")
    for row in rows:
        total.entry_count += row.entry_count
        total.ambiguous_entry_count += row.ambiguous_entry_count
        for into, part in ((total.amounts, row.amounts), (total.ambiguous_amounts, row.ambiguous_amounts)):
            into.CopyFrom(_together(into, part))
    return total


def _list(access: Access, entries: Entries, as_json: bool) -> None:
    with access.open() as (client, interrupts):
        for entry in interrupts.stream(lambda: client.list_entries(entries)):
            if as_json:
                print_json(entry)
                continue
            cost, tokens, _, seconds = _amounts(entry.amounts)
            used = f"{tokens:>9} tokens" if entry.model else f"{seconds:>9} cpu s "
            doubt = "  ambiguous" if entry.ambiguous else ""
            model = sanitize_line(entry.model or "(sandbox)", 60)
            where = f"{sanitize_line(entry.run_id, 60)}  {sanitize_line(entry.hold_id, 60)}"
            when = f"{entry.time.ToDatetime():%Y-%m-%d %H:%M:%SZ}"
            write(f"{entry.number:>8}  {when}  {where}  {model:<20}  {cost:>14}  {used}{doubt}\n")


def _export(access: Access, format: Format, asked: Entries) -> None:
    last = 0
    with access.open() as (client, interrupts):
        for chunk in interrupts.stream(lambda: client.export_entries(format, asked)):
            write(chunk.data.decode())
            last = chunk.last_number
    say(console_for(sys.stderr), f"up to entry {last}; the next export can begin with --after {last}")


def _write_account(of: budget_pb2.Account | budget_pb2.BudgetWindow) -> None:
    carved = of.carved if isinstance(of, budget_pb2.Account) else types_pb2.Amounts()
    rows: list[tuple[str, ...]] = [("", "limit", "spent", "held", "promised", "left")]
    for unit, name in _UNITS.items():
        used = (_shown(unit, _part(unit, part)) for part in (_spent(of), of.pending, carved))
        rows.append((name, _limit(unit, of.limit), *used, _limit(unit, of.left)))
    _write_table(rows)


def _spent(of: budget_pb2.Account | budget_pb2.BudgetWindow) -> types_pb2.Amounts:
    return _together(of.posted, of.overrun)


def _together(one: types_pb2.Amounts, other: types_pb2.Amounts) -> types_pb2.Amounts:
    return types_pb2.Amounts(
        nano_usd=one.nano_usd + other.nano_usd,
        token_count=one.token_count + other.token_count,
        call_count=one.call_count + other.call_count,
        cpu_time=milliseconds(one.cpu_time.ToMilliseconds() + other.cpu_time.ToMilliseconds()),
    )


def _nearly_used(response: budget_pb2.GetBudgetResponse) -> Iterator[str]:
    named: list[tuple[str, budget_pb2.Account | budget_pb2.BudgetWindow]] = [
        (f"account {response.account.account_id}", response.account),
        *((_window_name(window), window) for window in response.windows),
    ]
    for name, of in named:
        for unit, words in _UNITS.items():
            limit = _part(unit, of.limit)
            percent = _part(unit, _spent(of)) * 100 // limit if limit else 0
            if percent >= NEARLY:
                yield f"{name}: {percent} % of the {words} are spent"


def _window_name(window: budget_pb2.BudgetWindow) -> str:
    whose = f" of {sanitize_line(window.account_id, 63)}" if window.account_id else ""
    name = f"{SPAN_NAMES.get(window.span, 'window')} {sanitize_line(window.label, 40)}" if window.span else "all time"
    return f"{name}{whose}" + (f" with {sanitize_line(window.model, 200)}" if window.model else "")


def _part(unit: str, of: types_pb2.Amounts | types_pb2.Budget | budget_pb2.Allowance) -> int:
    """Give an amount of a unit: of time in milliseconds."""
    return int(of.cpu_time.ToMilliseconds() if unit == "cpu_time" else getattr(of, unit))


def _limit(unit: str, of: types_pb2.Budget | budget_pb2.Allowance) -> str:
    return _shown(unit, _part(unit, of)) if unit in {field.name for field, _ in of.ListFields()} else "no limit"


def _amounts(of: types_pb2.Amounts) -> tuple[str, ...]:
    return tuple(_shown(unit, _part(unit, of)) for unit in _UNITS)


def _shown(unit: str, value: int) -> str:
    if unit == "nano_usd":
        return usd(value)
    return f"{value / 1000:,.1f}" if unit == "cpu_time" else f"{value:,}"


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    """Write columns: the first to the left, the others to the right."""
    shown = [[sanitize_line(cell, 100) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for first, *rest in shown:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        write(f"  {'  '.join([f'{first:<{widths[0]}}', *cells])}".rstrip() + "\n")
