"""The servicer of `BudgetService`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, budget_pb2_grpc

from rlm_server.api import ledger_export, requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.ledger import By, Entry, Ledger, Query, Span, Statement, UsageRow, Window
from rlm_server.shares.threads import Cancelled, Purpose, Threads

EXPORT_PAGE = 2_000
"""Entries read at once. They make about half a chunk."""

_BY = {
    budget_pb2.USAGE_GROUPING_UNSPECIFIED: By.DAY,
    budget_pb2.USAGE_GROUPING_DAY: By.DAY,
    budget_pb2.USAGE_GROUPING_MODEL: By.MODEL,
    budget_pb2.USAGE_GROUPING_RUN: By.RUN,
}
_LINES = {
    budget_pb2.EXPORT_FORMAT_UNSPECIFIED: ledger_export.csv_line,
    budget_pb2.EXPORT_FORMAT_CSV: ledger_export.csv_line,
    budget_pb2.EXPORT_FORMAT_JSONL: ledger_export.json_line,
}
_SPANS = {
    Span.HOUR: budget_pb2.WINDOW_SPAN_HOUR,
    Span.DAY: budget_pb2.WINDOW_SPAN_DAY,
    Span.MONTH: budget_pb2.WINDOW_SPAN_MONTH,
}


class BudgetServicer(budget_pb2_grpc.BudgetServiceServicer):
    """Shows a tenant its accounts and what was spent on them."""

    def __init__(self, ledger: Ledger, threads: Threads) -> None:
        self._ledger, self._threads = ledger, threads

    async def GetBudget(self, request: budget_pb2.GetBudgetRequest, context: Any) -> budget_pb2.GetBudgetResponse:
        """Describe an account."""
        name = request.account_id or tenant()
        statement = await self._ledger.statement(tenant(), name)
        if statement is None:
            raise NotFound("account", name)
        windows = [budget_window(one) for one in statement.windows]
        return budget_pb2.GetBudgetResponse(account=_account(statement), windows=windows)

    async def ListUsage(self, request: budget_pb2.ListUsageRequest, context: Any) -> budget_pb2.ListUsageResponse:
        """Sum up what was spent."""
        if request.by not in _BY:
            raise InvalidField("by", f"must be a day, a model or a run, not {request.by}")
        by, query = _BY[request.by], await self._query(request.filter)
        size = requests.page_size(request.page_size, 100, 1_000)
        list_name = _list_name(f"usage by {by}", query)
        last = requests.page_key(request.page_token, list_name)
        rows = await self._ledger.usage(query, by)
        rest = rows if last is None else [row for row in rows if row.key > last]
        page = rest[:size]
        return budget_pb2.ListUsageResponse(
            rows=[_usage(row) for row in page],
            next_page_token=responses.page_token(list_name, page[-1].key) if len(rest) > size else "",
        )

    async def ListEntries(self, request: budget_pb2.ListEntriesRequest, context: Any) -> budget_pb2.ListEntriesResponse:
        """List what was posted."""
        query = await self._query(request.filter)
        size = requests.page_size(request.page_size, 100, 1_000)
        list_name = _list_name("entries", query)
        last = requests.page_token(request.page_token, list_name, 1)
        after = query.after if last is None else max(query.after, last[0])
        entries = await self._ledger.entries(replace(query, after=after), most=size + 1)
        more = len(entries) > size
        return budget_pb2.ListEntriesResponse(
            entries=[_entry(one) for one in entries[:size]],
            next_page_token=responses.page_token(list_name, entries[size - 1].number) if more else "",
        )

    async def ExportEntries(
        self, request: budget_pb2.ExportEntriesRequest, context: Any
    ) -> AsyncIterator[budget_pb2.ExportEntriesResponse]:
        """Write what was posted as a file."""
        if request.format not in _LINES:
            raise InvalidField("format", f"must be CSV or JSONL, not {request.format}")
        line, query = _LINES[request.format], await self._query(request.filter)
        last = await self._ledger.last_entry(tenant())
        head = ledger_export.header().encode() if line is ledger_export.csv_line else b""
        yield budget_pb2.ExportEntriesResponse(data=head, last_number=last)
        while entries := await self._ledger.entries(query, most=EXPORT_PAGE):
            query = replace(query, after=entries[-1].number)
            wanted = [entry for entry in entries if entry.number <= last]
            lines = await self._threads.run(Purpose.EXPORTS, tenant(), partial(_lines, wanted, line))
            for chunk in ledger_export.chunks(lines):
                yield budget_pb2.ExportEntriesResponse(data=chunk, last_number=last)
            if entries[-1].number >= last:
                return

    async def _query(self, entry_filter: budget_pb2.EntryFilter) -> Query:
        for kind, name in (("run", entry_filter.run_id), ("node", entry_filter.node_id)):
            if name and await self._ledger.statement(tenant(), name) is None:
                raise NotFound(kind, name)
        requests.check_name("filter.model", entry_filter.model)
        if not 0 <= entry_filter.after_number < 1 << 62:
            raise InvalidField("filter.after_number", "must not be negative, and is the number of an entry")
        since, until = _time(entry_filter, "since"), _time(entry_filter, "until")
        if since is not None and until is not None and since > until:
            raise InvalidField("filter.until", "must not be before since")
        return Query(
            tenant(),
            run=entry_filter.run_id or None,
            node=entry_filter.node_id or None,
            model=entry_filter.model if entry_filter.HasField("model") else None,
            since=since,
            until=until,
            ambiguous=entry_filter.ambiguous_only,
            after=entry_filter.after_number,
        )


def _lines(entries: list[Entry], line: Callable[[Entry], str], _: Cancelled) -> list[bytes]:
    return ledger_export.lines(entries, line)


def _time(entry_filter: budget_pb2.EntryFilter, name: str) -> int | None:
    stamp: Timestamp = getattr(entry_filter, name)
    return requests.time(stamp, f"filter.{name}") if entry_filter.HasField(name) else None  # type: ignore[arg-type]


def _list_name(kind: str, query: Query) -> str:
    """Name a list by its whole query, so that a page token of one list is not taken for another's."""
    return f"{kind} {hashlib.sha256(repr(query).encode()).hexdigest()[:16]}"


def _account(statement: Statement) -> budget_pb2.Account:
    balance = statement.balance
    return budget_pb2.Account(
        account_id=balance.account,
        parent_id=statement.parent or "",
        closed=statement.closed,
        limit=responses.budget(balance.limit),
        posted=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        carved=responses.amounts(balance.carved),
        overrun=responses.amounts(balance.overrun),
        left=responses.allowance(statement.left),
    )


def budget_window(window: Window) -> budget_pb2.BudgetWindow:
    """Write a window of a tenant's budget."""
    balance = window.balance
    return budget_pb2.BudgetWindow(
        span=_SPANS[window.span],
        label=window.label,
        start_time=responses.time(window.begins),
        end_time=responses.time(window.ends),
        limit=responses.budget(balance.limit),
        posted=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        overrun=responses.amounts(balance.overrun),
        left=responses.allowance(balance.left),
    )


def _usage(row: UsageRow) -> budget_pb2.UsageRow:
    return budget_pb2.UsageRow(
        key=row.key,
        amounts=responses.amounts(row.actual),
        usage=responses.token_usage(row.usage),
        entry_count=row.entries,
        ambiguous_entry_count=row.ambiguous,
        ambiguous_amounts=responses.amounts(row.doubtful),
    )


def _entry(entry: Entry) -> budget_pb2.Entry:
    hold = entry.hold
    return budget_pb2.Entry(
        number=entry.number,
        hold_id=hold.id,
        run_id=hold.run,
        node_id=hold.node,
        model=hold.model,
        price_version=hold.price_version,
        held=responses.amounts(hold.amounts),
        amounts=responses.amounts(entry.actual),
        usage=responses.token_usage(entry.usage) if entry.usage else None,
        ambiguous=entry.ambiguous,
        time=responses.time(entry.at),
    )
