"""Forks and snapshots of kept sessions, and snapshots that come from elsewhere."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.corpora.corpus import Corpus
from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.records import Beside
from sandbox.pool.sealing import SnapshotRefused
from sandbox.pool.snapshots import SessionStore, StoreFull
from sandbox.pool.worker_session import SessionClosed
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_hibernation import show
from tests.sandbox.pool.test_kept_sessions import LIMITS, SECRET, file_of, served
from tests.sandbox.pool.test_pool import ignore, run

DRAW = "__import__('random').random(), __import__('uuid').uuid4()"


async def test_forks_go_their_own_ways_and_never_draw_the_same(loaded: Loaded, tmp_path: Path, text: MakeText) -> None:
    corpus = text("some text " * 3000)
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.attach("context", corpus)
        await show(session, f"x = [len(context)]\n_ = open('/tmp/f', 'w').write('f')\n{DRAW}")
        forks = await session.fork(["two", "three"])
        assert pool.live == 1, "they sleep"
        assert all(fork.kept for fork in forks)
        everyone = [session, *forks]
        for number, one in enumerate(everyone):
            await show(one, f"x.append({number}); open('/tmp/f', 'a').write('{number}')")
        for number, one in enumerate(everyone):
            assert await show(one, "x, open('/tmp/f').read(), context[:4]") == repr(
                ([30000, number], f"f{number}", "some")
            )
            assert one.seen == session.seen
        assert len({await show(one, DRAW) for one in everyone}) == 3
        await session.close()
        assert await show(forks[0], "x") == "[30000, 1]"


async def test_a_fork_waits_for_the_turn_that_runs_and_does_not_wake_who_sleeps(loaded: Loaded, tmp_path: Path) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def answer(_: HostCall) -> Json:
        asked.set()
        await go.wait()
        return None

    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        turn = asyncio.create_task(session.execute("import _door\n_door.call('a')\nx = 1", answer, ignore))
        await asked.wait()
        forking = asyncio.create_task(session.fork(["two"]))
        after = asyncio.create_task(run(session, "x = 2"))
        go.set()
        (fork,) = await forking
        await turn
        await after
        assert await show(fork, "x") == "1"
        await session.hibernate()
        (again,) = await session.fork(["three"])
        assert session.checkpoint is None
        assert await show(again, "x") == "2"


async def test_where_one_fork_does_not_fit_there_is_none(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path, stored_bytes=3 * MIB) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "import os; block = os.urandom(500_000)")
        before = sorted(os.listdir(tmp_path))
        assert pool.store is not None
        counted = pool.store.stored_bytes("a")
        with pytest.raises(StoreFull, match="stored_bytes"):
            await session.fork([f"fork{n}" for n in range(8)])
        assert sorted(os.listdir(tmp_path)) == before
        assert pool.store.stored_bytes("a") == counted
        (fork,) = await session.fork(["fork0"])
        assert await show(fork, "len(block)") == "500000"
        await session.close()
        with pytest.raises(SessionClosed):
            await session.fork(["two"])


async def test_a_snapshot_outlives_its_session_and_begins_others(
    loaded: Loaded, tmp_path: Path, text: MakeText
) -> None:
    corpus = text("some text " * 3000)
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.attach("context", corpus)
        await show(session, "x = 1; len(context)")
        size = await session.snapshot("snap", b"a note")
        assert pool.store is not None
        assert size == (tmp_path / "snap.snapshot").stat().st_size
        assert pool.store.stored_bytes("a") == size + file_of(tmp_path, "one").stat().st_size
        await show(session, "x = 2")
        await session.close()
    async with served(loaded, tmp_path) as pool:
        assert pool.store is not None
        pool.store.keep_only_snapshots(["snap"])
        pool.store.count_snapshot("snap", "a")
        assert pool.store.stored_bytes("a") == size
        new = [await pool.create_from("a", "core", LIMITS, "snap", name, (corpus,)) for name in ("two", "three")]
        assert [await show(one, "x += 1; x, context[:4]") for one in new] == ["(2, 'some')"] * 2
        assert len({await show(one, DRAW) for one in new}) == 2
        with pytest.raises(SnapshotRefused, match="other texts"):
            await pool.create_from("a", "core", LIMITS, "snap", "four")
        with pytest.raises(SnapshotRefused, match="somebody else"):
            await pool.create_from("b", "core", LIMITS, "snap", "four", (corpus,))
        with pytest.raises(SnapshotRefused, match="another image"):
            await pool.create_from("a", "data", LIMITS, "snap", "four", (corpus,))
        pool.store.remove_snapshot("snap", "a")
        with pytest.raises(SnapshotRefused, match="nothing is stored"):
            await pool.create_from("a", "core", LIMITS, "snap", "four", (corpus,))


async def test_a_session_is_no_snapshot_and_a_snapshot_no_session(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.snapshot("snap", b"")
        os.link(tmp_path / "snap.snapshot", file_of(tmp_path, "two"))
        os.link(file_of(tmp_path, "one"), tmp_path / "other.snapshot")
        with pytest.raises(SnapshotRefused, match="altered"):
            await run(pool.take_up("a", "core", LIMITS, "two"), "1")
        with pytest.raises(SnapshotRefused, match="altered"):
            await pool.create_from("a", "core", LIMITS, "other", "four")


# ---- from elsewhere --------------------------------------------------------------------------------------------------


def exported(loaded: Loaded, folder: Path, code: str, owner: str = "a", name: str = "snap") -> bytes:
    """Return the file of a snapshot."""
    store = SessionStore(folder, SECRET)
    with closing(Session(loaded.program, loaded.images["core"], LIMITS)) as session:
        assert session.execute(code).error is None
        store.put_snapshot(name, session.checkpoint, owner, Beside(note=b"a note"))
    with store.open_snapshot(name) as file:
        return file.read()


def imported(
    store: SessionStore, loaded: Loaded, data: bytes, *, limits: Limits = LIMITS, corpora: tuple[Corpus, ...] = ()
) -> bytes:
    """Take a file in, in parts, and return its note."""
    with store.incoming("new", "a", loaded.images) as incoming:
        for at in range(0, len(data), 70_000):
            incoming.write(data[at : at + 70_000])
        image, note = incoming.check()
        assert incoming.accept(image, corpora, limits) == len(data)
    return note


async def test_what_was_exported_is_taken_in_again(loaded: Loaded, tmp_path: Path) -> None:
    data = exported(loaded, tmp_path, "x = 5\nblock = bytes(range(256)) * 9000")
    async with served(loaded, tmp_path) as pool:
        store = pool.store
        assert store is not None
        assert imported(store, loaded, data) == b"a note"
        assert store.stored_bytes("a") == len(data)
        assert await show(await pool.create_from("a", "core", LIMITS, "new", "five"), "x, len(block)") == "(5, 2304000)"


Spoil = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", "no stored session"),
        (lambda data: b"PK\x03\x04" + data[4:], "no stored session"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data + b"\0", "cut or added to"),
        (lambda data: data + bytes(100), "altered"),
        (lambda data: data + data, "altered"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "altered"),
    ],
)
def test_a_file_that_was_changed_is_refused_and_leaves_nothing(
    loaded: Loaded, tmp_path: Path, spoil: Spoil, said: str
) -> None:
    data = exported(loaded, tmp_path / "s", "x = 5")
    store = SessionStore(tmp_path / "s", SECRET)
    before = sorted(os.listdir(tmp_path / "s"))
    with pytest.raises(SnapshotRefused, match=said):
        imported(store, loaded, spoil(data))
    assert sorted(os.listdir(tmp_path / "s")) == before
    assert store.stored_bytes("a") == 0


def test_every_byte_of_a_file_from_elsewhere_is_bound(loaded: Loaded, tmp_path: Path) -> None:
    data = exported(loaded, tmp_path, "x = 5")
    store, chance = SessionStore(tmp_path, SECRET), random.Random(3)
    for at in [*range(80), *(chance.randrange(len(data)) for _ in range(150))]:
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SnapshotRefused):
            imported(store, loaded, bytes(changed))


def test_another_owners_or_servers_file_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    others = exported(loaded, tmp_path / "s", "x = 5", owner="b")
    own = exported(loaded, tmp_path / "s", "x = 5", name="mine")
    with pytest.raises(SnapshotRefused, match="somebody else"):
        imported(SessionStore(tmp_path / "s", SECRET), loaded, others)
    with pytest.raises(SnapshotRefused, match="another server"):
        imported(SessionStore(tmp_path / "t", os.urandom(32)), loaded, own)
    newer = {name: replace(image, key=f"{image.key} newer") for name, image in loaded.images.items()}
    with pytest.raises(SnapshotRefused, match="another image"):
        imported(SessionStore(tmp_path / "s", SECRET), replace(loaded, images=newer), own)


def test_what_unpacks_to_more_than_may_be_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    bomb = exported(loaded, tmp_path, "block = bytearray(b'x') * (48 << 20)")
    assert len(bomb) < 2 * MIB
    store = SessionStore(tmp_path, SECRET)
    with pytest.raises(SnapshotRefused, match="memory_bytes"):
        imported(store, loaded, bomb, limits=replace(LIMITS, memory_bytes=44 * MIB))
    files = exported(loaded, tmp_path, "for n in range(9): open(f'/tmp/{n}', 'w').write('x' * 99_000)", name="files")
    with pytest.raises(SnapshotRefused, match="file_bytes"):
        imported(store, loaded, files, limits=replace(LIMITS, file_bytes=500_000))
    with pytest.raises(SnapshotRefused, match=r"files\)"):
        imported(store, loaded, files, limits=replace(LIMITS, files=5))
    imported(store, loaded, files)


def test_a_file_that_does_not_fit_is_refused_while_it_comes(loaded: Loaded, tmp_path: Path) -> None:
    data = exported(loaded, tmp_path / "s", "import os; block = os.urandom(3 << 20)")
    store = SessionStore(tmp_path / "s", SECRET, 1 * MIB)
    with store.incoming("new", "a", loaded.images) as incoming:
        incoming.write(data[:MIB])
        assert store.stored_bytes("a") == MIB
        with pytest.raises(StoreFull, match="stored_bytes"):
            incoming.write(data[MIB : 2 * MIB])
    assert store.stored_bytes("a") == 0
    assert not any("new" in name for name in os.listdir(tmp_path / "s"))
