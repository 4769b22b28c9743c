"""What one owner does takes nothing from another: places of running turns, live sessions, the store and its threads."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool import worker_turn
from sandbox.pool.disk_threads import OF_ONE_OWNER, Abandoned, DiskThreads, Going
from sandbox.pool.live_sessions import OwnerFull, PoolFull
from sandbox.pool.pool import WorkerPool
from sandbox.pool.priority import NICENESS
from sandbox.pool.snapshots import SessionStore, Stored
from sandbox.pool.worker_session import TooManyTurns, WorkerSession
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_pool import ignore, nobody, run

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
LARGE = Limits(turn_seconds=60, memory_bytes=1024 * MIB)
SECRET = secrets.token_bytes(32)
ENDLESS = "print('go', flush=True)\nwhile True: pass"


@asynccontextmanager
async def pool_of(
    loaded: Loaded, folder: Path, sessions: int, stored_bytes: int = 1 << 40, **options: float
) -> AsyncIterator[WorkerPool]:
    store = SessionStore(folder, SECRET, stored_bytes)
    pool = WorkerPool(loaded, sessions=sessions, spares=0, store=store, **options)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), 60)
    assert stored_in(folder) == []


def stored_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def show(session: WorkerSession, code: str) -> str:
    turn = await run(session, code)
    assert turn.error is None, turn
    return turn.stdout.removesuffix("\n")


class Busy:
    """Turns that run until they are told to end: each waits in the door."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.asked = asyncio.Semaphore(0)

    async def answer(self, _: HostCall) -> Json:
        self.asked.release()
        await self.end.wait()
        return None

    async def begin(self, session: WorkerSession) -> asyncio.Task[Turn]:
        task = asyncio.create_task(session.execute("import _door\n_door.call('a')", self.answer, ignore))
        await asyncio.wait_for(self.asked.acquire(), 60)
        return task


async def endless(session: WorkerSession) -> asyncio.Task[Turn]:
    begun = asyncio.Event()
    task = asyncio.create_task(session.execute(ENDLESS, nobody, lambda *_: begun.set()))
    await asyncio.wait_for(begun.wait(), 60)
    return task


def addresses_of(pid: int) -> list[str]:
    """The soft and the hard limit of a process's addresses."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in limits if line.startswith("Max address space")).split()[3:5]


# ---- places in a worker ----------------------------------------------------------------------------------------------


async def test_turns_beyond_the_places_share_them_and_waiting_is_not_running(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 8, worker_turns=1) as pool:
        sessions = [await pool.create("a", "core", LIMITS) for _ in range(4)]
        code = "n = 0\nfor i in range(2_000_000): n += i"
        alone = await run(sessions[0], code)
        together = await asyncio.gather(*(run(session, code) for session in sessions))
        assert {turn.status for turn in [alone, *together]} == {Status.OK}
        running = sum(turn.running_seconds for turn in together)
        longest = max(turn.running_seconds for turn in together)
        assert longest < 0.6 * running, "each counts its own time, not the others'"


async def test_a_worker_is_not_killed_for_turns_that_wait_for_their_place(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_turn, "TURN_SLACK_SECONDS", 1.0)
    async with pool_of(loaded, tmp_path, 8, worker_turns=1) as pool:
        short = Limits(turn_seconds=1.0, memory_bytes=96 * MIB)
        sessions = [await pool.create("a", "core", short) for _ in range(6)]
        turns = await asyncio.gather(*(run(session, "while True: pass") for session in sessions))
        stops = {turn.error.type for turn in turns if turn.error is not None}
        assert stops == {Stop.TURN_TIME}, "no worker was killed for turns that waited"


async def test_a_short_turn_goes_on_beside_endless_ones_of_its_owner(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 8, worker_turns=1) as pool:
        sessions = [await pool.create("a", "core", LIMITS) for _ in range(4)]
        tasks = [await endless(session) for session in sessions[:3]]
        assert await show(sessions[3], "21 * 2") == "42"
        for session in sessions[:3]:
            session.interrupt()
        assert {turn.error.type for turn in await asyncio.gather(*tasks) if turn.error} == {Stop.INTERRUPTED}


async def test_a_turn_that_waits_in_the_door_or_sleeps_holds_no_place(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 8, worker_turns=1) as pool:
        busy, asking, sleeping, other = Busy(), *[await pool.create("a", "core", LIMITS) for _ in range(3)]
        waiting = await busy.begin(asking)
        sleeper = asyncio.create_task(run(sleeping, "import time; time.sleep(3600)"))
        assert await show(other, "1") == "1"
        sleeping.interrupt()
        busy.end.set()
        assert (await waiting).status is Status.OK
        assert (await sleeper).status is Status.ROLLED_BACK


async def test_stopping_a_turn_that_waits_for_its_place_works_at_once_and_leaves_no_trace(
    loaded: Loaded, tmp_path: Path
) -> None:
    async with pool_of(loaded, tmp_path, 70, worker_turns=1) as pool:
        sessions = [await pool.create("a", "core", LIMITS) for _ in range(12)]
        for session in sessions:
            await show(session, "x = 1")
        first = await endless(sessions[0])
        waiting = [asyncio.create_task(session.execute("x = 2", nobody, ignore)) for session in sessions[1:]]
        await asyncio.sleep(0)
        for task in waiting[:6]:
            task.cancel()
        for session in sessions[7:]:
            session.interrupt()
        done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
        assert all(isinstance(turn, asyncio.CancelledError) for turn in done[:6])
        sessions[0].interrupt()
        await first
        for session, turn in zip(sessions[1:], done, strict=True):
            ran = isinstance(turn, Turn) and turn.status is Status.OK
            assert await show(session, "x") == ("2" if ran else "1")


async def test_a_worker_goes_behind_its_server_and_has_all_addresses(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 2) as pool:
        session = await pool.create("a", "core", LIMITS)
        assert session._process is not None
        pid = session._process._process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        soft, hard = addresses_of(pid)
        assert soft == hard


# ---- live sessions ---------------------------------------------------------------------------------------------------


async def test_an_owner_whose_turns_are_all_busy_does_not_keep_others_out(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 16, reserved=1, slot_seconds=0.2) as pool:
        busy = Busy()
        tasks = []
        for _ in range(15):
            tasks.append(await busy.begin(await pool.create("a", "core", LIMITS)))
        with pytest.raises(PoolFull, match="at most 16 sessions at once"):
            await pool.create("a", "core", LIMITS)
        other = await pool.create("b", "core", LIMITS)
        assert await show(other, "1") == "1"
        busy.end.set()
        assert {turn.status for turn in await asyncio.gather(*tasks)} == {Status.OK}


async def test_who_waits_in_line_has_the_slot_of_the_turn_that_ends(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 2, slot_seconds=60) as pool:
        busy = Busy()
        tasks = [await busy.begin(await pool.create("a", "core", LIMITS)) for _ in range(2)]
        asking = asyncio.create_task(pool.create("b", "core", LIMITS))
        await asyncio.sleep(0)
        assert not asking.done()
        busy.end.set()
        assert await show(await asyncio.wait_for(asking, 60), "1") == "1"
        await asyncio.gather(*tasks)


async def test_closing_a_session_that_waits_for_a_slot_does_not_wait_for_it(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 1, slot_seconds=3600) as pool:
        asleep = await pool.create("b", "core", LIMITS)
        busy = Busy()
        task = await busy.begin(await pool.create("a", "core", LIMITS))
        turn = asyncio.create_task(asleep.execute("1", nobody, ignore))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(asleep.close(), 60)
        ended = await turn
        assert ended.error is not None
        assert ended.error.type is Stop.INTERRUPTED
        busy.end.set()
        await task


async def test_turns_that_wait_for_one_session_have_a_limit(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 2, waiting_turns=3) as pool:
        session, busy = await pool.create("a", "core", LIMITS), Busy()
        first = await busy.begin(session)
        others = [asyncio.create_task(run(session, "1")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyTurns, match=r"at most 3 turns .* \(waiting_turns\)"):
            await run(session, "1")
        busy.end.set()
        assert {turn.status for turn in await asyncio.gather(first, *others)} == {Status.OK}
        assert await show(session, "1") == "1"


# ---- the store -------------------------------------------------------------------------------------------------------

FILL = "import os\nblock = os.urandom({mib} << 20)"


async def test_an_owners_stored_sessions_have_a_limit_and_others_do_not_meet_it(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 3, stored_bytes=12 * MIB, slot_seconds=2) as pool:
        large = [await pool.create("a", "core", LIMITS) for _ in range(2)]
        for session in large:
            await show(session, FILL.format(mib=8))
        await large[0].hibernate()
        with pytest.raises(Exception, match="stored_bytes"):
            await large[1].hibernate()
        assert await show(large[1], "len(block)") == str(8 << 20)
        stored = await pool.create("b", "core", LIMITS)
        await show(stored, FILL.format(mib=8))
        await stored.hibernate()
        assert len(stored_in(tmp_path)) == 2
        assert await show(large[0], "len(block)") == str(8 << 20)


async def test_who_has_no_room_for_another_stored_session_is_refused_and_told_why(
    loaded: Loaded, tmp_path: Path
) -> None:
    async with pool_of(loaded, tmp_path, 2, stored_bytes=4 * MIB, slot_seconds=2) as pool:
        large = [await pool.create("a", "core", LIMITS) for _ in range(2)]
        for session in large:
            await show(session, FILL.format(mib=8))
        with pytest.raises(OwnerFull, match=rf"{4 * MIB} bytes in all \(stored_bytes\)"):
            await pool.create("a", "core", LIMITS)
        assert [await show(session, "len(block)") for session in large] == [str(8 << 20)] * 2
        assert await show(await pool.create("b", "core", LIMITS), "1") == "1"  # what it is entitled to
        ended = [await asyncio.gather(run(session, "len(block)"), return_exceptions=True) for session in large]
        refused = [one for (one,) in ended if isinstance(one, BaseException)]
        assert len(refused) == 1
        assert isinstance(refused[0], OwnerFull)


async def test_a_full_disk_refuses_to_write_and_never_to_read(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(loaded, tmp_path, 2, slot_seconds=0.3) as pool:
        asleep = await pool.create("a", "core", LIMITS)
        await show(asleep, "x = 5")
        await asleep.hibernate()
        live = [await pool.create(owner, "core", LIMITS) for owner in "ab"]
        put = SessionStore.put

        def full(store: SessionStore, checkpoint: Checkpoint, owner: str, *_: object, **named: Any) -> Stored:
            def stop() -> None:
                raise OSError(28, "No space left on device")

            return put(store, checkpoint, owner, stop, **named)

        with monkeypatch.context() as patched:
            patched.setattr(SessionStore, "put", full)
            with pytest.raises(PoolFull, match=r"No space left on device$"):
                await pool.create("c", "core", LIMITS)
            assert len(stored_in(tmp_path)) == 1
            await live[0].close()
            assert await show(asleep, "x") == "5"
        assert await show(live[1], "1") == "1"
        assert [record.exc_info for record in caplog.records if "could not be written" in record.message] == [None]


async def test_a_session_that_does_not_fit_on_the_disk_is_passed_over_for_one_that_does(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_of(loaded, tmp_path, 2, slot_seconds=60) as pool:
        large, small = [await pool.create("a", "core", LIMITS) for _ in range(2)]
        put = SessionStore.put
        await show(large, "x = 1")
        await show(small, "x = 2")

        def full(store: SessionStore, checkpoint: Checkpoint, *more: Any, **named: Any) -> Stored:
            if checkpoint is large.checkpoint:
                raise OSError(28, "No space left on device")
            return put(store, checkpoint, *more, **named)

        monkeypatch.setattr(SessionStore, "put", full)
        await pool.create("b", "core", LIMITS)
        assert small.checkpoint is None
        assert await show(large, "x") == "1"


async def test_the_writing_of_a_large_session_stops_when_the_session_is_closed(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 2) as pool:
        session = await pool.create("a", "core", LARGE)
        await show(session, FILL.format(mib=128))
        writing = asyncio.create_task(session.hibernate())
        while not any(path.stat().st_size > MIB for path in stored_in(tmp_path)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.wait_for(session.close(), 60)
        await writing
        assert stored_in(tmp_path) == []
        assert session.checkpoint is not None, "it was never written to its end"
        assert pool.take_host_seconds()["a"] > 0
        assert pool.take_host_seconds() == {}


async def test_what_is_stored_is_counted_for_its_owner(loaded: Loaded, tmp_path: Path) -> None:
    async with pool_of(loaded, tmp_path, 2) as pool:
        session = await pool.create("a", "core", LIMITS)
        await session.hibernate()
        assert pool.store is not None
        (path,) = stored_in(tmp_path)
        assert pool.store.stored_bytes("a") == path.stat().st_size
        spent = pool.take_host_seconds()
        await show(session, "1")
        assert pool.store.stored_bytes("a") == 0
        assert spent["a"] > 0
        assert pool.take_host_seconds().keys() == {"a"}
        assert pool.take_worker_seconds("b") == 0


async def test_owners_take_turns_in_the_threads_of_the_store() -> None:
    threads, order, release = DiskThreads(), list[str](), Going()

    def work(owner: str) -> None:
        while not release._given_up.is_set():
            time.sleep(0.001)
        order.append(owner)

    first = [asyncio.create_task(threads.run("a", Going(), lambda: work("a"))) for _ in range(20)]
    await asyncio.sleep(0)
    other = asyncio.create_task(threads.run("b", Going(), lambda: order.append("b")))
    await asyncio.wait_for(other, 60)
    assert order == ["b"], f"one owner has at most {OF_ONE_OWNER} threads"
    dropped = Going()
    last = asyncio.create_task(threads.run("a", dropped, lambda: order.append("dropped")))
    await asyncio.sleep(0)
    dropped.give_up()
    with pytest.raises(Abandoned):
        await last
    release.give_up()
    await asyncio.wait_for(asyncio.gather(*first), 60)
    assert order == ["b", *["a"] * 20]
    threads.close()


async def test_what_a_turn_under_way_has_run_is_known_and_is_never_more_than_it_ran(
    loaded: Loaded, tmp_path: Path
) -> None:
    async with pool_of(loaded, tmp_path, 2) as pool:
        session = await pool.create("a", "core", LIMITS)
        assert session.running_seconds == 0
        waiting, answered = asyncio.Event(), asyncio.Event()

        async def answer(call: HostCall) -> Json:
            waiting.set()
            await answered.wait()
            return None

        busy = "import time, _door\nend = time.monotonic() + 0.2\nwhile time.monotonic() < end: pass\n_door.call('x')"
        turn = asyncio.create_task(session.execute(busy, answer, ignore))
        await waiting.wait()
        ran = session.running_seconds
        assert ran >= 0.2
        await asyncio.sleep(0.05)
        assert session.running_seconds == ran, "it waits for an answer"
        answered.set()
        await turn
        assert session.running_seconds == 0
