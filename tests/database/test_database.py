"""One owner, whole writes, and no answer before it is durable."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rlm_server.database.database import GROUP_SECONDS, Database
from rlm_server.database.engine import (
    Connection,
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseError,
    DatabaseOwnedError,
    DatabaseVersionError,
)
from rlm_server.shares.host_time import HostTime, charged

SCHEMA = ("CREATE TABLE note (number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE) STRICT;",)


def note(text: str) -> Callable[[Connection], str]:
    def insert(connection: Connection) -> str:
        connection.execute("INSERT INTO note (text) VALUES (?)", (text,))
        return text

    return insert


def notes(connection: Any) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY number")]


def notes_kept(at: str | Path) -> list[str]:
    """What a foreign connection sees: committed work alone."""
    with closing(sqlite3.connect(at) if isinstance(at, Path) else psycopg.connect(at)) as connection:
        return notes(connection)


@pytest.fixture
async def database(database_at: str | Path) -> AsyncIterator[Database]:
    async with await Database.open(database_at, SCHEMA, busy_timeout=0.05) as opened:
        yield opened


class Gate:
    """A write that occupies the writer until it is opened, so that what follows forms one group."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.entered.set()
        assert self.opened.wait(timeout=30)


async def occupied(database: Database) -> tuple[Gate, asyncio.Future[None]]:
    gate = Gate()
    waiting = database.submit(gate)
    assert await asyncio.to_thread(gate.entered.wait, 30)
    return gate, waiting


async def test_an_answered_write_is_committed(database: Database, database_at: str | Path) -> None:
    assert await database.write(note("a")) == "a"
    assert notes_kept(database_at) == ["a"]


async def test_a_read_sees_every_write_answered_before(database: Database) -> None:
    for text in "abc":
        await database.write(note(text))
        assert (await database.read(notes))[-1] == text


async def test_writes_run_in_the_order_they_were_submitted(database: Database) -> None:
    texts = [str(number) for number in range(600)]
    await asyncio.gather(*(database.write(note(text)) for text in texts))
    assert await database.read(notes) == texts


async def test_writes_that_wait_together_share_one_commit_and_none_is_answered_before_it(
    database: Database, database_at: str | Path
) -> None:
    gate, first = await occupied(database)
    second_gate = Gate()
    group = [database.submit(note("a")), database.submit(note("b"))]
    last = database.submit(second_gate)
    gate.opened.set()
    await first
    assert await asyncio.to_thread(second_gate.entered.wait, 30)
    assert notes_kept(database_at) == []
    assert not any(write.done() for write in group)
    second_gate.opened.set()
    await asyncio.gather(*group, last)
    assert notes_kept(database_at) == ["a", "b"]


async def test_a_patient_write_is_committed_with_the_next_one_and_before_it(
    database: Database, database_at: str | Path
) -> None:
    before = database.commits
    patient = database.submit(note("patient"), patience=600)
    await database.write(note("next"))
    assert patient.done()
    assert (database.commits - before, notes_kept(database_at)) == (1, ["patient", "next"])


async def test_a_patient_write_that_nothing_follows_is_committed_when_its_patience_is_over(database: Database) -> None:
    async with asyncio.timeout(30):
        assert await database.write(note("alone"), patience=0.01) == "alone"


async def test_patient_writes_can_be_hurried(database: Database) -> None:
    before = database.commits
    patient = [database.submit(note(text), patience=600) for text in "ab"]
    database.hurry()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*patient) == ["a", "b"]
    assert database.commits == before + 1


async def test_a_failed_write_undoes_its_own_work_and_nothing_of_its_groups(database: Database) -> None:
    def half(connection: Connection) -> None:
        note("half")(connection)
        raise ValueError("no further")

    def exhausted(connection: Connection) -> None:
        note("exhausted")(connection)
        next(iter(()))

    gate, _ = await occupied(database)
    writes: list[Callable[[Connection], str | None]] = [note("a"), half, note("a"), exhausted, note("b")]
    group = [database.submit(write) for write in writes]
    gate.opened.set()
    answers = await asyncio.gather(*group, return_exceptions=True)
    assert [isinstance(answer, str) for answer in answers] == [True, False, False, False, True]
    assert isinstance(answers[1], ValueError)
    assert isinstance(answers[2], sqlite3.IntegrityError | psycopg.IntegrityError)
    assert isinstance(answers[3], RuntimeError)
    assert await database.read(notes) == ["a", "b"]


async def test_a_write_cancelled_while_queued_does_not_run(database: Database) -> None:
    gate, _ = await occupied(database)
    write = database.submit(note("cancelled"))
    write.cancel()
    await asyncio.sleep(0)  # the cancellation reaches the queue by a callback
    gate.opened.set()
    await database.write(note("next"))
    assert await database.read(notes) == ["next"]


async def test_a_write_cancelled_while_it_runs_is_done_as_a_whole(database: Database) -> None:
    gate = Gate()

    def two(connection: Connection) -> None:
        note("one")(connection)
        gate(connection)
        note("two")(connection)

    task = asyncio.create_task(database.write(two))
    assert await asyncio.to_thread(gate.entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.opened.set()
    await database.write(note("next"))
    assert await database.read(notes) == ["one", "two", "next"]


async def test_a_function_that_ends_the_transaction_is_refused(database: Database) -> None:
    def rogue(connection: Connection) -> None:
        note("rogue")(connection)
        connection.execute("ROLLBACK")

    with pytest.raises(DatabaseError, match="transaction"):
        await database.write(rogue)
    await database.write(note("after"))
    assert await database.read(notes) == ["after"]


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseError, match="cannot be written"):
        await database.read(note("a"))


async def test_a_read_is_one_snapshot(database: Database) -> None:
    gate = Gate()

    def twice(connection: Connection) -> tuple[list[str], list[str]]:
        before = notes(connection)
        gate(connection)
        return before, notes(connection)

    reading = asyncio.create_task(database.read(twice))
    assert await asyncio.to_thread(gate.entered.wait, 30)
    await database.write(note("meanwhile"))
    gate.opened.set()
    assert await reading == ([], [])


async def test_closing_finishes_what_is_queued(database_at: str | Path) -> None:
    database = await Database.open(database_at, SCHEMA)
    queued = [database.submit(note(str(number))) for number in range(500)]
    await database.close()
    await database.close()
    assert len(await asyncio.gather(*queued)) == 500
    assert len(notes_kept(database_at)) == 500
    with pytest.raises(DatabaseClosedError):
        await database.write(note("late"))
    with pytest.raises(DatabaseClosedError):
        await database.read(notes)


async def test_closing_does_not_wait_for_patience_to_be_over(database_at: str | Path) -> None:
    async with asyncio.timeout(30), await Database.open(database_at, SCHEMA) as database:
        patient = database.submit(note("a"), patience=600)
    assert await patient == "a"
    assert notes_kept(database_at) == ["a"]


async def test_a_file_is_brought_up_to_date_once(database_at: str | Path) -> None:
    async with await Database.open(database_at, SCHEMA) as database:
        await database.write(note("old"))
    newer = (*SCHEMA, "ALTER TABLE note ADD COLUMN at INTEGER; UPDATE note SET at = 7;")
    for _ in range(2):
        async with await Database.open(database_at, newer) as database:
            assert await database.read(lambda c: c.execute("SELECT * FROM note").fetchall()) == [(1, "old", 7)]
    with pytest.raises(DatabaseVersionError, match="version 2"):
        await Database.open(database_at, SCHEMA)


async def test_a_second_owner_is_refused(database: Database, database_at: str | Path) -> None:
    with pytest.raises(DatabaseOwnedError):
        await Database.open(database_at, SCHEMA, busy_timeout=0.05)
    await database.write(note("still the owner's"))


async def test_every_owner_has_an_epoch_of_its_own(database_at: str | Path) -> None:
    epochs = []
    for _ in range(3):
        async with await Database.open(database_at, SCHEMA) as database:
            epochs.append(database.epoch)
    assert epochs == sorted(set(epochs))


async def test_a_broken_migration_changes_nothing(database_at: str | Path) -> None:
    async with await Database.open(database_at, SCHEMA):
        pass
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.SyntaxError)):
        await Database.open(database_at, (*SCHEMA, "CREATE TABLE extra (x INTEGER); CREATE NONSENSE;"))
    async with await Database.open(database_at, (*SCHEMA, "CREATE TABLE extra (x INTEGER);")) as database:
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM extra").fetchone()) == (0,)


async def test_a_foreign_lock_is_said_so_and_leaves_nothing_half_done(
    database: Database, database_at: str | Path
) -> None:
    lock = "BEGIN IMMEDIATE" if isinstance(database_at, Path) else "LOCK TABLE note"
    foreign: Any = sqlite3.connect(database_at, isolation_level=None) if isinstance(database_at, Path) else None
    foreign = foreign or psycopg.connect(str(database_at))
    foreign.execute(lock)
    try:
        answers = await asyncio.gather(*(database.write(note(text)) for text in "ab"), return_exceptions=True)
    finally:
        foreign.close()
    assert [type(answer) for answer in answers] == [DatabaseBusyError, DatabaseBusyError]
    assert await database.read(notes) == []
    await database.write(note("a"))


async def test_numbers_and_texts_come_back_as_they_were(database: Database) -> None:
    def there_and_back(connection: Connection) -> tuple[Any, ...]:
        note("percent % and question ? and naïve 🙂 and \ud83d\ude42"[:-2])(connection)
        (text,) = connection.execute("SELECT text FROM note WHERE text LIKE '%naïve%' AND number >= ?", (1,)).fetchone()
        (sums,) = connection.execute("SELECT sum(number) + ? FROM note", (2**62,)).fetchone()
        return text, sums

    assert await database.write(there_and_back) == ("percent % and question ? and naïve 🙂 and ", 2**62 + 1)


async def test_a_write_does_not_wait_for_all_those_of_another_owner(database: Database) -> None:
    gate, first = await occupied(database)
    ran: list[str] = []
    many = [database.submit(lambda _: ran.append("many"), owner="many") for _ in range(1_000)]
    one = database.submit(lambda _: ran.append("one"), owner="one")
    gate.opened.set()
    await one
    assert ran.index("one") <= 1
    await asyncio.gather(first, *many)


async def test_a_group_that_took_long_is_committed_though_more_of_another_owner_waits(database: Database) -> None:
    def slow(_: Connection) -> None:
        time.sleep(GROUP_SECONDS)

    gate, _ = await occupied(database)
    many = [database.submit(slow, owner="many") for _ in range(20)]
    one = database.submit(note("one"), owner="one")
    gate.opened.set()
    await one
    assert not all(write.done() for write in many)
    await asyncio.gather(*many)


async def test_a_write_is_by_default_of_whom_the_present_work_is_charged_to(database: Database) -> None:
    gate, _ = await occupied(database)
    ran: list[str] = []

    async def write_as(tenant: str, times: int) -> None:
        with charged(HostTime(tenant=tenant)):
            await asyncio.gather(*(database.write(lambda _: ran.append(tenant)) for _ in range(times)))

    async with asyncio.TaskGroup() as both:
        both.create_task(write_as("many", 300))
        both.create_task(write_as("one", 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.opened.set()
    assert ran.index("one") < 300
