"""Sessions that rest are written to files and come back as they were; a file that was altered is refused."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.corpora.corpus import Corpus
from sandbox.limits import MIB, Limits
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import WorkerPool
from sandbox.pool.sealing import VERSION, SnapshotRefused
from sandbox.pool.snapshots import SessionStore, Stored
from sandbox.pool.worker_session import WorkerSession
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.image import Loaded
from sandbox.vm.instance import Image
from sandbox.vm.session import Session
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_pool import ignore, nobody, run
from tests.sandbox.repl import Repl, Repls, memory_of

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
SECRET = secrets.token_bytes(32)


async def show(session: WorkerSession, code: str) -> str:
    turn = await run(session, code)
    assert turn.error is None, turn
    return turn.stdout.removesuffix("\n")


@pytest.fixture
async def pool(loaded: Loaded, tmp_path: Path) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=3, spares=0, store=SessionStore(tmp_path / "sessions", SECRET), slot_seconds=1)
    yield made
    await asyncio.wait_for(made.close(), 30)
    assert list((tmp_path / "sessions").iterdir()) == []


# ---- hibernating and waking ------------------------------------------------------------------------------------------


async def test_a_session_wakes_with_names_files_and_texts(pool: WorkerPool, text: MakeText, tmp_path: Path) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.attach("context", text("ä text " * 5000))
    await show(session, "x = {'a': [1, 2]}\nf = open('/tmp/f', 'w+')\n_ = f.write('hi')\nimport random")
    for turn in range(3):
        await session.hibernate()
        assert session.checkpoint is None
        assert pool.live == 0
        assert len(list((tmp_path / "sessions").iterdir())) == 1
        assert await show(session, "f.flush()\nx, open('/tmp/f').read(), len(context), context[-5:]") == repr(
            ({"a": [1, 2]}, "hi", 35000, "text ")
        )
        assert await show(session, f"x['a'].append({turn})\nx['a'].pop()") == str(turn)
        assert list((tmp_path / "sessions").iterdir()) == []


async def test_no_draw_is_drawn_again_after_waking(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "import random, uuid, tempfile")
    drawn = set()
    for _ in range(4):
        await session.hibernate()
        drawn.add(await show(session, "random.random(), uuid.uuid4(), tempfile.mktemp()"))
    assert len(drawn) == 4


async def test_a_full_pool_makes_room_by_having_those_that_rest_hibernate(pool: WorkerPool) -> None:
    sessions = [await pool.create(owner, "core", LIMITS) for owner in "abcabcabc"]
    assert pool.live == 3
    for number, session in enumerate(sessions):
        await show(session, f"mine = {number}")
    order = [number for number in range(9) for _ in range(2)]
    random.Random(5).shuffle(order)
    for number in order:
        assert await show(sessions[number], "mine") == str(number)
        assert pool.live <= 3


async def test_sessions_that_are_busy_do_not_hibernate(pool: WorkerPool) -> None:
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(3)]
    begun, end = asyncio.Event(), asyncio.Event()

    async def answer(_: object) -> None:
        begun.set()
        await end.wait()

    turns = [asyncio.create_task(s.execute("import _door\n_door.call('a')", answer, ignore)) for s in sessions]
    await begun.wait()
    await asyncio.sleep(0)
    with pytest.raises(PoolFull, match="at most 3"):
        await pool.create("a", "core", LIMITS)
    end.set()
    assert all(turn.error is None for turn in await asyncio.gather(*turns))
    assert await show(await pool.create("a", "core", LIMITS), "1") == "1"


async def test_many_turns_at_once_over_few_places_all_get_theirs(pool: WorkerPool) -> None:
    sessions = [await pool.create("ab"[i % 2], "core", LIMITS) for i in range(8)]

    async def work(number: int) -> None:
        for turn in range(4):
            while True:
                try:
                    assert await show(sessions[number], "n = globals().get('n', -1) + 1; n") == str(turn)
                    break
                except PoolFull:  # all places are busy just now
                    await asyncio.sleep(0.01)

    await asyncio.wait_for(asyncio.gather(*(work(number) for number in range(8))), 60)


async def test_those_that_rest_long_hibernate_by_themselves(loaded: Loaded, tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions", SECRET)
    pool = WorkerPool(loaded, sessions=3, spares=0, store=store, rest_seconds=0.1)
    session = await pool.create("a", "core", LIMITS)
    await show(session, "x = 5")
    async with asyncio.timeout(20):
        while pool.live:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await show(session, "x") == "5"
    await pool.close()


async def test_a_session_that_rests_holds_its_pages_once_and_goes_on(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    for turn in range(6):
        await show(session, f"x = {turn}")
    assert session.checkpoint is not None
    pages = session.checkpoint.pages

    def held() -> int:
        return os.fstat(pages.fd).st_blocks * 512

    assert held() > session.checkpoint.private_bytes
    session.trim()
    assert held() == session.checkpoint.private_bytes
    for turn in range(6):
        assert await show(session, f"x += 1; x - {turn}") == "6"
    session.trim()
    process = (await session.wake())[0]
    process.kill()
    assert await show(session, "x") == "11"


async def test_closing_a_hibernating_session_leaves_nothing(pool: WorkerPool, tmp_path: Path) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.hibernate()
    await session.close()
    assert list((tmp_path / "sessions").iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        await session.execute("1", nobody, ignore)


async def test_cancelling_while_it_wakes_or_hibernates_loses_nothing(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "x = 7; block = bytes(range(256)) * 20_000")
    for delay in (0.0, 0.0005, 0.002, 0.005, 0.02):
        for act in (session.hibernate, lambda: run(session, "x")):
            task = asyncio.create_task(act())
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
    assert await show(session, "x, len(block), block[255]") == "(7, 5120000, 255)"


async def test_a_text_that_is_gone_when_its_session_wakes_is_an_error_that_loses_nothing(
    pool: WorkerPool, tmp_path: Path, text: MakeText
) -> None:
    source = text("a text " * 1000)
    assert isinstance(source.source, int)
    path = tmp_path / "text"
    path.write_bytes(os.pread(source.source, 1 << 20, 0))
    session = await pool.create("a", "core", LIMITS)
    await session.attach("context", Corpus(str(path), source.index))
    await show(session, "x = 1")
    await session.hibernate()
    path.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        await run(session, "1")
    (tmp_path / "away").rename(path)
    assert await show(session, "x, context[:6]") == "(1, 'a text')"


def test_what_a_former_server_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "left.resting").write_bytes(b"x")
    (tmp_path / "left.session.new").write_bytes(b"x")
    SessionStore(tmp_path, SECRET)
    assert list(tmp_path.iterdir()) == []


async def test_an_altered_file_is_refused_when_its_session_wakes(pool: WorkerPool, tmp_path: Path) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.hibernate()
    (path,) = (tmp_path / "sessions").iterdir()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotRefused, match="altered"):
        await run(session, "1")
    others = [await pool.create("a", "core", LIMITS) for _ in range(4)]  # it takes no place from them
    assert [await show(other, "1") for other in others] == ["1"] * 4
    await session.close()


async def test_where_a_session_cannot_be_written_there_is_no_place_and_nothing_is_lost(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(3)]
    await show(sessions[0], "x = 1")

    def full(*_: object, **__: object) -> Path:
        raise OSError(28, "No space left on device", "/srv/sessions/1")

    with monkeypatch.context() as patched:
        patched.setattr(SessionStore, "put", full)
        with pytest.raises(PoolFull, match=r"No space left on device$"):
            await pool.create("a", "core", LIMITS)
    assert await show(sessions[0], "x") == "1"
    await pool.create("a", "core", LIMITS)


# ---- the stored form -------------------------------------------------------------------------------------------------

Tamper = Callable[[bytes], bytes]


class Form:
    """Writes sessions to files and reads them from bytes, as a store of `secret` does."""

    def __init__(self, folder: Path, secret: bytes = SECRET) -> None:
        self._store = SessionStore(folder, secret)
        self._path = folder / "x.resting"

    def write(self, checkpoint: Checkpoint, owner: str = "a") -> bytes:
        stored = self._store.put(checkpoint, owner)
        try:
            return stored.path.read_bytes()
        finally:
            self._store.remove(stored, owner)

    def read(self, data: bytes, image: Image, owner: str = "a", corpora: Sequence[Corpus] = ()) -> Checkpoint:
        self._path.write_bytes(data)
        return self._store.get(Stored(self._path, bound="", size=len(data)), owner, image, corpora).checkpoint


@pytest.fixture
def form(tmp_path: Path) -> Form:
    return Form(tmp_path)


@pytest.fixture
def stored(start: Repls, form: Form) -> tuple[Session, bytes]:
    repl = start()
    repl.show("x = [1, 2, 3]\nopen('/tmp/f', 'w').write('content')")
    return repl.session, form.write(repl.session.checkpoint)


def test_a_small_session_is_small(stored: tuple[Session, bytes]) -> None:
    session, data = stored
    assert len(data) < session.checkpoint.private_bytes / 2


def test_a_stored_session_is_the_same_session(
    loaded: Loaded, start: Repls, form: Form, stored: tuple[Session, bytes]
) -> None:
    session, data = stored
    read = form.read(data, loaded.images["core"])
    again = start.keep(Session(loaded.program, read, LIMITS))
    assert memory_of(again) == memory_of(Repl(session))
    assert again.show("x, open('/tmp/f').read()") == "([1, 2, 3], 'content')"


def test_no_two_stored_forms_of_a_session_are_the_same(form: Form, stored: tuple[Session, bytes]) -> None:
    session, data = stored
    assert form.write(session.checkpoint) != data


def test_every_byte_is_bound(loaded: Loaded, form: Form, stored: tuple[Session, bytes]) -> None:
    _, data = stored
    positions = [*range(70), *random.Random(1).sample(range(len(data)), 200), *range(len(data) - 40, len(data))]
    for at in positions:
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SnapshotRefused):
            form.read(bytes(changed), loaded.images["core"])


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda data: b"", "no stored session"),
        (lambda data: data[:53], "no stored session"),
        (lambda data: b"PK" + data[2:], "no stored session"),
        (lambda data: data[:4] + (VERSION + 1).to_bytes(2, "little") + data[6:], f"version {VERSION + 1}"),
        (lambda data: data[: len(data) // 2], "cut"),
        (lambda data: data[:54], "cut"),
        (lambda data: data[:-1], "cut"),
        (lambda data: data + bytes(12), "altered"),
        (lambda data: data + data[54:], "altered"),
    ],
)
def test_what_is_not_whole_says_so(
    loaded: Loaded, form: Form, stored: tuple[Session, bytes], tamper: Tamper, said: str
) -> None:  # fmt: skip
    with pytest.raises(SnapshotRefused, match=said):
        form.read(tamper(stored[1]), loaded.images["core"])


def test_what_is_refused_leaves_no_descriptor(loaded: Loaded, form: Form, stored: tuple[Session, bytes]) -> None:
    _, data = stored
    before = len(os.listdir("/proc/self/fd"))
    for tampered in (data + data, data[:-1], data[: len(data) // 2]):
        with pytest.raises(SnapshotRefused):
            form.read(tampered, loaded.images["core"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_chunks_cannot_be_exchanged(loaded: Loaded, form: Form, start: Repls) -> None:
    repl = start(memory_bytes=256 * MIB)
    repl.show("import os\nblock = os.urandom(3_000_000)")
    data = form.write(repl.session.checkpoint)
    size = 4 + 8 + (1 << 18) + 16
    first, second = data[54 : 54 + size], data[54 + size : 54 + 2 * size]
    for mixed in (second + first, first + first, second + second):
        with pytest.raises(SnapshotRefused, match="altered"):
            form.read(data[:54] + mixed + data[54 + 2 * size :], loaded.images["core"])
    other = form.write(repl.session.checkpoint)
    with pytest.raises(SnapshotRefused, match="altered"):
        form.read(data[:54] + other[54:], loaded.images["core"])


def test_another_owner_image_or_server_is_refused(
    loaded: Loaded, form: Form, tmp_path: Path, stored: tuple[Session, bytes]
) -> None:
    _, data = stored
    core = loaded.images["core"]
    with pytest.raises(SnapshotRefused, match="somebody else"):
        form.read(data, core, "b")
    with pytest.raises(SnapshotRefused, match="another server"):
        Form(tmp_path, secrets.token_bytes(32)).read(data, core)
    with pytest.raises(SnapshotRefused, match="another image than 'data'"):
        form.read(data, loaded.images["data"])
    with pytest.raises(SnapshotRefused, match="another image"):
        form.read(data, replace(core, key="golden-core-newer"))


def test_other_texts_are_refused(loaded: Loaded, form: Form, start: Repls, text: MakeText) -> None:
    repl = start()
    first = text("abc" * 1000)
    repl.attach("context", first)
    data = form.write(repl.session.checkpoint)
    for texts in ([], [text("abc" * 1001)], [text("ä" * 3000)], [first, first]):
        with pytest.raises(SnapshotRefused):
            form.read(data, loaded.images["core"], corpora=texts)
    form.read(data, loaded.images["core"], corpora=[first]).close()


def test_a_secret_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes, not 5"):
        SessionStore(tmp_path, b"short")
