"""The agent of the examples, against a server that is killed in the middle of its first run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.client.real_server import ROOT, SECONDS, RealServer, free_port
from tests.fake_provider.server import FakeProvider
from tests.fake_provider.wire import Received

TURNS = (
    """import collections, re
ordered = collections.Counter()
for letter in context:
    for count, fruit in re.findall("(\\d+) (\\w+)", letter):
        ordered[fruit] += int(count)
stock = {fruit: in_stock(fruit) for fruit in sorted(ordered)}
note(f"looked at {len(stock)} kinds")""",
    "FINAL(dict(ordered))",
    "FINAL(', '.join(fruit for fruit in sorted(ordered) if stock[fruit] < ordered[fruit]))",
    "FINAL(str({fruit: stock[fruit] - ordered[fruit] for fruit in sorted(ordered) if stock[fruit] >= ordered[fruit]}))",
)
LETTERS = {"a.txt": "Please send 40 apples and 12 pears.", "b.txt": "We need 3 quinces and 10 apples."}


def reply(received: Received) -> str:
    spoken = sum(message["role"] == "assistant" for message in received.messages)
    return f"```repl\n{TURNS[spoken]}\n```"


async def test_the_agent_outlives_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    for name, text in LETTERS.items():
        (folder / name).write_text(text)
    async with FakeProvider(answers=reply, latency=0.02).serving() as provider:
        model = {"base_url": f"{provider.url}/v1", "input_usd_per_million": 1, "output_usd_per_million": 5}
        monkeypatch.setenv("RLM_MODELS", json.dumps({"fake": model}))
        monkeypatch.setenv("RLM_MODEL", "fake")
        server = RealServer(tmp_path / "data", free_port())
        await asyncio.to_thread(server.start)
        try:
            agent = await asyncio.create_subprocess_exec(
                sys.executable, str(ROOT / "examples" / "agent.py"), str(folder),
                env={**os.environ, "RLM_SERVER": server.target, "RLM_API_KEY": server.key},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert agent.stdout is not None
            first = await agent.stdout.readline()
            await asyncio.to_thread(server.end, signal.SIGKILL)
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(SECONDS):
                out, err = await agent.communicate()
        finally:
            await asyncio.to_thread(server.end, signal.SIGKILL)
    lines = (first + out).decode().splitlines()
    assert (agent.returncode, err.decode()) == (0, "")
    assert [line for line in lines if line.startswith(">")] == [
        '> {"apples": 50, "pears": 12, "quinces": 3}',
        "> pears",
        "> {'apples': 70, 'quinces': 4}",
    ]
    assert lines[0] == "looks up apples"
    assert "noted: looked at 3 kinds" in lines
    assert len(provider.delivered) == len(TURNS)
