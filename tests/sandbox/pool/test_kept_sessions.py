"""Sessions that are kept: after each turn their state is in a file, from which another process goes on."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool import session_file
from sandbox.pool.pool import WorkerPool
from sandbox.pool.sealing import HEADER, SnapshotRefused
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_hibernation import show
from tests.sandbox.pool.test_pool import ignore, nobody, run

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
SECRET = secrets.token_bytes(32)


@asynccontextmanager
async def served(loaded: Loaded, folder: Path, *, secret: bytes = SECRET, **options: Any) -> AsyncIterator[WorkerPool]:
    """A pool, as one process has it. Leaving it is the process's end in order."""
    store = SessionStore(folder, secret, options.pop("stored_bytes", 1 << 40))
    pool = WorkerPool(loaded, spares=0, store=store, **{"sessions": 4, **options})
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), 60)


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.session"


def killed(folder: Path, name: str, into: Path) -> Path:
    """Return a folder as it would be if the process were killed now."""
    into.mkdir()
    shutil.copy(file_of(folder, name), file_of(into, name))
    return into


def taken_up(loaded: Loaded, folder: Path, name: str, code: str) -> str:
    """Return what code prints in a session as its file has it."""
    store, image = SessionStore(folder, SECRET), loaded.images["core"]
    read = store.get(store.find(name, "a", image), "a", image, ())
    with closing(Session(loaded.program, read.checkpoint, LIMITS)) as session:
        turn = session.execute(code)
    assert turn.error is None, turn
    return turn.stdout.removesuffix("\n")


async def test_a_turn_that_was_told_as_finished_is_in_the_file(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path / "s") as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        assert taken_up(loaded, killed(tmp_path / "s", "one", tmp_path / "new"), "one", "sorted(globals())") != ""
        await show(
            session,
            "x = {'a': [1]}\nf = open('/tmp/f', 'w+')\n_ = f.write('hi'); f.flush()\nblock = bytearray(6 << 20)",
        )
        for n in range(5):
            await show(session, f"x['a'].append({n}); block[{n} * 5000] = 1")
            folder = killed(tmp_path / "s", "one", tmp_path / f"after {n}")
            told = taken_up(loaded, folder, "one", "x['a'][-1], sum(block), len(block), open('/tmp/f').read()")
            assert told == repr((n, n + 1, 6 << 20, "hi"))
        assert session.kept
        undone = await run(session, "x = None\nimport os\nos._exit(1)")
        assert undone.status is Status.ROLLED_BACK
        raised = await run(session, "y = 7\n1 / 0")
        assert raised.status is Status.ERROR
    assert taken_up(loaded, tmp_path / "s", "one", "x['a'], y") == "([1, 0, 1, 2, 3, 4], 7)"


async def test_a_session_goes_through_many_processes(loaded: Loaded, tmp_path: Path, text: MakeText) -> None:
    corpus = text("ä text " * 5000)
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.attach("context", corpus)
        await show(session, "n = 0")
        await show(session, "len(context[:5].encode())")
        seen = session.seen
        assert any(seen)
    for number in range(3):
        async with served(loaded, tmp_path) as pool:
            session = pool.take_up("a", "core", LIMITS, "one", (corpus,))
            assert (pool.live, pool.workers, session.checkpoint) == (0, 0, None), "it sleeps until it is used"
            assert await show(session, "n += 1; n, context[-5:]") == repr((number + 1, "text "))
            assert session.seen == seen
            await session.hibernate()
            assert pool.live == 0
            assert await show(session, "n") == str(number + 1)


async def test_what_was_seen_in_a_turn_that_was_undone_is_stored_when_the_session_rests(
    loaded: Loaded, tmp_path: Path, text: MakeText
) -> None:
    corpus = text("a text " * 100_000)
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.attach("context", corpus)
        before = [*session.seen]
        await run(session, "context.count('b')\nimport os\nos._exit(1)")
        assert session.seen != before
    async with served(loaded, tmp_path) as pool:
        again = pool.take_up("a", "core", LIMITS, "one", (corpus,))
        await again.recall()
        assert again.seen == session.seen


async def test_draws_are_not_drawn_again_in_another_process(loaded: Loaded, tmp_path: Path) -> None:
    draw = "import random, uuid; random.random(), uuid.uuid4()"
    async with served(loaded, tmp_path / "s") as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, draw)
        folders = [killed(tmp_path / "s", "one", tmp_path / str(n)) for n in range(2)]
        drawn = {await show(session, draw)}
    drawn |= {taken_up(loaded, folder, "one", draw) for folder in folders}
    assert len(drawn) == 3


async def test_notes_come_back_with_the_state_they_were_stored_with(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(text: str) -> Callable[[Turn], bytes]:
        return lambda turn: f"{text} {turn.status}".encode()

    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await session.execute("x = 1", nobody, ignore, note=noted("first"))
        await session.execute("import os; os._exit(1)", nobody, ignore, note=noted("undone"))
        await session.execute("1 / 0", nobody, ignore, note=noted("second"))
        await show(session, "x = 2")
    async with served(loaded, tmp_path) as pool:
        session = pool.take_up("a", "core", LIMITS, "one")
        assert await session.recall() == [b"first ok", b"undone rolled_back", b"second error"]
        session.keep_note(lambda: lambda: b"so far")
        monkeypatch.setattr(SessionStore, "is_long", lambda *_: True)
        await session.execute("x = 3", nobody, ignore, note=noted("third"))
    async with served(loaded, tmp_path) as pool:
        session = pool.take_up("a", "core", LIMITS, "one")
        assert await session.recall() == [b"so far", b"third ok"]
        assert await show(session, "x") == "3"


async def test_a_file_is_written_anew_before_it_is_long(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path) as pool:
        assert pool.store is not None
        session = await pool.create("a", "core", LIMITS, "one")
        sizes = []
        for n in range(30):
            await show(session, f"import os\nblock = os.urandom(300_000)\nn = {n}")
            sizes.append(file_of(tmp_path, "one").stat().st_size)
            assert pool.store.stored_bytes("a") == sizes[-1]
            assert sizes[-1] < 2 * session.private_bytes + 2 * MIB
        assert any(after < before for before, after in pairwise(sizes))
    assert taken_up(loaded, tmp_path, "one", "n, len(block)") == "(29, 300000)"


async def test_only_files_that_changed_are_stored_with_a_turn(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "import os\nfor n in range(3): _ = open(f'/tmp/{n}', 'wb').write(os.urandom(900_000))")
        before = file_of(tmp_path, "one").stat().st_size
        await show(session, "_ = open('/tmp/1', 'r+b').write(b'new'); _ = open('/tmp/3', 'w').write('more')")
        await show(session, "os.rename('/tmp/0', '/tmp/moved'); os.unlink('/tmp/2')")
        assert 900_000 < file_of(tmp_path, "one").stat().st_size - before < 1_300_000
        listed = "[(name, hash(open(f'/tmp/{name}', 'rb').read())) for name in sorted(os.listdir('/tmp'))]"
        state = f"import os, zlib; {listed.replace('hash', 'zlib.crc32')}"
        told = await show(session, state)
        assert "'moved'" in told
        assert taken_up(loaded, killed(tmp_path, "one", tmp_path / "k"), "one", state) == told


async def test_a_closed_session_leaves_nothing_and_others_stay(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path) as pool:
        for name in ("one", "two"):
            await show(await pool.create("a", "core", LIMITS, name), "x = 1")
        session = await pool.create("a", "core", LIMITS, "three")
        await session.hibernate()
        await session.close()
        assert sorted(os.listdir(tmp_path)) == ["one.session", "two.session"]
    async with served(loaded, tmp_path) as pool:
        assert pool.store is not None
        pool.store.keep_only(["two"])
        assert os.listdir(tmp_path) == ["two.session"]
        with pytest.raises(SnapshotRefused, match="nothing is stored"):
            pool.take_up("a", "core", LIMITS, "one")
        await pool.take_up("a", "core", LIMITS, "two").close()
        assert os.listdir(tmp_path) == []
        assert pool.store.stored_bytes("a") == 0


async def test_what_is_not_its_own_is_refused_when_it_is_taken_up(loaded: Loaded, tmp_path: Path) -> None:
    async with served(loaded, tmp_path) as pool:
        await show(await pool.create("a", "core", LIMITS, "one"), "x = 1")
        await show(await pool.create("a", "core", LIMITS, "two"), "x = 2")
    async with served(loaded, tmp_path) as pool:
        with pytest.raises(SnapshotRefused, match="somebody else"):
            pool.take_up("b", "core", LIMITS, "one")
        with pytest.raises(SnapshotRefused, match="another image than 'data'"):
            pool.take_up("a", "data", LIMITS, "one")
        with pytest.raises(ValueError, match="no name"):
            pool.take_up("a", "core", LIMITS, "../one")
    async with served(loaded, tmp_path, secret=bytes(32)) as pool:
        with pytest.raises(SnapshotRefused, match="another server"):
            pool.take_up("a", "core", LIMITS, "one")
    shutil.copy(file_of(tmp_path, "two"), file_of(tmp_path, "one"))
    async with served(loaded, tmp_path) as pool:
        with pytest.raises(SnapshotRefused, match="altered"):
            await run(pool.take_up("a", "core", LIMITS, "one"), "x")


# ---- files that were cut or altered ----------------------------------------------------------------------------------


@pytest.fixture
async def three_turns(loaded: Loaded, tmp_path: Path) -> tuple[bytes, list[int]]:
    """The file of a session after three turns, and where it ended before each of them and after the last."""
    async with served(loaded, tmp_path / "s") as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        ends = [file_of(tmp_path / "s", "one").stat().st_size]
        for n in range(3):
            await show(session, f"x = {n}")
            ends.append(file_of(tmp_path / "s", "one").stat().st_size)
        return file_of(tmp_path / "s", "one").read_bytes(), ends


async def test_a_file_that_is_cut_is_that_of_the_turn_before(
    loaded: Loaded, tmp_path: Path, three_turns: tuple[bytes, list[int]]
) -> None:
    data, ends = three_turns
    store, path = SessionStore(tmp_path, SECRET), file_of(tmp_path, "one")
    image = loaded.images["core"]
    chance = random.Random(7)
    cuts = {
        *range(HEADER.size + 1),
        *ends,
        *(end - 1 for end in ends),
        *(end + n for end in ends[:-1] for n in range(14)),
    }
    cuts |= {chance.randrange(len(data)) for _ in range(60)}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        if cut < ends[0]:
            with pytest.raises(SnapshotRefused, match=r"cut short|no stored session"):
                store.get(store.find("one", "a", image), "a", image, ())
        else:
            read = store.get(store.find("one", "a", image), "a", image, ())
            read.checkpoint.close()
            assert read.stored.size == max(end for end in ends if end <= cut)


async def test_a_turn_after_a_cut_replaces_what_was_cut(
    loaded: Loaded, tmp_path: Path, three_turns: tuple[bytes, list[int]]
) -> None:
    data, ends = three_turns
    folder = tmp_path / "cut"
    folder.mkdir()
    file_of(folder, "one").write_bytes(data[: ends[3] - 5])
    async with served(loaded, folder) as pool:
        assert await show(pool.take_up("a", "core", LIMITS, "one"), "x += 10; x") == "11"
    assert taken_up(loaded, folder, "one", "x") == "11"
    again = file_of(folder, "one").read_bytes()
    assert again[: ends[2]] == data[: ends[2]]
    mixed = again[: ends[2]] + data[ends[2] :]  # turns that were once there, and were replaced
    file_of(folder, "one").write_bytes(mixed)
    assert taken_up(loaded, folder, "one", "x") == "2", "that is the file as it was"
    file_of(folder, "one").write_bytes(data + again[ends[2] :])
    with pytest.raises(SnapshotRefused, match="altered"):
        taken_up(loaded, folder, "one", "x")


async def test_every_byte_of_every_turn_is_bound(
    loaded: Loaded, tmp_path: Path, three_turns: tuple[bytes, list[int]]
) -> None:
    data, ends = three_turns
    store, image = SessionStore(tmp_path, SECRET), loaded.images["core"]
    chance = random.Random(8)
    places = {*range(HEADER.size), *(end + n for end in (HEADER.size, *ends[:-1]) for n in range(20))}
    places |= {end - n for end in ends for n in range(1, 18)} | {chance.randrange(len(data)) for _ in range(150)}
    for at in sorted(places):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        file_of(tmp_path, "one").write_bytes(changed)
        with pytest.raises(SnapshotRefused):
            store.get(store.find("one", "a", image), "a", image, ())


async def test_turns_cannot_be_left_out_exchanged_or_repeated(
    loaded: Loaded, tmp_path: Path, three_turns: tuple[bytes, list[int]]
) -> None:
    data, ends = three_turns
    store, image = SessionStore(tmp_path, SECRET), loaded.images["core"]
    begin, (first, second, third) = data[: ends[0]], (data[a:b] for a, b in pairwise(ends))
    for mixed in (second, third, second + first, first + third, first + first, first + second + second):
        file_of(tmp_path, "one").write_bytes(begin + mixed)
        with pytest.raises(SnapshotRefused, match="altered"):
            store.get(store.find("one", "a", image), "a", image, ())


# ---- what cannot be stored -------------------------------------------------------------------------------------------


async def test_a_session_that_no_longer_fits_goes_on_and_is_not_kept_until_it_does(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "RETRY_SECONDS", 0.0)
    async with served(loaded, tmp_path / "s", stored_bytes=3 * MIB) as pool:
        assert pool.store is not None
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "x = 1")
        assert session.kept
        await show(session, "import os\nblock = os.urandom(5 << 20)\nx = 2")
        assert not session.kept
        assert os.listdir(tmp_path / "s") == [], "a state that is older than what was told is none"
        assert pool.store.stored_bytes("a") == 0
        assert await show(session, "x += 1; x, len(block)") == repr((3, 5 << 20))
        assert not session.kept
        await show(session, "del block\nx = 4")  # the pages are zero in no part yet, so that it does not fit
        await show(session, "import gc; _ = gc.collect(); block = b'\\0' * (5 << 20)")
        await show(session, "x = 5")
        assert session.kept
        assert taken_up(loaded, killed(tmp_path / "s", "one", tmp_path / "k"), "one", "x") == "5"


async def test_a_disk_that_refuses_loses_no_turn(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        with monkeypatch.context() as patched:
            patched.setattr(SessionStore, "append", full)
            await show(session, "x = 1")
        assert not session.kept
        assert await show(session, "x") == "1"
        monkeypatch.setattr(session_file, "RETRY_SECONDS", 0.0)
        assert session._file is not None
        session._file._retry_at = 0.0
        await show(session, "x = 2")
        assert session.kept
    assert taken_up(loaded, tmp_path, "one", "x") == "2"


# ---- cancelled and closed while a turn is stored ---------------------------------------------------------------------


async def test_a_turn_that_is_cancelled_while_it_is_stored_leaves_no_trace(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = SessionStore.append
    async with served(loaded, tmp_path / "s") as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "x = 0")
        tasks: list[asyncio.Task[Turn]] = []
        loop = asyncio.get_running_loop()

        def appended(*given: Any) -> Any:
            try:
                return append(*given)
            finally:
                loop.call_soon_threadsafe(tasks[-1].cancel)

        for n in range(1, 4):
            with monkeypatch.context() as patched:
                patched.setattr(SessionStore, "append", appended)
                tasks.append(asyncio.create_task(run(session, f"x = {n}")))
                await asyncio.wait(tasks[-1:])
            assert tasks[-1].cancelled()
            folder = killed(tmp_path / "s", "one", tmp_path / str(n))
            assert taken_up(loaded, folder, "one", "x") == "0"
        assert await show(session, "x") == "0"
        assert await show(session, "x += 1; x") == "1"
    assert taken_up(loaded, tmp_path / "s", "one", "x") == "1"


async def test_a_server_that_stops_undoes_the_turn_under_way_and_no_other(loaded: Loaded, tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def answer(_: HostCall) -> Json:
        asked.set()
        await asyncio.Event().wait()
        return None

    async with served(loaded, tmp_path) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "x = 1")
        turn = asyncio.create_task(session.execute("x = 2\nimport _door\n_door.call('a')", answer, ignore))
        await asked.wait()
    assert (await turn).status is Status.ROLLED_BACK
    assert taken_up(loaded, tmp_path, "one", "x") == "1"


# ---- random programs -------------------------------------------------------------------------------------------------

STEPS = (
    "items.append({n})",
    "items[{n} % len(items)] = {n}",
    "block[{n} * 4099 % len(block)] = {n} % 256",
    "block = bytearray({n} * 5003)",
    "block += bytes([{n} % 256]) * 9000",
    "open('/tmp/{n}', 'w').write('{n}' * 100)",
    "[os.unlink('/tmp/' + name) for name in os.listdir('/tmp')[:2]]",
    "globals().pop('gone', None); gone = list(range({n} * 7))",
)
STATE = """
from zlib import crc32
print(items, len(block), crc32(block), sorted((name, open('/tmp/' + name).read()) for name in os.listdir('/tmp')))
"""


@pytest.mark.parametrize("seed", [3])
async def test_a_random_program_is_after_any_kill_as_after_its_last_turn(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    told: list[tuple[Path, str]] = []
    monkeypatch.setattr(SessionStore, "is_long", lambda *_: chance.random() < 0.15)
    async with served(loaded, tmp_path / "s", sessions=2) as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, "import os\nitems, block = [0], bytearray(50_000)")
        for n in range(1, 25):
            steps = "\n".join(step.format(n=n) for step in chance.sample(STEPS, 3))
            await run(session, steps)
            match chance.randrange(6):
                case 0:
                    await session.hibernate()
                case 1 if session.checkpoint is not None:
                    (await session.wake())[0].kill()
                case 2:
                    await run(session, f"items.clear()\nblock = {n}\nos._exit({n})")
                case _:
                    pass
            if n % 4 == 0:
                folder = killed(tmp_path / "s", "one", tmp_path / str(n))
                with file_of(folder, "one").open("ab") as torn:
                    torn.write(os.urandom(chance.randrange(12)))  # less than a chunk's head
                told.append((folder, (await run(session, STATE)).stdout))
    for folder, state in told:
        assert taken_up(loaded, folder, "one", STATE) + "\n" == state


def test_a_session_without_a_store_is_not_kept(loaded: Loaded) -> None:
    async def work() -> None:
        pool = WorkerPool(loaded, sessions=1, spares=0)
        session: WorkerSession = await pool.create("a", "core", LIMITS, "one")
        assert await show(session, "1") == "1"
        assert not session.kept
        with pytest.raises(SnapshotRefused, match="no sessions are stored"):
            pool.take_up("a", "core", LIMITS, "one")
        await pool.close()

    asyncio.run(work())
