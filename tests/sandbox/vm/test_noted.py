"""A turn that runs again with what was noted of it takes the same path, whatever it was told by chance."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future

import pytest

from sandbox.door import HostCall, Json, digest_of
from sandbox.inputs import Inputs
from sandbox.turn import Status, Turn
from sandbox.vm.chance import Noted
from sandbox.vm.session import Session
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
ask((random.random(), uuid.uuid4(), uuid.uuid1(), secrets.token_hex(40), os.urandom(3), tempfile.mktemp(), kept.random()))
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
    assert len(first.asked) > 50
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
