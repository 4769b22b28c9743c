"""What it costs that runs outlive their server, how soon they go on, and how many children and events go at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rlm.v1 import run_pb2, run_pb2_grpc, types_pb2

from benchmarks.drivers.serving import expect
from benchmarks.loop.endpoint import CHILD_LATENCY, CHILD_TURNS, MODELS, told
from benchmarks.loop.gaps import of_turns
from benchmarks.progress import Progress
from benchmarks.served import Served, served
from rlm_server.ledger import NANO

BUDGET = types_pb2.Budget(nano_usd=5 * NANO)
UNKEPT = {"RLM_REDACT_CONTENTS": "true"}
"""Nothing is written down of runs whose contents are redacted."""


class Runs:
    """Makes runs of a server."""

    def __init__(self, server: Served) -> None:
        self._stub: Any = run_pb2_grpc.RunServiceStub(server.channel)
        self._metadata = server.metadata

    async def create(self, model: str, sub_model: str) -> str:
        """Make a run, and return its id."""
        request = run_pb2.CreateRunRequest(question="What?", model=model, sub_model=sub_model, budget=BUDGET)
        return str((await self._stub.CreateRun(request, metadata=self._metadata)).run.run_id)

    async def events(self, run: str, until: str = "run_finished") -> int:
        """Watch a run until an event of a kind, and return how many there were."""
        count = 0
        async for response in self._stub.WatchRun(run_pb2.WatchRunRequest(run_id=run), metadata=self._metadata):
            count += response.HasField("event")
            if response.event.WhichOneof("body") == until:
                if until == "run_finished":
                    expect(response.event.run_finished.state, run_pb2.RUN_STATE_SUCCEEDED)
                break
        return count


async def measured(url: str, rounds: int, progress: Progress) -> dict[str, float]:
    """Return the figures by name."""
    stated = {"base_url": f"{url}/v1", "input_usd_per_million": 1, "output_usd_per_million": 5}
    settings = {"RLM_MODELS": json.dumps(dict.fromkeys(MODELS, stated))}
    with TemporaryDirectory(prefix="bench-loop-") as folder:
        figures = await _turns(url, Path(folder), settings, rounds)
        progress("a server that is killed in a run")
        resumed = [await _resumed(Path(folder) / f"killed-{number}", settings) for number in range(rounds)]
    figures["resume_ms_p50"] = median(resumed) * 1e3
    return figures


async def _turns(url: str, folder: Path, settings: dict[str, str], rounds: int) -> dict[str, float]:
    """Measure turns of runs that are kept beside those of runs that are not, and then children and events."""
    async with AsyncExitStack() as stack:
        kept = Runs(await stack.enter_async_context(served(folder / "kept", settings)))
        unkept = Runs(await stack.enter_async_context(served(folder / "unkept", settings | UNKEPT)))
        taken: dict[Runs, list[float]] = {kept: [], unkept: []}
        for number in range(rounds + 1):
            for runs, seconds in taken.items():
                told(url)
                await runs.events(await runs.create("turns", "quick"))
                if number:  # what is imported and opened on first use is not counted
                    seconds.append(of_turns(told(url)))
        began = time.monotonic()
        await kept.events(await kept.create("children", "child"))
        children = time.monotonic() - began
        began = time.monotonic()
        events = await kept.events(await kept.create("flood", "quick"))
        flood = time.monotonic() - began
    return {
        "durable_turn_ms": (median(taken[kept]) - median(taken[unkept])) * 1e3,
        "parallel_children_x": children / (CHILD_TURNS * CHILD_LATENCY),
        "events_per_s": events / flood,
    }


async def _resumed(folder: Path, settings: dict[str, str]) -> float:
    """Return the seconds from a server's start to serve until a run goes on whose former server was killed."""
    async with served(folder, settings) as server:
        runs = Runs(server)
        run = await runs.create("asking", "patient")
        await runs.events(run, "call_started")
        os.kill(server.pid, signal.SIGKILL)
    async with served(folder, settings) as server:
        serving = time.monotonic()
        await Runs(server).events(run, "node_resumed")
        taken = time.monotonic() - serving
        os.kill(server.pid, signal.SIGKILL)  # which does not wait for the patient call
        await asyncio.sleep(0)
    return taken
