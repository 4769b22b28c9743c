"""Workers killed at random moments, under load: every session is at its last finished turn, and nothing is left.

RLM_TEST_KILLS sets how often.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from ast import literal_eval
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import pytest

from sandbox.corpora.corpus import Corpus
from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import WorkerPool
from sandbox.pool.process import WorkerLost
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.conftest import MakeText
from tests.sandbox.pool.test_pool import ignore, nobody
from tests.sandbox.pool.test_workers import children, descriptors, lost

T = TypeVar("T")

ANY, STARTING = "any", "starting"
MOMENTS = (ANY, STARTING, "wake", "output", "request", "reply", "checkpoint", "attach", "hibernate", "new", "cancel")
"""When a worker is killed: any of them at any time, one that is starting, or that of an owner just doing this."""
KILLS = max(len(MOMENTS), int(os.environ.get("RLM_TEST_KILLS", "33")))
ENDS = {"finished", "finished again", "lost", "given up", "attached"}
"""Of turns and of attaching. All of them must have been met."""
OWNERS = "abcd"
SIZES = (0, 0, 0, 6 * MIB)
"""Of the blocks in each owner's sessions. The last has so many pages of its own that its writes are watched."""
PLACES = 12
"""Fewer than there are sessions: they hibernate to make room for each other."""
LIMITS = Limits(turn_seconds=60, memory_bytes=96 * MIB)
DEADLINE = 60.0
"""Of each single wait, in seconds."""
WHOLE_DEADLINE = 600

BEGIN = "turns, block = [], bytearray({size})\nopen('/tmp/turns', 'w').close()"
STEP = """
turns.append({n})
if block:
    block[{n} * 4099 % len(block)] = {n} % 256
    if {n} % 5 == 0:
        block[::4096] = bytes([{n} % 256]) * (len(block) // 4096)
"""
"""What a turn changes. The test does the same to its model of the session, once the turn has finished."""
TURN = f"""{STEP}
with open('/tmp/turns', 'a') as file:
    print({{n}}, file=file)
print('going', flush=True)
{{wait}}
print(turns[-2:])
{{end}}
"""
ASK = "import _door; _door.call('a')"
REST = "import time; time.sleep(0.02)"
ASK_IN_VAIN = "import _door; _door.call('in_vain')"
STATE = """
from zlib import crc32
texts = sorted((name, len(text), text[-1]) for name, text in globals().items() if name.startswith('text_'))
print((turns, [int(line) for line in open('/tmp/turns')], crc32(block), texts))
"""


async def soon(work: Awaitable[T]) -> T:
    async with asyncio.timeout(DEADLINE):
        return await work


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Fail where the loop itself hangs, which no deadline within it would notice."""

    def ring(*_: object) -> None:
        pytest.fail(f"no end after {WHOLE_DEADLINE} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(WHOLE_DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Killer:
    """Kills workers with SIGKILL at moments drawn by chance, until `KILLS` are dead and all `ENDS` were met.

    No moment comes again before each of the others has had its worker killed.
    """

    def __init__(self, chance: random.Random, pool: WorkerPool) -> None:
        self._chance, self._pool = chance, pool
        self._strangers = children()
        self._due: list[str] = []
        self._moment = ""
        self._struck = asyncio.Event()
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        """What became of all sessions' turns."""

    @property
    def done(self) -> bool:
        return self.kills.total() >= KILLS and self.ends.keys() >= ENDS

    async def work(self) -> None:
        while not self.done:
            await asyncio.sleep(self._chance.expovariate(30))
            if not self._due:
                self._due = self._chance.sample(MOMENTS, len(MOMENTS))
            moment = self._due.pop()
            before = self.kills[moment]
            if moment == ANY:
                self._strike(moment, children() - self._strangers)
            elif moment == STARTING:
                self._strike(moment, children() - self._strangers - self._started())
            else:
                self._moment = moment
                self._struck.clear()
                with suppress(TimeoutError):  # the moment may not come soon
                    await asyncio.wait_for(self._struck.wait(), 1)
            if self.kills[moment] == before:  # nobody was there to be killed: the others' turn first
                self._due.insert(0, moment)

    def at(self, moment: str, owner: str) -> None:
        """Say that a session of the owner's is at this moment: its worker may die now or a little later."""
        if moment == self._moment:
            self._moment = ""
            delay = self._chance.choice((0, 0.001, 0.01)) * self._chance.random()
            asyncio.get_running_loop().call_later(delay, lambda: self._strike(moment, self._started(owner)))

    def _started(self, owner: str = "") -> set[int]:
        """Return the workers that have started: the owner's, or all."""
        pool = self._pool
        tasks = [pool._workers.get(owner)] if owner else [*pool._workers.values(), *pool._spares]
        return {task.result()._process.pid for task in tasks if task and task.done() and not task.exception()}

    def _strike(self, moment: str, pids: set[int]) -> None:
        living = sorted(filter(lives, pids))
        if living and not self.done:
            with suppress(ProcessLookupError):  # it may have ended just now
                os.kill(self._chance.choice(living), signal.SIGKILL)
                self.kills[moment] += 1
        self._struck.set()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes while its file is read
        return False


class Kept:
    """A session under load, and the model of it: what its finished turns did, and the texts it was given."""

    def __init__(self, session: WorkerSession, size: int, killer: Killer, texts: list[Corpus], seed: int) -> None:
        self._session, self._size, self._killer, self._texts = session, size, killer, texts
        self._chance = random.Random(seed)
        self._number = 0
        self._model: dict[str, Any] = {}
        self._attached: dict[str, Corpus] = {}
        self._heard = self._asked = 0

    async def live(self) -> None:
        """Do one thing after the other, until nobody is killed any more."""
        code = BEGIN.format(size=self._size)
        while lost(await self._execute(code)):
            pass
        self._model = {"turns": [], "block": bytearray(self._size)}
        while not self._killer.done:
            await asyncio.sleep(self._chance.random() * 0.1)
            (act,) = self._chance.choices((self._turn, self._given_up, self._attach, self._hibernate), (10, 2, 2, 2))
            await act()

    async def verify(self) -> None:
        """Compare all of the session with the model."""
        while lost(turn := await self._execute(STATE)):
            pass
        self._compare(turn)

    def verify_stored(self, loaded: Loaded, store: SessionStore) -> None:
        """Compare what is stored of a session that is kept with the model, once no process has the session."""
        session, image = self._session, loaded.images["core"]
        if session.name:
            read = store.get(store.find(session.name, session.owner, image), session.owner, image, session.corpora)
            with closing(Session(loaded.program, read.checkpoint, LIMITS)) as again:
                self._compare(again.execute(STATE))

    def _compare(self, turn: Turn) -> None:
        texts = sorted((name, text.characters, name[-1]) for name, text in self._attached.items())
        turns = self._model["turns"]
        assert literal_eval(turn.stdout) == (turns, turns, crc32(self._model["block"]), texts)

    async def _turn(self) -> None:
        self._number += 1
        wait = self._chance.choice((ASK, ASK, REST, ""))
        end = "raise LookupError" if self._chance.random() < 0.1 else ""
        turn = await self._execute(TURN.format(n=self._number, wait=wait, end=end))
        assert self._asked <= 1
        if lost(turn):
            self._killer.ends["lost"] += 1
            return
        assert turn.status is (Status.ERROR if end else Status.OK), turn
        exec(STEP.format(n=self._number), self._model)
        assert turn.stdout == f"going\n{self._model['turns'][-2:]}\n"
        self._killer.ends["finished again" if self._heard > 1 else "finished"] += 1

    async def _given_up(self) -> None:
        """Cancel a turn that would never end."""
        self._number += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05 * self._chance.random()):
                turn = await self._execute(f"{STEP.format(n=self._number)}{ASK_IN_VAIN}")
            assert lost(turn), turn
        self._killer.ends["given up"] += 1

    async def _attach(self) -> None:
        number = self._chance.randrange(len(self._texts))
        self._killer.at("attach", self._session.owner)
        with suppress(PoolFull, WorkerLost):
            await soon(self._session.attach(f"text_{number}", self._texts[number]))
            self._attached[f"text_{number}"] = self._texts[number]
            self._killer.ends["attached"] += 1

    async def _hibernate(self) -> None:
        self._killer.at("hibernate", self._session.owner)
        await soon(self._session.hibernate())

    async def _execute(self, code: str) -> Turn:
        """Run a turn, as soon as there is a place for it."""
        while True:
            if self._session.checkpoint is None:
                self._killer.at("wake", self._session.owner)
            self._heard = self._asked = 0
            with suppress(PoolFull):
                return await soon(self._session.execute(code, self._answer, self._listen))
            await asyncio.sleep(0.01)

    async def _answer(self, call: HostCall) -> Json:
        self._asked += 1
        self._killer.at("request", self._session.owner)
        if call.op == "in_vain":
            self._killer.at("cancel", self._session.owner)
            await asyncio.Event().wait()
        then = "checkpoint" if self._size else "reply"  # which is all there is left to do, and takes a while
        asyncio.get_running_loop().call_soon(self._killer.at, then, self._session.owner)
        return None

    def _listen(self, _stream: int, data: bytes) -> None:
        self._heard += data == b"going\n"
        self._killer.at("output", self._session.owner)


async def come_and_go(pool: WorkerPool, killer: Killer, owner: str, seconds: float) -> None:
    """Every so many seconds begin a session, use it and close it."""
    while not killer.done:
        await asyncio.sleep(seconds)
        killer.at("new", owner)
        with suppress(PoolFull, WorkerLost):
            session = await soon(pool.create(owner, "core", LIMITS))
            try:
                turn = await soon(session.execute("1 + 1", nobody, ignore))
                assert lost(turn) or turn.stdout == "2\n"
            finally:
                await soon(session.close())


@pytest.mark.parametrize("seed", [20])
async def test_workers_killed_at_random_moments_leave_every_session_at_its_last_finished_turn(
    loaded: Loaded, tmp_path: Path, text: MakeText, seed: int
) -> None:
    texts = [text(f"{letter * 100_000}{number}") for number, letter in enumerate("aä中😀")]
    faults = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    before = children(), asyncio.all_tasks()
    held = Counter(descriptors())
    store = SessionStore(tmp_path, os.urandom(32))
    pool = WorkerPool(loaded, sessions=PLACES, spares=2, store=store)
    killer = Killer(random.Random(seed), pool)
    try:
        sessions = [
            Kept(
                await soon(pool.create(owner, "core", LIMITS, f"kept{number}" * (number % 2))),
                size,
                killer,
                texts,
                seed + number,
            )
            for number, (owner, size) in enumerate(product(OWNERS, SIZES))
        ]
        load = [session.live() for session in sessions]
        load += [come_and_go(pool, killer, OWNERS[0], 0.1), come_and_go(pool, killer, "newcomer", 3.0), killer.work()]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in load]
        assert not any(task.cancelled() for task in tasks)
        for session in sessions:
            await session.verify()
    finally:
        await soon(pool.close())
    print(killer.kills, killer.ends)
    assert set(killer.kills) == set(MOMENTS)
    assert set(killer.ends) == ENDS
    assert (children(), asyncio.all_tasks()) == before
    assert Counter(descriptors()) - held == Counter()
    assert faults == []
    for session in sessions:
        session.verify_stored(loaded, store)
    store.keep_only(())
    assert os.listdir(tmp_path) == []
