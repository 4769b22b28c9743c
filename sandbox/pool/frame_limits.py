"""The limits on what a worker may send during one turn. The worker enforces them itself; the server does so again."""

from __future__ import annotations

from sandbox.limits import Limits
from sandbox.turn import GAP
from sandbox.wire.frames import Frame, WireError


class FrameLimits:
    """Counts the frames of one turn against the session's limits.

    Each method raises `WireError` for a frame beyond them. A worker that keeps to its limits sends no such frame.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._printed = self._called = 0
        self._last_call = 0
        self.calls = 0
        """How many requests were counted."""

    def output(self, frame: Frame) -> None:
        """Count output."""
        if frame.number not in (1, 2) or not frame.data:
            raise WireError(f"output of {len(frame.data)} bytes to stream {frame.number}")
        self._printed += len(frame.data)
        if self._printed > self._limits.output_bytes + GAP:
            raise WireError(f"{self._printed} bytes of output, where {self._limits.output_bytes} may be kept")

    def call(self, frame: Frame, under_way: int) -> None:
        """Count a request. `under_way` is how many others are being answered."""
        limits = self._limits
        self.calls += 1
        self._called += len(frame.data)
        if frame.number <= self._last_call:
            raise WireError(f"request {frame.number} after request {self._last_call}")
        self._last_call = frame.number
        for what, value, limit in (
            ("bytes in one request", len(frame.data), limits.frame_bytes),
            ("bytes in requests of one turn", self._called, limits.door_bytes),
            ("requests in one turn", self.calls, limits.door_calls),
            ("requests under way", under_way + 1, limits.door_waiting),
        ):
            if value > limit:
                raise WireError(f"{value} {what}, the limit is {limit}")
