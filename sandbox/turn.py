"""What a turn of a session gives back, and the output it printed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_VARIABLES = 200
"""Of a turn, that are told."""
MAX_NAME = 200
"""Characters of a variable's name, and of its type's."""
MAX_TRACEBACK = 16_000
"""Characters of a traceback, and of an exception's message and type."""
GAP = 64
"""Bytes of the line that stands for what was cut out of output, at most."""
MAX_COUNT = (1 << 53) - 1
"""Of anything that is counted: what JSON keeps exact everywhere."""


class Status(StrEnum):
    """How a turn ended."""

    OK = "ok"
    """The code ran to its end."""
    ERROR = "error"
    """The code raised; what it had set is kept."""
    ROLLED_BACK = "rolled_back"
    """A limit, a trap, an exit or an interrupt stopped it; the session is as it was before."""


class Stop(StrEnum):
    """Why a turn was stopped from outside, or stopped itself for good."""

    TURN_TIME = "TURN_TIME"
    STACK = "STACK"
    TRAP = "TRAP"
    EXIT = "EXIT"
    INTERRUPTED = "INTERRUPTED"
    WORKER_LOST = "WORKER_LOST"
    """The process that ran the turn died; the session goes on in another."""
    DAMAGED = "DAMAGED"
    """The interpreter did not say how the turn ended: the code broke what runs it."""


@dataclass(frozen=True, slots=True)
class TurnError:
    """An exception's type, or a `Stop`; `traceback` shows only the guest's own frames."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """A name the code has set. `length` is `len()` where the value has one, else -1."""

    name: str
    type: str
    length: int


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of one turn. The guest's words (error, variables) are claims, sizes and times are measured."""

    status: Status
    stdout: str
    stderr: str
    output_bytes: int
    truncated: bool
    running_seconds: float
    door_calls: int
    error: TurnError | None = None
    variables: tuple[Variable, ...] = ()


OutputListener = Callable[[int, bytes], None]
"""Called with (stream, data) as the guest prints; stream is 1 or 2. Only what is kept is passed on."""

RestartListener = Callable[[str], None]
"""Called with the reason where a turn runs again from its start: what was heard of it until then is void."""


class Output:
    """Keeps the head and the tail of what a turn prints, within a limit, and counts all of it."""

    def __init__(self, limit: int, listener: OutputListener | None) -> None:
        self._head_room = limit // 2
        self._tail_room = limit - self._head_room
        self._head: list[tuple[int, bytes]] = []
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_bytes = 0
        self._listener = listener
        self.total = 0
        self.dropped = 0

    def take(self, stream: int, data: bytes) -> None:
        """Take what was printed."""
        self.total += len(data)
        if data and self._head_room:
            kept, data = data[: self._head_room], data[self._head_room :]
            self._head_room -= len(kept)
            self._head.append((stream, kept))
            if self._listener:
                self._listener(stream, kept)
        if not data:
            return
        self.dropped += max(0, len(data) - self._tail_room)
        self._tail.append((stream, data[-self._tail_room :]))
        self._tail_bytes += len(self._tail[-1][1])
        while self._tail_bytes > self._tail_room:
            first_stream, first = self._tail.popleft()
            cut = min(len(first), self._tail_bytes - self._tail_room)
            self._tail_bytes -= cut
            self.dropped += cut
            if cut < len(first):
                self._tail.appendleft((first_stream, first[cut:]))

    def finish(self) -> tuple[str, str]:
        """Return what was kept of stdout and stderr; where bytes were cut out, the first to miss some says so."""
        if self.dropped:
            gap = f"\n[... {self.dropped} bytes of output cut out ...]\n".encode()
            self._tail.appendleft((self._tail[0][0], gap))
        if self._listener:
            for stream, data in self._tail:
                self._listener(stream, data)
        kept = [*self._head, *self._tail]
        texts = [b"".join(data for s, data in kept if s == stream).decode("utf-8", "replace") for stream in (1, 2)]
        return texts[0], texts[1]
