"""A session as its caller asks for it, and as it lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from rlm_server.contexts.context_table import Context
from rlm_server.database.requests import Request
from rlm_server.ledger import Limit
from rlm_server.ledger.customers import Customer
from rlm_server.repl.call_tally import Failures
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import Memo
from rlm_server.repl.tracing import Tracer
from sandbox.pool.pool import LiveSession


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session as a caller asks for it, checked."""

    tenant: str
    request: Request | None
    image: str
    context: Context | None
    sub_model: str
    budget: Limit
    limits: RunLimits
    customer: Customer | None = None
    """Who pays; None for the tenant itself."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def payer(self) -> str:
        """The account that the session's is under."""
        return self.tenant if self.customer is None else self.customer.account

    @property
    def customer_path(self) -> str:
        """The path of the customer who pays; empty for the tenant itself."""
        return "" if self.customer is None else self.customer.path


@dataclass(slots=True)
class ReplSession:
    """A live session. `created_at` is in Unix milliseconds; `began_at` and `used_at` are on `time.monotonic()`."""

    id: str
    asked: NewSession
    live: LiveSession
    held: AsyncExitStack
    """Holds the context, for as long as the session lives."""
    created_at: int
    memo: Memo
    began_at: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)
    """When its last turn ended."""
    tracer: Tracer = field(default_factory=Tracer)
    running: int = 0
    """How many turns are running."""
    turn: asyncio.Task[None] | None = None
    """The newest one."""
    one_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Is held by the turn that runs."""
    failures: Failures = field(default_factory=Failures)
