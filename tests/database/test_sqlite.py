"""What is SQLite's own: one file, one owner of it, a full disk, what its files may be read by."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError, DatabaseFullError, DatabaseOwnedError
from tests.database.test_database import SCHEMA, note, notes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with await Database.open(path, SCHEMA, busy_timeout=0.05) as opened:
        yield opened


async def test_a_full_disk_is_said_so_and_leaves_nothing_half_done(database: Database) -> None:
    await database.write(note("before"))

    def fill(connection: Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
        note("small")(connection)
        note("x" * 1_000_000)(connection)

    with pytest.raises(DatabaseFullError, match="free some space"):
        await database.write(fill)
    assert await database.read(notes) == ["before"]
    await database.write(note("after"))
    assert await database.read(notes) == ["before", "after"]


async def test_a_second_owner_is_refused_by_any_name_of_the_file(database: Database, path: Path) -> None:
    alias = path.with_name("alias.db")
    alias.symlink_to(path)
    for name in (path, alias):
        with pytest.raises(DatabaseOwnedError, match="already open"):
            await Database.open(name, SCHEMA)


def in_another_process(path: Path, body: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import asyncio, os, sys
from rlm_server.database.database import Database
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
    body = """await database.write(lambda c: c.execute("INSERT INTO note (text) VALUES ('answered')") and None)
    os.kill(os.getpid(), 9)"""
    assert (await asyncio.to_thread(in_another_process, path, body)).returncode == -9
    async with await Database.open(path, SCHEMA) as database:
        assert await database.read(notes) == ["answered"]


async def test_what_is_not_a_database_is_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_text, "certainly not a database, whatever it is called" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        await Database.open(path, SCHEMA)


async def test_a_missing_directory_is_refused(path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be opened"):
        await Database.open(path / "missing" / "notes.db", SCHEMA)


async def test_foreign_keys_are_enforced_and_commits_reach_the_disk(database: Database) -> None:
    def settings(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.write(settings) == ["wal", 2, 1]  # 2 is FULL


async def test_only_its_owner_may_read_the_file(database: Database, path: Path) -> None:
    await database.write(note("private"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
