"""What the server holds of an owner's requests and replies is counted, and read and written without stopping others."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from time import thread_time
from typing import Any

import pytest

from sandbox.door import DoorRefusal, HostCall, Json, Step
from sandbox.limits import MIB, Limits
from sandbox.pool import worker_turn
from sandbox.pool.held import Held, Share
from sandbox.pool.pool import WorkerPool
from sandbox.pool.process import WRITTEN_AT_ONCE
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_pool import ignore, nobody
from tests.sandbox.pool.test_workers import halt, process_of, send
from tests.system.stage import eventually

LIMITS = Limits(turn_seconds=30, memory_bytes=256 * MIB)


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=2, spares=0)
    yield made
    await asyncio.wait_for(made.close(), 30)


# ---- the count -------------------------------------------------------------------------------------------------------


def test_what_would_be_held_beyond_the_limit_is_refused_with_the_figures_and_counts_nothing() -> None:
    count = Held(100)
    count.count(60)
    with pytest.raises(DoorRefusal, match=r"101 bytes of .* held at once, the limit held_bytes is 100"):
        count.count(41)
    with pytest.raises(DoorRefusal, match="101 bytes"):
        count.count(1, unsent=40)
    count.count(40)
    count.count(-100)
    assert count.bytes == 0


def test_a_request_gives_back_all_it_holds_whatever_becomes_of_it() -> None:
    count = Held(100)
    with Share(count, lambda: 0) as share:
        share.count(70)
        share.count(-20)
        assert count.bytes == share.bytes == 50
        with pytest.raises(DoorRefusal):
            share.count(51)
    assert count.bytes == 0


# ---- the door's threads ----------------------------------------------------------------------------------------------


async def test_what_the_doors_threads_take_is_counted_while_they_work() -> None:
    held, begun, end = Held(), threading.Event(), threading.Event()

    def work(_: Step) -> None:
        until = thread_time() + 0.02
        while thread_time() < until:
            pass
        begun.set()
        end.wait(30)

    working = asyncio.create_task(Share(held, lambda: 0).in_pieces(work))
    await asyncio.to_thread(begun.wait, 30)
    taken = held.take_seconds()
    assert taken >= 0.02
    end.set()
    await working
    assert held.take_seconds() < taken
    assert held.take_seconds() == 0


async def test_one_owner_has_one_of_the_doors_threads_at_a_time() -> None:
    mine, other = Share(Held(), lambda: 0), Share(Held(), lambda: 0)
    begun, end = threading.Event(), threading.Event()

    def work(_: Step) -> str:
        begun.set()
        end.wait(30)
        return threading.current_thread().name

    first = asyncio.create_task(mine.in_pieces(work))
    await asyncio.to_thread(begun.wait, 30)
    second = asyncio.create_task(mine.in_pieces(lambda _: "second"))
    assert await other.in_pieces(lambda _: "other") == "other"
    assert not second.done()
    end.set()
    assert (await first).startswith("door")
    assert await second == "second"


async def test_work_that_nobody_waits_for_any_more_ends_after_a_piece() -> None:
    share, begun = Share(Held(), lambda: 0), asyncio.Event()
    loop, steps = asyncio.get_running_loop(), 0

    def work(step: Step) -> None:
        nonlocal steps
        loop.call_soon_threadsafe(begun.set)
        while True:
            step(0)
            steps += 1

    with share:
        task = asyncio.create_task(share.in_pieces(work))
        await asyncio.wait_for(begun.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        assert await share.in_pieces(lambda _: "free again") == "free again"


async def test_work_that_has_not_begun_is_never_done() -> None:
    end, done = threading.Event(), list[int]()
    busy = [asyncio.create_task(Share(Held(), lambda: 0).in_pieces(lambda _: end.wait(30))) for _ in range(2)]
    late = asyncio.create_task(Share(Held(), lambda: 0).in_pieces(lambda _: done.append(1)))
    await asyncio.sleep(0)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(late, 30)
    end.set()
    await asyncio.gather(*busy)
    assert done == []


# ---- requests and replies of a worker's ------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """In which threads requests are read, and replies written."""
    seen: dict[str, list[str]] = {}

    def spy(name: str) -> None:
        function: Callable[..., Any] = getattr(worker_turn, name)

        def spied(*args: Any, **named: Any) -> Any:
            seen.setdefault(name, []).append(threading.current_thread().name.partition("_")[0])
            return function(*args, **named)

        monkeypatch.setattr(worker_turn, name, spied)

    for name in ("digest_of", "parse", "granted", "granted_in_pieces"):
        spy(name)
    return seen


async def test_large_requests_and_replies_are_read_and_written_off_the_loop(
    pool: WorkerPool, threads: dict[str, list[str]]
) -> None:
    session = await pool.create("a", "core", LIMITS)

    async def answer(call: HostCall) -> Json:
        return call.arguments

    for asked, thread in (
        ("x='small'", "MainThread"),
        ("x='l' * 200_000", "MainThread"),
        ("x='l' * (5 << 20)", "door"),
        ("x=[1] * 20_000", "door"),
    ):
        threads.clear()
        code = f"import _door\nasked = dict({asked})\n_door.call('a', **asked) == asked"
        turn = await asyncio.wait_for(session.execute(code, answer, ignore), 60)
        assert turn.stdout == "True\n"
        assert threads["parse"] == threads["digest_of"] == [thread]
        assert len(threads.get("granted_in_pieces", [])) == (thread == "door")
    assert process_of(session).held.bytes == 0


async def test_a_request_beyond_what_an_owner_may_have_held_is_refused_before_it_is_read(
    pool: WorkerPool, threads: dict[str, list[str]]
) -> None:
    session = await pool.create("a", "core", LIMITS)
    process_of(session).held = Held(4 * MIB)
    answered = 0

    async def answer(_: HostCall) -> Json:
        nonlocal answered
        answered += 1
        return None

    code = "import _door\ntry: _door.call('a', x='x' * (5 << 20))\nexcept _door.LimitExceeded as error: print(error)"
    turn = await asyncio.wait_for(session.execute(code, answer, ignore), 60)
    assert turn.status is Status.OK
    assert "bytes of requests and replies held at once, the limit held_bytes is 4194304" in turn.stdout
    assert (answered, threads) == (0, {})
    turn = await asyncio.wait_for(session.execute("_door.call('a', x='x' * (1 << 20))", answer, ignore), 60)
    assert (turn.status, answered) == (Status.OK, 1)
    assert process_of(session).held.bytes == 0


async def test_the_texts_of_a_request_count_as_wide_as_they_are(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    process_of(session).held = Held(16 * MIB)
    held_then = 0

    async def answer(_: HostCall) -> Json:
        nonlocal held_then
        held_then = process_of(session).held.bytes
        return None

    code = "import _door\n_door.call('a', x='x' * (1 << 20) + '\U0001f600')"
    turn = await asyncio.wait_for(session.execute(code, answer, ignore), 60)
    assert turn.status is Status.OK
    assert 4 * MIB <= held_then <= 5 * MIB
    turn = await asyncio.wait_for(session.execute(code.replace("1 <<", "5 <<"), answer, ignore), 60)
    assert turn.error is not None
    assert turn.error.type == "LimitExceeded"
    assert process_of(session).held.bytes == 0


async def test_an_owner_has_one_count_whatever_becomes_of_its_workers(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=3, spares=0, held_bytes=5 * MIB, unconfined=True)
    session, same, other = [await pool.create(owner, "core", LIMITS) for owner in ("a", "a", "b")]
    first = process_of(session)
    assert first.held.limit == 5 * MIB
    assert process_of(same).held is first.held is not process_of(other).held
    first.kill()
    await session.execute("1", nobody, ignore)
    assert process_of(session) is not first
    assert process_of(session).held is first.held
    await asyncio.wait_for(pool.close(), 30)


async def test_many_requests_together_are_refused_and_those_answered_make_room(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    process_of(session).held = Held(8 * MIB)
    go_on = asyncio.Event()

    async def answer(call: HostCall) -> Json:
        if call.op == "go on":
            go_on.set()
        else:
            await go_on.wait()
        return len(call.arguments.get("x", ""))

    code = """\
import _door
for _ in range(9): _door.start('a', x='x' * (1 << 20))
_door.call('go on')
replies = []
while len(replies) < 9: replies += _door.wait()
told = [_door.LimitExceeded if 'error' in reply else reply['ok'] for _, reply in replies]
0 < told.count(_door.LimitExceeded) < 9, told.count(1 << 20) + told.count(_door.LimitExceeded)"""
    turn = await asyncio.wait_for(session.execute(code, answer, ignore), 60)
    assert turn.stdout == "(True, 9)\n"
    assert process_of(session).held.bytes == 0


async def test_replies_that_the_worker_does_not_take_count(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    worker.held = Held(8 * MIB)
    begun = asyncio.Event()
    replies = asyncio.Event()
    under_way = 0

    async def answer(_: HostCall) -> Json:
        nonlocal under_way
        under_way += 1
        if under_way == 9:
            begun.set()
        await replies.wait()
        return "x" * MIB

    code = "import _door\nfor _ in range(9): _door.start('a')\nn = 0\nwhile n < 9: n += len(_door.wait())\nn"
    task = asyncio.create_task(session.execute(code, answer, ignore))
    await asyncio.wait_for(begun.wait(), 30)
    halt(session)
    replies.set()
    await eventually(lambda: worker.held.bytes == 0)
    assert 5 * MIB < worker.unsent <= 8 * MIB + 10_000
    send(session, signal.SIGCONT)
    assert (await asyncio.wait_for(task, 60)).stdout == "9\n"
    assert (worker.unsent, worker.alive) == (0, True)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_the_replies_of_a_turn_count_with_its_requests(pool: WorkerPool) -> None:
    limits = Limits(turn_seconds=30, memory_bytes=96 * MIB, door_bytes=100_000)
    session = await pool.create("a", "core", limits)

    async def answer(_: HostCall) -> Json:
        return "x" * 30_000

    turn = await asyncio.wait_for(
        session.execute("import _door\nfor _ in range(9): _door.call('a')", answer, ignore), 60
    )
    assert turn.error is not None
    assert "bytes in requests and replies of one turn, the limit is 100000" in turn.error.message
    assert turn.door_calls == 4


async def test_frames_to_a_worker_that_is_slow_to_take_them_arrive_whole_and_in_order(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)

    async def answer(call: HostCall) -> Json:
        size = call.integer("size")
        return chr(97 + size % 26) * size

    sizes = [1, 10, WRITTEN_AT_ONCE + 1, 5, 2_000_000, 7]
    code = f"""\
import _door
sizes = {sizes}
numbers = {{_door.start('a', size=size): size for size in sizes}}
while numbers:
    for number, reply in _door.wait():
        size = numbers.pop(number)
        assert reply['ok'] == chr(97 + size % 26) * size
"""
    turn = await asyncio.wait_for(session.execute(code, answer, ignore), 60)
    assert turn.status is Status.OK, turn
