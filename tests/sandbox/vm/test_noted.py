"""A turn that runs again with what was noted of it takes the same path, whatever it was told by chance."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from sandbox.door import HostCall, Json, digest_of
from sandbox.inputs import BEGUN, FULL, MAX_LOG, OTHER, SAME, WAITED, Inputs, number, signed
from sandbox.limits import Limits
from sandbox.turn import Status, Turn
from sandbox.vm import clocks
from sandbox.vm.chance import Noted
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from sandbox.vm.waiting import ThreadWaiter
from tests.sandbox.conftest import MakeText
from tests.sandbox.repl import Repl, Repls, memory_of, on_thread

BEFORE = """
import asyncio, os, random, secrets, tempfile, time, uuid
from concurrent.futures import ThreadPoolExecutor, as_completed
import _loop, _requests

@_requests.asking
def ask(q):
    return _requests.Request('ask', str, q=repr(q))
ask_async = _loop.awaitable(ask)
kept = random.Random(1)
"""

CLOCKS = """
for _ in range(50):
    now = time.time(), time.monotonic(), time.perf_counter_ns(), time.process_time()
ask(now)
time.sleep(0.002)
ask((time.time_ns(), time.get_clock_info('time')))
"""
RANDOM = """
ask((random.random(), kept.random(), uuid.uuid4(), uuid.uuid1(), secrets.token_hex(40)))
ask((os.urandom(3), tempfile.mktemp()))
"""
ORDERS = """
ask(list({str(n) * 3 for n in range(50)}))
ask(([object() for _ in range(5)], list({object() for _ in range(20)}), {id(thing): 1 for thing in now}))
"""
FILES = """
with open('/tmp/f', 'w') as file:
    for n in range(5):
        print(n, file=file, flush=True)
os.mkdir('/tmp/d')
os.utime('/tmp/f')
with tempfile.NamedTemporaryFile() as file:
    ask((file.name, [(entry.name, entry.stat()) for entry in os.scandir('/tmp')], os.stat('/tmp')))
os.rmdir('/tmp/d')
"""
GATHERED = """
told = []
async def one(q):
    told.append((await ask_async(q), time.monotonic()))
await asyncio.gather(*(one(n) for n in range(12)))
ask(told)
ask('between')
"""
TIMEOUTS = """
async def patient(q, seconds):
    try:
        return await asyncio.wait_for(ask_async(q), seconds)
    except TimeoutError:
        return await ask_async(('no answer', q, time.monotonic()))
ask(await asyncio.gather(*(patient(f'slow {n}', 0.002 * n) for n in range(6)), patient('never', 0.01)))
await asyncio.sleep(0.003)
"""
POOLS = """
with ThreadPoolExecutor(3) as pool:
    order = [done.result() for done in as_completed([pool.submit(ask, n) for n in range(9)])]
    ask(order)
    ask(list(pool.map(ask, range(5))))
    first = pool.submit(ask, 'polled')
    while not first.done():
        time.sleep(0.001)
ask(first.result())
"""
EVERYTHING = [CLOCKS, RANDOM, ORDERS, FILES, GATHERED, TIMEOUTS, POOLS]
LAST = "\nask('last')\n"

BEGINS = bytes([OTHER, BEGUN, 1, 1])


class Host:
    """Answers a turn's requests after a while drawn by chance, and keeps what was known when each was made."""

    def __init__(self, inputs: Inputs | None = None, slow: float = 0.004) -> None:
        self.inputs = Inputs.new() if inputs is None else inputs
        self.noted = Noted(self.inputs)
        self.asked: list[bytes] = []
        self.known: list[bytes] = []
        self.pieces: list[bytes] = []
        self._slow = slow

    def note(self) -> None:
        untold = self.noted.untold()
        if untold is not None:
            self.pieces.append(self.inputs.note(*untold, len(self.asked) + 1))

    def __call__(self, call: HostCall) -> Future[Json]:
        self.note()
        self.known.append(self.inputs.to_bytes())
        self.asked.append(digest_of(call.frame))
        question, answer = call.text("q"), Future[Json]()
        if question == "'never'":
            return answer
        delay = random.random() * self._slow * (3 if "slow" in question else 1)

        def reply() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(question.upper())

        threading.Timer(delay, reply).start()
        return answer

    def run(self, repl: Repl, code: str) -> Turn:
        """Run a turn, and note what it was told after its last request as well."""
        turn = on_thread(lambda: repl.session.execute(code, self, None, self.noted)).result(60)
        self.note()
        return turn

    @property
    def all(self) -> Inputs:
        return Inputs.from_bytes(self.inputs.to_bytes())


@pytest.fixture
def before(repl: Repl) -> Repl:
    repl.show(BEFORE)
    return repl


def completed(turn: Turn) -> Turn:
    assert turn.status is Status.OK, turn.error
    return turn


@pytest.mark.parametrize("fresh", [True, False])
def test_a_turn_runs_again_on_the_same_path_from_whatever_was_known_at_each_of_its_requests(
    before: Repl, start: Repls, fresh: bool
) -> None:
    here, fork = before, start.fork(before)
    if fresh:
        here, fork = fork, start.fork(fork)
    code = "".join(EVERYTHING) + LAST
    first = Host()
    completed(first.run(here, code))
    assert first.inputs.complete
    assert len(first.asked) > 45
    for request, known in enumerate(first.known, start=1):
        if request % 6 == 1:
            again = Host(Inputs.from_bytes(known))
            completed(again.run(start.fork(fork), code))
            assert again.asked[:request] == first.asked[:request]
    again, repl = Host(first.all), start.fork(fork)
    completed(again.run(repl, code))
    assert (again.asked, again.pieces) == (first.asked, [])
    assert memory_of(repl) == memory_of(here)


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_run_again_on_the_same_path(before: Repl, start: Repls, seed: int) -> None:
    chance = random.Random(seed)
    fork = start.fork(before)
    code = "now = ()" + "".join(chance.choices(EVERYTHING, k=5)) + LAST
    first = Host()
    completed(first.run(before, code))
    again = Host(first.all, slow=0.001)
    assert completed(again.run(fork, code)).variables
    assert again.asked == first.asked
    assert memory_of(fork) == memory_of(before)


def test_numpy_and_pandas_draw_the_same_again(start: Repls) -> None:
    repl = start("data", memory_bytes=256 << 20)
    repl.show(BEFORE)
    fork = start.fork(repl)
    code = """
import numpy, pandas
ask((numpy.random.rand(3), numpy.random.default_rng().normal(size=3)))
ask(pandas.Series(range(100)).sample(5))
ask((pandas.Timestamp.now(), pandas.util.hash_array(numpy.arange(3))))
"""
    first = Host()
    completed(first.run(repl, code))
    again = Host(first.all)
    completed(again.run(fork, code))
    assert again.asked == first.asked
    assert memory_of(fork) == memory_of(repl)


def test_a_turn_that_asks_for_something_else_goes_on_as_it_comes_and_can_run_again_so(
    before: Repl, start: Repls
) -> None:
    forks = [start.fork(before) for _ in range(2)]
    first = Host()
    completed(first.run(before, CLOCKS + GATHERED + LAST))
    second = Host(first.all)
    completed(second.run(forks[0], CLOCKS + TIMEOUTS + RANDOM + LAST))
    assert second.asked[:2] == first.asked[:2]
    assert second.pieces
    third = Host(second.all)
    completed(third.run(forks[1], CLOCKS + TIMEOUTS + RANDOM + LAST))
    assert (third.asked, third.pieces) == (second.asked, [])
    assert memory_of(forks[0]) == memory_of(forks[1])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_log_says_a_turn_goes_on_and_can_run_again(before: Repl, start: Repls, seed: int) -> None:
    chance = random.Random(seed)

    def said() -> bytes:
        tag, many = chance.randrange(4), chance.choice((0, 1, 5, 1 << 34))
        before = number(chance.choice((0, 0, 1, 4)) << 2 | tag)
        if tag < OTHER:
            return before + number(chance.randrange(many + 1))
        numbers = [signed(chance.choice((-1, 1, 2))) for _ in range(chance.randrange(3))]
        return before + (bytes([SAME]) if chance.random() < 0.5 else bytes([WAITED]) + b"".join(numbers) + b"\0")

    inputs, fork = Inputs.new(), start.fork(before)
    inputs.note(0, BEGINS + b"".join(said() for _ in range(chance.randrange(400))), 1)
    code = "now = ()" + "".join(chance.choices([RANDOM, ORDERS, FILES, GATHERED, POOLS], k=3)) + LAST
    first = Host(inputs)
    completed(first.run(before, code))
    again = Host(first.all)
    completed(again.run(fork, code))
    assert (again.asked, again.pieces) == (first.asked, [])
    assert memory_of(fork) == memory_of(before)


class Waiter(ThreadWaiter):
    """Keeps how long the guest wanted to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def until(self, done: Callable[[], bool], seconds: float | None) -> float:
        self.waits.append(seconds)
        return super().until(done, seconds)


def test_a_sleep_is_not_slept_again(before: Repl, start: Repls, loaded: Loaded) -> None:
    waiters, hosts = [Waiter(), Waiter()], [Host()]
    repls = [
        start.keep(Session(loaded.program, before.session.checkpoint.fork(), Limits(), waiter)) for waiter in waiters
    ]
    code = "time.sleep(0.3)\nnow = time.time()\nawait asyncio.sleep(0.3)\nask(now)"
    completed(hosts[0].run(repls[0], code))
    completed(Host(hosts[0].all).run(repls[1], code))
    slept = [sum(seconds > 0.2 for seconds in waiter.waits if seconds is not None) for waiter in waiters]
    assert slept == [2, 0]


def test_a_wait_that_ended_in_time_waits_for_the_same_replies_however_long_they_take(
    before: Repl, start: Repls
) -> None:
    fork = start.fork(before)
    code = "import _door\nnumber = _door.start('ask', q='1')\nreplies = _door.wait(0.5)\nask(replies)"
    first = Host(slow=0.001)
    completed(first.run(before, code))
    again = Host(first.all, slow=0.5)
    completed(again.run(fork, code.replace("0.5", "0.0")))
    assert again.asked == first.asked


# ---- clocks, one by one ----------------------------------------------------------------------------------------------

SECOND = 10**9
TICK = clocks.TICK_NANOSECONDS


class Times:
    """Clocks of a guest that tell what they are set to."""

    def __init__(self, inputs: Inputs, *times: int) -> None:
        self.times, self.inputs = list(times), inputs
        self.noted = Noted(inputs)
        self.noted.begin(1, True)
        self.noted.over(lambda clock: self.times[clock])

    def read(self, *reads: int) -> list[int]:
        return [self.noted.clock(clock) for clock in reads]

    def note(self) -> None:
        untold = self.noted.untold()
        if untold is not None:
            self.inputs.note(*untold, 1)


def test_clocks_that_measure_go_on_from_what_they_told_and_the_time_of_day_is_that_of_now() -> None:
    first = Times(Inputs.new(), 1000 * SECOND, 50 * SECOND, TICK)
    told = first.read(0, 1, 2, 3)
    first.times = [1001 * SECOND, 51 * SECOND, SECOND]
    told += first.read(1, 1, 0, 2)
    first.note()
    again = Times(first.inputs, 9000 * SECOND, 7000 * SECOND, 0)
    assert again.read(0, 1, 2, 3, 1, 1, 0, 2) == told
    assert not again.noted.telling
    assert again.read(0, 1, 2, 3) == [9000 * SECOND, 51 * SECOND, SECOND, SECOND]
    again.times = [8000 * SECOND, 7002 * SECOND, 5 * TICK]
    assert again.read(0, 1, 2) == [8000 * SECOND, 53 * SECOND, SECOND + 5 * TICK]
    again.times[1:] = [6000 * SECOND, 0]
    assert again.read(1, 2) == [53 * SECOND, SECOND + 5 * TICK]


def test_readings_that_tell_nothing_new_are_told_again_as_often_as_they_were() -> None:
    first = Times(Inputs.new(), SECOND, SECOND, 0)
    first.read(*[0, 1, 2] * 100)
    first.note()
    size = len(first.inputs.log)
    assert size < 30
    first.times[1] += TICK
    first.read(*[1] * 10)
    first.note()
    assert len(first.inputs.log) < size + 8
    again = Times(first.inputs, 0, 0, 0)
    assert again.read(*[0, 1, 2] * 100) == [SECOND, SECOND, 0] * 100
    assert again.read(*[1] * 10) == [SECOND + TICK] * 10
    assert not again.noted.telling


def test_a_turn_that_only_reads_clocks_has_room_for_all_of_its_time() -> None:
    one = Times(Inputs.new(), SECOND, SECOND, 0)
    told = []
    for _ in range(60 * SECOND // TICK):
        one.times = [time + TICK for time in one.times]
        told += one.read(1, 0)
    one.note()
    assert one.inputs.complete
    assert len(one.inputs.log) <= MAX_LOG
    assert max(one.times[1] - clock for clock in told[-2:]) <= 1024 * TICK
    again = Times(one.inputs, 0, 0, 0)
    assert again.read(*[1, 0] * (len(told) // 2)) == told


def test_beyond_the_bound_nothing_is_noted_and_that_is_said() -> None:
    one = Times(Inputs.new(), SECOND, SECOND, 0)
    first = one.read(0, 0)
    for _ in range(MAX_LOG):
        assert one.noted.due({}) is None
        one.noted.brought(())
    one.note()
    assert not one.inputs.complete
    size = len(one.inputs.log)
    assert MAX_LOG - 64 < size <= MAX_LOG
    one.times[0] += SECOND
    one.read(0)
    one.note()
    assert len(one.inputs.log) == size
    again = Times(one.inputs, 5 * SECOND, 5 * SECOND, 0)
    assert again.read(0, 0) == first
    while again.noted.telling:
        assert again.noted.due({}) == ()
        again.noted.brought(())
    assert again.read(0) == [5 * SECOND]
    again.note()
    assert len(one.inputs.log) == size


@pytest.mark.parametrize(
    ("log", "asked"),
    [
        (bytes([OTHER, WAITED]) + signed(5) + b"\0", {4: None}),
        (bytes([OTHER, WAITED]) + signed(5) + signed(-1) + signed(1) + b"\0", {4: None, 5: None}),
        (number(3 << 2 | OTHER) + bytes([WAITED]) + signed(5) + b"\0", {5: None}),
        (number(1) + number(5), {5: None}),
        (number(7 << 2 | OTHER) + bytes([FULL]), {5: None}),
    ],
)
def test_a_wait_for_what_is_not_under_way_is_as_it_comes(log: bytes, asked: dict[int, None]) -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS + log, 1)
    one = Times(inputs, SECOND, SECOND, 0)
    assert one.noted.due(asked) is None
    assert not one.noted.telling
    one.noted.brought((4,))
    one.note()
    assert inputs.log == BEGINS + bytes([OTHER, WAITED]) + signed(4) + b"\0"
    assert inputs.complete


@pytest.mark.parametrize("clock", range(3))
def test_no_log_has_a_clock_tell_what_a_guest_cannot_read(clock: int) -> None:
    most = (1 << 48) - 1
    inputs = Inputs.new()
    inputs.note(0, BEGINS + (number(clock) + number(2 * most)) * 50 + number(0) + signed(-most), 1)
    one = Times(inputs, SECOND, SECOND, 0)
    assert all(0 <= told < 1 << 63 for told in one.read(*[clock] * 50, 0))


def test_entries_that_say_nothing_are_passed_however_many_there_are() -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS + bytes([OTHER, SAME]) * 30_000, 1)
    one = Times(inputs, 3600 * SECOND, 3600 * SECOND, 0)
    assert not one.noted.telling
    assert one.read(0) == [3600 * SECOND]


# ---- what else must not differ ---------------------------------------------------------------------------------------


def test_where_a_part_of_a_text_is_found_does_not_depend_on_earlier_turns(
    repl: Repl, start: Repls, text: MakeText
) -> None:
    repl.attach("context", text("ab" * 100_000))
    code = "import _documents\n_documents.located(context[2000:100_000])"
    repl.show(code.replace("2000", "4000"))
    fork = start.fork(repl)
    assert repl.show(code) == fork.show(code)


def test_a_session_that_was_restored_has_as_much_memory_to_grow_into_beside_its_texts(
    repl: Repl, start: Repls, text: MakeText
) -> None:
    repl.attach("context", text("a" * (120 << 20)))
    fork = start.fork(repl)
    code = "block = bytearray(20 << 20)\nlen(block)"
    assert repl.show(code) == fork.show(code) == str(20 << 20)
    much = "more = bytearray(90 << 20)"
    assert [one.run(much).error.type for one in (repl, fork)] == ["MemoryError"] * 2  # type: ignore[union-attr]
