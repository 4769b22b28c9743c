"""A turn whose server or worker was lost runs again from what the server had heard of it, and asks the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import pytest

from sandbox.door import HostCall, Json
from sandbox.inputs import BEGUN, MAX_LOG, OTHER, Inputs
from sandbox.limits import MIB, Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.worker_session import WorkerSession
from sandbox.pool.worker_turn import AT_ONCE, HEAD_AT_ONCE, WorkerTurn
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from sandbox.wire.frames import Frame, Kind
from tests.sandbox.pool.test_kept_sessions import killed, served
from tests.sandbox.pool.test_pool import ignore, nobody
from tests.sandbox.pool.test_turn_ends import hear
from tests.sandbox.pool.test_workers import lost, pid_of, process_of, show
from tests.sandbox.vm.test_noted import BEFORE, CLOCKS, EVERYTHING, LAST, RANDOM

LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)
CODE = "".join(EVERYTHING) + LAST


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4, spares=1)
    yield made
    await asyncio.wait_for(made.close(), 30)


class Server:
    """Answers requests with what was answered before, or else after a while, and keeps what it heard of a turn."""

    def __init__(self, inputs: Inputs | None = None, answers: dict[bytes, Json] | None = None) -> None:
        self.inputs = Inputs.new() if inputs is None else inputs
        self.answers = {} if answers is None else answers
        self.pieces: list[bytes] = []
        self.asked: list[bytes] = []
        self.at = -1
        """The request at which `strike` is called."""
        self.strike: Callable[[], None] = lambda: None

    async def __call__(self, call: HostCall) -> Json:
        self.asked.append(call.digest)
        if len(self.asked) == self.at:
            self.strike()
        if call.digest not in self.answers:
            question = call.text("q")
            if question == "'never'":
                await asyncio.Event().wait()
            await asyncio.sleep(random.random() * (0.02 if "slow" in question else 0.004))
            self.answers[call.digest] = question.upper()
        return self.answers[call.digest]

    async def run(self, session: WorkerSession, code: str = CODE) -> Turn:
        turn = session.execute(code, self, ignore, inputs=self.inputs, heard=self.pieces.append)
        return await asyncio.wait_for(turn, 60)

    def next(self) -> Server:
        """Return a server that knows what this one has stored."""
        inputs = Inputs(self.inputs.seed)
        for piece in self.pieces:
            inputs.add(piece)
        return Server(inputs, self.answers)


async def begun(pool: WorkerPool) -> WorkerSession:
    session = await pool.create("a", "core", LIMITS)
    await show(session, BEFORE)
    return session


async def test_a_turn_whose_worker_is_killed_at_any_request_runs_again_on_the_same_path(pool: WorkerPool) -> None:
    session = await begun(pool)
    for at in (1, 2, 5, 17, 24, 31, 38, 45):
        first = Server()
        first.at = at
        first.strike = lambda: os.kill(pid_of(session), signal.SIGKILL)
        assert lost(await first.run(session))
        again = first.next()
        turn = await again.run(session)
        assert turn.status is Status.OK, turn.error
        assert again.asked[:at] == first.asked[:at]
        assert await show(session, "order, len(told)")  # what it did is kept


async def test_a_turn_that_is_killed_again_and_again_goes_on_from_where_it_had_come_to(pool: WorkerPool) -> None:
    session = await begun(pool)
    server = Server()
    path: list[bytes] = []
    turn = None
    for at in (9, 20, 3, 33, 45, -1):
        server.at = at
        server.strike = lambda: os.kill(pid_of(session), signal.SIGKILL)
        turn = await server.run(session)
        common = min(len(path), len(server.asked))
        assert server.asked[:common] == path[:common]
        path = max(path, server.asked, key=len)
        pieces, server = server.pieces, server.next()
        server.pieces = pieces
    assert turn is not None
    assert turn.status is Status.OK, turn.error
    assert len(path) > 45


async def test_a_turn_that_is_cut_off_runs_again_on_the_same_path(pool: WorkerPool) -> None:
    session = await begun(pool)
    first = Server()
    first.at, enough = 20, asyncio.Event()
    first.strike = enough.set
    turn = asyncio.create_task(first.run(session))
    await asyncio.wait_for(enough.wait(), 30)
    turn.cancel()
    with suppress(asyncio.CancelledError):
        await turn
    again = first.next()
    assert (await again.run(session)).status is Status.OK
    assert again.asked[:20] == first.asked[:20]


async def test_a_turn_whose_server_is_killed_runs_again_in_the_next_on_the_same_path(
    loaded: Loaded, tmp_path: Path
) -> None:
    places, servers = [1, 18, 30, 45], list[Server]()
    first = Server()

    def leave() -> None:
        killed(tmp_path / "s", "one", tmp_path / str(len(servers)))
        servers.append(first.next())
        first.at = next((at for at in places if at > first.at), -1)

    first.at, first.strike = places[0], leave
    async with served(loaded, tmp_path / "s") as pool:
        session = await pool.create("a", "core", LIMITS, "one")
        await show(session, BEFORE)
        assert (await first.run(session)).status is Status.OK
    for number, (at, again) in enumerate(zip(places, servers, strict=True)):
        async with served(loaded, tmp_path / str(number)) as pool:
            turn = await again.run(pool.take_up("a", "core", LIMITS, "one"))
            assert turn.status is Status.OK, turn.error
            assert again.asked[:at] == first.asked[:at]


async def test_a_turn_that_runs_again_as_it_had_asked_for_nothing_draws_the_same(pool: WorkerPool) -> None:
    session = await begun(pool)
    process_of(session).kill()  # the turn begins with new entropy, as it does when it runs again
    drawn: list[bytes] = []

    def listen(_stream: int, data: bytes) -> None:
        drawn.append(data)
        if len(drawn) == 1:
            os.kill(pid_of(session), signal.SIGKILL)

    code = "print(os.urandom(8).hex(), flush=True)\ntime.sleep(0.2)"
    turn = await asyncio.wait_for(session.execute(code, nobody, listen, inputs=Inputs.new()), 30)
    assert turn.status is Status.OK
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


async def test_turns_with_inputs_of_their_own_draw_nothing_twice(pool: WorkerPool) -> None:
    sessions = [await begun(pool) for _ in range(2)]
    servers = [Server() for _ in range(6)]
    for number, server in enumerate(servers):
        turn = await server.run(sessions[number % 2], "ask(os.urandom(8)), ask(uuid.uuid4())")
        assert turn.status is Status.OK, turn.error
    assert len({digest for server in servers for digest in server.asked}) == 12


async def test_variables_are_told_of_a_turn_that_runs_again_elsewhere(pool: WorkerPool) -> None:
    session = await begun(pool)
    first = Server()
    first.at, first.strike = 1, lambda: os.kill(pid_of(session), signal.SIGKILL)
    assert lost(await first.run(session, "ask(1)"))
    again = await first.next().run(session, "ask(1)")
    assert "kept" in [variable.name for variable in again.variables]


# ---- what is heard ---------------------------------------------------------------------------------------------------


async def test_all_that_a_turn_was_told_is_heard_before_it_is_answered(pool: WorkerPool) -> None:
    session = await begun(pool)
    server, events = Server(), list[str]()
    server.at, server.strike = 1, lambda: events.append("asked")
    turn = session.execute(
        "now = time.time_ns()\nask(now)", server, ignore, inputs=server.inputs, heard=lambda _: events.append("heard")
    )
    assert (await asyncio.wait_for(turn, 30)).status is Status.OK
    assert events == ["heard", "asked"]
    assert server.inputs.log


async def test_nothing_is_noted_of_a_turn_without_inputs(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await begun(pool)
    kinds, take = Counter[Kind](), WorkerTurn._heard

    def heard(turn: WorkerTurn, frame: Frame | None) -> None:
        assert frame is not None
        kinds[frame.kind] += 1
        take(turn, frame)

    monkeypatch.setattr(WorkerTurn, "_heard", heard)
    server = Server()
    turn = await asyncio.wait_for(session.execute(CLOCKS + RANDOM, server, ignore), 30)
    assert turn.status is Status.OK, turn.error
    assert kinds.keys() == {Kind.CALL, Kind.OUTPUT, Kind.DONE}
    assert len(server.asked) == kinds[Kind.CALL] == 4
    await server.run(session, CLOCKS)
    assert kinds[Kind.INPUTS] == 2


@pytest.mark.parametrize("size", [10, HEAD_AT_ONCE + 10, AT_ONCE * 4])
async def test_a_request_has_the_digest_of_what_the_guest_wrote(pool: WorkerPool, size: int) -> None:
    session = await pool.create("a", "core", LIMITS)
    digests = []

    async def answer(call: HostCall) -> Json:
        digests.append(call.digest)
        return None

    code = f"import _door\nfor text in 'x' * {size}, 'y' * {size}, 'x' * {size}: _door.call('a', q=text)"
    assert (await asyncio.wait_for(session.execute(code, answer, ignore), 30)).status is Status.OK
    head = b'{"q":{"":%d},"op":"a"}\0' % size if size > 255 else b'{"q":"%b","op":"a"}'
    frames = [head + letter * size if size > 255 else head % (letter * size) for letter in (b"x", b"y", b"x")]
    assert digests == [blake2b(frame, digest_size=16).digest() for frame in frames]


async def test_a_request_that_was_refused_for_want_of_room_is_refused_again(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=1, spares=0, held_bytes=1 << 20)
    try:
        session = await begun(pool)
        code = "try:\n    ask('x' * 100_000)\nexcept Exception as error:\n    ask(str(error))\nask('end')"
        first = Server()
        process_of(session).held.bytes = (1 << 20) - 50_000
        assert (await first.run(session, code)).status is Status.OK
        assert first.inputs.complete
        await show(session, "0")
        process_of(session).held.bytes = 0
        again = first.next()
        assert (await again.run(session, code)).status is Status.OK
        assert again.asked == first.asked
        assert len(again.asked) == 2
        assert again.pieces == []
        other = Server()
        await other.run(session, code)
        assert len(other.asked) == 2
        assert other.asked != first.asked
    finally:
        await asyncio.wait_for(pool.close(), 30)


# ---- a worker that lies ----------------------------------------------------------------------------------------------

BEGINS = bytes([OTHER, BEGUN, 1, 1])
LIES = {
    "inputs that were not asked for": (None, [(0, BEGINS)]),
    "no beginning": (b"", [(0, b"\1\1")]),
    "nothing": (b"", [(0, b"")]),
    "nothing more": (BEGINS, [(len(BEGINS), b"")]),
    "more than there may be": (BEGINS, [(len(BEGINS), b"\1\1" * (MAX_LOG // 2))]),
    "something unknown": (BEGINS, [(len(BEGINS), b"\3\4")]),
    "a place that is not there": (BEGINS, [(1 << 31, b"\1\1")]),
    "a place within an entry": (BEGINS + b"\1\1", [(len(BEGINS) + 1, b"\1\1")]),
    "twice before one request": (BEGINS, [(len(BEGINS), b"\1\1"), (len(BEGINS) + 2, b"\1\1")]),
    "leaving its path twice": (BEGINS + b"\1\1", [(len(BEGINS), b"\1\2"), None, (len(BEGINS), b"\1\1")]),
}


@pytest.mark.parametrize(("log", "said"), LIES.values(), ids=LIES)
async def test_a_worker_that_says_what_no_turn_was_told_is_killed(
    pool: WorkerPool, log: bytes | None, said: list[tuple[int, bytes] | None]
) -> None:
    session = await begun(pool)
    inputs = None if log is None else Inputs.new()
    if inputs is not None and log:
        inputs.note(0, log, 1)
    heard: list[bytes] = []
    lied = asyncio.Event()

    def lie(*_: object) -> None:
        turn = session._turn
        assert turn is not None
        for entries in said:
            kind, (at, data) = (Kind.CALL, (1, b"{}")) if entries is None else (Kind.INPUTS, entries)
            hear(session, Frame(kind, session.number, at, data=data, turn=turn.number))
        lied.set()

    turn = session.execute("print(1, flush=True)\nwhile True: pass", nobody, lie, inputs=inputs, heard=heard.append)
    assert lost(await asyncio.wait_for(turn, 30))
    assert lied.is_set()
    assert len(set(heard)) == len(said) - 1 - (None in said)  # it has run again where it had asked for nothing
    assert await show(session, "1") == "1"
