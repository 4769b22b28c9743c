"""A real server, and what guest code in a session of it measures of its model calls."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import openai
from rlm.v1 import session_pb2, session_pb2_grpc, types_pb2

from benchmarks.money.provider import provider
from benchmarks.progress import Progress
from benchmarks.served import served
from rlm_server.ledger import NANO

BLOCK = 50
"""Calls that one side makes before it is the other's turn."""
SUB_TOKENS = 4096
"""What `llm_query` asks for at most."""
BATCH = 1_000
AT_ONCE = 200
PROVIDER_SECONDS = 1.0
BUDGET_USD = 10_000

SEQUENTIAL = """
import time
for number in range({first}, {last}):
    started = time.perf_counter()
    llm_query(f"question {{number}}")
    print(time.perf_counter() - started)
"""
BATCHED = """
import time
started = time.perf_counter()
answers = llm_query_batched([f"question {{number}}" for number in range({size})])
print(time.perf_counter() - started)
print(sum(answer.startswith("The answer is 42") for answer in answers))
"""


@dataclass(frozen=True, slots=True)
class Sessions:
    """A server's sessions, as one caller sees them."""

    stub: Any
    metadata: tuple[tuple[str, str], ...]

    async def open(self, model: str) -> str:
        """Open a session whose `llm_query` asks this model; return its id."""
        budget = types_pb2.Budget(nano_usd=BUDGET_USD * NANO)
        request = session_pb2.CreateSessionRequest(sub_model=model, budget=budget)
        return str((await self.stub.CreateSession(request, metadata=self.metadata)).session.session_id)

    async def printed(self, session_id: str, code: str) -> list[str]:
        """Run code as a turn and return the lines it printed.

        Raises:
            RuntimeError: the code failed.
        """
        request = session_pb2.ExecuteRequest(session_id=session_id, code=code)
        text = ""
        async for response in self.stub.Execute(request, metadata=self.metadata):
            match response.WhichOneof("event"):
                case "output":
                    text += response.output.text
                case "turn_restarted":
                    text = ""
                case "result" if response.result.status != session_pb2.TURN_STATUS_OK:
                    raise RuntimeError(f"the guest's code failed: {response.result}")
        return text.splitlines()


@asynccontextmanager
async def sessions(folder: Path, database: str | Path, models: Mapping[str, str]) -> AsyncIterator[Sessions]:
    """Start a server on a database with models by their providers' URLs, and yield its sessions.

    A database that is a file must be the one in `folder`.
    """
    stated = {"input_usd_per_million": 1, "output_usd_per_million": 5}
    settings = {
        "RLM_MODELS": json.dumps({name: {"base_url": f"{url}/v1", **stated} for name, url in models.items()}),
        "RLM_DATABASE_URL": database if isinstance(database, str) else "",
        "RLM_TENANT_BUDGET_USD": str(10 * BUDGET_USD),
        "RLM_PROVIDER_CALLS": str(AT_ONCE),
        "RLM_RUN_CALLS": str(AT_ONCE),
    }
    async with served(folder, settings) as server:
        yield Sessions(session_pb2_grpc.SessionServiceStub(server.channel), server.metadata)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a guest measured: medians in milliseconds, the batch in seconds."""

    guest_ms: float
    bare_ms: float
    batch_seconds: float

    @property
    def overhead_ms(self) -> float:
        return self.guest_ms - self.bare_ms

    @property
    def batch_ratio(self) -> float:
        """How many times as long the batch took as the provider alone takes, with so many calls in flight."""
        return self.batch_seconds / (BATCH / AT_ONCE * PROVIDER_SECONDS)


async def measured(folder: Path, database: str | Path, calls: int, batch: int, progress: Progress) -> Measured:
    """Time `calls` calls one by one, in turns with the bare SDK's, and then a batch of calls all at once."""
    async with (
        provider() as quick,
        provider(latency=PROVIDER_SECONDS) as slow,
        sessions(folder, database, {"quick": quick, "slow": slow}) as server,
    ):
        progress(f"{calls} calls one by one, and as many by the bare SDK")
        guest, bare = await _in_turns(server, quick, calls)
        progress(f"{batch:,} calls as one batch, {AT_ONCE} in flight, {PROVIDER_SECONDS:g} s each")
        seconds, answers = await server.printed(await server.open("slow"), BATCHED.format(size=batch))
    if int(answers) != batch:
        raise RuntimeError(f"{answers} of {batch} calls were answered")
    return Measured(median(guest) * 1e3, median(bare) * 1e3, float(seconds) * BATCH / batch)


async def _in_turns(server: Sessions, url: str, calls: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each call by the guest, and by the bare SDK, which take turns block by block."""
    session = await server.open("quick")
    guest: list[float] = []
    bare: list[float] = []
    async with (
        httpx2.AsyncClient(trust_env=False) as http,
        openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0, http_client=http) as client,
    ):
        # The first block of each opens connections and is not counted.
        for first in range(0, calls + BLOCK, BLOCK):
            lines = await server.printed(session, SEQUENTIAL.format(first=first, last=first + BLOCK))
            mine = [float(line) for line in lines]
            theirs = [await _bare(client, number) for number in range(first, first + BLOCK)]
            if first:
                guest += mine
                bare += theirs
    return guest, bare


async def _bare(client: openai.AsyncOpenAI, number: int) -> float:
    started = time.perf_counter()
    await client.chat.completions.create(
        model="quick", messages=[{"role": "user", "content": f"question {number}"}], max_tokens=SUB_TOKENS
    )
    return time.perf_counter() - started
