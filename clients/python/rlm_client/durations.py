"""Durations and times of the protocol, and the milliseconds, seconds and times of those who use them."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def milliseconds(number: int) -> Duration:
    """Write so many milliseconds as the protocol does."""
    duration = Duration()
    duration.FromMilliseconds(number)
    return duration


def seconds(number: float) -> Duration:
    """Write so many seconds as the protocol does, rounded to nanoseconds."""
    duration = Duration()
    duration.FromNanoseconds(round(number * 1e9))
    return duration


def stamp(time: datetime | None) -> Timestamp | None:
    """Write a time as the protocol does. One without a zone is UTC."""
    if time is None:
        return None
    written = Timestamp()
    written.FromDatetime(time if time.tzinfo is not None else time.replace(tzinfo=UTC))
    return written
