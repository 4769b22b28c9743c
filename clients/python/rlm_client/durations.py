"""Durations of the protocol, and the milliseconds and seconds of those who use them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


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
