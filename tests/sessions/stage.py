"""A session whose turns do what a test says, without a sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from rlm_server.ledger import Limit
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import Memo
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.shares.held import Held
from sandbox.door import HostCall, Json
from sandbox.turn import OutputListener, Turn

HELD = Held(lambda _: 1 << 40)

Answer = Callable[[HostCall], Awaitable[Json]]
Act = Callable[[str, Answer, OutputListener], Awaitable[Turn]]


class Acting:
    """Stands in for a live session."""

    running_seconds = 0.0
    kept = True

    def __init__(self, act: Act) -> None:
        self._act = act
        self.notes: list[bytes] = []

    async def add_note(self, note: bytes) -> None:
        self.notes.append(note)

    async def execute(self, code: str, answer: Answer, listener: OutputListener, *_: Any, **__: Any) -> Turn:
        return await self._act(code, answer, listener)


async def idle(code: str, answer: Answer, listener: OutputListener) -> Turn:
    raise AssertionError("no turn was to run")


def a_session(
    id: str = "ses_1",
    act: Act = idle,
    *,
    tenant: str = "acme",
    created_at: int = 0,
    used_at: int = 0,
    idle_ms: int | None = None,
    life_ms: int | None = None,
) -> ReplSession:
    live: Any = Acting(act)
    new = NewSession(tenant, None, "core", None, "small", Limit(), RunLimits(), idle_ms=idle_ms, life_ms=life_ms)
    memo = Memo(tenant, new.limits.memo_bytes, HELD)
    return ReplSession(new.row(id, created_at), new, live, AsyncExitStack(), memo, used_at)
