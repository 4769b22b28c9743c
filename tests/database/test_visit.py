"""A command works on a database beside the server that owns it, and neither loses what the other writes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseOwnedError, DatabaseVersionError
from rlm_server.database.migrations import MIGRATIONS

COUNT = "CREATE TABLE counted (number INTEGER NOT NULL) STRICT; INSERT INTO counted VALUES (0);"


def add(connection: Connection) -> None:
    """Read and write in two steps, as the ledger does."""
    (number,) = connection.execute("SELECT number FROM counted").fetchone()
    connection.execute("UPDATE counted SET number = ?", (number + 1,))


def counted(connection: Connection) -> int:
    (number,) = connection.execute("SELECT number FROM counted").fetchone()
    return int(number)


async def test_owner_and_visitor_lose_nothing_of_what_the_other_writes(database_at: str | Path) -> None:
    async with (
        await Database.open(database_at, [COUNT]) as owner,
        await Database.visit(database_at, [COUNT]) as first,
        await Database.visit(database_at, [COUNT]) as second,
    ):
        await asyncio.gather(*(database.write(add) for _ in range(40) for database in (owner, first, second)))
        assert [await database.read(counted) for database in (owner, first, second)] == [120] * 3
        await owner.write(add)


async def visit(at: str) -> None:
    """What a command does in a process of its own: it writes, and says what is there."""
    async with await Database.visit(at if "://" in at else Path(at), [COUNT]) as visitor:
        await visitor.write(add)
        print(await visitor.read(counted))


async def test_an_owner_and_visitors_of_other_processes_see_all_that_the_other_writes(database_at: str | Path) -> None:
    async with await Database.open(database_at, [COUNT]) as owner:
        for before in (0, 2, 4):
            await owner.write(add)
            visitor = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.database.test_visit", str(database_at)), stdout=asyncio.subprocess.PIPE
            )
            told, _ = await visitor.communicate()
            assert int(told) == before + 2
            assert await owner.read(counted) == before + 2
    async with await Database.open(database_at, [COUNT]) as owner:
        assert await owner.read(counted) == 6


async def test_what_a_visitor_refuses_is_undone(database_at: str | Path) -> None:
    def refuse(connection: Connection) -> None:
        add(connection)
        raise ValueError("no")

    async with (
        await Database.open(database_at, [COUNT]) as owner,
        await Database.visit(database_at, [COUNT]) as visitor,
    ):
        with pytest.raises(ValueError, match="no"):
            await visitor.write(refuse)
        await visitor.write(add)
        assert await owner.read(counted) == 1


async def test_what_a_visitor_reads_is_of_one_moment(database_at: str | Path) -> None:
    loop = asyncio.get_running_loop()

    def twice(connection: Connection) -> tuple[int, int]:
        first = counted(connection)
        asyncio.run_coroutine_threadsafe(owner.write(add), loop).result(60)
        return first, counted(connection)

    async with (
        await Database.open(database_at, [COUNT]) as owner,
        await Database.visit(database_at, [COUNT]) as visitor,
    ):
        assert await visitor.read(twice) == (0, 0)
        assert await visitor.read(counted) == 1


async def test_a_visit_is_no_new_owner(database_at: str | Path) -> None:
    async with await Database.open(database_at, [COUNT]) as owner:
        epoch = owner.epoch
        await (await Database.visit(database_at, [COUNT])).close()
        await owner.write(add)
    async with await Database.open(database_at, [COUNT]) as owner:
        assert owner.epoch == epoch + 1


async def test_a_visitor_makes_what_is_missing_and_brings_what_is_old_up_to_date_where_no_server_has_it(
    database_at: str | Path,
) -> None:
    async with await Database.visit(database_at, MIGRATIONS[:3]) as visitor:
        assert await visitor.read(lambda db: db.execute("SELECT count(*) FROM tenant").fetchone()) == (0,)
    async with await Database.open(database_at, MIGRATIONS[:3]):
        with pytest.raises(DatabaseOwnedError):
            await Database.visit(database_at, MIGRATIONS, busy_timeout=0.2)
    async with await Database.visit(database_at, MIGRATIONS) as visitor:
        assert await visitor.read(lambda db: db.execute("SELECT number FROM tenant_version").fetchone()) == (0,)
    with pytest.raises(DatabaseVersionError, match="use a newer one"):
        await Database.visit(database_at, MIGRATIONS[:3])


if __name__ == "__main__":
    asyncio.run(visit(sys.argv[1]))
