"""What is Postgres' own: a server that goes away, an owner that was replaced, settings that lose what was said kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from rlm_server.database import postgres
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError, DatabaseLostError, DatabaseOwnedError
from rlm_server.database.postgres_dialect import PostgresConnection
from tests.database.test_database import SCHEMA, note, notes, notes_kept
from tests.databases import cut_off


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with await Database.open(postgres_url, SCHEMA, busy_timeout=0.5) as opened:
        yield opened


async def test_a_lost_connection_is_made_anew_and_no_work_is_lost_or_done_twice(
    database: Database, postgres_url: str
) -> None:
    await database.write(note("before"))
    await asyncio.to_thread(cut_off, postgres_url)
    assert await database.read(notes) == ["before"]
    await database.write(note("after"))
    assert await database.read(notes) == ["before", "after"]


async def test_a_connection_lost_in_the_middle_of_a_group_has_the_group_run_again(
    database: Database, postgres_url: str
) -> None:
    runs = 0

    def lossy(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        note("once")(connection)
        if runs == 1:
            cut_off(postgres_url)
        note("and whole")(connection)

    await database.write(lossy)
    assert runs == 2
    assert notes_kept(postgres_url) == ["once", "and whole"]


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
async def test_a_connection_lost_at_the_commit_neither_loses_the_work_nor_does_it_twice(
    database: Database, postgres_url: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, losing = PostgresConnection.execute, threading.Event()

    def execute(self: Any, statement: str, values: Any = (), /) -> Any:
        if statement == "COMMIT" and not losing.is_set():
            losing.set()
            if when == "after the commit":
                real(self, statement, values)
            self.close()
            raise psycopg.OperationalError("the connection is lost")
        return real(self, statement, values)

    monkeypatch.setattr(PostgresConnection, "execute", execute)
    await database.write(note("once"))
    assert losing.is_set()
    await database.write(note("next"))
    assert await database.read(notes) == ["once", "next"]


async def test_an_owner_that_was_replaced_can_write_nothing_more(
    database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_SECONDS", 0.2)
    await database.write(note("mine"))
    # What holds the lock is its connection; when that is cut, another server may come first.
    monkeypatch.setattr(postgres.Postgres, "_reconnect", lambda self, give_up: setattr(self, "_writer", self.connect()))
    await asyncio.to_thread(cut_off, postgres_url)
    async with await Database.open(postgres_url, SCHEMA) as other:
        assert other.epoch == database.epoch + 1
        with pytest.raises(DatabaseOwnedError, match="taken the database over"):
            await database.write(note("not mine"))
        await other.write(note("theirs"))
        assert await other.read(notes) == ["mine", "theirs"]


async def test_a_database_that_stays_away_is_said_so(
    database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_SECONDS", 0.1)

    def away(self: Any) -> Any:
        raise psycopg.OperationalError("nobody listens there")

    with monkeypatch.context() as patch:
        patch.setattr(postgres.Postgres, "connect", away)
        await asyncio.to_thread(cut_off, postgres_url)
        with pytest.raises(DatabaseLostError, match="cannot be reached"):
            await database.write(note("lost"))
        with pytest.raises(DatabaseLostError, match="cannot be reached"):
            await database.read(notes)
    await database.write(note("back"))
    assert await database.read(notes) == ["back"]


async def test_a_database_that_does_not_keep_what_it_says_is_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_DURABLE", ("fsync", "enable_seqscan"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET enable_seqscan = off")
    with pytest.raises(DatabaseError, match="enable_seqscan = off"):
        await Database.open(postgres_url, SCHEMA)


async def test_a_wrong_url_is_said_so_without_its_password(postgres_url: str) -> None:
    wrong = postgres_url.replace("/test_", "/no_").replace("postgresql://postgres:", "postgresql://postgres:hunter2")
    with pytest.raises(DatabaseError, match=r"no such database|cannot be reached") as raised:
        await Database.open(wrong, SCHEMA)
    assert "hunter2" not in str(raised.value)


async def test_text_that_postgres_cannot_hold_is_kept_with_a_mark(database: Database) -> None:
    await database.write(note("a\0b"))
    assert await database.read(notes) == ["a\ufffdb"]
