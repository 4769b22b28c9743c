"""Drives a server, all at its defaults but for the models, which are at the scripted endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlm.v1 import context_pb2, context_pb2_grpc, run_pb2, run_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

from benchmarks.drivers.serving import Measure, expect, serve
from benchmarks.loop.endpoint import FEW_TURNS, MODELS, TURNS, Log, told
from benchmarks.loop.gaps import Runs, of_batch
from benchmarks.served import Served, served
from rlm_server.ledger import NANO

TINY = 100
"""Calls under a budget that their holds would use up at once."""
TINY_USD, AMPLE_USD = 0.05, 10
SETTLED_SECONDS = 1.2
"""Two rounds of the bills for the server's own time: what a run left is written."""
LINES = 20_000
"""Of a piece of a text, which has a megabyte."""
EVERY = 1_000
"""Of so many lines, one is looked for."""
PIECE = b"".join(
    b"Line %06d, of which nobody reads more: %s\n" % (number, b"fault 42" if number % EVERY else b"error 42")
    for number in range(LINES)
)

_TINY = f'answers = llm_query_batched([f"question {{number}}" for number in range({TINY})])'
_FIRST = "import time\nprint('first')\ntime.sleep(0.05)"


class Ours(Runs):
    """A server that serves until this ends, and what is asked of it."""

    def __init__(self, url: str, megabytes: int, server: Served, metrics: str, runner: asyncio.Runner) -> None:
        self._megabytes = megabytes
        self._url, self._metadata, self._metrics, self._runner = url, server.metadata, metrics, runner
        self._runs: Any = run_pb2_grpc.RunServiceStub(server.channel)
        self._sessions: Any = session_pb2_grpc.SessionServiceStub(server.channel)
        self._contexts: Any = context_pb2_grpc.ContextServiceStub(server.channel)

    # ---- runs ----------------------------------------------------------------------------------------------------

    def commits(self) -> float:
        """Return the commits of a turn: those of a long run without those of a short one."""
        counts = []
        for model in ("few-turns", "turns"):
            before = self._committed()
            self._run(model)
            time.sleep(SETTLED_SECONDS)
            counts.append(self._committed() - before)
        return (counts[1] - counts[0]) / (TURNS - FEW_TURNS)

    def batch(self) -> float:
        """Return what a batch takes whose worst cases the budget can hold together, in seconds."""
        return of_batch(self._run("batch", "slow", types_pb2.Budget(nano_usd=AMPLE_USD * NANO)))

    def usual_batch(self) -> float:
        """Return what the same takes where nothing is said of a budget, in seconds."""
        return of_batch(self._run("batch", "slow"))

    def _run(self, model: str, sub_model: str = "quick", budget: types_pb2.Budget | None = None) -> Log:
        """Make a run and return what the endpoint saw of it."""
        told(self._url)
        self._runner.run(self._ended(run_pb2.CreateRunRequest(model=model, sub_model=sub_model, budget=budget)))
        return told(self._url)

    async def _ended(self, request: run_pb2.CreateRunRequest) -> None:
        request.question = "What?"
        run_id = (await self._runs.CreateRun(request, metadata=self._metadata)).run.run_id
        answer = ""
        async for response in self._runs.WatchRun(run_pb2.WatchRunRequest(run_id=run_id), metadata=self._metadata):
            if response.event.WhichOneof("body") == "run_finished":
                answer = response.event.run_finished.answer
        expect(answer, "done")

    def _committed(self) -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self._metrics}/metrics", timeout=30) as answer:
            found = re.search(r"^rlm_database_commits_total (\S+)", answer.read().decode(), re.MULTILINE)
        assert found
        return int(float(found[1]))

    # ---- sessions ------------------------------------------------------------------------------------------------

    def first_output(self) -> float:
        """Return the seconds from a turn's request to the first line that its code prints."""
        return self._runner.run(self._first_output())

    async def _first_output(self) -> float:
        session = await self._open("quick")
        await self._printed(session, "0")
        first, started = 0.0, time.monotonic()
        async for response in self._execute(session, _FIRST):
            if response.WhichOneof("event") == "output" and not first:
                first = time.monotonic() - started
        await self._end(session)
        return first

    def tiny(self) -> float:
        """Return how many times as long tiny calls take under a budget that is little more than two holds."""
        return self._seconds_of_tiny(TINY_USD) / self._seconds_of_tiny(AMPLE_USD)

    def _seconds_of_tiny(self, usd: float) -> float:
        told(self._url)
        self._runner.run(self._one_turn("brief", _TINY, usd))
        calls = told(self._url)["brief"]
        expect(len(calls), TINY)
        return max(answered for _, answered in calls) - min(received for received, _ in calls)

    async def _one_turn(self, sub_model: str, code: str, usd: float) -> None:
        session = await self._open(sub_model, usd)
        await self._printed(session, code)
        await self._end(session)

    def count(self) -> float:
        """Return how long `count` takes, in seconds for a gigabyte."""
        return self._runner.run(self._count(self._megabytes)) * 1_000 / self._megabytes

    async def _count(self, pieces: int) -> float:
        uploaded = await self._contexts.UploadContext(_upload(pieces), metadata=self._metadata)
        text = uploaded.context.context_id
        session = await self._open("quick", context_id=text)
        await self._printed(session, "0")
        started = time.monotonic()
        found = await self._printed(session, "print(count(r'error \\d+'))")
        taken = time.monotonic() - started
        await self._end(session)
        request = context_pb2.DeleteContextRequest(context_id=text)
        await self._contexts.DeleteContext(request, metadata=self._metadata)
        expect(int(found), pieces * LINES // EVERY)
        return taken

    async def _open(self, sub_model: str, usd: float = AMPLE_USD, context_id: str = "") -> str:
        request = session_pb2.CreateSessionRequest(
            sub_model=sub_model, budget=types_pb2.Budget(nano_usd=int(usd * NANO)), context_id=context_id
        )
        return str((await self._sessions.CreateSession(request, metadata=self._metadata)).session.session_id)

    async def _end(self, session: str) -> None:
        request = session_pb2.DeleteSessionRequest(session_id=session)
        await self._sessions.DeleteSession(request, metadata=self._metadata)

    def _execute(self, session: str, code: str) -> Any:
        request = session_pb2.ExecuteRequest(session_id=session, code=code)
        return self._sessions.Execute(request, metadata=self._metadata)

    async def _printed(self, session: str, code: str) -> str:
        text = ""
        async for response in self._execute(session, code):
            match response.WhichOneof("event"):
                case "output":
                    text += response.output.text
                case "result":
                    expect(response.result.status, session_pb2.TURN_STATUS_OK)
        return text

    @property
    def measures(self) -> dict[str, Measure]:
        return {
            "turn": self.turn,
            "subcall": self.subcall,
            "batch": self.batch,
            "usual_batch": self.usual_batch,
            "create": self.create,
            "commits": self.commits,
            "first_output": self.first_output,
            "tiny": self.tiny,
            "count": self.count,
        }


def _upload(pieces: int) -> Iterator[context_pb2.UploadContextRequest]:
    digest = hashlib.sha256()
    for _ in range(pieces):
        digest.update(PIECE)
    header = context_pb2.UploadHeader(name="text", size_bytes=pieces * len(PIECE), sha256=digest.hexdigest())
    yield context_pb2.UploadContextRequest(header=header)
    for number in range(pieces):
        chunk = context_pb2.UploadChunk(offset=number * len(PIECE), data=PIECE)
        yield context_pb2.UploadContextRequest(chunk=chunk)


def main(url: str, megabytes: int) -> None:
    """Start a server whose models are at the endpoint of this URL, and answer requests until stdin is closed.

    The text that is counted in has so many megabytes.
    """
    stated = {"base_url": f"{url}/v1", "input_usd_per_million": 1, "output_usd_per_million": 5}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"RLM_MODELS": json.dumps(dict.fromkeys(MODELS, stated)), "RLM_METRICS_LISTEN": metrics}
    with TemporaryDirectory(prefix="bench-loop-") as folder, asyncio.Runner() as runner:
        server = served(Path(folder), settings)
        at = runner.run(server.__aenter__())
        try:
            serve("a server at its defaults", Ours(url, megabytes, at, metrics, runner).measures)
        finally:
            runner.run(server.__aexit__(None, None, None))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
