"""Windows: what an account may spend in every minute, hour, day or month of UTC, besides its limit for good.

A hold counts in the windows in which it was reserved, whenever it is resolved. So a limit that is set in the middle of
a window counts what came before. And no window takes more than its limit, however the clock jumps.

A tenant and its customers may have windows. Those of a minute are a pace: what does not fit waits for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from rlm_server.database.engine import Connection
from rlm_server.ledger import names
from rlm_server.ledger.amounts import UNITS, Amounts, Limit
from rlm_server.ledger.sums import amounts, sums

PREFIX = "window:"
"""Of the names of windows' accounts."""
KEPT = 100
"""Windows of a span that are kept when they are over. Older ones are removed, when nothing is held in them."""
REMOVED_AT_ONCE = 32
"""Windows that are removed when one begins."""


class Span(StrEnum):
    """How long a window is. All begin on the minute, on the hour, at midnight, or on the first of the month, in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


BUDGET_SPANS = (Span.HOUR, Span.DAY, Span.MONTH)
"""Those that are budgets: what does not fit is refused."""

_LABELS = {Span.MINUTE: "%Y-%m-%dT%H:%M", Span.HOUR: "%Y-%m-%dT%H", Span.DAY: "%Y-%m-%d", Span.MONTH: "%Y-%m"}
_LENGTHS = {Span.MINUTE: 16, Span.HOUR: 13, Span.DAY: 10, Span.MONTH: 7}
_LIMITS = ", ".join(f"limit_{unit}" for unit in UNITS)
_SELECT = f"SELECT span, since, {_LIMITS} FROM window_limit WHERE account = ? ORDER BY span"  # noqa: S608 - column names
_REMOVE = "DELETE FROM window_limit WHERE account = ? AND span = ?"
_INSERT = f"INSERT INTO window_limit (account, span, since, {_LIMITS}) VALUES (?, ?, ?, {', '.join('?' * len(UNITS))})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Limited:
    """What every window of a span is limited to. One that begins at `since` or later is empty where it is not there."""

    span: Span
    since: int
    limit: Limit


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
    begin = datetime.fromtimestamp(at / 1000, UTC).replace(second=0, microsecond=0)
    if span is not Span.MINUTE:
        begin = begin.replace(minute=0)
    if span in (Span.DAY, Span.MONTH):
        begin = begin.replace(hour=0)
    if span is Span.MONTH:
        begin = begin.replace(day=1)
    end = begin + _LASTS[span]
    return _milliseconds(begin), _milliseconds(end.replace(day=1) if span is Span.MONTH else end)


_LASTS = {
    Span.MINUTE: timedelta(minutes=1),
    Span.HOUR: timedelta(hours=1),
    Span.DAY: timedelta(days=1),
    Span.MONTH: timedelta(days=32),
}


def label(span: Span, at: int) -> str:
    """The name of the window around a time: `2026-11-25T07:31`, `2026-11-25T07`, `2026-11-25` or `2026-11`."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime(_LABELS[span])


def prefix_of(span: Span) -> str:
    """What the names of all accounts of a span's windows begin with."""
    return f"{PREFIX}{span}:"


def account_of(account: str, span: Span, at: int) -> str:
    """The account of an account's window around a time."""
    return f"{prefix_of(span)}{label(span, at)}:{account}"


def parts(account: str) -> tuple[Span, str, str] | None:
    """The span and label of a window's account, and the account that it limits; None where it is another."""
    if not account.startswith(PREFIX):
        return None
    name, rest = account.removeprefix(PREFIX).split(":", 1)
    span = Span(name)
    return span, rest[: _LENGTHS[span]], rest[_LENGTHS[span] + 1 :]


def is_pace(account: str) -> bool:
    """Whether this is the account of a minute: there is room again as soon as it is over."""
    return account.startswith(_PACE)


_PACE = prefix_of(Span.MINUTE)


def described(account: str) -> str:
    """An account's name for people."""
    window = parts(account)
    if window is None:
        return f"account {names.public(account)!r}"
    span, name, limited_account = window
    return f"account {names.public(limited_account)!r} for the {span} {name} (UTC)"


def limited(connection: Connection, account: str) -> Iterator[Limited]:
    """The windows of an account that have a limit."""
    for span, since, *limit in connection.execute(_SELECT, (account,)).fetchall():
        yield Limited(Span(span), since, Limit(*limit))


def windows_of(connection: Connection, accounts: Sequence[str]) -> dict[str, dict[Span, Limit]]:
    """What the windows of some accounts are limited to, by their spans."""
    found: dict[str, dict[Span, Limit]] = {account: {} for account in accounts}
    if found:
        places = ", ".join("?" * len(found))
        query = f"SELECT account, span, {_LIMITS} FROM window_limit WHERE account IN ({places}) ORDER BY span"  # noqa: S608
        for account, span, *limit in connection.execute(query, tuple(found)).fetchall():
            found[account][Span(span)] = Limit(*limit)
    return found


def keep(connection: Connection, tenant: str, account: str, span: Span, limit: Limit | None, at: int) -> None:
    """Write what every window of a span is limited to from now on, None for nothing."""
    connection.execute(_REMOVE, (account, span))
    if limit is None:
        # Nothing is counted in them from here on. When the span is limited again, new ones are summed up.
        prefix = prefix_of(span)
        place = len(prefix) + _LENGTHS[span] + 2
        forget = "DELETE FROM window_account WHERE tenant = ? AND id >= ? AND id < ? AND substr(id, ?) = ?"
        connection.execute(forget, (tenant, prefix, prefix[:-1] + ";", place, account))
        return
    # A clock that was set back leaves holds that come later than now.
    (last,) = connection.execute(
        "SELECT coalesce(max(reserved_at), 0) FROM hold WHERE tenant = ?", (tenant,)
    ).fetchone()
    since = max(at, int(last)) + 1
    connection.execute(_INSERT, (account, span, since, *(getattr(limit, unit) for unit in UNITS)))


def counted(
    connection: Connection, tenant: str, path: str | None, begin: int, end: int
) -> tuple[Amounts, Amounts, Amounts]:
    """What the holds of a stretch of time have posted, hold, and cost above what they held.

    They are a tenant's, or where `path` is given those of the customer of that path and of the ones below.
    """
    condition, values = names.under(path) if path is not None else ("1 = 1", ())
    row = connection.execute(f"{_COUNT} AND {condition}", (tenant, begin, end, *values)).fetchone()
    posted, pending, overrun = amounts(row)
    return posted, pending, overrun


def removed_before(connection: Connection, span: Span) -> int:
    """The time from which on no window of a span has been removed, in Unix milliseconds."""
    row = connection.execute("SELECT before FROM window_removed WHERE span = ?", (span,)).fetchone()
    return 0 if row is None else int(row[0])


def remove_old(connection: Connection, span: Span, at: int) -> None:
    """Remove some windows of a span that were over long before a time, and in which nothing is held."""
    if span is Span.MONTH:
        return
    before, _ = bounds(span, at - KEPT * int(_LASTS[span].total_seconds()) * 1000)
    prefix = prefix_of(span)
    nothing_held = " AND ".join(f"pending_{unit} = 0" for unit in UNITS)
    old = f"SELECT id FROM window_account WHERE id >= ? AND id < ? AND {nothing_held} LIMIT ?"  # noqa: S608
    found = connection.execute(old, (prefix, prefix + label(span, before), REMOVED_AT_ONCE)).fetchall()
    if found:
        connection.execute(
            "INSERT INTO window_removed (span, before) VALUES (?, ?) ON CONFLICT (span) DO UPDATE "
            "SET before = CASE WHEN window_removed.before > excluded.before THEN window_removed.before "
            "ELSE excluded.before END",
            (span, before),
        )
        connection.executemany("DELETE FROM window_account WHERE id = ?", found)


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp()) * 1000
