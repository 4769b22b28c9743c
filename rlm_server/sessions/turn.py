"""A turn of a session that was asked for: it waits for those before it, runs, and tells what happens."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from rlm_server.repl.events import CodeFinished
from rlm_server.sessions.happenings import Happening
from rlm_server.sessions.turn_log import TurnLog


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as its caller asks for it. `id` is that of the request, empty where it has none."""

    code: str
    id: str = ""

    @property
    def content_sha256(self) -> str:
        """What tells requests with the same id apart."""
        return hashlib.sha256(self.code.encode()).hexdigest()


def turn_id_of(request_id: str) -> str:
    """Return the id of the turn that a request asks for, in its session: always the same; a new one for no id."""
    if not request_id:
        return "turn_" + secrets.token_hex(16)
    return "turn_" + hashlib.sha256(request_id.encode()).hexdigest()[:32]


class Listener(Protocol):
    """Is told what happens in a turn."""

    gathers_output: bool
    """Whether it wants what is printed while the turn goes on."""

    def put(self, happening: Happening) -> None:
        """Take what has happened."""
        ...

    def end(self, error: BaseException | None = None) -> None:
        """Hear that no more happens; with an error that the turn could not be run, or not to its end."""
        ...


@dataclass(slots=True, eq=False)
class SessionTurn:
    """A turn that was asked for. `task` waits for the turns before it, runs it, and tells `listener`."""

    id: str
    request: TurnRequest
    listener: Listener
    log: TurnLog | None = None
    """The listener of a detached turn, which goes on though nobody reads it."""
    task: asyncio.Task[None] = field(init=False)
    result: CodeFinished | None = None
    """What came of it, as soon as its code has ended."""
    told: bool = False
    """Whether its result was told."""
    interrupted: bool = False
    """Whether it was to be stopped."""
    stopped: bool = False
    """Whether it was stopped before its code had ended."""
    ran_seconds: float = 0.0
    """What it had run when it was to be stopped."""
    ended_at: float = 0.0
    """When it ended, on `time.monotonic()`."""
