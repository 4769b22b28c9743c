"""A key belongs to one tenant until it is revoked, and cannot be learnt from what is kept."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseLostError
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.tenants import Tenants


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "rlm.sqlite", MIGRATIONS) as database:
        for tenant in ("acme", "globex"):
            await Tenants(database).ensure(tenant)
        yield database


async def revoke(database: Database, key: str) -> None:
    sha256 = hashlib.sha256(key.encode()).hexdigest()

    def write(connection: Connection) -> int:
        return connection.execute("UPDATE api_key SET revoked_at = ? WHERE sha256 = ?", (now(), sha256)).rowcount

    assert await database.write(write) == 1


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_key_says_whose_it_is(database: Database) -> None:
    keys = Keys(database)
    acme, globex, second = await keys.create("acme"), await keys.create("globex"), await keys.create("acme")
    assert len({acme, globex, second}) == 3
    assert [await keys.tenant_of(key) for key in (acme, globex, second)] == ["acme", "globex", "acme"]


async def test_keys_made_at_once_are_all_good(database: Database) -> None:
    keys = Keys(database)
    made = await asyncio.gather(*(keys.create("acme") for _ in range(20)))
    assert len(set(made)) == 20
    assert {await keys.tenant_of(key) for key in made} == {"acme"}


async def test_a_key_has_256_random_bits_behind_a_prefix_that_scanners_know(database: Database) -> None:
    assert re.fullmatch(r"rlm_[A-Za-z0-9_-]{43}", await Keys(database).create("acme"))


async def test_an_unknown_key_is_nobodys(database: Database) -> None:
    keys = Keys(database)
    key = await keys.create("acme")
    stored = hashlib.sha256(key.encode()).hexdigest()
    for wrong in ("", "rlm_", "acme", stored, key[:10], key[:-1], key + "x", key.swapcase(), " " + key, "%", "\0"):
        assert await keys.tenant_of(wrong) is None, wrong
    assert await keys.tenant_of("rlm_\ud800") is None, "a header may hold half a surrogate pair"


async def test_a_revoked_key_is_nobodys_and_the_tenants_others_stay_good(database: Database) -> None:
    keys = Keys(database)
    revoked, other = await keys.create("acme"), await keys.create("acme")
    await revoke(database, revoked)
    assert await keys.tenant_of(revoked) is None
    assert await keys.tenant_of(other) == "acme"


async def test_no_key_is_made_for_a_tenant_that_does_not_exist(database: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await Keys(database).create("nobody")


async def test_only_a_keys_hash_and_its_first_characters_are_kept(tmp_path: Path, database: Database) -> None:
    key = await Keys(database).create("acme")
    (row,) = await database.read(lambda db: db.execute("SELECT * FROM api_key").fetchall())
    sha256, prefix, tenant, created_at, revoked_at = row
    assert (sha256, prefix) == (hashlib.sha256(key.encode()).hexdigest(), key[:10])
    assert (tenant, revoked_at) == ("acme", None)
    assert 0 <= now() - created_at < 60_000
    on_disk = everything_in(tmp_path)
    assert prefix.encode() in on_disk
    assert key[10:].encode() not in on_disk


async def test_keys_outlive_the_server(tmp_path: Path) -> None:
    path = tmp_path / "rlm.sqlite"
    async with await Database.open(path, MIGRATIONS) as database:
        await Tenants(database).ensure("acme")
        good, revoked = await Keys(database).create("acme"), await Keys(database).create("acme")
        await revoke(database, revoked)
    async with await Database.open(path, MIGRATIONS) as database:
        assert await Keys(database).tenant_of(good) == "acme"
        assert await Keys(database).tenant_of(revoked) is None


async def test_calls_that_come_at_once_are_looked_up_together_and_none_is_told_what_was_so_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(database)
    key = await keys.create("acme")
    assert await keys.tenant_of(key) == "acme"
    reads, begun, going_on, read = 0, asyncio.Event(), asyncio.Event(), database.read

    async def slow(function: Callable[[Connection], str | None]) -> str | None:
        nonlocal reads
        reads += 1
        begun.set()
        owner = await read(function)
        await going_on.wait()
        return owner

    monkeypatch.setattr(database, "read", slow)
    first = asyncio.create_task(keys.tenant_of(key))
    await begun.wait()
    await revoke(database, key)
    later = [asyncio.create_task(keys.tenant_of(key)) for _ in range(500)]
    await asyncio.sleep(0)
    later[0].cancel()
    going_on.set()
    assert await first == "acme"
    assert set(await asyncio.gather(*later[1:])) == {None}
    assert reads == 2


async def test_a_look_up_that_fails_is_made_again_for_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(database)
    key = await keys.create("acme")
    assert await keys.tenant_of(key) == "acme"
    read = database.read

    async def failing(function: Callable[[Connection], str | None]) -> str | None:
        monkeypatch.setattr(database, "read", read)
        raise DatabaseLostError("it is away")

    monkeypatch.setattr(database, "read", failing)
    told = await asyncio.gather(*(keys.tenant_of(key) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [DatabaseLostError, str, str]
