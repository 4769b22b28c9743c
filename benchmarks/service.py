"""What the service costs beside what it serves: its smallest turns beside its emptiest calls, many streams, a restart.

Ends with one line of JSON; what is compared alternates, and each figure is a median. `make bench-service`.

execute_over_echo        p50 of `ExecuteOnce("1+1")` in a warm session, in times of that of a call without any work
executes_per_s           of 64 sessions at once, from one client process
executes_over_echo_rate  the same in times of calls without any work, as many at once
idle_session_mb          memory of a session that has run one turn, in all of the server's processes
watchers_2000_ok         1 where 2,000 watchers of a run were told every event of it, each in its order
answer_5mb_default_client_ok  1 where a client with gRPC's own bounds read an answer of 5 MB whole
restart_to_serving_s     from SIGTERM until the next server, which takes up 64 sessions, has answered
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from rlm.v1 import run_pb2, run_pb2_grpc, server_pb2, server_pb2_grpc, session_pb2, session_pb2_grpc

from benchmarks.drivers.serving import expect
from benchmarks.loop.endpoint import LONG_BYTES, MODELS, endpoint
from benchmarks.memory import held_bytes
from benchmarks.progress import Progress, shown
from benchmarks.served import Served, served

SESSIONS = 64
WATCHERS = 2_000
WATCHERS_OF_A_CHANNEL = 250
ROUNDS = 20
CALLS = 50
"""One after another, of each kind in a round."""
RATE_ROUNDS = 3
RATE_SECONDS = 2.0

Call = Callable[[], Awaitable[Any]]


class Client:
    """Calls a server as the tenant whose key it has."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._info: Any = server_pb2_grpc.ServerServiceStub(server.channel)
        self._sessions: Any = session_pb2_grpc.SessionServiceStub(server.channel)
        self._runs: Any = run_pb2_grpc.RunServiceStub(server.channel)

    async def echo(self) -> None:
        """Make a call of which the server has nothing to do but to see who calls, and to say what it is."""
        await self._info.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=self._server.metadata)

    async def session(self) -> str:
        """Make a session that has run a turn, and return its id."""
        request = session_pb2.CreateSessionRequest()
        made = await self._sessions.CreateSession(request, metadata=self._server.metadata)
        session: str = made.session.session_id
        await self.execute(session)
        return session

    async def execute(self, session: str) -> None:
        """Run the smallest turn."""
        request = session_pb2.ExecuteOnceRequest(session_id=session, code="1+1")
        done = await self._sessions.ExecuteOnce(request, metadata=self._server.metadata)
        expect(done.result.status, session_pb2.TURN_STATUS_OK)

    async def run(self, model: str) -> str:
        """Begin a run, and return its id."""
        request = run_pb2.CreateRunRequest(question="What?", model=model, sub_model="quick")
        run: str = (await self._runs.CreateRun(request, metadata=self._server.metadata)).run.run_id
        return run

    async def told(self, run: str, channel: grpc.aio.Channel | None = None) -> list[run_pb2.RunEvent]:
        """Watch a run to its end, and return its events."""
        runs: Any = self._runs if channel is None else run_pb2_grpc.RunServiceStub(channel)
        watching = runs.WatchRun(run_pb2.WatchRunRequest(run_id=run), metadata=self._server.metadata)
        return [response.event async for response in watching if response.HasField("event")]

    async def answer(self, run: str) -> str:
        """Read the answer of a run."""
        reading = self._runs.ReadAnswer(run_pb2.ReadAnswerRequest(run_id=run), metadata=self._server.metadata)
        return "".join([response.text async for response in reading])


async def over_echo(client: Client, rounds: int) -> float:
    """Return what the smallest turn takes in times of a call without any work."""
    session = await client.session()
    times: dict[str, list[float]] = {"echo": [], "execute": []}
    for _ in range(rounds):
        for name, call in (("echo", client.echo), ("execute", lambda: client.execute(session))):
            for _ in range(CALLS):
                started = time.perf_counter()
                await call()
                times[name].append(time.perf_counter() - started)
    return median(times["execute"]) / median(times["echo"])


async def rates(client: Client, sessions: Sequence[str], rounds: int) -> tuple[float, float]:
    """Return how many turns a second all sessions run together, and calls without any work from as many at once."""
    kinds: dict[str, list[Call]] = {
        "execute": [lambda session=session: client.execute(session) for session in sessions],  # type: ignore[misc]
        "echo": [client.echo] * len(sessions),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, calls in kinds.items():
            found[name].append(await _rate(calls))
    return median(found["execute"]), median(found["echo"])


async def _rate(calls: Sequence[Call]) -> float:
    started = time.perf_counter()

    async def repeat(call: Call) -> int:
        count = 0
        while time.perf_counter() - started < RATE_SECONDS:
            await call()
            count += 1
        return count

    counts = await asyncio.gather(*map(repeat, calls))
    return sum(counts) / (time.perf_counter() - started)


async def watched(client: Client, server: Served, watchers: int) -> bool:
    """Return whether so many watchers of one run are all told all of it."""
    channels = [grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
                for _ in range(-(-watchers // WATCHERS_OF_A_CHANNEL))]  # fmt: skip
    try:
        run = await client.run("patient")
        told = await asyncio.gather(*(client.told(run, channels[i % len(channels)]) for i in range(watchers)))
    finally:
        for channel in channels:
            await channel.close()
    expected = [event.sequence for event in await client.told(run)]
    return all([event.sequence for event in events] == expected for events in told) and expected != []


async def read_whole(client: Client) -> bool:
    """Return whether a long answer comes whole."""
    run = await client.run("long")
    (ended,) = [event.run_finished for event in await client.told(run) if event.WhichOneof("body") == "run_finished"]
    expect(ended.state, run_pb2.RUN_STATE_SUCCEEDED)
    return await client.answer(run) == "0123456789" * (LONG_BYTES // 10)


async def measured(folder: Path, url: str, rounds: int, watchers: int, progress: Progress) -> dict[str, float]:
    """Measure everything, of servers with one data directory."""
    stated = {"base_url": f"{url}/v1", "input_usd_per_million": 1, "output_usd_per_million": 5}
    settings = {
        "RLM_MODELS": json.dumps(dict.fromkeys(MODELS, stated)),
        "RLM_TENANT_STREAMS": str(watchers + 10),
        "RLM_TENANT_REQUESTS": str(watchers + 100),
    }
    figures: dict[str, float] = {}
    async with served(folder, settings) as server:
        client = Client(server)
        progress("turns beside calls without work")
        figures["execute_over_echo"] = await over_echo(client, rounds)
        before = held_bytes(server.pid)
        sessions = [await client.session() for _ in range(SESSIONS)]
        figures["idle_session_mb"] = (held_bytes(server.pid) - before) / SESSIONS / 1e6
        progress(f"{SESSIONS} sessions at once")
        figures["executes_per_s"], echoes = await rates(client, sessions, max(1, rounds * RATE_ROUNDS // ROUNDS))
        figures["executes_over_echo_rate"] = figures["executes_per_s"] / echoes
        progress("a long answer")
        figures["answer_5mb_default_client_ok"] = float(await read_whole(client))
        progress(f"{watchers:,} watchers")
        figures["watchers_2000_ok"] = float(await watched(client, server, watchers))
        progress("a restart")
        stopping = time.perf_counter()
    async with served(folder, settings) as server:
        client = Client(server)
        await client.echo()
        figures["restart_to_serving_s"] = time.perf_counter() - stopping
        await client.execute(sessions[-1])
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of calls one after another ({ROUNDS})")
    parser.add_argument("--watchers", type=int, default=WATCHERS, help=f"of one run ({WATCHERS:,})")
    options = parser.parse_args()
    progress = shown("compare, and trust no single figure")
    with endpoint() as url, TemporaryDirectory(prefix="bench-service-") as folder:
        figures = asyncio.run(measured(Path(folder), url, options.rounds, options.watchers, progress))
    width = max(map(len, figures))
    print("\n".join(f"{name.ljust(width)}  {value:,.4g}" for name, value in figures.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
