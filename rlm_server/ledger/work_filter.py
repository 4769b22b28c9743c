"""Which runs, or sessions, of a tenant are listed: by who pays, when they were made, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlm_server.database import labels
from rlm_server.database.listing import Conditions
from rlm_server.ledger import names

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class WorkFilter(Generic[State]):
    """All that is given must hold; times are Unix milliseconds, `until` excluded.

    `customer` is the path of the one who pays, empty for the tenant itself.
    """

    tenant: str
    states: frozenset[State] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    customer: str | None = None
    within: str = ""
    """Where it is given, the path of a customer: only what that one or one under it pays."""

    def conditions(self, table: str, before: str | None) -> Conditions:
        """Return what must hold of the rows of a table, whose labels are of a kind of its name, but for their states.

        They come after the place `before`, where it is given.
        """
        found = Conditions()
        found.must(f"{table}.tenant = ?", self.tenant)
        if self.customer is not None:
            found.must(f"{table}.customer = ?", self.customer)
        if self.within:
            condition, paths = names.under(self.within)
            found.must(condition, *paths)
        found.made(table, self.since, self.until)
        found.after(table, before)
        if self.labels:
            condition, named = labels.having((table,), f"{table}.id", self.labels)
            found.must(condition, *named)
        return found
