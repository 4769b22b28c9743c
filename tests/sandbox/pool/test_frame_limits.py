"""What a worker sends during a turn keeps to the session's limits, or the worker is killed."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.inputs import MAX_LOG
from sandbox.limits import MIB, Limits
from sandbox.pool.frame_limits import MAX_STRAY, FrameBounds, FrameLimits
from sandbox.pool.pool import WorkerPool
from sandbox.turn import GAP, Status
from sandbox.vm.image import Loaded
from sandbox.wire.frames import MAX_JSON, Frame, Kind, WireError
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


def test_the_replies_of_a_turn_count_with_its_requests() -> None:
    limits = FrameLimits(LIMITS)
    limits.call(call(1, 400), 0)
    limits.reply(600)
    with pytest.raises(DoorRefusal, match="1001 bytes in requests and replies of one turn, the limit is 1000"):
        limits.reply(1)


# ---- before a frame is kept ------------------------------------------------------------------------------------------


def beginning(kind: int, header_bytes: int, data_bytes: int, session: int) -> bytes:
    return struct.pack("<BIIIIQ", kind, session, 1, 1, header_bytes, data_bytes)


TOO_LARGE = {
    "a request beyond a frame": (Kind.CALL, 0, LIMITS.frame_bytes + 1),
    "a request with JSON": (Kind.CALL, 1, 10),
    "inputs beyond a log": (Kind.INPUTS, 0, MAX_LOG + 1),
    "inputs with JSON": (Kind.INPUTS, 1, 10),
    "output beyond what is kept": (Kind.OUTPUT, 0, LIMITS.output_bytes + GAP + 1),
    "output with JSON": (Kind.OUTPUT, 1, 10),
    "an end with endless JSON": (Kind.DONE, MAX_JSON + 1, 0),
    "an end with endless files": (Kind.DONE, 100, 1 << 30),
    "a failure with data": (Kind.FAILED, 100, 1),
    "a failure with endless words": (Kind.FAILED, 1 << 20, 0),
    "an answer with data": (Kind.READY, 0, 1),
    "an answer with endless words": (Kind.READY, 1 << 20, 0),
    "a frame of the server's": (Kind.EXECUTE, 0, 10),
}


@pytest.mark.parametrize("case", TOO_LARGE)
@pytest.mark.parametrize("known", [True, False], ids=["its session", "no session"])
async def test_a_frame_that_may_not_come_ends_the_worker_before_any_of_it_is_kept(
    pool: WorkerPool, case: str, known: bool
) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    kind, header_bytes, data_bytes = TOO_LARGE[case]
    worker.data_received(beginning(kind, header_bytes, data_bytes, session.number if known else 77))
    assert not worker.alive
    assert await show(session, "1") == "1"


def test_what_no_session_of_a_worker_may_send_nobody_may() -> None:
    none = FrameBounds()
    assert none.allow(Kind.READY, 50, 0) > 0
    for kind in (Kind.CALL, Kind.INPUTS, Kind.OUTPUT, Kind.DONE):
        with pytest.raises(WireError, match=f"a frame of kind {kind}"):
            none.allow(kind, 0, 1)
    both = FrameBounds(call_bytes=5).with_(FrameBounds(call_bytes=3, output_bytes=7))
    assert both == FrameBounds(call_bytes=5, output_bytes=7)


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (Kind.READY, b"[" * 5000),
        (Kind.READY, b'{"unconfined":' + b"[1," * 100 + b"1" + b"]" * 100 + b"}"),
        (Kind.FAILED, b'{"message":[' + b"1," * 100 + b"1]}"),
        (Kind.DONE, b'{"turn":[' + b"[]," * 60_000 + b"1]}"),
    ],
)
async def test_json_with_too_many_values_ends_the_worker(pool: WorkerPool, kind: Kind, header: bytes) -> None:
    session = await pool.create("a", "core", LIMITS)
    worker = process_of(session)
    worker.data_received(beginning(kind, len(header), 0, session.number) + header)
    assert not worker.alive
    assert await show(session, "1") == "1"


@pytest.mark.parametrize("of", ["no session", "a turn that has ended", "nobody's question"])
async def test_a_worker_that_goes_on_and_on_is_killed(pool: WorkerPool, of: str) -> None:
    session = await pool.create("a", "core", LIMITS)
    await show(session, "n = 1")
    worker = process_of(session)
    stray = {
        "no session": Frame(Kind.OUTPUT, 77, 1, data=b"x"),
        "a turn that has ended": Frame(Kind.OUTPUT, session.number, 1, data=b"x", turn=1),
        "nobody's question": Frame(Kind.READY),
    }[of]

    async def answer(_: HostCall) -> Json:
        hear(session, *[stray] * (MAX_STRAY + 1))
        return None

    turn = await asyncio.wait_for(session.execute(f"n = 2\n{ASK}while True: pass", answer, lambda *_: None), 30)
    assert lost(turn)
    assert not worker.alive
    assert await show(session, "n") == "1"


async def test_output_of_two_streams_in_turn_comes_in_few_frames(pool: WorkerPool) -> None:
    session = await pool.create("a", "core", Limits(turn_seconds=20, memory_bytes=96 * MIB))
    heard: list[tuple[int, bytes]] = []

    async def answer(_: HostCall) -> Json:
        return None

    code = "import os\nfor _ in range(5000):\n    os.write(1, b'x')\n    os.write(2, b'y')"
    turn = await asyncio.wait_for(session.execute(code, answer, lambda *said: heard.append(said)), 60)
    assert (turn.stdout, turn.stderr) == ("x" * 5000, "y" * 5000)
    assert len(heard) < 1000


async def test_the_largest_end_a_session_can_have_is_taken(pool: WorkerPool) -> None:
    limits = Limits(turn_seconds=60, memory_bytes=256 * MIB, files=50, file_bytes=4 * MIB, output_bytes=10_000)
    session = await pool.create("a", "core", limits)
    worker = process_of(session)

    async def answer(_: HostCall) -> Json:
        return None

    code = """\
import os
folder = '/tmp'
for n in range(15):
    folder += '/' + chr(1) * 250
    os.mkdir(folder)
for n in range(30): open(f'{folder}/{n}', 'wb').write(bytes(100_000))
held = [open(f'{folder}/{n}') for n in range(30)]
for n in range(300): globals()[chr(0x1d49c) * 150 + str(n)] = type(chr(0x1d49c) * 200, (), {})()
raise ValueError(chr(0x1f600) * 20_000)"""
    turn = await asyncio.wait_for(session.execute(code, answer, lambda *_: None), 60)
    assert turn.error is not None
    assert turn.error.type == "ValueError"
    assert (worker.alive, process_of(session)) == (True, worker)
    assert await show(session, "len(os.listdir(folder)), held[29].read(2)") == "(30, '\\x00\\x00')"
