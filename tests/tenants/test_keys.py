"""A key belongs to one tenant until it is revoked, and cannot be learnt from what is kept."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
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
