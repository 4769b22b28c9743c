"""Forks: sessions that begin as another is, each with an account of its own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database import requests
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request
from rlm_server.ledger import Ledger, Limit, names
from rlm_server.sessions import session_table
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.session_table import SessionRow
from rlm_server.sessions.state import SessionState
from rlm_server.sessions.taking_up import TakingUp

ids = TypeAdapter(list[str])
"""How a request to fork is answered, as it is kept."""


@dataclass(frozen=True, slots=True)
class NewForks:
    """Forks as a caller asks for them. What is None is as of the session."""

    count: int
    labels: Mapping[str, str] = field(default_factory=dict)
    budget: Limit | None = None
    idle_ms: int | None = None
    life_ms: int | None = None


async def fork(
    ledger: Ledger, taking_up: TakingUp, session: ReplSession, asked: NewForks, request: Request | None
) -> list[ReplSession]:
    """Make forks of a session after its last finished turn: all, or none.

    Raises:
        StoreFull: they do not fit beside what the tenant has stored.
        TooManyTurns, SessionClosed, SnapshotRefused: the session cannot be read.
        AccountClosed: who pays for the session was closed.
    """
    rows = [_row(session, asked, now()) for _ in range(asked.count)]
    lives = await session.live.fork([row.id for row in rows])

    def keep(connection: Connection) -> None:
        for row in rows:
            session_table.insert(connection, row, None)
        kept = ids.dump_json([row.id for row in rows]).decode()
        requests.answer(connection, request, kept, rows[0].created_at, thing=session.id)

    try:
        await ledger.open_several(
            [row.id for row in rows],
            tenant=session.row.tenant,
            parent=payer_of(session.row),
            limit=rows[0].budget,
            also=keep,
        )
    except BaseException:
        for live in lives:
            await live.close()
        raise
    context = session.asked.context
    return [
        taking_up.made(row, live, context, dormant=False) for row, live in zip(rows, lives, strict=True)
    ]  # fmt: skip


def payer_of(row: SessionRow) -> str:
    """Return the account that a session's is under."""
    if not row.customer:
        return row.tenant
    return names.customer_account(row.tenant, names.last_of(row.customer, row.tenant))


def _row(session: ReplSession, asked: NewForks, at: int) -> SessionRow:
    row, id = session.row, names.SESSION + secrets.token_hex(16)
    return replace(
        row,
        id=id,
        stored=id,
        parent=row.id,
        labels=asked.labels,
        budget=row.budget if asked.budget is None else asked.budget,
        idle_ms=row.idle_ms if asked.idle_ms is None else asked.idle_ms,
        life_ms=row.life_ms if asked.life_ms is None else asked.life_ms,
        created_at=at,
        used_at=at,
        turns=0,
        state=SessionState.ACTIVE,
    )
