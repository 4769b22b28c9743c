"""A session whose turns do what a test says, without a sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from rlm_server.ledger import Limit
from rlm_server.sessions.session import NewSession, ReplSession
from sandbox.limits import Limits
from sandbox.pool.worker_session import Answer
from sandbox.turn import OutputListener, Turn

Act = Callable[[str, Answer, OutputListener], Awaitable[Turn]]


class Acting:
    """Stands in for a live session."""

    def __init__(self, act: Act) -> None:
        self.execute = act


async def idle(code: str, answer: Answer, listener: OutputListener) -> Turn:
    raise AssertionError("no turn was to run")


def a_session(id: str = "ses_1", act: Act = idle, *, tenant: str = "acme", **fields: Any) -> ReplSession:
    live: Any = Acting(act)
    new = NewSession(tenant, None, "core", None, "small", Limit(), Limits())
    return ReplSession(id, new, live, AsyncExitStack(), 0, **fields)
