"""Events of budgets: a soft limit was crossed. Each is written in the transaction of the posting that crossed it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlm_server.clock import DAY_MS
from rlm_server.database.engine import Connection
from rlm_server.ledger import names
from rlm_server.ledger.accounts import Crossing
from rlm_server.ledger.windows import WHOLE, Scope, Span, kept_span, parts

KEPT_DAYS = 400
"""Days for which an event is listed."""
REMOVED_AT_ONCE = 32
"""Older events that are removed when one is written."""


class Delivery(StrEnum):
    """What became of sending an event to its tenant."""

    NONE = "none"
    """There was nowhere to send it to."""
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """A soft limit was crossed, in `unit`: `used` has come to `threshold`, of `limited` if that is a limit.

    `scope` is what the limit is on, and `label` names its window. `percent` is None where the threshold is an amount.
    Times are Unix milliseconds. `number` grows with every event of the database, and `id` is the same for ever.
    """

    number: int
    id: str
    tenant: str
    account: str
    scope: Scope
    label: str
    unit: str
    percent: int | None
    threshold: int
    limited: int | None
    used: int
    at: int
    attempts: int = 0
    due_at: int | None = None
    delivered_at: int | None = None
    given_up_at: int | None = None
    failure: str = ""

    @property
    def delivery(self) -> Delivery:
        """What became of sending it."""
        if self.delivered_at is not None:
            return Delivery.DELIVERED
        if self.given_up_at is not None:
            return Delivery.GIVEN_UP
        return Delivery.NONE if self.due_at is None else Delivery.PENDING


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events of a tenant. `customer` is the path of one, and selects those under it, too.

    With `own` those of the tenant's own account alone. Times are Unix milliseconds, `until` excluded.
    """

    tenant: str
    customer: str = ""
    own: bool = False
    since: int | None = None
    until: int | None = None


_COLUMNS = (
    "number, id, tenant, account, model, span, label, unit, percent, threshold, limited, used, at, attempts, due_at, "
    "delivered_at, given_up_at, failure"
)
SELECT = f"SELECT {_COLUMNS} FROM budget_event WHERE "  # noqa: S608 - column names
_INSERT = """
INSERT INTO budget_event (
    id, tenant, account, customer, model, span, label, unit, percent, threshold, limited, used, at, once, due_at
)
VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    (SELECT CAST(? AS BIGINT) FROM webhook WHERE webhook.tenant = ? AND enabled = 1)
)
ON CONFLICT (once) DO NOTHING
"""
_REMOVE = (
    "DELETE FROM budget_event WHERE number IN (SELECT number FROM budget_event WHERE tenant = ? AND at < ? LIMIT ?)"
)


def record(connection: Connection, crossed: Iterable[Crossing], at: int) -> None:
    """Write down what was crossed, at a time, unless it has been told of. It is due to be sent where it can be."""
    for one in crossed:
        account, owner = one.account, one.owner
        window = parts(account.id)
        scope, label = (window.scope, window.label) if window is not None else (Scope(None), "")
        id, once = f"evt_{secrets.token_hex(16)}", f"{account.id} {one.unit} {one.threshold}"
        place = (scope.model, kept_span(scope.span), label, one.unit, one.soft.percent, one.threshold)
        values = (id, owner.tenant, owner.id, owner.path or "", *place, getattr(account.limit, one.unit), one.used, at)
        connection.execute(_INSERT, (*values, once, at, owner.tenant))
        connection.execute(_REMOVE, (owner.tenant, at - KEPT_DAYS * DAY_MS, REMOVED_AT_ONCE))


def tell_anew(connection: Connection, account: str) -> None:
    """Have what was told of an account, or a window, be told again when it is crossed again."""
    connection.execute(
        "UPDATE budget_event SET once = NULL WHERE once >= ? AND once < ?", (f"{account} ", f"{account}!")
    )


def page(connection: Connection, asked: EventFilter, after: int, most: int) -> list[BudgetEvent]:
    """Return events in the order of their numbers, after that of a number."""
    conditions, values = ["tenant = ?", "number > ?"], [asked.tenant, after]
    if asked.own:
        conditions.append("customer = ''")
    elif asked.customer:
        condition, paths = names.under(asked.customer)
        conditions.append(condition)
        values += paths
    for sign, time in ((">=", asked.since), ("<", asked.until)):
        if time is not None:
            conditions.append(f"at {sign} ?")
            values.append(time)
    where = f"{' AND '.join(conditions)} ORDER BY number LIMIT ?"
    return [event_of(row) for row in connection.execute(SELECT + where, (*values, most)).fetchall()]


def event_of(row: Sequence[Any]) -> BudgetEvent:
    """The event of a row that `SELECT` selects."""
    number, id, tenant, account, model, span, *rest = row
    return BudgetEvent(number, id, tenant, account, Scope(None if span == WHOLE else Span(span), model), *rest)


def forget(connection: Connection, tenant: str) -> None:
    """Forget a tenant's events, as it is deleted."""
    connection.execute("DELETE FROM budget_event WHERE tenant = ?", (tenant,))
