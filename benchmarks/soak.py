"""Thousands of sessions for a long time: `python -m benchmarks.soak --help`.

A pool holds far more sessions than it may have live at once, so most hibernate. Turns come to all of them in random
order; each answer is checked against what the session must have become by then. Memory and descriptors of this process
and the workers are sampled as it goes. It is bounded in turns and in time. The last line of stdout is JSON.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from benchmarks.memory import held_bytes
from benchmarks.rounds import Progress
from sandbox.door import HostCall, Json
from sandbox.image import Loaded, prepare, standard_specs
from sandbox.limits import Limits
from sandbox.live import WorkerSession
from sandbox.memory import sealed
from sandbox.pool import PoolFull, WorkerPool
from sandbox.stored import SessionStore
from sandbox.text import Text, encode
from sandbox.turn import Turn

OWNERS = 4
AT_ONCE = 8
"""Turns under way."""
SAMPLES = 40
LIMITS = Limits(memory_bytes=128 << 20, turn_seconds=30)
TEXT = "the text that is mapped, " * 10_000


@dataclass(slots=True)
class Member:
    """A session, and what must be in it: the numbers of its turns, in order."""

    number: int
    session: WorkerSession
    has_text: bool
    turns: list[int] = field(default_factory=list)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is held after so many turns, by this process and the workers together."""

    turns: int
    bytes: int
    descriptors: int
    processes: int
    live: int
    stored_bytes: int


class Soak:
    """A pool full of sessions, and turns for them."""

    def __init__(self, loaded: Loaded, folder: Path, sessions: int, live: int, progress: Progress) -> None:
        self._folder = folder
        self._pool = WorkerPool(loaded, sessions=live, spares=0, store=SessionStore(folder, secrets.token_bytes(32)))
        self._count, self._live = sessions, live
        self._progress = progress
        self._random = random.Random(11)
        form, data = encode(TEXT)
        self._text = Text(sealed(data, "text"), form, len(TEXT))
        self.members: list[Member] = []
        self.samples: list[Sample] = []
        self.wrong: list[str] = []
        self.live_seconds: list[float] = []
        self.wake_seconds: list[float] = []

    async def fill(self) -> None:
        """Create all sessions, each with names, a file, and some with a mapped text."""
        for number in range(self._count):
            session = await self._pool.create(f"owner {number % OWNERS}", "core", LIMITS)
            has_text = number % 20 == 0
            if has_text:
                await session.attach("context", self._text)
            await _run(session, f"number, turns = {number}, []\n_ = open('/tmp/number', 'w').write('{number}')")
            self.members.append(Member(number, session, has_text))
            if (number + 1) % max(1, self._count // 10) == 0:
                self._progress(f"{number + 1} of {self._count} sessions, {self._pool.live} of them live")

    async def turn(self, count: int, seconds: float) -> int:
        """Take so many turns, or for so long; return how many were taken."""
        end = time.monotonic() + seconds
        order = iter(self._order(count))
        taken = 0
        every = max(1, count // SAMPLES)
        self.samples.append(self._sample(0))

        async def work() -> None:
            nonlocal taken
            for member in order:
                if time.monotonic() > end:
                    return
                async with member.busy:
                    await self._take(member, taken)
                taken += 1
                if taken % every == 0:
                    self.samples.append(self._sample(taken))
                if taken % (every * 4) == 0:
                    self._progress(f"{taken} of {count} turns, {len(self.wrong)} wrong answers")

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(work())
        return taken

    def _order(self, count: int) -> Iterator[Member]:
        """Three of four turns come to any session, the fourth to one of the last few that had one."""
        recent: list[Member] = []
        for i in range(count):
            member = self._random.choice(recent if i % 4 == 3 else self.members)
            recent = [*recent[-15:], member]
            yield member

    async def _take(self, member: Member, number: int) -> None:
        asleep = member.session.checkpoint is None
        code = f"turns.append({number})\n(number, turns[-3:], len(turns), open('/tmp/number').read(), "
        code += "len(context), context[-6:])" if member.has_text else "0, '')"
        started = time.monotonic()
        try:
            turn = await _run(member.session, code)
        except PoolFull:  # all places were busy just then
            return
        (self.wake_seconds if asleep else self.live_seconds).append(time.monotonic() - started)
        member.turns.append(number)
        text = (len(TEXT), TEXT[-6:]) if member.has_text else (0, "")
        expected = (member.number, member.turns[-3:], len(member.turns), str(member.number), *text)
        if turn.stdout != f"{expected!r}\n":
            self.wrong.append(f"session {member.number}: {turn}")

    def _sample(self, turns: int) -> Sample:
        pids = list(_family(os.getpid()))
        stored = sum(path.stat().st_size for path in self._folder.iterdir())
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        return Sample(turns, held_bytes(os.getpid()), descriptors, len(pids), self._pool.live, stored)

    async def close(self) -> None:
        """End all sessions."""
        await self._pool.close()


async def _run(session: WorkerSession, code: str) -> Turn:
    turn = await session.execute(code, _nothing, lambda _stream, _data: None)
    if turn.error:
        raise RuntimeError(f"a turn failed: {turn.error}")
    return turn


async def _nothing(_: HostCall) -> Json:
    return None


def _family(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _family(int(child))


def figures(soak: Soak, taken: int, seconds: float) -> dict[str, float]:
    """Return what was found: times in milliseconds, memory in MB of a million bytes."""
    steady = soak.samples[len(soak.samples) // 4 :]  # until then tables and caches fill
    first, last = steady[: max(1, len(steady) // 4)], steady[-max(1, len(steady) // 4) :]
    begun, ended = (median(sample.bytes for sample in part) for part in (first, last))
    hibernating = len(soak.members) - soak.samples[-1].live
    found: dict[str, float] = {
        "soak_turns": taken,
        "soak_wrong": len(soak.wrong),
        "live_sessions": soak.samples[-1].live,
        "hibernated_sessions": hibernating,
        "turns_per_s": taken / seconds,
        "memory_mb_start": begun / 1e6,
        "memory_mb_end": ended / 1e6,
        "memory_growth_percent": 100 * (ended / begun - 1),
        "descriptors_start": median(sample.descriptors for sample in first),
        "descriptors_end": median(sample.descriptors for sample in last),
        "processes_end": soak.samples[-1].processes,
        "stored_kb_per_session": soak.samples[-1].stored_bytes / max(1, hibernating) / 1e3,
    }
    for name, times in (("live_turn", soak.live_seconds), ("wake", soak.wake_seconds)):
        found[f"{name}_ms_p50"] = 1e3 * median(times)
        found[f"{name}_ms_p99"] = 1e3 * quantiles(times, n=100)[98]
    return {name: round(value, 3) for name, value in found.items()}


async def soaked(loaded: Loaded, sessions: int, live: int, turns: int, minutes: float, progress: Progress) -> Soak:
    """Fill a pool, take the turns, print what was found, and return it."""
    with TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(loaded, Path(folder), sessions, live, progress)
        try:
            await soak.fill()
            started = time.monotonic()
            taken = await soak.turn(turns, minutes * 60)
            found = figures(soak, taken, time.monotonic() - started)
        finally:
            await soak.close()
    for sample in soak.samples[:: max(1, len(soak.samples) // 10)]:
        print(f"{sample.turns:>8} turns  {sample.bytes / 1e6:>8.0f} MB  {sample.descriptors:>6} descriptors")
    for wrong in soak.wrong[:10]:
        print(wrong)
    print(json.dumps(found))
    return soak


def main() -> None:
    """Soak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--sessions", type=int, default=11_000, help="all sessions (11000)")
    parser.add_argument("--live", type=int, default=1_000, help="how many of them may be live at once (1000)")
    parser.add_argument("--turns", type=int, default=66_000, help="an hour's, at one in ten minutes each (66000)")
    parser.add_argument("--minutes", type=float, default=45, help="the longest the turns may take (45)")
    chosen = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()

    def progress(step: str) -> None:
        print(f"• {time.monotonic() - began:5.0f} s  {step}", file=sys.stderr)

    loaded = prepare(standard_specs({}), progress=progress)
    soak = asyncio.run(
        soaked(loaded, chosen.sessions, chosen.live, chosen.turns, chosen.minutes, progress)
    )  # fmt: skip
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
