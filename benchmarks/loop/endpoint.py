"""A scripted endpoint in the place of every model: what it says depends on the model's name, and so does its latency.

It notes when a request came in and when its answer left, on the machine's clock of `time.monotonic()`. `GET /log` tells
that, and forgets it. It needs nothing but the standard library, and so runs in anybody's environment.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contestant import ROOT

TURNS = 24
"""Of a run of `turns`, besides the last one."""
FEW_TURNS = 4
"""The same of `few-turns`."""
SUBCALLS = 50
BATCH = 200
CHILDREN, CHILD_TURNS = 50, 10
"""Of a run of `children`, each of which has so many turns."""
CHILD_LATENCY = 0.05
FLOOD = 1_000
"""Calls of a run of `flood`."""
LATENCIES = {"slow": 1.0, "brief": 0.1, "patient": 20.0, "child": CHILD_LATENCY}
"""Seconds, by the model's name; others answer at once."""
LONG_BYTES = 5_000_000
"""Of the answer of `long`."""
MODELS = ("children", "flood", "asking", "long", "turns", "few-turns", "end", "subcalls", "batch", "quick", *LATENCIES)

_END = 'answer["content"] = "done"\nanswer["ready"] = True'
_SEQUENTIAL = f'for number in range({SUBCALLS}):\n    llm_query(f"question {{number}}")'
_BATCHED = f'answers = llm_query_batched([f"question {{number}}" for number in range({BATCH})])'

Log = dict[str, list[tuple[float, float]]]
"""By model: when each of its requests came in, and when its answer left."""


def said(model: str, turn: int) -> str:
    """Return what a model says in a turn, counted from 0."""
    match model:
        case "turns" if turn < TURNS:
            return _code(f"x = {turn}")
        case "few-turns" if turn < FEW_TURNS:
            return _code(f"x = {turn}")
        case "long":
            return _code(f'answer["content"] = "0123456789" * {LONG_BYTES // 10}\nanswer["ready"] = True')
        case "subcalls" if turn == 0:
            return _code(_SEQUENTIAL)
        case "children" if turn == 0:
            return _code(f'answers = rlm_query_batched(["What?"] * {CHILDREN}, [str(n) for n in range({CHILDREN})])')
        case "child" if turn < CHILD_TURNS - 1:
            return _code(f"x = {turn}")
        case "flood" if turn == 0:
            return _code(f'answers = llm_query_batched([f"question {{number}}" for number in range({FLOOD})])')
        case "asking" if turn == 0:
            return _code('llm_query("question")')
        case "batch" if turn == 0:
            return _code(_BATCHED)
        case "quick" | "slow" | "brief":
            return "The answer is 42."
    return _code(_END)


def _code(block: str) -> str:
    return f"```repl\n{block}\n```"


class Endpoint:
    """Serves chat completions on loopback."""

    def __init__(self) -> None:
        self._log: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until its end."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = head.partition("content-length:")[2].partition("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                writer.write(await self._answer(head.split(" ", 2)[1], body))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> bytes:
        received = time.monotonic()
        if path == "/log":
            log, self._log = self._log, defaultdict(list)
            return _http(log)
        request = json.loads(body)
        model = request["model"]
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        await asyncio.sleep(LATENCIES.get(model, 0.0))
        answer = _http(_completion(model, said(model, turn)))
        self._log[model].append((received, time.monotonic()))
        return answer


def _completion(model: str, text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def _http(content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def told(url: str) -> Log:
    """Return what the endpoint has noted since it was last asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/log", timeout=30) as answer:
        log: Log = json.load(answer)
        return log


@contextmanager
def endpoint() -> Iterator[str]:
    """Start an endpoint as a process of its own, and yield its URL."""
    command = (sys.executable, "-m", "benchmarks.loop.endpoint")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def _serve() -> None:
    server = await asyncio.start_server(Endpoint().connected, "127.0.0.1", 0, backlog=1_024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
