"""The victim: a client process that does a fixed mix of calls, one after another, and tells how long each took.

Reads lines of JSON. `address` and `key` connect it to a server, and it answers when it has what it needs there.
`seconds` has it do the mix for so long; it answers with the seconds of each call by kind, the rounds of the mix, what
went wrong, and how often a process that ran its code was lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from rlm.v1 import context_pb2, session_pb2

from benchmarks.neighbours.client import Client, block

LONGEST_CALL = 20.0
"""A call that takes longer is given up: it counts as an error, and as so long."""
NEEDLE = "needle-4711"
TEXT = "A line of a text that somebody reads beside others.\n" * 20_000 + NEEDLE
SMALL = 64 << 10
CALLS = 10
MOST_ERRORS = 5
"""Of one measurement; after so many the server is taken for gone."""
PAUSE = 0.05
"""After an error, so that a server that is gone is not asked a thousand times."""

RUN = block(f"FINAL(sum(llm_query(f'{{budget()}} {{n}}') == 'ok' for n in range({CALLS})))")


class Wrong(Exception):
    """A call was answered wrongly."""


class Victim:
    """A tenant with a context, a session, and work to do."""

    def __init__(self, address: str, key: str) -> None:
        self.client = Client(address, key)
        self.context = self.session = ""
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self.restarts = 0
        self.number = 0
        self.rounds = 0.0

    async def begin(self) -> None:
        """Upload the context, open the session, and do everything once."""
        self.context = await self.client.upload(TEXT)
        self.session = await self.client.open(context_id=self.context)
        for work in MIX.values():
            await work(self)

    async def mix(self, seconds: float) -> dict[str, Any]:
        """Do the mix for so long, and tell what was seen."""
        self.seconds.clear()
        self.errors, self.restarts, self.rounds = [], 0, 0.0
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.errors) < MOST_ERRORS:
            for kind, work in MIX.items():
                await self._timed(kind, work)
                self.rounds += 1 / len(MIX)
                if time.monotonic() > end:
                    break
        return {"seconds": self.seconds, "errors": self.errors, "restarts": self.restarts, "rounds": self.rounds}

    async def _timed(self, kind: str, work: Callable[[Victim], Awaitable[float]]) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_CALL):
                self.seconds[kind].append(await work(self))
        except (TimeoutError, grpc.RpcError, Wrong) as error:
            said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            self.seconds[kind].append(time.monotonic() - started)
            self.errors.append(f"{kind}: {said[:200]}")
            await asyncio.sleep(PAUSE)

    # ---- the mix: each does one thing and returns the seconds it took -----------------------------------------------

    async def execute(self) -> float:
        started = time.monotonic()
        await self._expect(self.session, "1+1", "2\n")
        return time.monotonic() - started

    async def get_session(self) -> float:
        started = time.monotonic()
        request = session_pb2.GetSessionRequest(session_id=self.session)
        await self.client.sessions.GetSession(request, metadata=self.client.metadata)
        return time.monotonic() - started

    async def read(self) -> float:
        started = time.monotonic()
        request = context_pb2.ReadContextRequest(context_id=self.context, start=1_000, end=5_000)
        reply = await self.client.contexts.ReadContext(request, metadata=self.client.metadata)
        taken = time.monotonic() - started
        _check(len(reply.text), 4_000)
        return taken

    async def search(self) -> float:
        started = time.monotonic()
        request = context_pb2.SearchContextRequest(context_id=self.context, pattern=NEEDLE)
        reply = await self.client.contexts.SearchContext(request, metadata=self.client.metadata)
        taken = time.monotonic() - started
        _check([match.start for match in reply.matches], [len(TEXT) - len(NEEDLE)])
        return taken

    async def session_from_begin_to_end(self) -> float:
        started = time.monotonic()
        session = await self.client.open(context_id=self.context)
        await self._expect(session, "len(context)", f"{len(TEXT)}\n")
        await self.client.delete(session)
        return time.monotonic() - started

    async def upload(self) -> float:
        self.number += 1
        text = f"{self.number} {time.monotonic_ns()} ".ljust(SMALL, "x")
        started = time.monotonic()
        context = await self.client.upload(text)
        taken = time.monotonic() - started
        request = context_pb2.DeleteContextRequest(context_id=context)
        await self.client.contexts.DeleteContext(request, metadata=self.client.metadata)
        return taken

    async def run(self) -> float:
        started = time.monotonic()
        answer = await self.client.answered(await self.client.start(RUN))
        taken = time.monotonic() - started
        _check(answer, str(CALLS))
        return taken

    async def _expect(self, session: str, code: str, printed: str) -> None:
        turn = await self.client.turn(session, code)
        self.restarts += turn.restarts
        _check(turn.printed, printed)


def _check(value: object, wanted: object) -> None:
    if value != wanted:
        raise Wrong(f"{value!r:.80} instead of {wanted!r}")


MIX: dict[str, Callable[[Victim], Awaitable[float]]] = {
    "execute": Victim.execute,
    "get_session": Victim.get_session,
    "read": Victim.read,
    "search": Victim.search,
    "session": Victim.session_from_begin_to_end,
    "upload": Victim.upload,
    "run": Victim.run,
}
"""The calls by kind, in their order."""


async def main() -> None:
    """Do what the lines say."""
    victim: Victim | None = None
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        if "address" in asked:
            if victim is not None:
                await victim.client.channel.close()
            victim = Victim(asked["address"], asked["key"])
            await victim.begin()
            print(json.dumps({"ready": True}), flush=True)
        elif victim is not None:
            print(json.dumps(await victim.mix(asked["seconds"])), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
