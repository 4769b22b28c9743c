"""An attacker: a client process that plays one scenario. What the server refuses, it takes and goes on.

Reads lines of JSON. `scenario`, `address` and `key` have it prepare; it answers `ready`. `seconds` has it play for so
long; it answers with how often it called and what it was refused. Before that, it tells of sessions and runs it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from benchmarks.neighbours.client import Client
from rlm_server.api import responses
from rlm_server.ledger import Limit

NICENESS = 10
"""An attacker's own work is on another machine as a rule, so it leaves the processor to the others."""
PAUSE = 0.02
"""After a refusal, and between two plays."""
PREPARING_SECONDS = 25.0
TOLD_EVERY = 0.1
OF_CORE = "Internal error from Core"
"""What gRPC says where a server has ended a stream that is still being sent."""
FAULTS = ("INTERNAL", "UNKNOWN")
"""What no server of ours should answer."""
SHARES = 1_000
LAST_SECONDS = 2.0
"""How long calls may take to end once they are cancelled."""

T = TypeVar("T")
Play = Callable[[], Awaitable[None]]
"""What is done again and again while it is the attacker's time."""


class Attacker:
    """A tenant's client that does not mind errors, and counts."""

    def __init__(self, address: str, key: str, limit: Mapping[str, int]) -> None:
        """`limit` is that of its account, of which each of its sessions and runs has a share."""
        self.address, self.key = address, key
        self.client = Client(address, key)
        self.budget = responses.budget(Limit(**{unit: max(1, amount // SHARES) for unit, amount in limit.items()}))
        self.calls = 0
        self.refused: Counter[str] = Counter()
        self._told = 0.0

    async def tried(self, call: Awaitable[T]) -> T | None:
        """Await something of the server, and return None where it is refused."""
        self.calls += 1
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            name = error.code().name if error.details() != OF_CORE else "ended early"
            self.refused[name] += 1
            if name in FAULTS and self.refused[name] == 1:
                print(f"the attacker was answered {name}: {error.details()}", file=sys.stderr, flush=True)
        except (grpc.RpcError, OSError) as error:
            self.refused[type(error).__name__] += 1
        await asyncio.sleep(PAUSE)
        return None

    async def together(self, works: Sequence[Coroutine[Any, Any, object]]) -> None:
        """Do several things at once."""
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)

    async def at_once(self, count: int, work: Callable[[int], Awaitable[object]]) -> None:
        """Do one thing so many times at once, each again and again, until the time is over."""

        async def endless(number: int) -> None:
            while True:
                await work(number)
                await asyncio.sleep(0)

        await self.together([endless(number) for number in range(count)])

    async def session(self, **asked: Any) -> str:
        """Create a session and return its id; empty where it was refused."""
        made = await self.tried(self.client.open(**({"budget": self.budget} | asked)))
        self._tell_of(session=made)
        return made or ""

    def _tell_of(self, **things: str | None) -> None:
        """Tell of a session or run there is, now and then."""
        if all(things.values()) and time.monotonic() > self._told + TOLD_EVERY:
            self._told = time.monotonic()
            tell(**things)

    async def sessions(self, count: int, **asked: Any) -> list[str]:
        """Create several sessions and return the ids of those there are."""
        return [made for _ in range(count) if (made := await self.session(**asked))]

    async def turn(self, session: str, code: str, request_id: str = "") -> None:
        """Run a turn to its end."""
        if await self.tried(self.client.turn(session, code, request_id)) is None:
            await asyncio.sleep(PAUSE)

    async def turns(self, code: str, sessions: int = 2) -> Play:
        """Prepare turns of the same code in several sessions, all at once."""
        made = await self.sessions(sessions)

        async def play() -> None:
            await self.together([self.turn(session, code) for session in made])

        return play

    async def start(self, *replies: str, **asked: Any) -> str:
        """Start a run and return its id; empty where it was refused."""
        made = await self.tried(self.client.start(*replies, **({"budget": self.budget} | asked)))
        self._tell_of(run=made)
        return made or ""

    async def run(self, *replies: str, **asked: Any) -> str:
        """Have a run to its end, and return its id."""
        made = await self.start(*replies, **asked)
        if made:
            await self.tried(self.client.answered(made))
        return made

    async def upload(self, text: str, documents: Sequence[str] = ()) -> str:
        """Upload a text, or documents, and return the context's id."""
        return await self.tried(self.client.upload(text, documents)) or ""

    async def call(self, method: Callable[..., Awaitable[T]], request: Message) -> T | None:
        """Make a call that has one answer."""
        return await self.tried(method(request, metadata=self.client.metadata))


def tell(**message: object) -> None:
    """Say a line."""
    print(json.dumps(message), flush=True)


async def _played(play: Play, seconds: float) -> None:
    async def again() -> None:
        while True:
            await play()
            await asyncio.sleep(PAUSE)

    playing = asyncio.create_task(again())
    await asyncio.wait([playing], timeout=seconds)
    playing.cancel()
    await asyncio.wait([playing], timeout=LAST_SECONDS)
    if playing.done() and not playing.cancelled():
        print(f"the attack failed: {playing.exception()!r}", file=sys.stderr, flush=True)


async def main() -> None:
    """Do what the lines say."""
    # Scenarios need attackers, so that they are imported where they are needed.
    from benchmarks.neighbours.scenarios import SCENARIOS

    os.nice(NICENESS)
    loop = asyncio.get_running_loop()
    asked = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    scenario = SCENARIOS[asked["scenario"]]
    attacker = Attacker(asked["address"], asked["key"], scenario.limit)
    play: Play = _idle
    with suppress(TimeoutError):
        async with asyncio.timeout(PREPARING_SECONDS):
            play = await scenario.prepare(attacker)
    tell(ready=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await _played(play, json.loads(line)["seconds"])
        tell(calls=attacker.calls, refused=attacker.refused)
    os._exit(0)  # a channel with thousands of calls takes long to close


async def _idle() -> None:
    await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    asyncio.run(main())
