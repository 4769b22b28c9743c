"""The servicer of `BudgetService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from rlm.v1 import budget_pb2, budget_pb2_grpc

from rlm_server.api import accounts, key_account, ledger_export, requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.api.webhooks import WebhookCalls
from rlm_server.database.labels import MAX_LABEL
from rlm_server.ledger import AccountConflict, AccountUnknown, By, Entry, Ledger, Query, Statement, UsageRow, names
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.customers import Customer
from rlm_server.shares.threads import Cancelled, Purpose, Threads
from rlm_server.tenants.checks import Offered
from rlm_server.webhooks.deliveries import Deliveries
from rlm_server.webhooks.webhooks import Webhooks

EXPORT_PAGE = 2_000
"""Entries read at once. They make about half a chunk."""

_BY = {
    budget_pb2.USAGE_GROUPING_UNSPECIFIED: By.DAY,
    budget_pb2.USAGE_GROUPING_DAY: By.DAY,
    budget_pb2.USAGE_GROUPING_MODEL: By.MODEL,
    budget_pb2.USAGE_GROUPING_RUN: By.RUN,
    budget_pb2.USAGE_GROUPING_ACCOUNT: By.ACCOUNT,
    budget_pb2.USAGE_GROUPING_LABEL: By.LABEL,
}
_LINES = {
    budget_pb2.EXPORT_FORMAT_UNSPECIFIED: ledger_export.csv_line,
    budget_pb2.EXPORT_FORMAT_CSV: ledger_export.csv_line,
    budget_pb2.EXPORT_FORMAT_JSONL: ledger_export.json_line,
}


class BudgetServicer(WebhookCalls, budget_pb2_grpc.BudgetServiceServicer):
    """Shows a tenant its accounts and what was spent on them, and keeps those of its customers."""

    def __init__(
        self,
        ledger: Ledger,
        book: CustomerBook,
        threads: Threads,
        offered: Offered,
        webhooks: Webhooks,
        deliveries: Deliveries,
    ) -> None:
        super().__init__(ledger, book, webhooks, deliveries)
        self._threads, self._offered = threads, offered

    async def GetBudget(self, request: budget_pb2.GetBudgetRequest, context: Any) -> budget_pb2.GetBudgetResponse:
        """Describe an account."""
        name = request.account_id or key_account.own() or tenant()
        statement = await self._statement("account", name)
        customer = await self._book.get(tenant(), name) if statement.customer else None
        windows = [accounts.window(one) for one in statement.windows]
        windows = [one for one in windows if not key_account.hides(one.account_id, tenant())]
        return budget_pb2.GetBudgetResponse(account=accounts.account(statement, customer), windows=windows)

    async def CreateAccount(
        self, request: budget_pb2.CreateAccountRequest, context: Any
    ) -> budget_pb2.CreateAccountResponse:
        """Make a customer."""
        with FieldChecks() as check:
            new = check(accounts.customer, tenant(), request.account, self._offered)
            repeatable = check(requests.repeatable, tenant(), request)
        if key_account.path():
            new = replace(new, parent=request.account.parent_id or key_account.own())
            await requests.customer_path(self._book, tenant(), new.parent, "account.parent_id")
        with _named_in("account.account_id"):
            made = await self._book.create(new, repeatable)
        return budget_pb2.CreateAccountResponse(account=await self._account(made))

    async def UpdateAccount(
        self, request: budget_pb2.UpdateAccountRequest, context: Any
    ) -> budget_pb2.UpdateAccountResponse:
        """Change a customer."""
        asked = request.account
        with FieldChecks() as check:
            paths = check(requests.changed_fields, request.update_mask, asked, accounts.SETTABLE) or []
            limits_models = not {"model_limits", "soft_limits"}.isdisjoint(paths)
            said = check(accounts.described, asked, self._offered if limits_models else Offered())
            resets = check(requests.choices, "reset_windows", request.reset_windows, accounts.SPAN_OF, accounts.A_SPAN)
            repeatable = check(requests.repeatable, tenant(), request)
        change = partial(accounts.changed, said, paths)
        await self._check_change(asked.account_id)
        changed = await self._book.update(tenant(), asked.account_id, change, sorted(resets), repeatable)
        return budget_pb2.UpdateAccountResponse(account=await self._account(changed))

    async def ListAccounts(
        self, request: budget_pb2.ListAccountsRequest, context: Any
    ) -> budget_pb2.ListAccountsResponse:
        """List customers."""
        parent = request.parent_id or key_account.own()
        parent = parent if parent != tenant() else ""
        list_name = requests.list_name("accounts", (tenant(), parent, sorted(request.labels.items())))
        with FieldChecks() as check:
            named = check(requests.labels, request.labels)
            size = check(requests.page_size, request.page_size, 100, 1_000)
            place = check(requests.page_key, request.page_token, list_name)
        if key_account.path():
            await requests.customer_path(self._book, tenant(), parent, "parent_id")
        found = await self._book.page(tenant(), parent, named, "" if place is None else place, size + 1)
        statements = await self._ledger.statements(tenant(), [one.id for one in found[:size]])
        written = list(map(accounts.account, statements, found))
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].id)
        return budget_pb2.ListAccountsResponse(accounts=page, next_page_token=token)

    async def CloseAccount(
        self, request: budget_pb2.CloseAccountRequest, context: Any
    ) -> budget_pb2.CloseAccountResponse:
        """Close a customer."""
        await self._check_change(request.account_id)
        closed = await self._book.close(tenant(), request.account_id, requests.repeatable(tenant(), request))
        return budget_pb2.CloseAccountResponse(account=await self._account(closed))

    async def _check_change(self, account_id: str) -> None:
        if key_account.path():
            key_account.check_change(await requests.customer_path(self._book, tenant(), account_id, "account_id"))

    async def _statement(self, kind: str, name: str) -> Statement:
        """Return where a thing's account stands, which the caller's key is for."""
        statement = await self._ledger.statement(tenant(), name)
        if statement is None or not key_account.covers(statement.payer):
            raise NotFound(kind, name)
        return statement

    async def _account(self, customer: Customer) -> budget_pb2.Account:
        (statement,) = await self._ledger.statements(tenant(), [customer.id])
        return accounts.account(statement, customer)

    async def ListUsage(self, request: budget_pb2.ListUsageRequest, context: Any) -> budget_pb2.ListUsageResponse:
        """Sum up what was spent."""
        by = _BY.get(request.by)
        with FieldChecks() as check:
            if by is None:
                check.wrong("by", f"must be a day, a model, a run, an account or a label, not {request.by}")
            if len(request.label) > MAX_LABEL:
                check.wrong("label", f"may have {MAX_LABEL} characters, not {len(request.label)}")
            elif by is not None and (by is By.LABEL) != bool(request.label):
                check.wrong("label", "is the key of the label, where usage is summed up by label, and empty else")
            size = check(requests.page_size, request.page_size, 100, 1_000)
            query = _query(check, request.filter)
            list_name = requests.list_name(f"usage by {by}", (query, request.filter.account_id, request.label))
            last = check(requests.page_key, request.page_token, list_name)
        assert by is not None  # noqa: S101 - it would be named above
        query = await self._looked_up(query, request.filter)
        rows = await self._ledger.usage(query, by, request.label)
        rest = rows if last is None else [row for row in rows if row.key > last]
        written = [_usage(row) for row in rest[:size]]
        page, token = responses.page(list_name, written, len(rest), lambda shown: rest[shown - 1].key)
        return budget_pb2.ListUsageResponse(rows=page, next_page_token=token)

    async def ListEntries(self, request: budget_pb2.ListEntriesRequest, context: Any) -> budget_pb2.ListEntriesResponse:
        """List what was posted."""
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            query = _query(check, request.filter)
            list_name = requests.list_name("entries", (query, request.filter.account_id))
            last = check(requests.page_token, request.page_token, list_name, 1)
        query = await self._looked_up(query, request.filter)
        after = query.after if last is None else max(query.after, last[0])
        entries = await self._ledger.entries(replace(query, after=after), most=size + 1)
        written = [_entry(one) for one in entries[:size]]
        page, token = responses.page(list_name, written, len(entries), lambda shown: entries[shown - 1].number)
        return budget_pb2.ListEntriesResponse(entries=page, next_page_token=token)

    async def ExportEntries(
        self, request: budget_pb2.ExportEntriesRequest, context: Any
    ) -> AsyncIterator[budget_pb2.ExportEntriesResponse]:
        """Write what was posted as a file."""
        with FieldChecks() as check:
            if request.format not in _LINES:
                check.wrong("format", f"must be CSV or JSONL, not {request.format}")
            query = _query(check, request.filter)
        query = await self._looked_up(query, request.filter)
        line = _LINES[request.format]
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

    async def _looked_up(self, query: Query, entry_filter: budget_pb2.EntryFilter) -> Query:
        """Look up what a filter names, and return the query with the path of the customer."""
        for kind, name in (("run", entry_filter.run_id), ("node", entry_filter.node_id)):
            if name:
                await self._statement(kind, name)
        account = entry_filter.account_id or key_account.own()
        if not account:
            return query
        path = await requests.customer_path(self._book, tenant(), account, "filter.account_id")
        return replace(query, customer=path)


def _query(check: FieldChecks, entry_filter: budget_pb2.EntryFilter) -> Query:
    """Read a filter, but for what has to be looked up: who pays."""
    check(requests.check_name, "filter.model", entry_filter.model)
    if not 0 <= entry_filter.after_number < 1 << 62:
        check.wrong("filter.after_number", "must not be negative, and is the number of an entry")
    since, until = (check(requests.time_if_set, entry_filter, name, f"filter.{name}") for name in ("since", "until"))
    if since is not None and until is not None and since > until:
        check.wrong("filter.until", "must not be before since")
    named = check(requests.labels, entry_filter.labels, "filter.labels") or {}
    return Query(
        tenant(),
        run=entry_filter.run_id or None,
        node=entry_filter.node_id or None,
        model=entry_filter.model if entry_filter.HasField("model") else None,
        since=since,
        until=until,
        ambiguous=entry_filter.ambiguous_only,
        after=entry_filter.after_number,
        labels=tuple(named.items()),
    )


@contextmanager
def _named_in(field: str) -> Iterator[None]:
    """Say which field of a request names an account that cannot be."""
    try:
        yield
    except AccountConflict as error:
        raise InvalidField(field, str(error)) from None
    except AccountUnknown as error:
        raise NotFound("account", error.account, "account.parent_id") from None


def _lines(entries: list[Entry], line: Callable[[Entry], str], _: Cancelled) -> list[bytes]:
    return ledger_export.lines(entries, line)


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
        account_id=names.last_of(entry.customer, hold.tenant),
    )
