"""A key belongs to one tenant until it is revoked, and cannot be learnt from what is kept."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseLostError
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.tenants import Tenants, TenantUnknown


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "rlm.sqlite", MIGRATIONS) as database:
        for tenant in ("acme", "globex"):
            await Tenants(database).ensure(tenant)
        yield database


async def made(keys: Keys, tenant: str) -> str:
    """A new key of a tenant's, as it is handed out."""
    return (await keys.create(tenant))[1]


async def owner(keys: Keys, key: str) -> str | None:
    """Whose key it is, if it is anybody's."""
    holder = await keys.holder_of(key)
    return None if holder is None else holder.tenant


async def revoke(database: Database, key: str) -> None:
    sha256 = hashlib.sha256(key.encode()).hexdigest()

    def write(connection: Connection) -> int:
        return connection.execute("UPDATE api_key SET revoked_at = ? WHERE sha256 = ?", (now(), sha256)).rowcount

    assert await database.write(write) == 1


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_key_says_whose_it_is(database: Database) -> None:
    keys = Keys(database)
    acme, globex, second = await made(keys, "acme"), await made(keys, "globex"), await made(keys, "acme")
    assert len({acme, globex, second}) == 3
    assert [await owner(keys, key) for key in (acme, globex, second)] == ["acme", "globex", "acme"]


async def test_keys_made_at_once_are_all_good(database: Database) -> None:
    keys = Keys(database)
    together = await asyncio.gather(*(made(keys, "acme") for _ in range(20)))
    assert len(set(together)) == 20
    assert {await owner(keys, key) for key in together} == {"acme"}


async def test_a_key_has_256_random_bits_behind_a_prefix_that_scanners_know(database: Database) -> None:
    assert re.fullmatch(r"rlm_[A-Za-z0-9_-]{43}", await made(Keys(database), "acme"))


async def test_an_unknown_key_is_nobodys(database: Database) -> None:
    keys = Keys(database)
    key = await made(keys, "acme")
    stored = hashlib.sha256(key.encode()).hexdigest()
    for wrong in ("", "rlm_", "acme", stored, key[:10], key[:-1], key + "x", key.swapcase(), " " + key, "%", "\0"):
        assert await owner(keys, wrong) is None, wrong
    assert await owner(keys, "rlm_\ud800") is None, "a header may hold half a surrogate pair"


async def test_a_revoked_key_is_nobodys_and_the_tenants_others_stay_good(database: Database) -> None:
    keys = Keys(database)
    revoked, other = await made(keys, "acme"), await made(keys, "acme")
    await revoke(database, revoked)
    assert await owner(keys, revoked) is None
    assert await owner(keys, other) == "acme"


async def test_no_key_is_made_for_a_tenant_that_does_not_exist(database: Database) -> None:
    with pytest.raises(TenantUnknown, match="there is no tenant 'nobody'"):
        await made(Keys(database), "nobody")


async def test_only_a_keys_hash_and_its_first_characters_are_kept(tmp_path: Path, database: Database) -> None:
    key = await made(Keys(database), "acme")
    query = "SELECT id, sha256, prefix, tenant, created_at, revoked_at FROM api_key"
    ((id, sha256, prefix, tenant, created_at, revoked_at),) = await database.read(
        lambda db: db.execute(query).fetchall()
    )
    assert id[4:] not in (sha256, key)
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
        good, revoked = await made(Keys(database), "acme"), await made(Keys(database), "acme")
        await revoke(database, revoked)
    async with await Database.open(path, MIGRATIONS) as database:
        assert await owner(Keys(database), good) == "acme"
        assert await owner(Keys(database), revoked) is None


@pytest.mark.parametrize("known_by", ["key", "name"])
async def test_calls_that_come_at_once_are_looked_up_together_and_none_is_told_what_was_so_before(
    database: Database, monkeypatch: pytest.MonkeyPatch, known_by: str
) -> None:
    keys = Keys(database)
    key = await made(keys, "acme")

    async def caller() -> str | None:
        holder = await (keys.holder_of(key) if known_by == "key" else keys.holder_named("acme"))
        return None if holder is None else holder.tenant

    assert await caller() == "acme"
    reads, begun, going_on, read = 0, asyncio.Event(), asyncio.Event(), database.read

    async def slow(function: Callable[[Connection], Any]) -> Any:
        nonlocal reads
        reads += 1
        owner = await read(function)
        begun.set()
        await going_on.wait()
        return owner

    monkeypatch.setattr(database, "read", slow)
    first = asyncio.create_task(caller())
    await begun.wait()
    if known_by == "key":
        await revoke(database, key)
    else:
        await Tenants(database).delete("acme", force=True)
    later = [asyncio.create_task(caller()) for _ in range(500)]
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
    key = await made(keys, "acme")
    assert await owner(keys, key) == "acme"
    read = database.read

    async def failing(function: Callable[[Connection], Any]) -> Any:
        monkeypatch.setattr(database, "read", read)
        raise DatabaseLostError("it is away")

    monkeypatch.setattr(database, "read", failing)
    told = await asyncio.gather(*(owner(keys, key) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [DatabaseLostError, str, str]


async def test_when_keys_were_used_is_written_down_later_where_the_database_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(database)
    key = await made(keys, "acme")
    await owner(keys, key)

    async def failing(function: Callable[[Connection], Any]) -> Any:
        raise DatabaseLostError("it is away")

    with monkeypatch.context() as away:
        away.setattr(database, "write", failing)
        with pytest.raises(DatabaseLostError):
            await keys.record_use()
    await keys.record_use()
    (kept,) = await keys.page("acme", 0, 1)
    assert kept.used_at is not None
