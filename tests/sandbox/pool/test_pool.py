"""Sessions for an asyncio program: turns beside the loop, answers on it, cancelling that reaches all the way in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import WorkerPool
from sandbox.pool.worker_session import WorkerSession
from sandbox.pool.worker_turn import Answer
from sandbox.turn import Status, Stop, Turn
from sandbox.vm.image import Loaded
from tests.sandbox.conftest import MakeText

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
ASK = "import _door\nprint(_door.call('ask'))"


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4, slot_seconds=1)
    yield made
    await made.close()


async def nobody(call: HostCall) -> Json:
    raise DoorRefusal("RuntimeError", f"nobody answers {call.op}")


def ignore(_stream: int, _data: bytes) -> None:
    pass


async def run(session: WorkerSession, code: str) -> Turn:
    return await asyncio.wait_for(session.execute(code, nobody, ignore), 30)


async def test_turns_answers_and_output_meet_on_the_loop(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    loop, printed = asyncio.get_running_loop(), list[tuple[int, bytes]]()

    async def answer(call: HostCall) -> Json:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        return call.text("q").upper()

    turn = await session.execute("import _door\n_door.call('a', q='x')", answer, lambda *data: printed.append(data))
    assert turn.stdout == "'X'\n"
    assert printed == [(1, b"'X'\n")]
    assert session.private_bytes > 0


async def test_every_session_can_be_in_a_turn_at_once(pool: WorkerPool) -> None:
    together = asyncio.Barrier(4)

    async def answer(_: HostCall) -> Json:
        await together.wait()
        return None

    sessions = [await pool.create("a", "core", LIMITS) for _ in range(4)]
    turns = await asyncio.wait_for(
        asyncio.gather(*(s.execute("import _door\n_door.call('meet')", answer, ignore) for s in sessions)), 30
    )
    assert [turn.status for turn in turns] == [Status.OK] * 4


async def test_turns_of_one_session_come_one_after_another(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await run(session, "x = []")
    await asyncio.gather(*(run(session, f"x.append({i})") for i in range(10)))
    assert (await run(session, "sorted(x)")).stdout == f"{list(range(10))}\n"


async def test_cancelling_stops_a_turn_in_the_middle_of_its_code(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await run(session, "x = 1")
    under_way = asyncio.Event()
    task = asyncio.create_task(
        session.execute("x = 2\nprint('go', flush=True)\nwhile True: pass", nobody, lambda *_: under_way.set())
    )
    await asyncio.wait_for(under_way.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await run(session, "x")).stdout == "1\n"


async def test_cancelling_reaches_the_answer_that_is_awaited(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(_: HostCall) -> Json:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return None

    task = asyncio.create_task(session.execute("x = 2\nimport _door\n_door.call('a')", answer, ignore))
    await asyncio.wait_for(asked.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 20)
    assert (await run(session, "'x' in globals()")).stdout == "False\n"


async def test_cancelling_at_once_leaves_the_session_usable(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    await run(session, "n = 0")
    for _ in range(20):
        task = asyncio.create_task(session.execute("n += 1\nwhile True: pass", nobody, ignore))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await run(session, "n")).stdout == "0\n"


async def test_an_answer_that_is_cancelled_by_the_host_stops_the_turn(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)

    async def answer(_: HostCall) -> Json:
        raise asyncio.CancelledError

    turn = await session.execute("import _door\n_door.call('a')", answer, ignore)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED


async def test_an_answer_that_times_out_is_an_error_inside_not_the_end_of_the_turn(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)

    async def answer(_: HostCall) -> Json:
        raise TimeoutError("provider at 10.0.0.7")

    turn = await session.execute("import _door\n_door.call('a')", answer, ignore)
    assert turn.status is Status.ERROR
    assert turn.error is not None
    assert turn.error.type == "RuntimeError"
    assert "10.0.0.7" not in repr(turn)


async def test_closing_a_session_stops_its_turn(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    under_way = asyncio.Event()
    task = asyncio.create_task(
        session.execute("print('go', flush=True)\nwhile True: pass", nobody, lambda *_: under_way.set())
    )
    await asyncio.wait_for(under_way.wait(), 20)
    await session.close()
    turn = await task
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    with pytest.raises(RuntimeError, match="closed"):
        await run(session, "1")


async def test_a_full_pool_says_so_until_a_session_is_closed(pool: WorkerPool) -> None:
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(4)]
    with pytest.raises(PoolFull, match="at most 4 sessions"):
        await pool.create("a", "core", LIMITS)
    await sessions[0].close()
    assert (await run(await pool.create("a", "core", LIMITS), "1")).status is Status.OK


async def test_an_image_that_does_not_exist_is_a_key_error(pool: WorkerPool) -> None:
    assert pool.images == ("core", "data")
    with pytest.raises(KeyError):
        await pool.create("a", "none", LIMITS)


async def test_texts_can_be_attached(pool: WorkerPool, text: MakeText) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.attach("context", text("abc" * 1000))
    assert (await run(session, "len(context)")).stdout == "3000\n"


async def test_closing_a_pool_leaves_the_program_to_others(loaded: Loaded) -> None:
    first, second = WorkerPool(loaded, sessions=1), WorkerPool(loaded, sessions=1)
    await first.close()
    session = await second.create("a", "core", Limits(turn_seconds=0.2))
    turn = await run(session, "while True: pass")
    assert turn.error is not None
    assert turn.error.type is Stop.TURN_TIME
    await second.close()


async def test_code_with_half_a_surrogate_pair_is_an_error_inside_not_the_end_of_the_worker(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)
    turn = await run(session, "x = '\ud83d'")
    assert turn.status is Status.ERROR
    assert (await run(session, "1 + 1")).stdout == "2\n"


async def test_turns_that_wait_for_turns_in_the_same_worker_never_wait_for_its_threads(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=31, spares=0)
    sessions = [await pool.create("a", "core", LIMITS) for _ in range(31)]

    def asking(number: int) -> Answer:
        async def answer(_: HostCall) -> Json:
            below = [child for child in (2 * number + 1, 2 * number + 2) if child < len(sessions)]
            turns = await asyncio.gather(*(sessions[child].execute(ASK, asking(child), ignore) for child in below))
            return 1 + sum(int(turn.stdout) for turn in turns)

        return answer

    for _ in range(20):
        turn = await asyncio.wait_for(sessions[0].execute(ASK, asking(0), ignore), 60)
        assert turn.stdout == "31\n"
    await asyncio.wait_for(pool.close(), 30)
