"""A turn's end is its end: nothing it left under way, no timer, no late frame and no late stop reaches a later turn."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.door import HostCall, Json
from sandbox.pool import worker_turn
from sandbox.pool.pool import WorkerPool
from sandbox.pool.process import Process
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status, Stop
from sandbox.vm.image import Loaded
from sandbox.wire.frames import Frame, Kind
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_pool import ignore, nobody, run
from tests.sandbox.pool.test_workers import ASK, LIMITS, halt, pid_of, process_of, send, show

START = "import _door\n_door.start('a')\n"
"""Begins a request, and does not wait for its answer."""
ALL_BEGUN = "_door.call('all begun')\n"
"""Waits until the server is about to answer what was begun."""


@pytest.fixture
async def pool(loaded: Loaded, tmp_path: Path) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4, spares=0, store=SessionStore(tmp_path, os.urandom(32)))
    yield made
    await asyncio.wait_for(made.close(), 30)


class Slow:
    """Answers nothing else than ALL_BEGUN, and takes its time to give up once it is cancelled."""

    def __init__(self, steps: int = 0) -> None:
        self.under_way, self.ended, self._steps = 0, 0, steps

    async def __call__(self, call: HostCall) -> Json:
        if call.op == "all begun":
            return None
        self.under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(self._steps):
                await asyncio.sleep(0)
            self.under_way, self.ended = self.under_way - 1, self.ended + 1
        return None


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """The frames sent to workers."""
    frames, send = list[Frame](), Process.send

    def spy(process: Process, frame: Frame) -> None:
        frames.append(frame)
        send(process, frame)

    monkeypatch.setattr(Process, "send", spy)
    return frames


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is to be done in the moment in which the server has heard of a turn's end."""
    acts, take = list[Callable[[], object]](), Process._take

    def heard(process: Process, frame: Frame) -> None:
        take(process, frame)
        if frame.kind is Kind.DONE and acts:
            acts.pop()()

    monkeypatch.setattr(Process, "_take", heard)
    return acts


def hear(session: WorkerSession, *frames: Frame) -> None:
    """Have the server hear frames as if the session's worker had sent them."""
    process_of(session).data_received(b"".join(part for frame in frames for part in frame.encode()))


# ---- what a turn leaves under way ------------------------------------------------------------------------------------


async def test_what_is_left_under_way_ends_with_its_turn_and_leaves_the_worker_alone(
    pool: WorkerPool, sent: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_turn, "INTERRUPT_SECONDS", 0.0)  # whatever is to kill the worker later does so at once
    session, neighbour = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    worker, printed, go_on = process_of(session), list[bytes](), asyncio.Event()

    async def answer(call: HostCall) -> Json:
        await go_on.wait()
        return None

    other = asyncio.create_task(
        neighbour.execute(f"print('begun', flush=True)\n{ASK}", answer, lambda _, data: printed.append(data))
    )
    for number in range(5):
        slow = Slow(steps=3)
        turn = await asyncio.wait_for(session.execute(f"{START * 3}{ALL_BEGUN}x = {number}", slow, ignore), 30)
        assert turn.status is Status.OK
        assert (slow.under_way, slow.ended) == (0, 3)
        assert await show(session, "import time\ntime.sleep(0.01)\nx") == str(number)
    go_on.set()
    assert (await other).status is Status.OK
    assert b"".join(printed).count(b"begun") == 1
    assert worker.alive
    assert process_of(session) is process_of(neighbour) is worker
    assert [frame for frame in sent if frame.kind is Kind.INTERRUPT] == []


async def test_an_answer_that_ignores_its_turns_end_holds_it_up_for_a_while_only(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_turn, "ANSWER_SECONDS", 0.05)
    session = await pool.create("a", "core", LIMITS)
    worker, end, ended = process_of(session), asyncio.Event(), asyncio.Event()

    async def answer(call: HostCall) -> Json:
        if call.op == "all begun":
            return None
        while not end.is_set():
            with suppress(asyncio.CancelledError):
                await end.wait()
        ended.set()
        return "late"

    turn = await asyncio.wait_for(session.execute(f"{START}{ALL_BEGUN}x = 1", answer, ignore), 30)
    assert turn.status is Status.OK
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (record.message, record.exc_info) == ("1 answers go on although their turn has ended", None)
    assert await show(session, "x") == "1"
    end.set()
    await asyncio.wait_for(ended.wait(), 30)
    assert await show(session, "x") == "1"
    assert (worker.alive, worker.held.bytes) == (True, 0)


async def test_a_session_hibernates_right_after_a_turn_that_left_something_under_way(pool: WorkerPool) -> None:
    session, _ = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    worker = process_of(session)
    await session.execute(f"{START}{ALL_BEGUN}x = 1", Slow(), ignore)
    await session.hibernate()
    assert session.checkpoint is None
    assert await show(session, "x") == "1"
    assert (process_of(session), worker.alive) == (worker, True)


async def test_a_text_is_attached_right_after_a_turn_that_left_something_under_way(
    pool: WorkerPool, text: MakeText
) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    await session.execute(f"{START}{ALL_BEGUN}x = 1", Slow(), ignore)
    await session.attach("context", text("abc"))
    assert await show(session, "x, context") == "(1, 'abc')"
    assert process_of(session) is worker


async def test_an_answer_that_somebody_else_cancels_stops_the_turn_and_no_other(pool: WorkerPool) -> None:
    async def answer(_: HostCall) -> Json:
        raise asyncio.CancelledError

    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    turn = await asyncio.wait_for(session.execute(f"x = 1\n{ASK}", answer, ignore), 30)
    assert turn.error is not None
    assert (turn.status, turn.error.type) == (Status.ROLLED_BACK, Stop.INTERRUPTED)
    assert await show(session, "'x' in globals()") == "False"
    assert process_of(session) is worker


# ---- a stop that comes late, or twice --------------------------------------------------------------------------------


async def test_a_turn_that_is_cancelled_as_it_ends_has_left_no_trace(
    pool: WorkerPool, at_the_end: list[Callable[[], object]], text: MakeText
) -> None:
    session, neighbour = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    worker = process_of(session)
    await show(session, "n = 1")
    for leaves in ("", START, START + ALL_BEGUN):
        task = asyncio.create_task(session.execute(f"{leaves}n = 2", Slow(steps=3), ignore))
        at_the_end.append(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        assert await show(session, "n") == "1"
    attaching = asyncio.create_task(session.attach("context", text("abc")))
    at_the_end.append(attaching.cancel)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(attaching, 30)
    assert (session.corpora, session.seen) == ((), [])
    assert await show(session, "'context' in globals(), n") == "(False, 1)"
    await session.attach("context", text("de"))
    assert await show(session, "context, n") == "('de', 1)"
    assert (worker.alive, process_of(session), process_of(neighbour)) == (True, worker, worker)


async def test_a_turn_that_is_cancelled_while_its_answers_end_has_left_no_trace(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    ending, end = asyncio.Event(), asyncio.Event()

    async def answer(_: HostCall) -> Json:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await end.wait()
        return None

    async def answered(call: HostCall) -> Json:
        return None if call.op == "all begun" else await answer(call)

    task = asyncio.create_task(session.execute(f"{START}{ALL_BEGUN}n = 2", answered, ignore))
    await asyncio.wait_for(ending.wait(), 30)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()  # what it asked for is still being answered
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert await show(session, "n") == "1"


async def test_an_interrupt_that_comes_as_the_turn_ends_reaches_no_later_one(
    pool: WorkerPool, at_the_end: list[Callable[[], object]], sent: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_turn, "INTERRUPT_SECONDS", 0.0)
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    at_the_end.append(session.interrupt)
    assert await show(session, "n = 2\nn") == "2"
    assert await show(session, "n") == "2"
    assert [frame for frame in sent if frame.kind is Kind.INTERRUPT] == []
    assert process_of(session) is worker


async def test_cancelling_twice_waits_for_the_turns_end_all_the_same(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    begun = asyncio.Event()
    task = asyncio.create_task(
        session.execute("n = 2\nprint('go', flush=True)\nwhile True: pass", nobody, lambda *_: begun.set())
    )
    await asyncio.wait_for(begun.wait(), 30)
    halt(session)
    for _ in range(3):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
    send(session, signal.SIGCONT)
    first = pid_of(session)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert await show(session, "n") == "1"
    assert pid_of(session) == first


async def test_a_stop_that_overtakes_the_beginning_stops_the_turn_and_is_sent_once(
    pool: WorkerPool, sent: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    worker, spy = process_of(session), Process.send

    def stopping(process: Process, frame: Frame) -> None:
        spy(process, frame)
        if frame.kind is Kind.EXECUTE:
            asyncio.get_running_loop().call_soon(session.interrupt)
            asyncio.get_running_loop().call_soon(session.interrupt)

    with monkeypatch.context() as patched:
        patched.setattr(Process, "send", stopping)
        for _ in range(20):
            turn = await asyncio.wait_for(session.execute("n = 2\nwhile True: pass", nobody, ignore), 30)
            assert turn.error is not None
            assert turn.error.type is Stop.INTERRUPTED
    assert len([frame for frame in sent if frame.kind is Kind.INTERRUPT]) == 20
    assert await show(session, "n") == "1"
    assert process_of(session) is worker


async def test_a_turn_that_was_stopped_is_not_run_again_where_its_worker_is_lost(
    pool: WorkerPool, sent: list[Frame]
) -> None:
    session = await pool.create("a", "core", LIMITS)
    begun = asyncio.Event()
    code = "print('go', flush=True)\nwhile True: pass"
    task = asyncio.create_task(session.execute(code, nobody, lambda *_: begun.set()))
    await asyncio.wait_for(begun.wait(), 30)
    halt(session)
    session.interrupt()
    process_of(session).kill()
    turn = await asyncio.wait_for(task, 30)
    assert turn.error is not None
    assert turn.error.type is Stop.WORKER_LOST
    assert len([frame for frame in sent if frame.kind is Kind.EXECUTE]) == 1


# ---- late frames -----------------------------------------------------------------------------------------------------


async def test_a_worker_takes_a_stop_and_a_reply_for_the_turn_they_name_only(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    assert await show(session, "1") == "1"  # the first turn

    async def answer(call: HostCall) -> Json:
        for late in (0, 1, 3):
            worker.send(Frame(Kind.INTERRUPT, session.number, turn=late))
            worker.send(Frame(Kind.REPLY, session.number, 1, data=b'{"ok":"late"}', turn=late))
        return "in time"

    code = "import _door\nfound = _door.call('a')\nfor _ in range(10**6): pass\nfound"
    turn = await asyncio.wait_for(session.execute(code, answer, ignore), 30)
    assert (turn.status, turn.stdout) == (Status.OK, "'in time'\n")
    worker.send(Frame(Kind.INTERRUPT, session.number, turn=2))
    assert await show(session, "for _ in range(10**6): pass\nfound") == "'in time'"


async def test_the_server_hears_frames_of_the_turn_that_runs_only(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    printed, asked = list[bytes](), list[str]()

    async def answer(call: HostCall) -> Json:
        asked.append(call.op)
        for late in (0, 1, 3):
            hear(
                session,
                Frame(Kind.OUTPUT, session.number, 1, data=b"late", turn=late),
                Frame(Kind.CALL, session.number, 7, data=b'{"op":"late"}', turn=late),
                Frame(Kind.DONE, session.number, header={"turn": "late"}, turn=late),
                Frame(Kind.FAILED, session.number, header={"message": "late"}, turn=late),
            )
        return None

    turn = await asyncio.wait_for(session.execute(f"{ASK}print(n)", answer, lambda _, data: printed.append(data)), 30)
    assert (turn.status, b"".join(printed), asked) == (Status.OK, b"1\n", ["a"])
    hear(session, Frame(Kind.DONE, session.number, header={"turn": "late"}, turn=2))
    assert await show(session, "n") == "1"


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind < Kind.READY])
async def test_a_worker_that_speaks_as_the_server_is_killed(pool: WorkerPool, kind: Kind) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    hear(session, Frame(kind, session.number))
    assert not worker.alive
    assert (await run(session, "1")).stdout == "1\n"
