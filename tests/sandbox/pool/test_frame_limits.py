"""What a worker sends during a turn keeps to the session's limits, or the worker is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.frame_limits import FrameLimits
from sandbox.pool.pool import WorkerPool
from sandbox.turn import GAP, Status
from sandbox.vm.image import Loaded
from sandbox.wire.frames import Frame, Kind, WireError
from tests.sandbox.pool.test_turn_ends import hear
from tests.sandbox.pool.test_workers import ASK, lost, process_of, show

LIMITS = Limits(
    turn_seconds=20, memory_bytes=96 * MIB, output_bytes=100, frame_bytes=500, door_bytes=1000, door_calls=5,
    door_waiting=3,
)  # fmt: skip


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=2, spares=0)
    yield made
    await asyncio.wait_for(made.close(), 30)


def output(size: int, stream: int = 1) -> Frame:
    return Frame(Kind.OUTPUT, 1, stream, data=b"x" * size)


def call(number: int, size: int = 10) -> Frame:
    return Frame(Kind.CALL, 1, number, data=b"x" * size)


def test_output_is_limited_with_the_line_that_stands_for_what_was_cut_out() -> None:
    limits = FrameLimits(LIMITS)
    limits.output(output(60))
    limits.output(output(40 + GAP, 2))
    with pytest.raises(WireError, match="100 may be kept"):
        limits.output(output(1))


@pytest.mark.parametrize("frame", [output(1, 0), output(1, 3), output(0)])
def test_output_to_no_stream_or_of_nothing_is_refused(frame: Frame) -> None:
    with pytest.raises(WireError, match="output of"):
        FrameLimits(LIMITS).output(frame)


@pytest.mark.parametrize(
    ("calls", "under_way", "what"),
    [
        ([call(1, 501)], 0, "bytes in one request"),
        ([call(1, 500), call(2, 500), call(3, 1)], 0, "bytes in requests of one turn"),
        ([call(number) for number in range(1, 7)], 0, "requests in one turn"),
        ([call(1)], 3, "requests under way"),
        ([call(2), call(1)], 0, "request 1 after request 2"),
        ([call(1), call(1)], 0, "request 1 after request 1"),
        ([call(0)], 0, "request 0 after request 0"),
    ],
)
def test_requests_are_limited(calls: list[Frame], under_way: int, what: str) -> None:
    limits = FrameLimits(LIMITS)
    for one in calls[:-1]:
        limits.call(one, under_way)
    with pytest.raises(WireError, match=what):
        limits.call(calls[-1], under_way)


LIES = {
    "endless output": output(200),
    "output to a stream that is none": output(1, 7),
    "a request that is too large": call(9, 600),
    "a request that came before": call(1),
    "an end in no time at all": Frame(Kind.DONE, header={"turn": ["ok", 0, False, float("nan"), 0, None, []]}),
    "a failure without a reason": Frame(Kind.FAILED, header={"message": ["x"]}),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_worker_that_lies_is_killed_and_its_sessions_go_on(pool: WorkerPool, lie: str) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    worker, told = process_of(session), LIES[lie]

    async def answer(_: HostCall) -> Json:
        hear(session, Frame(told.kind, session.number, told.number, told.header, told.data, turn=2))
        return None

    turn = await asyncio.wait_for(session.execute(f"n = 2\n{ASK}while True: pass", answer, lambda *_: None), 30)
    assert lost(turn)
    await asyncio.wait_for(worker._process.wait(), 30)
    assert await show(session, "n") == "1"


async def test_what_a_worker_sends_by_itself_keeps_to_the_limits(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", LIMITS)

    async def answer(call: HostCall) -> Json:
        return None

    worker = process_of(session)
    for code in (
        "import sys\nfor n in range(1000):\n    print(n, flush=True)\n    print('ä' * n, file=sys.stderr)",
        "print('ä' * 100)",
        "import _door\nfor n in range(10):\n    _door.call('a')",
        "import _door\n_door.call('a', q='x' * 600)",
        "import _door\nfor n in range(9): _door.call('a', q='x' * 400)",
        "import _door\nfor n in range(5): _door.start('a')",
        "import _door\nfor n in range(9):\n    try: _door.start('a')\n    except Exception: pass\n_door.wait()",
        "print('x', end='')\nimport os; os.abort()",
        "open('/tmp/f', 'w').write('x' * 1000)",
        "def f(): return f()\nf()",
    ):
        turn = await asyncio.wait_for(session.execute(code, answer, lambda *_: None), 60)
        assert not lost(turn), turn
    assert worker.alive
    assert (await session.execute("1", answer, lambda *_: None)).status is Status.OK
