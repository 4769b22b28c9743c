"""What may be spent and what was: the part of the client that reads the books."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, budget_pb2_grpc

from rlm_client import errors
from rlm_client.pages import pages

Request = TypeVar("Request")
Result = TypeVar("Result")

Grouping = Literal["day", "model", "run"]
Format = Literal["csv", "jsonl"]

_PAGE = 1_000  # the most that one call gives
_GROUPINGS = {
    "day": budget_pb2.USAGE_GROUPING_DAY,
    "model": budget_pb2.USAGE_GROUPING_MODEL,
    "run": budget_pb2.USAGE_GROUPING_RUN,
}
_FORMATS = {"csv": budget_pb2.EXPORT_FORMAT_CSV, "jsonl": budget_pb2.EXPORT_FORMAT_JSONL}


@dataclass(frozen=True, slots=True)
class Entries:
    """Selects entries of the ledger. An entry must meet every condition that is given.

    `run_id` is a run's or a session's. `model` "" asks for turns of sandboxed code, which have none. Entries were
    posted at `since` or later and before `until`; a time without a zone is UTC. `ambiguous` ones were counted as their
    whole hold, because what they cost is not known. With `after`, only entries with a greater number.
    """

    run_id: str = ""
    node_id: str = ""
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ambiguous: bool = False
    after: int = 0

    def message(self) -> budget_pb2.EntryFilter:
        """Give the protocol's form."""
        return budget_pb2.EntryFilter(
            run_id=self.run_id,
            node_id=self.node_id,
            model=self.model,
            since=_stamp(self.since),
            until=_stamp(self.until),
            ambiguous_only=self.ambiguous,
            after_number=self.after,
        )


class Spending(ABC):
    """The calls of `BudgetService`. Everything is the caller's own tenant's."""

    _metadata: tuple[tuple[str, str], ...]
    _budgets: budget_pb2_grpc.BudgetServiceStub

    @abstractmethod
    def _unary(self, method: grpc.UnaryUnaryMultiCallable[Request, Result], request: Request) -> Result: ...

    def get_budget(self, account_id: str = "") -> budget_pb2.GetBudgetResponse:
        """Give where an account stands, and the tenant's windows: its own account, or a run's, session's or node's."""
        return self._unary(self._budgets.GetBudget, budget_pb2.GetBudgetRequest(account_id=account_id))

    def list_usage(self, by: Grouping = "day", entries: Entries | None = None) -> Iterator[budget_pb2.UsageRow]:
        """Give what was spent on each day (UTC), with each model, or in each run, in their order.

        Raises:
            InvalidArgument: `since` is after `until`.
            NotFound: there is no such run or node.
        """
        request = budget_pb2.ListUsageRequest(by=_GROUPINGS[by], filter=_filter(entries), page_size=_PAGE)
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
        call: Any = self._budgets.ExportEntries(request, metadata=self._metadata)
        try:
            with errors.typed():
                yield from call
        finally:
            call.cancel()


def _filter(entries: Entries | None) -> budget_pb2.EntryFilter | None:
    return None if entries is None else entries.message()


def _stamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    return stamp
