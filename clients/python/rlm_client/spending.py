"""What may be spent and what was: the part of the client that reads the books."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal

from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import budget_pb2, budget_pb2_grpc

from rlm_client.caller import Caller
from rlm_client.connection import Connection
from rlm_client.durations import stamp
from rlm_client.pages import pages
from rlm_client.retry import Retry, named

Grouping = Literal["day", "model", "run", "account", "label"]
Format = Literal["csv", "jsonl"]

_PAGE = 1_000  # the most that one call gives
_GROUPINGS = {
    "day": budget_pb2.USAGE_GROUPING_DAY,
    "model": budget_pb2.USAGE_GROUPING_MODEL,
    "run": budget_pb2.USAGE_GROUPING_RUN,
    "account": budget_pb2.USAGE_GROUPING_ACCOUNT,
    "label": budget_pb2.USAGE_GROUPING_LABEL,
}
_FORMATS = {"csv": budget_pb2.EXPORT_FORMAT_CSV, "jsonl": budget_pb2.EXPORT_FORMAT_JSONL}


@dataclass(frozen=True, slots=True)
class Entries:
    """Selects entries of the ledger. An entry must meet every condition that is given.

    `run_id` is a run's or a session's. `model` "" asks for turns of sandboxed code, which have none. Entries were
    posted at `since` or later and before `until`; a time without a zone is UTC. `ambiguous` ones were counted as their
    whole hold, because what they cost is not known. With `after`, only entries with a greater number. `account_id` is a
    customer's, and selects those under it, too; `labels` are those of runs and sessions.
    """

    run_id: str = ""
    node_id: str = ""
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ambiguous: bool = False
    after: int = 0
    account_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def message(self) -> budget_pb2.EntryFilter:
        """Give the protocol's form."""
        return budget_pb2.EntryFilter(
            run_id=self.run_id,
            node_id=self.node_id,
            model=self.model,
            since=stamp(self.since),
            until=stamp(self.until),
            ambiguous_only=self.ambiguous,
            after_number=self.after,
            account_id=self.account_id,
            labels=self.labels,
        )


class Spending(Caller):
    """The calls of `BudgetService`. Everything is the caller's own tenant's."""

    def __init__(self, connection: Connection, retry: Retry | None) -> None:
        super().__init__(connection, retry)
        self._budgets = budget_pb2_grpc.BudgetServiceStub(connection.channel)

    def get_budget(self, account_id: str = "") -> budget_pb2.GetBudgetResponse:
        """Give where an account stands, and the tenant's windows: its own account, or a run's, session's or node's."""
        return self._unary(self._budgets.GetBudget, budget_pb2.GetBudgetRequest(account_id=account_id))

    def create_account(self, account: budget_pb2.Account, *, request_id: str | None = None) -> budget_pb2.Account:
        """Make an account for a customer, as it is described: by `account_id`, and whatever else may be set.

        Raises:
            AlreadyExists: there is one of this id, or was.
            InvalidArgument: its id or a limit is wrong.
            NotFound: there is no such parent.
        """
        request = budget_pb2.CreateAccountRequest(request_id=named(request_id), account=account)
        return self._unary(self._budgets.CreateAccount, request).account

    def update_account(
        self,
        account: budget_pb2.Account,
        fields: Iterable[str],
        *,
        reset_windows: Iterable[budget_pb2.WindowSpan.ValueType] = (),
        request_id: str | None = None,
    ) -> budget_pb2.Account:
        """Change a customer's account, by its `account_id`: these fields of it, and at once.

        `fields` are of `limit`, `window_limits`, `model_limits`, `soft_limits`, `name` and `labels`; where there are
        none, those of the account that are set change. The windows around now of `reset_windows` begin anew.

        Raises:
            FailedPrecondition: it was closed.
            InvalidArgument: a field cannot be changed, or a limit is wrong.
            NotFound: there is no such customer.
        """
        request = budget_pb2.UpdateAccountRequest(
            request_id=named(request_id),
            account=account,
            update_mask=FieldMask(paths=fields),
            reset_windows=reset_windows,
        )
        return self._unary(self._budgets.UpdateAccount, request).account

    def list_accounts(
        self, parent_id: str = "", labels: Mapping[str, str] | None = None
    ) -> Iterator[budget_pb2.Account]:
        """Give the customers directly under an account, or under your own, in the order of their ids.

        Raises:
            NotFound: there is no such parent.
        """
        request = budget_pb2.ListAccountsRequest(parent_id=parent_id, labels=labels)
        for page in pages(partial(self._unary, self._budgets.ListAccounts), request):
            yield from page.accounts

    def close_account(self, account_id: str, *, request_id: str | None = None) -> budget_pb2.Account:
        """Close a customer's account and those under it: nothing more can be spent on them.

        Raises:
            NotFound: there is no such customer.
        """
        request = budget_pb2.CloseAccountRequest(request_id=named(request_id), account_id=account_id)
        return self._unary(self._budgets.CloseAccount, request).account

    def list_budget_events(
        self, account_id: str = "", *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[budget_pb2.BudgetEvent]:
        """Give the soft limits that were crossed, in that order: all, or of a customer and those under it.

        They were at `since` or later and before `until`; a time without a zone is UTC.

        Raises:
            NotFound: there is no such customer.
        """
        request = budget_pb2.ListBudgetEventsRequest(
            account_id=account_id, since=stamp(since), until=stamp(until), page_size=_PAGE
        )
        for page in pages(partial(self._unary, self._budgets.ListBudgetEvents), request):
            yield from page.events

    def set_webhook(
        self, url: str, *, rotate_secret: bool = False, request_id: str | None = None
    ) -> budget_pb2.SetWebhookResponse:
        """Have those events posted to a URL from now on. Its `secret` signs them; it is told where it was made now.

        Raises:
            InvalidArgument: the operator does not allow the URL.
        """
        request = budget_pb2.SetWebhookRequest(request_id=named(request_id), url=url, rotate_secret=rotate_secret)
        return self._unary(self._budgets.SetWebhook, request)

    def get_webhook(self) -> budget_pb2.Webhook:
        """Give where they are posted.

        Raises:
            NotFound: nowhere.
        """
        return self._unary(self._budgets.GetWebhook, budget_pb2.GetWebhookRequest()).webhook

    def test_webhook(self) -> budget_pb2.TestWebhookResponse:
        """Have an event that says nothing be posted once, and give what came of it.

        Raises:
            NotFound: there is no webhook, or it is disabled.
        """
        return self._unary(self._budgets.TestWebhook, budget_pb2.TestWebhookRequest())

    def disable_webhook(self, *, request_id: str | None = None) -> budget_pb2.Webhook:
        """Have nothing more be posted, until it is set again.

        Raises:
            NotFound: there is no webhook.
        """
        request = budget_pb2.DisableWebhookRequest(request_id=named(request_id))
        return self._unary(self._budgets.DisableWebhook, request).webhook

    def list_usage(
        self, by: Grouping = "day", entries: Entries | None = None, *, label: str = ""
    ) -> Iterator[budget_pb2.UsageRow]:
        """Give what was spent on each day (UTC), with each model, in each run, by each account, or under each label.

        They are in their order. `label` is the key of the label, where they are of one.

        Raises:
            InvalidArgument: `since` is after `until`, or `label` is missing.
            NotFound: there is no such run, node or customer.
        """
        grouping, chosen = _GROUPINGS[by], _filter(entries)
        request = budget_pb2.ListUsageRequest(by=grouping, filter=chosen, page_size=_PAGE, label=label)
        for page in pages(partial(self._unary, self._budgets.ListUsage), request):
            yield from page.rows

    def list_entries(self, entries: Entries | None = None) -> Iterator[budget_pb2.Entry]:
        """Give the ledger's entries in the order they were posted, asking for more as they are taken.

        Raises:
            InvalidArgument: `since` is after `until`.
            NotFound: there is no such run or node.
        """
        request = budget_pb2.ListEntriesRequest(filter=_filter(entries), page_size=_PAGE)
        for page in pages(partial(self._unary, self._budgets.ListEntries), request):
            yield from page.entries

    def export_entries(
        self, format: Format = "csv", entries: Entries | None = None
    ) -> Iterator[budget_pb2.ExportEntriesResponse]:
        """Give the ledger's entries as one file, chunk by chunk: `data` of each holds whole lines.

        The file holds what had been posted when it began. A broken export is not resumed: begin anew, or set `after` to
        the last number received. `last_number` is the `after` of the next export.

        Raises:
            InvalidArgument: `since` is after `until`.
            NotFound: there is no such run or node.
        """
        request = budget_pb2.ExportEntriesRequest(format=_FORMATS[format], filter=_filter(entries))
        yield from self._streamed(self._budgets.ExportEntries, request)


def _filter(entries: Entries | None) -> budget_pb2.EntryFilter | None:
    return None if entries is None else entries.message()
