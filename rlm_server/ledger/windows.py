"""Windows: what an account may spend in every minute, hour, day or month of UTC, besides its limit for good.

A limit may be on the calls of some models alone. Such a limit may also be for good: its window is all of time.

A hold counts in the windows in which it was reserved, whenever it is resolved. So a limit that is set in the middle of
a window counts what came before. And no window takes more than its limit, however the clock jumps.

A tenant and its customers may have windows. Those of a minute are a pace: what does not fit waits for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

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

WHOLE = "whole"
"""What stands in the place of a span's name where there is none: the window is all of time."""
MAX_TIME = 1 << 62
"""The end of all of time, in Unix milliseconds."""

_LABELS = {Span.MINUTE: "%Y-%m-%dT%H:%M", Span.HOUR: "%Y-%m-%dT%H", Span.DAY: "%Y-%m-%d", Span.MONTH: "%Y-%m"}
_LENGTHS = {Span.MINUTE: 16, Span.HOUR: 13, Span.DAY: 10, Span.MONTH: 7}
_LIMITS = ", ".join(f"limit_{unit}" for unit in UNITS)
_SELECT = f"SELECT model, span, since, soft, {_LIMITS} FROM window_limit WHERE account = ? ORDER BY model, span"  # noqa: S608 - column names
_REMOVE = "DELETE FROM window_limit WHERE account = ? AND model = ? AND span = ?"
_INSERT = (
    f"INSERT INTO window_limit (account, model, span, since, soft, {_LIMITS}) "  # noqa: S608
    f"VALUES (?, ?, ?, ?, ?, {', '.join('?' * len(UNITS))})"
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a limit is on: every window of a span, or with None all that is ever spent; and the calls of which models.

    `model` is a name, or a pattern in which `*` stands for anything and `?` for one character. Where it is empty,
    whatever is spent counts, turns included.
    """

    span: Span | None
    model: str = ""

    def covers(self, model: str) -> bool:
        """Whether what is spent with a model counts; without one it is a turn."""
        return not self.model or (bool(model) and fnmatchcase(model, self.model))

    @property
    def place(self) -> tuple[str, int]:
        """Where it stands in a list: those of models last, and the longest span last."""
        return self.model, len(Span) if self.span is None else list(Span).index(self.span)


@dataclass(frozen=True, slots=True)
class ModelLimit:
    """What may be spent with some models."""

    scope: Scope
    limit: Limit


@dataclass(frozen=True, slots=True)
class SoftLimit:
    """What is told of when it is spent: a share of the limit of a scope in percent, in every unit, or an amount.

    Without span and model the scope is the account's limit for good.
    """

    scope: Scope
    percent: int | None = None
    amount: Limit = Limit()  # noqa: RUF009 - it does not change

    def thresholds(self, limit: Limit) -> Iterator[tuple[str, int]]:
        """The units and amounts at which it is crossed, where so much is the limit."""
        for unit in UNITS:
            most, amount = getattr(limit, unit), getattr(self.amount, unit)
            if self.percent is not None and most is not None:
                yield unit, -(-most * self.percent // 100)
            elif amount is not None:
                yield unit, amount


@dataclass(frozen=True, slots=True)
class Limited:
    """What every window of a scope is limited to. One that begins at `since` or later and is not there is empty."""

    scope: Scope
    since: int
    limit: Limit
    soft: tuple[SoftLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowName:
    """What the name of a window's account says: the `label` is the window's, the `account` the one that it limits."""

    scope: Scope
    label: str
    account: str


def _sums(amount: str, state: str) -> str:
    return sums(f"CASE WHEN {state} THEN {amount.format(unit)} END" for unit in UNITS)


_WITHIN = "CASE WHEN actual_{0} < {0} THEN actual_{0} ELSE {0} END"
_COUNT = f"""
SELECT model, {_sums(_WITHIN, "state = 'posted'")}, {_sums("{0}", "state IN ('pending', 'dispatched')")},
    {_sums("actual_{0} - (" + _WITHIN + ")", "state = 'posted'")}
FROM hold WHERE tenant = ? AND reserved_at >= ? AND reserved_at < ?
"""  # noqa: S608


def bounds(span: Span | None, at: int) -> tuple[int, int]:
    """When the window around a time begins, and when the next one does, in Unix milliseconds."""
    if span is None:
        return 0, MAX_TIME
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


def label(span: Span | None, at: int) -> str:
    """The name of the window around a time: `2026-11-25T07:31`, `2026-11-25T07`, `2026-11-25` or `2026-11`."""
    if span is None:
        return ""
    return datetime.fromtimestamp(at / 1000, UTC).strftime(_LABELS[span])


def prefix_of(span: Span | None) -> str:
    """What the names of all accounts of a span's windows begin with."""
    return f"{PREFIX}{kept_span(span)}:"


def account_of(account: str, scope: Scope, at: int) -> str:
    """The account of an account's window around a time."""
    return f"{prefix_of(scope.span)}{label(scope.span, at)}:{_limited_name(account, scope.model)}"


def _limited_name(account: str, model: str) -> str:
    return f"{account}{_MODEL}{model}" if model else account


_MODEL = "#"
"""What stands between an account and a model. No account has one in its name."""


def parts(account: str) -> WindowName | None:
    """What the name of a window's account says; None where it is another account."""
    if not account.startswith(PREFIX):
        return None
    name, rest = account.removeprefix(PREFIX).split(":", 1)
    span = _span(name)
    length = _length(span)
    limited_account, _, model = rest[length + 1 :].partition(_MODEL)
    return WindowName(Scope(span, model), rest[:length], limited_account)


def kept_span(span: Span | None) -> str:
    """How a span is written in the database: one that is none is all of time."""
    return WHOLE if span is None else span


def _span(name: str) -> Span | None:
    return None if name == WHOLE else Span(name)


def _length(span: Span | None) -> int:
    return 0 if span is None else _LENGTHS[span]


def is_pace(account: str) -> bool:
    """Whether this is the account of a minute: there is room again as soon as it is over."""
    return account.startswith(_PACE)


_PACE = prefix_of(Span.MINUTE)


def described(account: str) -> str:
    """An account's name for people."""
    window = parts(account)
    if window is None:
        return f"account {names.public(account)!r}"
    scope = window.scope
    models = f" for models {scope.model!r}" if scope.model else ""
    time = f" for the {scope.span} {window.label} (UTC)" if scope.span is not None else ""
    return f"account {names.public(window.account)!r}{models}{time}"


def limited(connection: Connection, account: str) -> Iterator[Limited]:
    """The limits of an account besides that for good on all that is spent."""
    for model, span, since, soft, *limit in connection.execute(_SELECT, (account,)).fetchall():
        scope = Scope(_span(span), model)
        yield Limited(scope, since, Limit(*limit), _read_soft(scope, soft))


def limits_of(connection: Connection, accounts: Sequence[str]) -> dict[str, dict[Scope, Limit]]:
    """What the windows of some accounts are limited to, and what may be spent on them with some models."""
    return {
        account: {one.scope: one.limit for one in terms if one.limit != Limit() or not one.soft}
        for account, terms in terms_of(connection, accounts).items()
    }


def terms_of(connection: Connection, accounts: Sequence[str]) -> dict[str, list[Limited]]:
    """The limits of some accounts, and the soft ones with them, in their order."""
    found: dict[str, list[Limited]] = {account: [] for account in accounts}
    if found:
        places = ", ".join("?" * len(found))
        query = f"SELECT account, model, span, since, soft, {_LIMITS} FROM window_limit WHERE account IN ({places})"  # noqa: S608
        for account, model, span, since, soft, *limit in connection.execute(query, tuple(found)).fetchall():
            scope = Scope(_span(span), model)
            found[account].append(Limited(scope, since, Limit(*limit), _read_soft(scope, soft)))
    return {account: sorted(terms, key=lambda one: one.scope.place) for account, terms in found.items()}


def _read_soft(scope: Scope, soft: str) -> tuple[SoftLimit, ...]:
    return tuple(SoftLimit(scope, percent, Limit(*amount)) for percent, amount in json.loads(soft)) if soft else ()


def keep(connection: Connection, tenant: str, account: str, terms: Limited | None, scope: Scope, at: int) -> None:
    """Write what every window of a scope is limited to from now on, and what is told of; None for nothing."""
    connection.execute(_REMOVE, (account, scope.model, kept_span(scope.span)))
    if terms is None:
        # Nothing is counted in them from here on. When the scope is limited again, new ones are summed up.
        prefix = prefix_of(scope.span)
        place = len(prefix) + _length(scope.span) + 2
        forget = "DELETE FROM window_account WHERE tenant = ? AND id >= ? AND id < ? AND substr(id, ?) = ?"
        name = _limited_name(account, scope.model)
        connection.execute(forget, (tenant, prefix, prefix[:-1] + ";", place, name))
        return
    # A clock that was set back leaves holds that come later than now.
    (last,) = connection.execute(
        "SELECT coalesce(max(reserved_at), 0) FROM hold WHERE tenant = ?", (tenant,)
    ).fetchone()
    since = max(at, int(last)) + 1
    soft = json.dumps([[one.percent, astuple(one.amount)] for one in terms.soft]) if terms.soft else ""
    connection.execute(_INSERT, (account, scope.model, kept_span(scope.span), since, soft, *astuple(terms.limit)))


def counted(
    connection: Connection, tenant: str, path: str | None, scope: Scope, at: int
) -> tuple[Amounts, Amounts, Amounts]:
    """What the holds of a window around a time have posted, hold, and cost above what they held.

    They are a tenant's, or where `path` is given those of the customer of that path and of the ones below.
    """
    condition, values = names.under(path) if path is not None else ("1 = 1", ())
    query, times = f"{_COUNT} AND {condition} GROUP BY model", bounds(scope.span, at)
    posted, pending, overrun = Amounts(), Amounts(), Amounts()
    for model, *columns in connection.execute(query, (tenant, *times, *values)).fetchall():
        if scope.covers(model):
            posted_here, pending_here, overrun_here = amounts(columns)
            posted, pending, overrun = posted + posted_here, pending + pending_here, overrun + overrun_here
    return posted, pending, overrun


def removed_before(connection: Connection, span: Span | None) -> int:
    """The time from which on no window of a span has been removed, in Unix milliseconds."""
    row = connection.execute("SELECT before FROM window_removed WHERE span = ?", (kept_span(span),)).fetchone()
    return 0 if row is None else int(row[0])


def remove_old(connection: Connection, span: Span | None, at: int) -> None:
    """Remove some windows of a span that were over long before a time, and in which nothing is held."""
    if span is None or span is Span.MONTH:
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
