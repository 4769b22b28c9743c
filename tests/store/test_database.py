"""One owner, whole writes, and no answer before it is durable."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rlm_server.store.database import (
    Database,
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseOwnedError,
    DatabaseVersionError,
)

SCHEMA = ("CREATE TABLE note (text TEXT NOT NULL UNIQUE) STRICT;",)


def note(text: str) -> Callable[[sqlite3.Connection], str]:
    def insert(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO note VALUES (?)", (text,))
        return text

    return insert


def notes(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY rowid")]


def notes_on_disk(path: Path) -> list[str]:
    """What another connection sees: committed work alone."""
    connection = sqlite3.connect(path)
    try:
        return notes(connection)
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with await Database.open(path, SCHEMA, busy_timeout=0.05) as opened:
        yield opened


class Gate:
    """A write that occupies the writer until it is opened, so that what follows forms one group."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.entered.set()
        assert self.opened.wait(timeout=30)


async def occupied(database: Database) -> tuple[Gate, asyncio.Future[None]]:
    gate = Gate()
    waiting = database.submit(gate)
    assert await asyncio.to_thread(gate.entered.wait, 30)
    return gate, waiting


async def test_an_answered_write_is_committed(database: Database, path: Path) -> None:
    assert await database.write(note("a")) == "a"
    assert notes_on_disk(path) == ["a"]


async def test_a_read_sees_every_write_answered_before(database: Database) -> None:
    for text in "abc":
        await database.write(note(text))
        assert (await database.read(notes))[-1] == text


async def test_writes_run_in_the_order_they_were_submitted(database: Database) -> None:
    texts = [str(number) for number in range(600)]
    await asyncio.gather(*(database.write(note(text)) for text in texts))
    assert await database.read(notes) == texts


async def test_writes_that_wait_together_share_one_commit_and_none_is_answered_before_it(
    database: Database, path: Path
) -> None:
    gate, first = await occupied(database)
    second_gate = Gate()
    group = [database.submit(note("a")), database.submit(note("b"))]
    last = database.submit(second_gate)
    gate.opened.set()
    await first
    assert await asyncio.to_thread(second_gate.entered.wait, 30)
    assert notes_on_disk(path) == []
    assert not any(write.done() for write in group)
    second_gate.opened.set()
    await asyncio.gather(*group, last)
    assert notes_on_disk(path) == ["a", "b"]


async def test_a_failed_write_undoes_its_own_work_and_nothing_of_its_groups(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        note("half")(connection)
        raise ValueError("no further")

    gate, _ = await occupied(database)
    writes: list[Callable[[sqlite3.Connection], str | None]] = [note("a"), half, note("a"), note("b")]
    group = [database.submit(write) for write in writes]
    gate.opened.set()
    answers = await asyncio.gather(*group, return_exceptions=True)
    assert [type(answer) for answer in answers] == [str, ValueError, sqlite3.IntegrityError, str]
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

    def two(connection: sqlite3.Connection) -> None:
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


async def test_a_full_disk_is_said_so_and_leaves_nothing_half_done(database: Database) -> None:
    await database.write(note("before"))

    def fill(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
        note("small")(connection)
        note("x" * 1_000_000)(connection)

    with pytest.raises(DatabaseFullError, match="free some space"):
        await database.write(fill)
    assert await database.read(notes) == ["before"]
    await database.write(note("after"))
    assert await database.read(notes) == ["before", "after"]


async def test_a_foreign_lock_is_said_so_and_leaves_nothing_half_done(database: Database, path: Path) -> None:
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    try:
        answers = await asyncio.gather(*(database.write(note(text)) for text in "ab"), return_exceptions=True)
    finally:
        foreign.close()
    assert [type(answer) for answer in answers] == [DatabaseBusyError, DatabaseBusyError]
    assert await database.read(notes) == []
    await database.write(note("a"))


async def test_a_function_that_ends_the_transaction_is_refused(database: Database) -> None:
    def rogue(connection: sqlite3.Connection) -> None:
        note("rogue")(connection)
        connection.execute("ROLLBACK")

    with pytest.raises(DatabaseError, match="transaction"):
        await database.write(rogue)
    await database.write(note("after"))
    assert await database.read(notes) == ["after"]


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseError):
        await database.read(note("a"))


async def test_a_read_is_one_snapshot(database: Database) -> None:
    gate = Gate()

    def twice(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
        before = notes(connection)
        gate(connection)
        return before, notes(connection)

    reading = asyncio.create_task(database.read(twice))
    assert await asyncio.to_thread(gate.entered.wait, 30)
    await database.write(note("meanwhile"))
    gate.opened.set()
    assert await reading == ([], [])


async def test_closing_finishes_what_is_queued(path: Path) -> None:
    database = await Database.open(path, SCHEMA)
    queued = [database.submit(note(str(number))) for number in range(500)]
    await database.close()
    await database.close()
    assert len(await asyncio.gather(*queued)) == 500
    assert len(notes_on_disk(path)) == 500
    with pytest.raises(DatabaseClosedError):
        await database.write(note("late"))
    with pytest.raises(DatabaseClosedError):
        await database.read(notes)


async def test_a_second_owner_is_refused_by_any_name_of_the_file(database: Database, path: Path) -> None:
    alias = path.with_name("alias.db")
    alias.symlink_to(path)
    for name in (path, alias):
        with pytest.raises(DatabaseOwnedError, match="already open"):
            await Database.open(name, SCHEMA)


def in_another_process(path: Path, body: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import asyncio, os, sys
from rlm_server.store.database import Database
async def main():
    database = await Database.open({str(path)!r}, {SCHEMA!r})
    {body}
asyncio.run(main())
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


async def test_a_second_process_is_refused_and_told_who_owns_the_file(database: Database, path: Path) -> None:
    other = await asyncio.to_thread(in_another_process, path, "pass")
    assert other.returncode != 0
    assert "DatabaseOwnedError" in other.stderr
    assert "by process" in other.stderr


async def test_an_answered_write_survives_the_death_of_its_process(path: Path) -> None:
    body = """await database.write(lambda c: c.execute("INSERT INTO note VALUES ('answered')") and None)
    os.kill(os.getpid(), 9)"""
    assert (await asyncio.to_thread(in_another_process, path, body)).returncode == -9
    async with await Database.open(path, SCHEMA) as database:
        assert await database.read(notes) == ["answered"]


async def test_a_file_is_brought_up_to_date_once(path: Path) -> None:
    async with await Database.open(path, SCHEMA) as database:
        await database.write(note("old"))
    newer = (*SCHEMA, "ALTER TABLE note ADD COLUMN at INTEGER; UPDATE note SET at = 7;")
    for _ in range(2):
        async with await Database.open(path, newer) as database:
            assert await database.read(lambda c: c.execute("SELECT * FROM note").fetchall()) == [("old", 7)]
    with pytest.raises(DatabaseVersionError, match="version 2"):
        await Database.open(path, SCHEMA)


async def test_a_broken_migration_changes_nothing(path: Path) -> None:
    async with await Database.open(path, SCHEMA):
        pass
    with pytest.raises(sqlite3.OperationalError):
        await Database.open(path, (*SCHEMA, "CREATE TABLE extra (x); CREATE NONSENSE;"))
    async with await Database.open(path, (*SCHEMA, "CREATE TABLE extra (x);")) as database:
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM extra").fetchone()) == (0,)


async def test_what_is_not_a_database_is_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_text, "certainly not a database, whatever it is called" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        await Database.open(path, SCHEMA)


async def test_a_missing_directory_is_refused(path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be opened"):
        await Database.open(path / "missing" / "notes.db", SCHEMA)


async def test_foreign_keys_are_enforced_and_commits_reach_the_disk(database: Database) -> None:
    def settings(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.write(settings) == ["wal", 2, 1]  # 2 is FULL


async def test_only_its_owner_may_read_the_file(database: Database, path: Path) -> None:
    await database.write(note("private"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
