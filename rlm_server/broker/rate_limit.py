"""What a provider's headers say of its rate limit: how many requests are left, and how fast there are more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

_NAMES = (
    (
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
)
"""The limit, what is left of it, and when it is whole again: a time (RFC 3339), or a time from now (`1m30.5s`)."""

_SPAN = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?")


@dataclass(frozen=True, slots=True)
class Allowance:
    """`left` requests may be sent, and `rate` more each second."""

    left: int
    rate: float


HEARING: ContextVar[Callable[[Allowance], None] | None] = ContextVar("HEARING", default=None)
"""Who is told of the allowance that comes with the answer to a request, of the task that makes it."""


def hear(headers: Mapping[str, str]) -> None:
    """Tell who listens what the headers of an answer say, where they say it."""
    listener = HEARING.get()
    if listener is not None and (said := allowance(headers)) is not None:
        listener(said)


def allowance(headers: Mapping[str, str], *, now: datetime | None = None) -> Allowance | None:
    """Read the allowance out of an answer's headers. None where they do not say all of it, or nothing readable."""
    for limit_name, left_name, reset_name in _NAMES:
        limit, left = _count(headers.get(limit_name)), _count(headers.get(left_name))
        if limit is None or left is None or left > limit:
            continue
        seconds = _seconds(headers.get(reset_name) or "", now or datetime.now(UTC))
        if seconds is not None and seconds > 0:
            return Allowance(left, max(1, limit - left) / seconds)
    return None


def _count(said: str | None) -> int | None:
    return int(said) if said is not None and re.fullmatch(r"[0-9]{1,9}", said) else None


def _seconds(said: str, now: datetime) -> float | None:
    if (span := _SPAN.fullmatch(said[:50])) is not None and span[0]:
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in span.groups())
        return hours * 3_600 + minutes * 60 + seconds + milliseconds / 1_000
    try:
        return (datetime.fromisoformat(said) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
