"""A tenant's windows: what it may spend in every hour, day or month of UTC, besides its limit for good.

A hold counts in the windows in which it was reserved, whenever it is resolved. So a limit that is set in the middle of
a window counts what came before. And no window takes more than its limit, however the clock jumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from rlm_server.database.engine import Connection
from rlm_server.ledger.amounts import UNITS, Amounts, Limit
from rlm_server.ledger.sums import amounts, sums

PREFIX = "window:"
"""Of the names of windows' accounts."""


class Span(StrEnum):
    """How long a window is. All begin on the hour, at midnight, or on the first of the month, in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


_LABELS = {Span.HOUR: "%Y-%m-%dT%H", Span.DAY: "%Y-%m-%d", Span.MONTH: "%Y-%m"}
_LIMITS = ", ".join(f"limit_{unit}" for unit in UNITS)
_SELECT = f"SELECT span, {_LIMITS} FROM tenant_window WHERE tenant = ? ORDER BY span"  # noqa: S608 - column names
_REMOVE = "DELETE FROM tenant_window WHERE tenant = ? AND span = ?"
_INSERT = f"INSERT INTO tenant_window (tenant, span, {_LIMITS}) VALUES (?, ?, {', '.join('?' * len(UNITS))})"  # noqa: S608


def _sums(amount: str, state: str) -> str:
    return sums(f"CASE WHEN {state} THEN {amount.format(unit)} END" for unit in UNITS)


_WITHIN = "CASE WHEN actual_{0} < {0} THEN actual_{0} ELSE {0} END"
_COUNT = f"""
SELECT {_sums(_WITHIN, "state = 'posted'")}, {_sums("{0}", "state IN ('pending', 'dispatched')")},
    {_sums("actual_{0} - (" + _WITHIN + ")", "state = 'posted'")}
FROM hold WHERE tenant = ? AND reserved_at >= ? AND reserved_at < ?
"""  # noqa: S608


def bounds(span: Span, at: int) -> tuple[int, int]:
    """When the window around a time begins, and when the next one does, in Unix milliseconds."""
    begin = datetime.fromtimestamp(at / 1000, UTC).replace(minute=0, second=0, microsecond=0)
    if span is not Span.HOUR:
        begin = begin.replace(hour=0)
    if span is Span.MONTH:
        begin = begin.replace(day=1)
    after = {Span.HOUR: timedelta(hours=1), Span.DAY: timedelta(days=1), Span.MONTH: timedelta(days=32)}[span]
    end = begin + after
    return _milliseconds(begin), _milliseconds(end.replace(day=1) if span is Span.MONTH else end)


def label(span: Span, at: int) -> str:
    """The name of the window around a time: `2026-11-25T07`, `2026-11-25` or `2026-11`."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime(_LABELS[span])


def prefix_of(span: Span) -> str:
    """What the names of all accounts of a span's windows begin with."""
    return f"{PREFIX}{span}:"


def account_of(tenant: str, span: Span, at: int) -> str:
    """The account of the window around a time."""
    return f"{prefix_of(span)}{label(span, at)}:{tenant}"


def parts(account: str) -> tuple[Span, str, str] | None:
    """The span, label and tenant of a window's account; None where it is another."""
    if not account.startswith(PREFIX):
        return None
    _, span, label, tenant = account.split(":", 3)
    return Span(span), label, tenant


def described(account: str) -> str:
    """An account's name for people."""
    window = parts(account)
    if window is None:
        return f"account {account!r}"
    span, name, tenant = window
    return f"account {tenant!r} for the {span} {name} (UTC)"


def limited(connection: Connection, tenant: str) -> Iterator[tuple[Span, Limit]]:
    """The windows of a tenant that have a limit."""
    for span, *limit in connection.execute(_SELECT, (tenant,)).fetchall():
        yield Span(span), Limit(*limit)


def keep(connection: Connection, tenant: str, span: Span, limit: Limit | None) -> None:
    """Write what every window of a span is limited to, None for nothing."""
    connection.execute(_REMOVE, (tenant, span))
    if limit is not None:
        connection.execute(_INSERT, (tenant, span, *(getattr(limit, unit) for unit in UNITS)))


def counted(connection: Connection, tenant: str, begin: int, end: int) -> tuple[Amounts, Amounts, Amounts]:
    """What a tenant's holds of a stretch of time have posted, hold, and cost above what they held."""
    posted, pending, overrun = amounts(connection.execute(_COUNT, (tenant, begin, end)).fetchone())
    return posted, pending, overrun


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp()) * 1000
