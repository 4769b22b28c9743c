"""Worker processes may die, hang or lie at any moment: their turns are lost, their sessions never."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool import process as processes
from sandbox.pool import worker_turn
from sandbox.pool.pool import JailMissing, WorkerPool
from sandbox.pool.process import Process, WorkerLost
from sandbox.pool.worker_session import WorkerSession
from sandbox.pool.worker_turn import Answer
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.image import Loaded
from sandbox.wire.frames import Frame, Kind
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_pool import ignore, nobody, run
from tests.system.stage import eventually

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
ASK = "import _door\n_door.call('a')\n"


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4, spares=0)
    yield made
    await asyncio.wait_for(made.close(), 30)


def process_of(session: WorkerSession) -> Process:
    assert session._process is not None
    return session._process


def pid_of(session: WorkerSession) -> int:
    return process_of(session)._process.pid


def send(session: WorkerSession, number: int) -> None:
    os.kill(pid_of(session), number)


def halt(session: WorkerSession) -> None:
    """Stop a worker, and wait until all its threads have stopped: the kernel takes its time where much else runs."""
    send(session, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid_of(session)}/task")
    while any((task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()):
        time.sleep(0.001)


async def show(session: WorkerSession, code: str) -> str:
    turn = await run(session, code)
    assert turn.status is Status.OK, turn
    return turn.stdout.removesuffix("\n")


def lost(turn: Turn) -> bool:
    return turn.status is Status.ROLLED_BACK and turn.error is not None and turn.error.type is Stop.WORKER_LOST


def children() -> set[int]:
    """Processes, zombies included, that this one has started."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid():
            found.add(int(status.parent.name))
    return found


def descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except FileNotFoundError:  # the one that lists
            continue
    return sorted(found)


def replies_after(act: object = None) -> Answer:
    async def answer(_: HostCall) -> Json:
        if callable(act):
            act()
        return None

    return answer


# ---- a worker that dies ----------------------------------------------------------------------------------------------


async def test_a_session_outlives_its_worker_with_names_files_and_texts(pool: WorkerPool, text: MakeText) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.attach("ascii", text("abc" * 5000))
    await session.attach("wide", text("中\U0001f600" * 5000))
    await show(
        session, "x = {'a': [1, 2]}\nimport os\nos.mkdir('/tmp/d')\nf = open('/tmp/d/f', 'w+')\n_ = f.write('hi')"
    )
    for _ in range(2):
        first = pid_of(session)
        send(session, signal.SIGKILL)
        assert await show(session, "f.flush()\nx, open('/tmp/d/f').read()") == "({'a': [1, 2]}, 'hi')"
        assert (
            await show(session, "len(ascii), ascii[-3:], len(wide), wide[-1]") == "(15000, 'abc', 10000, '\U0001f600')"
        )
        assert pid_of(session) != first


async def test_a_session_with_many_texts_comes_back(pool: WorkerPool, text: MakeText) -> None:
    session = await pool.create("a", "core", LIMITS)
    for i in range(400):  # more than a socket holds on the way
        await session.attach(f"t{i}", text(str(i)))
    send(session, signal.SIGKILL)
    assert await show(session, "all(globals()[f't{i}'] == str(i) for i in range(400))") == "True"


async def test_a_turn_that_asked_for_nothing_is_run_again(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 0")
    killed = list[int]()

    def listen(_stream: int, _data: bytes) -> None:
        if not killed:
            killed.append(pid_of(session))
            send(session, signal.SIGKILL)

    code = "n += 1\nprint('go', flush=True)\nimport time\ntime.sleep(0.3)\nn"
    turn = await asyncio.wait_for(session.execute(code, nobody, listen), 30)
    assert turn.status is Status.OK
    assert turn.stdout == "go\n1\n"
    assert killed != [pid_of(session)]


@pytest.mark.parametrize("prints", ["", "print('go', flush=True)\n"])
async def test_that_a_turn_begins_again_is_told_before_anything_it_prints_then(pool: WorkerPool, prints: str) -> None:
    session = await pool.create("a", "core", LIMITS)
    told = list[bytes | str]()

    def listen(_stream: int, data: bytes) -> None:
        told.append(data)
        if len(told) == 1:
            send(session, signal.SIGKILL)

    task = asyncio.create_task(
        session.execute(f"{prints}import time\ntime.sleep(0.3)\nprint('end')", nobody, listen, told.append)
    )
    if not prints:
        await asyncio.sleep(0)  # the turn is sent
        send(session, signal.SIGKILL)
    turn = await asyncio.wait_for(task, 30)
    first = [b"go\n"] if prints else []
    assert told[: len(first)] == first
    assert "the process that ran the turn died" in str(told[len(first)])
    rest = told[len(first) + 1 :]
    assert b"".join(data for data in rest if isinstance(data, bytes)) == turn.stdout.encode()
    assert turn.output_bytes == len(turn.stdout)


async def test_a_turn_that_is_lost_twice_is_not_run_a_third_time(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 0")
    killed, restarts = set[int](), list[str]()

    def listen(_stream: int, _data: bytes) -> None:
        killed.add(pid_of(session))
        send(session, signal.SIGKILL)

    code = "n += 1\nprint('go', flush=True)\nwhile True: pass"
    turn = await asyncio.wait_for(session.execute(code, nobody, listen, restarts.append), 30)
    assert lost(turn)
    assert (len(killed), len(restarts)) == (2, 1)
    assert await show(session, "n") == "0"


async def test_a_turn_that_is_lost_tells_what_was_heard_of_it(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    heard = list[bytes]()

    async def answer(_: HostCall) -> Json:
        send(session, signal.SIGKILL)
        return None

    prints = "import sys\nprint('ä', flush=True)\nprint('oh', file=sys.stderr)\nfor _ in range(10**6): pass\n"
    code = f"{prints}{ASK}while True: pass"
    turn = await asyncio.wait_for(session.execute(code, answer, lambda _, data: heard.append(data)), 30)
    assert lost(turn)
    assert (turn.stdout, turn.stderr) == ("ä\n", "oh\n")
    assert turn.output_bytes == len(b"".join(heard)) == 6
    assert turn.door_calls == 1
    assert 0 < turn.running_seconds < 30


async def test_a_turn_that_asked_is_lost_and_not_asked_again(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 0")
    asked = list[str]()

    async def answer(call: HostCall) -> Json:
        asked.append(call.op)
        send(session, signal.SIGKILL)
        return None

    turn = await asyncio.wait_for(session.execute("n = 1\n" + ASK + "while True: pass", answer, ignore), 30)
    assert lost(turn)
    assert turn.error is not None
    assert "as it was before this turn" in turn.error.message
    assert asked == ["a"]
    assert await show(session, "n") == "0"


async def test_an_answer_that_is_awaited_is_cancelled_when_the_worker_dies(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    cancelled = asyncio.Event()

    async def answer(_: HostCall) -> Json:
        send(session, signal.SIGKILL)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    assert lost(await asyncio.wait_for(session.execute(ASK, answer, ignore), 30))
    assert cancelled.is_set()


# ---- a worker that hangs or lies -------------------------------------------------------------------------------------


async def test_a_turn_that_hangs_is_ended_and_run_again_in_another_worker(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await pool.create("a", "core", Limits(turn_seconds=5, memory_bytes=96 * MIB))
    await show(session, "n = 1")
    monkeypatch.setattr(worker_turn, "TURN_SLACK_SECONDS", -4.0)
    first = pid_of(session)
    halt(session)
    assert await show(session, "n") == "1"
    assert pid_of(session) != first


async def test_a_turn_that_hangs_after_it_asked_is_lost(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await pool.create("a", "core", Limits(turn_seconds=5, memory_bytes=96 * MIB))
    await show(session, "n = 1")
    monkeypatch.setattr(worker_turn, "TURN_SLACK_SECONDS", -4.0)
    answer = replies_after(lambda: halt(session))
    turn = await asyncio.wait_for(session.execute("n = 2\n" + ASK, answer, ignore), 30)
    assert lost(turn)
    assert turn.error is not None
    assert "hung" in turn.error.message
    assert await show(session, "n") == "1"


async def test_cancelling_a_turn_whose_worker_hangs_kills_the_worker(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    monkeypatch.setattr(worker_turn, "INTERRUPT_SECONDS", 0.2)
    stopped = asyncio.Event()

    def listen(_stream: int, _data: bytes) -> None:
        halt(session)
        stopped.set()

    task = asyncio.create_task(session.execute("n = 2\nprint('go', flush=True)\nwhile True: pass", nobody, listen))
    await asyncio.wait_for(stopped.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert await show(session, "n") == "1"


GARBAGE = {
    "no frame": b"\xff" * 100,
    "text": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a frame too large": b"".join(Frame(Kind.DONE, 1).encode())[:-8] + b"\xff" * 8,
    "broken JSON": b"\x21" + bytes(12) + b"\1\0\0\0" + bytes(8) + b"{",
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_worker_that_sends_garbage_is_killed_and_its_session_lives(pool: WorkerPool, garbage: str) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    liar = process_of(session)
    liar.data_received(GARBAGE[garbage])
    assert not liar.alive
    await asyncio.wait_for(liar._process.wait(), 20)
    assert await show(session, "n") == "1"


@pytest.mark.parametrize("header", [{}, {"turn": None}, {"turn": {}, "size": -1, "runs": [], "gone": [], "mapped": []}])
async def test_a_worker_that_lies_about_how_a_turn_ended_is_killed(pool: WorkerPool, header: dict[str, Json]) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    liar = process_of(session)
    lie = b"".join(Frame(Kind.DONE, session.number, header=header, turn=2).encode())
    answer = replies_after(lambda: liar.data_received(lie))
    assert lost(await asyncio.wait_for(session.execute("n = 2\n" + ASK + "while True: pass", answer, ignore), 30))
    await asyncio.wait_for(liar._process.wait(), 20)
    assert await show(session, "n") == "1"


async def test_a_worker_that_holds_too_much_memory_is_killed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PING_SECONDS", 0.01)
    pool = WorkerPool(loaded, sessions=1, spares=0, worker_bytes=1)
    session = await pool.create("a", "core", LIMITS)
    await asyncio.wait_for(process_of(session)._process.wait(), 20)
    assert not process_of(session).alive
    await asyncio.wait_for(pool.close(), 30)


async def test_what_a_worker_writes_to_files_counts_as_its_memory(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    before = process_of(session)._held_bytes()
    assert session.checkpoint is not None
    os.pwrite(session.checkpoint.pages.fd, bytes(8 * MIB), 1 << 30)
    assert process_of(session)._held_bytes() >= before + 7 * MIB


async def test_a_worker_that_is_silent_is_killed(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(processes, "SILENCE_SECONDS", -1.0)
        patched.setattr(processes, "PING_SECONDS", 0.01)
        session = await pool.create("a", "core", LIMITS)
        await asyncio.wait_for(process_of(session)._process.wait(), 20)
        assert not process_of(session).alive
    assert await show(session, "1") == "1"


# ---- whose worker it is ----------------------------------------------------------------------------------------------


async def test_owners_never_share_a_worker_and_an_owners_sessions_do(pool: WorkerPool) -> None:
    a, b, c, again = [await pool.create(owner, "core", LIMITS) for owner in ("a", "b", "c", "a")]
    assert len({pid_of(session) for session in (a, b, c)}) == 3
    assert pid_of(a) == pid_of(again)


async def test_a_worker_stays_for_its_owner_a_while_and_goes_to_nobody_else(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=4, spares=0, idle_worker_seconds=0.5)
    first, second = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    worker = process_of(first)
    await first.close()
    await second.close()
    back = await pool.create("a", "core", LIMITS)
    assert process_of(back) is worker
    assert await show(back, "1") == "1"
    assert pid_of(await pool.create("b", "core", LIMITS)) != worker._process.pid
    await asyncio.sleep(0.6)
    assert worker.alive  # it is in use again
    await back.close()
    await eventually(lambda: not worker.alive)
    again = await pool.create("a", "core", LIMITS)
    assert pid_of(again) != worker._process.pid
    await again.close()
    await asyncio.wait_for(pool.close(), 30)


async def test_only_so_many_workers_stay_and_the_last_ones_do(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pool.pool.IDLE_WORKERS", 1)
    pool = WorkerPool(loaded, sessions=4, spares=0, idle_worker_seconds=60)
    sessions = [await pool.create(owner, "core", LIMITS) for owner in "ab"]
    workers = [process_of(session) for session in sessions]
    for session in sessions:
        await session.close()
    await eventually(lambda: not workers[0].alive)
    assert workers[1].alive
    await asyncio.wait_for(pool.close(), 30)
    assert not workers[1].alive


async def test_a_worker_may_end_with_its_owners_last_session(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=4, spares=0, idle_worker_seconds=0)
    first, second = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    worker = process_of(first)
    await first.close()
    assert worker.alive
    assert await show(second, "1") == "1"
    await second.close()
    assert not worker.alive
    assert worker._process.returncode is not None
    await asyncio.wait_for(pool.close(), 30)


async def test_spares_wait_loaded_and_are_used_once(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=3, spares=1)
    pool.prepare()
    spare = await asyncio.wait_for(asyncio.shield(pool._spares[0]), 30)
    a = await pool.create("a", "core", LIMITS)
    assert process_of(a) is spare
    b = await pool.create("b", "core", LIMITS)
    assert process_of(b) is not spare
    assert len(pool._spares) == 1
    await asyncio.wait_for(pool.close(), 30)
    assert not spare.alive


async def test_a_spare_that_died_while_it_waited_is_not_used(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=1, spares=1)
    pool.prepare()
    spare = await asyncio.wait_for(asyncio.shield(pool._spares[0]), 30)
    spare.kill()
    session = await pool.create("a", "core", LIMITS)
    assert process_of(session) is not spare
    assert await show(session, "1") == "1"
    await asyncio.wait_for(pool.close(), 30)


async def test_cancelling_while_a_worker_starts_leaves_nothing_behind(loaded: Loaded) -> None:
    before = children(), descriptors()
    pool = WorkerPool(loaded, sessions=1, spares=0)
    task = asyncio.create_task(pool.create("a", "core", LIMITS))
    await asyncio.sleep(0)
    assert not pool._workers["a"].done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (children(), descriptors()) == before
    session = await pool.create("a", "core", LIMITS)  # there is room again
    assert await show(session, "1") == "1"
    await asyncio.wait_for(pool.close(), 30)
    assert (children(), descriptors()) == before


async def test_cancelling_a_turn_while_its_worker_starts_anew_keeps_the_session(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    process_of(session).kill()
    task = asyncio.create_task(session.execute("n = 2", nobody, ignore))
    for _ in range(5):  # steps until it waits for its worker
        await asyncio.sleep(0)
    assert not pool._workers["a"].done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert await show(session, "n") == "1"


async def test_a_worker_that_does_not_start_is_an_error_and_not_kept(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandbox.pool import process as processes

    before = children(), descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(processes, "START_SECONDS", 0.001)
        with pytest.raises(processes.WorkerLost, match="in time"):
            await pool.create("a", "core", LIMITS)
        patched.setattr(processes, "START_SECONDS", 60)
        patched.setattr(processes, "_PROGRAM", "raise SystemExit(1)")
        with pytest.raises(processes.WorkerLost, match="did not start"):
            await pool.create("a", "core", LIMITS)
    assert (children(), descriptors()) == before
    assert await show(await pool.create("a", "core", LIMITS), "1") == "1"


async def test_without_a_jail_only_one_owner_is_served_unless_allowed(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Process.load

    async def unconfined(self: Process, loaded: Loaded) -> None:
        await load(self, loaded)
        self.unconfined = "no Landlock"

    monkeypatch.setattr(Process, "load", unconfined)
    pool = WorkerPool(loaded, sessions=3, spares=0)
    first = await pool.create("a", "core", LIMITS)
    await pool.create("a", "core", LIMITS)
    with pytest.raises(JailMissing, match="no Landlock"):
        await pool.create("b", "core", LIMITS)
    assert await show(first, "1") == "1"
    await asyncio.wait_for(pool.close(), 30)
    allowed = WorkerPool(loaded, sessions=3, spares=0, unconfined=True)
    for owner in "ab":
        assert await show(await allowed.create(owner, "core", LIMITS), "1") == "1"
    await asyncio.wait_for(allowed.close(), 30)


async def test_a_text_is_attached_though_the_worker_dies_meanwhile(
    pool: WorkerPool, text: MakeText, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await pool.create("a", "core", LIMITS)
    lost, _ = await session.wake()
    hand_over = Process.hand_over

    def killed_then_handed_over(process: Process, fd: int) -> int:
        if process is lost:
            process.kill()
        return hand_over(process, fd)

    monkeypatch.setattr(Process, "hand_over", killed_then_handed_over)
    await session.attach("context", text("abc" * 1000))
    assert (await run(session, "len(context)")).stdout == "3000\n"
    assert (await session.wake())[0] is not lost


async def test_a_text_that_cannot_be_attached_is_said_so_not_left_out(
    pool: WorkerPool, text: MakeText, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await pool.create("a", "core", LIMITS)
    await run(session, "x = 1")
    sent = Process.send

    def killed(process: Process, frame: Frame) -> None:
        process.kill() if frame.kind is Kind.ATTACH else sent(process, frame)

    with monkeypatch.context() as patched:
        patched.setattr(Process, "send", killed)
        with pytest.raises(WorkerLost, match="could not be attached"):
            await session.attach("context", text("abc"))
    assert (await run(session, "x")).stdout == "1\n"


async def test_texts_that_are_read_are_not_memory_the_worker_holds(pool: WorkerPool, text: MakeText) -> None:
    corpus = text("x" * (200 << 20))
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(3)]
    for session in sessions:
        await session.attach("context", corpus)
        assert await show(session, "context.count('x')") == str(200 << 20)
    assert process_of(sessions[0])._held_bytes() < 250 << 20
