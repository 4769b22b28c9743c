"""What is kept of sessions, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.requests import Request, RequestIdReused
from rlm_server.ledger import Limit
from rlm_server.sessions.session_table import SessionFilter, SessionRow, SessionTable, end, insert
from rlm_server.sessions.state import End, EndReason, SessionState
from sandbox.limits import Limits


@pytest.fixture
async def database(database_at: str | Path) -> AsyncIterator[Database]:
    async with await Database.open(database_at, MIGRATIONS) as opened:
        yield opened


@pytest.fixture
def table(database: Database) -> SessionTable:
    return SessionTable(database)


def a_row(id: str, created_at: int = 1, *, tenant: str = "acme", **fields: Any) -> SessionRow:
    return SessionRow(id, tenant, "core", None, "small", Limit(), Limits(), created_at, created_at, **fields)


def asked(id: str, content: str = "c", tenant: str = "acme") -> Request:
    return Request(tenant, "CreateSession", id, content)


def adding(row: SessionRow, request: Request | None = None) -> Callable[[Connection], None]:
    return lambda connection: insert(connection, row, request)


async def test_a_session_is_kept_as_it_was_asked_for(database: Database, table: SessionTable) -> None:
    row = SessionRow(
        "ses_1", "acme", "data", "ctx", "small", Limit(1, 2, 3, 4), Limits(turn_seconds=0.5), 5, 6, "a/b", "snap",
        "ses_0", 7, 8, 9, labels={"team": "red"},
    )  # fmt: skip
    await database.write(adding(row))
    assert await table.get("acme", "ses_1") == row
    assert await table.get("other", "ses_1") is None
    assert await table.get("acme", "ses_2") is None


async def test_a_request_finds_the_session_it_made_and_another_content_is_refused(
    database: Database, table: SessionTable
) -> None:
    await database.write(adding(a_row("ses_1"), asked("once")))
    assert await table.by_request(asked("once")) == a_row("ses_1")
    assert await table.by_request(asked("once", tenant="other")) is None
    assert await table.by_request(asked("twice")) is None
    with pytest.raises(RequestIdReused):
        await table.by_request(asked("once", "another"))


async def test_how_a_session_ended_is_kept_and_its_first_end_stays(database: Database, table: SessionTable) -> None:
    await database.write(adding(a_row("ses_1")))
    first = End(EndReason.IDLE_TIME, "it was idle", 9)
    await database.write(lambda connection: end(connection, "ses_1", first, 8, 3))
    await database.write(lambda connection: end(connection, "ses_1", End(EndReason.DELETED, "", 10), 9, 4))
    assert await table.get("acme", "ses_1") == replace(
        a_row("ses_1"), state=SessionState.ENDED, end_reason=EndReason.IDLE_TIME, end_message="it was idle", ended_at=9,
        used_at=8, turns=3,
    )  # fmt: skip
    assert await table.living("", 10) == []


async def test_sessions_are_listed_the_newest_first_by_all_that_is_asked_of_them(
    database: Database, table: SessionTable
) -> None:
    rows = [
        a_row("ses_1", 1, labels={"team": "red"}),
        a_row("ses_2", 2, customer="a"),
        a_row("ses_3", 2, labels={"team": "red", "x": "y"}),
        a_row("ses_4", 4, tenant="other"),
    ]
    for row in rows:
        await database.write(adding(row))
    await database.write(lambda db: end(db, "ses_2", End(EndReason.DELETED, "", 9), 2, 0))

    async def listed(before: str | None = None, most: int = 10, **fields: Any) -> list[str]:
        return [row.id for row in await table.page(SessionFilter("acme", **fields), before, most)]

    assert await listed() == ["ses_3", "ses_2", "ses_1"]
    assert await listed(most=2) == ["ses_3", "ses_2"]
    assert await listed(rows[2].place) == ["ses_2", "ses_1"]
    assert await listed(labels={"team": "red"}) == ["ses_3", "ses_1"]
    assert await listed(states=frozenset({SessionState.ENDED})) == ["ses_2"]
    assert await listed(states=frozenset({SessionState.ACTIVE, SessionState.ENDED}), since=2) == ["ses_3", "ses_2"]
    assert await listed(until=2) == ["ses_1"]
    assert await listed(customer="a") == ["ses_2"]
    assert await listed(customer="") == ["ses_3", "ses_1"]
