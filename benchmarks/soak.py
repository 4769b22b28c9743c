"""Thousands of sessions for a long time: `python -m benchmarks.soak --help`.

A pool holds far more sessions than it may have live at once, so most hibernate. Turns come to all of them in random
order, some at once; each answer is checked against what the session must have become by then. What the server and its
workers hold is looked at again and again, between turns. A soak is bounded in turns and in time, and says how far it
came. The last line of stdout is the result as JSON: times in milliseconds, memory in MB of a million bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contestant import ROOT
from benchmarks.course import Course, Sample
from benchmarks.progress import Progress
from benchmarks.vitals import Vitals
from sandbox.corpora.corpus import Kind, in_memory
from sandbox.door import HostCall, Json
from sandbox.limits import Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.vm.image import Loaded, prepare, standard_specs

OWNERS = 4
AT_ONCE = 4
"""Turns under way."""
SAMPLES = 60
LIVE_SHARE = 0.25
"""Of the turns come to a session that had one just before; the others to any, most of which hibernate."""
KEPT = 8
"""So many numbers a session keeps: what it holds must not grow by itself."""
TURN_SECONDS = 60.0
LIMITS = Limits(memory_bytes=128 << 20, turn_seconds=30)
TEXT = "the text that is mapped, " * 10_000
PICTURE = ROOT / "build" / "soak.svg"

BEGIN = "number, total, last = {number}, 0, []\nopen('/tmp/total', 'w').write('0') and None"
TURN = f"""
total += {{turn}}
last = [*last[-{KEPT - 1}:], {{turn}}]
before = int(open('/tmp/total').read())
_ = open('/tmp/total', 'w').write(str(total))
number, total, before, last, {{text}}
"""


@dataclass(slots=True)
class Member:
    """A session, and what must be in it."""

    number: int
    session: WorkerSession
    has_text: bool
    total: int = 0
    last: list[int] = field(default_factory=list)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def code(self, turn: int) -> str:
        """Return the code of a turn of this number, which every turn has to itself."""
        return TURN.format(turn=turn, text=f"(len(context), context[{turn} % 25:][:9])" if self.has_text else "None")

    def expect(self, turn: int) -> str:
        """Take note of a turn, and return what it must print."""
        before, self.total = self.total, self.total + turn
        self.last = [*self.last, turn][-KEPT:]
        text = (len(TEXT), TEXT[turn % 25 :][:9]) if self.has_text else None
        return f"{(self.number, self.total, before, self.last, text)!r}\n"


class Soak:
    """A pool full of sessions, and turns for them."""

    def __init__(self, loaded: Loaded, folder: Path, sessions: int, live: int, progress: Progress) -> None:
        self._folder = folder
        store = SessionStore(folder, secrets.token_bytes(32))
        # All owners are this program's, so a machine without a jail may run them side by side.
        self._pool = WorkerPool(loaded, sessions=live, spares=0, store=store, unconfined=True)
        self._count = sessions
        self._progress = progress
        self._random = random.Random(11)
        self._opened = ExitStack()
        self._text = self._opened.enter_context(in_memory([TEXT], Kind.TEXT))
        self._began = 0.0
        self._live_seconds: list[float] = []
        self._wake_seconds: list[float] = []
        self.members: list[Member] = []
        self.course = Course()
        self.wrong: list[str] = []

    async def fill(self) -> None:
        """Create all sessions, each with names, a file, and some with a mapped text."""
        for number in range(self._count):
            session = await self._pool.create(f"owner {number % OWNERS}", "core", LIMITS)
            member = Member(number, session, has_text=number % 20 == 0)
            if member.has_text:
                await session.attach("context", self._text)
            await self._execute(member, BEGIN.format(number=number), "")
            await self._execute(member, member.code(0), member.expect(0))  # the first takes most of the memory
            self.members.append(member)
            if (number + 1) % max(1, self._count // 10) == 0:
                self._progress(f"{number + 1:,} of {self._count:,} sessions, {self._pool.live:,} of them live")

    async def turns(self, count: int, seconds: float) -> None:
        """Take so many turns, or as many as so many seconds allow."""
        order = self._order()
        self._began = time.monotonic()
        taken = 0
        self._look(taken)
        while taken < count and time.monotonic() < self._began + seconds:
            numbers = iter(range(taken, min(taken + max(1, count // SAMPLES), count)))

            async def work(numbers: Iterator[int] = numbers) -> None:
                nonlocal taken
                for number in numbers:
                    await self._take(next(order), number)
                    taken += 1

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(work())
            self._look(taken)
            if len(self.course.samples) % 4 == 0:
                self._progress(f"{taken:,} of {count:,} turns, {len(self.wrong)} wrong answers")
        if taken < count:
            self._progress(f"time was up after {taken:,} of {count:,} turns")

    def _order(self) -> Iterator[Member]:
        """Yield whose turn it is, without end."""
        recent: deque[Member] = deque(maxlen=8)
        while True:
            again = recent and self._random.random() < LIVE_SHARE
            member = self._random.choice(recent if again else self.members)
            recent.append(member)
            yield member

    async def _take(self, member: Member, number: int) -> None:
        async with member.busy:
            hibernated = member.session.checkpoint is None
            started = time.monotonic()
            await self._execute(member, member.code(number), member.expect(number))
            (self._wake_seconds if hibernated else self._live_seconds).append(time.monotonic() - started)

    async def _execute(self, member: Member, code: str, expected: str) -> None:
        """Run a turn and check what it printed; whatever else happens is a wrong answer."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                turn = await member.session.execute(code, _nothing, lambda _stream, _data: None)
        except Exception as error:
            self.wrong.append(f"session {member.number}: {error!r}")
        else:
            if turn.error or turn.stdout != expected:
                self.wrong.append(f"session {member.number}: {turn}, not {expected}")

    def _look(self, taken: int) -> None:
        times = tuple(self._live_seconds), tuple(self._wake_seconds)
        self._live_seconds.clear()
        self._wake_seconds.clear()
        seconds = time.monotonic() - self._began
        self.course.samples.append(Sample(taken, seconds, Vitals.taken(self._folder), self._pool.live, *times))

    async def close(self) -> None:
        """End all sessions."""
        await self._pool.close()
        self._opened.close()


async def _nothing(_: HostCall) -> Json:
    return None


async def soaked(
    loaded: Loaded, *, sessions: int, live: int, turns: int, minutes: float, progress: Progress
) -> Soak:  # fmt: skip
    """Fill a pool, take the turns, end all, and return what was found."""
    with TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(loaded, Path(folder), sessions, live, progress)
        try:
            await soak.fill()
            await soak.turns(turns, minutes * 60)
        finally:
            await soak.close()
    return soak


def report(soak: Soak, picture: Path = PICTURE) -> None:
    """Print and draw what was found."""
    for wrong in soak.wrong[:10]:
        print(wrong)
    print(soak.course.table())
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(soak.course.picture())
    print(f"\ndrawn in {picture}")
    print(json.dumps({"soak_wrong": len(soak.wrong), **soak.course.figures()}))


def main() -> None:
    """Soak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Keep thousands of sessions busy.")
    parser.add_argument("--sessions", type=int, default=11_000, help="all sessions (11000)")
    parser.add_argument("--live", type=int, default=1_000, help="how many of them may be live at once (1000)")
    parser.add_argument("--turns", type=int, default=66_000, help="an hour's, at one in ten minutes each (66000)")
    parser.add_argument("--minutes", type=float, default=45, help="the longest the turns may take (45)")
    chosen = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a live session takes one
    began = time.monotonic()

    def progress(step: str) -> None:
        print(f"• {time.monotonic() - began:5.0f} s  {step}", file=sys.stderr)

    if os.getloadavg()[0] > 0.5:
        progress(f"this machine is busy already (load {os.getloadavg()[0]:.1f}): turns take longer")
    loaded = prepare(standard_specs({}), progress=progress)
    soak = asyncio.run(soaked(loaded, progress=progress, **vars(chosen)))
    report(soak)
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
