"""The fake provider, driven by hand over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fake_provider.faults import BY_NAME, WAITING
from tests.fake_provider.server import FakeProvider, Fault, chance

ASK: dict[str, Any] = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
PATHS = {"/v1/messages": "request-id", "/v1/chat/completions": "x-request-id"}


async def test_faults_are_ordered_and_the_bill_is_read_over_http() -> None:
    async with FakeProvider().serving() as fake, httpx2.AsyncClient(base_url=fake.url) as client:
        ordered = ["529", None, "missing-usage"]
        assert (await client.post("/faults", json=ordered)).json() == ordered
        assert (await client.post("/v1/messages", json=ASK)).status_code == 529
        assert "usage" in (await client.post("/v1/messages", json=ASK)).json()
        assert "usage" not in (await client.post("/v1/messages", json=ASK)).json()
        assert "usage" in (await client.post("/v1/chat/completions", json=ASK)).json()
        bill = (await client.get("/bill")).json()
        assert [(entry["model"], entry["fault"]) for entry in bill] == [
            ("fake", None),
            ("fake", "missing-usage"),
            ("fake", None),
        ]
        assert (await client.get("/elsewhere")).status_code == 404
        assert fake.connections == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_bill_is_found_by_the_id_in_the_answers_header_and_by_the_prompt(path: str, stream: bool) -> None:
    async with FakeProvider().serving() as fake, httpx2.AsyncClient(base_url=fake.url) as client:
        answers = [await client.post(path, json={**ASK, "stream": stream}) for _ in range(3)]
        bill = (await client.get("/bill")).json()
    assert [entry["id"] for entry in bill] == [answer.headers[PATHS[path]] for answer in answers]
    assert len({entry["id"] for entry in bill}) == 3
    assert {entry["prompt"] for entry in bill} == {hashlib.sha256(b"hello").hexdigest()[:16]}


def test_faults_by_chance_are_the_same_for_the_same_seed() -> None:
    def drawn(rate: float, seed: int) -> list[Fault | None]:
        draw = chance(rate, seed, [*Fault])
        return [draw() for _ in range(1_000)]

    assert drawn(0.2, 7) == drawn(0.2, 7) != drawn(0.2, 8)
    assert 100 < sum(fault is not None for fault in drawn(0.2, 7)) < 300
    assert set(drawn(0, 7)) == {None}
    assert None not in drawn(1, 7)


async def test_it_runs_by_hand_with_faults_by_chance_and_explains_them() -> None:
    async def start(*arguments: str) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "tests.fake_provider.server", *arguments)
        return await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
        )

    explained = await start("--help")
    words, _ = await explained.communicate()
    assert [fault for fault in BY_NAME if f"  {fault} " not in words.decode()] == []

    server = await start("--port", "0", "--fault-rate", "0.5", "--seed", "7", "--latency", "0.001")
    assert server.stdout is not None
    try:
        line = (await asyncio.wait_for(server.stdout.readline(), 20)).decode()
        async with httpx2.AsyncClient(base_url=line.split()[-1], timeout=20) as client:

            async def ask() -> int | None:
                try:
                    return (await client.post("/v1/messages", json=ASK)).status_code
                except httpx2.HTTPError:
                    return None

            statuses = await asyncio.gather(*(ask() for _ in range(60)))
            bill = (await client.get("/bill")).json()
    finally:
        server.kill()
        await server.communicate()
    assert statuses.count(200) >= 30
    assert len(set(statuses)) > 3, "and the connection itself may fail"
    assert {BY_NAME[entry["fault"]] for entry in bill if entry["fault"]}.isdisjoint(WAITING)
