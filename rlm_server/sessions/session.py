"""A session as its caller asks for it, and as it lives."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from rlm_server.contexts.context_table import Context
from rlm_server.database.requests import Request
from rlm_server.ledger import Limit
from rlm_server.ledger.customers import Customer
from rlm_server.repl.call_tally import Failures
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import Memo
from rlm_server.repl.tracing import Tracer
from rlm_server.sessions.session_table import SessionRow
from rlm_server.sessions.state import End, SessionEnded, SessionState
from rlm_server.sessions.turn import SessionTurn
from sandbox.pool.pool import LiveSession


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session as a caller asks for it, checked. `idle_ms` and `life_ms` are None for what the server says."""

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
    idle_ms: int | None = None
    life_ms: int | None = None
    snapshot: str | None = None
    """The id of the one that it begins from."""

    @property
    def payer(self) -> str:
        """The account that the session's is under."""
        return self.tenant if self.customer is None else self.customer.account

    def row(self, id: str, at: int) -> SessionRow:
        """Return what is kept of it, made at a time in Unix milliseconds."""
        return SessionRow(
            id,
            self.tenant,
            self.image,
            self.context.id if self.context is not None else None,
            self.sub_model,
            self.budget,
            self.limits.sandbox,
            created_at=at,
            used_at=at,
            customer=self.customer.path if self.customer is not None else "",
            idle_ms=self.idle_ms,
            life_ms=self.life_ms,
            labels=self.labels,
            snapshot=self.snapshot,
            stored=id,
        )


@dataclass(slots=True)
class ReplSession:
    """A live session. `row` is what is kept of it, where `used_at` and `turns` may be behind."""

    row: SessionRow
    asked: NewSession
    live: LiveSession
    held: AsyncExitStack
    """Holds the context, for as long as the session lives."""
    memo: Memo
    used_at: int
    """When its last turn ended, in Unix milliseconds."""
    turns_ended: int = 0
    tracer: Tracer = field(default_factory=Tracer)
    failures: Failures = field(default_factory=Failures)
    one_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Is held by the turn that runs."""
    turns: dict[SessionTurn, None] = field(default_factory=dict)
    """Those that were asked for and have not ended, in their order."""
    running: SessionTurn | None = None
    """The one under way."""
    watchable: OrderedDict[str, SessionTurn] = field(default_factory=OrderedDict)
    """Detached turns that have ended and can still be watched, by their ids, the oldest first."""
    bookings: set[asyncio.Future[None]] = field(default_factory=set)
    """What turns took and is not in the books yet."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Is held by the call that changes it."""
    end: End | None = None
    """How it ends, from the moment on when it takes no more turns."""
    dormant: bool = False
    """Whether there is something to be done before it is used, as a former server left it."""
    waking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Is held by who does that."""
    paused: bool = False
    """Whether it is stored and has no memory, until its next turn."""

    @property
    def id(self) -> str:
        """Its id, which is also its account's."""
        return self.row.id

    @property
    def busy(self) -> bool:
        """Whether a turn is under way, or waits."""
        return bool(self.turns)

    @property
    def present(self) -> SessionRow:
        """What would be kept of it now."""
        state = SessionState.PAUSED if self.paused else SessionState.ACTIVE
        return replace(self.row, used_at=self.used_at, turns=self.turns_ended, state=state)

    def check_living(self) -> None:
        """Refuse what a session that ends does no more.

        Raises:
            SessionEnded: it ends, or has ended.
        """
        if self.end is not None:
            raise SessionEnded(self.id, self.end)
