"""The limits on what a worker may send. The worker keeps to them by itself; the server enforces them again."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from sandbox.door import ByChance
from sandbox.inputs import MAX_LOG
from sandbox.limits import Limits
from sandbox.memory.memory import PAGE
from sandbox.memory.pages import EXTENT_BYTES
from sandbox.turn import GAP, MAX_NAME, MAX_TRACEBACK, MAX_VARIABLES
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.files import MAX_PATH_BYTES
from sandbox.vm.guest_memory import ADDRESSES
from sandbox.vm.mappings import MAX_MAPPED, REGION
from sandbox.wire.frames import MAX_BYTES, MAX_JSON, Frame, Kind, WireError

MAX_STRAY = 1_000
"""Frames of no turn that runs, from one worker: some may come late."""

_ESCAPED = 12
"""Bytes of JSON a character becomes at most."""
_NUMBER = 24
"""Bytes of a number in JSON, and what parts it from the next."""
_SAID_HEADER = _ESCAPED * MAX_TRACEBACK + 1000
_SAID_NODES = 10
"""Of a frame that says one thing."""
_TURN_HEADER = _ESCAPED * (3 * MAX_TRACEBACK + 2 * MAX_NAME * MAX_VARIABLES) + 10 * _NUMBER * MAX_VARIABLES
_TURN_NODES = 100 + 4 * MAX_VARIABLES
_MAPPED = 2 * MAX_MAPPED + ADDRESSES // REGION
"""Documents mapped at once, and addresses that are theirs: as many as the reader of the layout may take, and more."""
_SEEN_HEADER = 1 << 20
"""Of the blocks that were looked at, in base 16: enough for 256 GiB of texts."""


@dataclass(frozen=True, slots=True)
class FrameBounds:
    """How large the frames of a session may be. Told of a frame's beginning, before any of it is kept."""

    call_bytes: int = 0
    output_bytes: int = 0
    end_header_bytes: int = 0
    end_nodes: int = 0
    end_bytes: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint, limits: Limits) -> FrameBounds:
        """Return the bounds of a session. An image may come with more files than the limits allow."""
        before = checkpoint.files
        files = max(limits.files, len(before.writable)) + max(limits.open_files, len(before.open))
        contents = max(limits.file_bytes, before.used_bytes)
        header = _TURN_HEADER + _SEEN_HEADER + 4 * _NUMBER * _MAPPED + files * (_ESCAPED * MAX_PATH_BYTES // 2)
        return cls(
            call_bytes=limits.frame_bytes,
            output_bytes=limits.output_bytes + GAP,
            end_header_bytes=min(MAX_JSON, header + 12 * _NUMBER * files),
            end_nodes=_TURN_NODES + 4 * _MAPPED + 12 * files,
            end_bytes=min(MAX_BYTES, ADDRESSES // PAGE * EXTENT_BYTES + contents),
        )

    def with_(self, other: FrameBounds) -> FrameBounds:
        """Return the bounds within which the frames of both are."""
        return FrameBounds(*map(max, astuple(self), astuple(other)))

    def allow(self, kind: Kind, header_bytes: int, data_bytes: int) -> int:
        """Return how many values and keys the JSON of a frame may have. Raises `WireError` for a frame too large."""
        match kind:
            case Kind.READY | Kind.FAILED:
                most_header, nodes, most_data = _SAID_HEADER, _SAID_NODES, 0
            case Kind.DONE:
                most_header, nodes, most_data = self.end_header_bytes, self.end_nodes, self.end_bytes
            case Kind.OUTPUT:
                most_header, nodes, most_data = 0, 0, self.output_bytes
            case Kind.INPUTS:
                most_header, nodes, most_data = 0, 0, MAX_LOG if self.call_bytes else 0  # it comes with a request
            case Kind.CALL:
                most_header, nodes, most_data = 0, 0, self.call_bytes
            case _:
                raise WireError(f"a frame of kind {kind}, which only the server sends")
        if header_bytes > most_header or data_bytes > most_data:
            most = f"{most_header} + {most_data}"
            raise WireError(f"a frame of kind {kind} of {header_bytes} + {data_bytes} bytes, the limit is {most}")
        return nodes


class FrameLimits:
    """Counts the frames of one turn against the session's limits.

    Each method raises `WireError` for a frame beyond them. A worker that keeps to its limits sends no such frame.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._printed = self._called = self._replied = self._stray = 0
        self._last_call = 0
        self._noted_before = self._left = 0
        self.calls = 0
        """How many requests were counted."""

    def output(self, frame: Frame) -> None:
        """Count output."""
        if frame.number not in (1, 2) or not frame.data:
            raise WireError(f"output of {len(frame.data)} bytes to stream {frame.number}")
        self._printed += len(frame.data)
        if self._printed > self._limits.output_bytes + GAP:
            raise WireError(f"{self._printed} bytes of output, where {self._limits.output_bytes} may be kept")

    def inputs(self, frame: Frame, noted: int) -> None:
        """Count what was noted before the next request, beyond `noted` bytes. A turn leaves its former path once."""
        self._left += frame.number < noted
        if self._noted_before > self.calls or self._left > 1:
            raise WireError(f"inputs from byte {frame.number} on, again before request {self.calls + 1}")
        self._noted_before = self.calls + 1

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

    def reply(self, size: int) -> None:
        """Count a reply, with the requests. Raises `ByChance` for one beyond the limit: the guest is told."""
        self._replied += size
        exchanged, limit = self._called + self._replied, self._limits.door_bytes
        if exchanged > limit:
            raise ByChance(
                "LimitExceeded", f"{exchanged} bytes in requests and replies of one turn, the limit is {limit}"
            )

    def stray(self) -> None:
        """Count a frame of another turn, or of one that has ended."""
        self._stray += 1
        if self._stray > MAX_STRAY:
            raise WireError(f"{self._stray} frames of no turn that runs")
