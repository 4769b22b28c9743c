"""Runs outlive their server: killed at any moment, they go on at its next start, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from rlm.v1 import run_pb2

from tests.databases import postgres, start_again
from tests.fake_provider.server import FakeProvider
from tests.fake_provider.wire import Received
from tests.system.books import check_settled
from tests.system.stage import Caller, Ended, eventually
from tests.system.test_process import address, process, workers_of

KILLS = 6
"""Of one run."""
ON_THE_WAY_SECONDS = 0.25
"""An answer that was sent no longer before a kill may not have been taken: then it is asked for again."""
AWAY_SECONDS = 4.0
"""A database that is away for longer than its caller waits for it."""
CHILD = "What is this part about?"

TURNS = (
    "import asyncio\nfirst = [llm_query(f'one {n} {context[n]}') for n in range(4)]\nprint(first)",
    """\
async def both():
    return await asyncio.gather(*[llm_query_async(f'two {n} {first[n]}') for n in range(4)])
second = await both()
print(budget()['calls'], second)""",
    f"third = rlm_query_batched([{CHILD!r}] * 2, [context[:40], context[40:]])\nprint(third)",
    "kept = llm_query('one 0 ' + context[0])\nprint(kept == first[0])",
    """\
import random, time, uuid
lucky = [llm_query(f'one {time.time()} {uuid.uuid4()} {random.random()} {n}') for n in range(3)]
print(lucky)""",
    "FINAL('|'.join([*first, *second, *third, kept]))",
)
CALLS = 6 + 2 * 2 + 4 + 4 + 2 * 3 + 3
"""Of the roots' and the children's models, and of the code: the last is answered from memory."""
CHILD_TURNS = (
    "said = llm_query_batched([f'child {n} {context}' for n in range(3)])\nprint(said)",
    "FINAL(' '.join(said))",
)


def said(prompt: str) -> str:
    """What the model of the code answers: the same to the same."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:8]


def reply(received: Received) -> str:
    """Play a root, a child or the model of their code, by what the request says."""
    messages = received.messages
    spoken = sum(message["role"] == "assistant" for message in messages)
    first = next(message["content"] for message in messages if message["role"] == "user")
    if not spoken and len(messages) <= 2 and first.startswith(("one", "two", "child")):
        return said(first)
    turns = CHILD_TURNS if CHILD in first else TURNS
    return f"```repl\n{turns[spoken]}\n```"


def expected(text: str) -> str:
    first = [said(f"one {n} {text[n]}") for n in range(4)]
    second = [said(f"two {n} {first[n]}") for n in range(4)]
    third = [" ".join(said(f"child {n} {part}") for n in range(3)) for part in (text[:40], text[40:])]
    return "|".join([*first, *second, *third, first[0]])


@dataclass
class Watcher:
    """Watches a run as a client does: over each of its server's deaths, from the last number that it saw."""

    events: list[run_pb2.RunEvent] = field(default_factory=list)

    async def watch(self, caller: Caller, run: str) -> bool:
        """Watch until the stream breaks; returns whether the run has ended."""
        async for event in caller.watch(run, len(self.events) + 1):
            self.events.append(event)
        return bool(self.events) and self.events[-1].WhichOneof("body") == "run_finished"

    async def to_the_end(self, caller: Caller, run: str) -> None:
        """Watch until the run has ended, again and again where the server cannot tell just now."""
        ended = False
        while not ended:
            try:
                ended = await self.watch(caller, run)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.2)


async def killed_and_ended(
    data_dir: Path, provider: FakeProvider, pauses: Sequence[float], text: str, kills: list[float]
) -> Ended:
    """Run to the end a run whose server is killed after each of these pauses; `kills` are told when."""
    run, watcher, context = "", Watcher(), ""
    for pause in (*pauses, None):
        async with process(data_dir, provider) as server:
            caller = Caller(await address(server), (data_dir / "development-key").read_text().strip())
            if not run:
                context = (await caller.upload(text)).context_id
                run = (await caller.create(context_id=context)).run_id
            watching = asyncio.create_task(watcher.watch(caller, run))
            if pause is not None:
                await asyncio.wait([watching], timeout=pause)
                kills.append(time.monotonic())
                server.send_signal(signal.SIGKILL)
                await server.wait()
                await asyncio.wait([watching])
                watching.exception()
                await caller.channel.close(None)
                continue
            async with asyncio.timeout(60):
                assert await watching
            ended = Ended(await caller.get(run), await caller.nodes(run), watcher.events)
            await caller.channel.close(None)
            server.send_signal(signal.SIGTERM)
            out, err = await server.communicate()
            assert b"Traceback" not in out + err, (out + err).decode()
    return ended


TEXT = "Some text that is looked at in parts by children, and by calls one after another, too."


async def test_an_undisturbed_run_answers_as_expected(tmp_path: Path) -> None:
    async with FakeProvider(answers=reply, latency=0.02).serving() as provider:
        ended = await killed_and_ended(tmp_path / "data", provider, (), TEXT, [])
    assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, expected(TEXT)), ended.run.end_message
    check_settled(tmp_path / "data")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_run_whose_server_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    pauses, kills = [chance.uniform(0.05, 0.6) for _ in range(KILLS)], list[float]()
    async with FakeProvider(answers=reply, latency=0.03).serving() as provider:
        ended = await killed_and_ended(tmp_path / "data", provider, pauses, TEXT, kills)
    assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, expected(TEXT)), ended.run.end_message
    assert [event.sequence for event in ended.events] == list(range(1, len(ended.events) + 1))
    assert ended.kinds[0] == "run_started"
    assert ended.kinds.count("run_finished") == 1
    check_settled(tmp_path / "data")
    in_time = [at for at, _ in provider.delivered if not any(0 <= kill - at < ON_THE_WAY_SECONDS for kill in kills)]
    assert len(in_time) <= CALLS <= len(provider.delivered), Counter(bill.prompt for _, bill in provider.delivered)


async def test_a_run_goes_on_where_its_workers_are_killed(tmp_path: Path) -> None:
    async with (
        FakeProvider(answers=reply, latency=0.05).serving() as provider,
        process(tmp_path / "data", provider) as server,
    ):
        caller = Caller(await address(server), (tmp_path / "data" / "development-key").read_text().strip())
        context = await caller.upload(TEXT)
        run = await caller.create(context_id=context.context_id)
        ending = asyncio.create_task(caller.ended(run.run_id))
        for _ in range(3):
            await asyncio.wait([ending], timeout=0.4)
            for worker in workers_of(server):
                with suppress(ProcessLookupError):
                    os.kill(int(worker.name), signal.SIGKILL)
        ended = await ending
        await caller.channel.close(None)
    assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, expected(TEXT)), ended.run.end_message
    assert len(provider.delivered) == CALLS


async def test_a_run_goes_on_where_its_database_is_killed_and_comes_back(tmp_path: Path) -> None:
    with postgres() as database:
        async with (
            FakeProvider(answers=reply, latency=0.05).serving() as provider,
            process(tmp_path / "data", provider, RLM_DATABASE_URL=database.get_uri()) as server,
        ):
            caller = Caller(await address(server), (tmp_path / "data" / "development-key").read_text().strip())
            context = (await caller.upload(TEXT)).context_id
            run = (await caller.create(context_id=context)).run_id
            await caller.until(run, "code_finished")
            pid = database.get_pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not Path(f"/proc/{pid}").exists())
            await asyncio.sleep(AWAY_SECONDS)
            await asyncio.to_thread(start_again, database)
            watcher = Watcher()
            async with asyncio.timeout(60):
                await watcher.to_the_end(caller, run)
            shown = await caller.get(run)
            await caller.channel.close(None)
    assert (shown.state, shown.answer) == (run_pb2.RUN_STATE_SUCCEEDED, expected(TEXT)), shown.end_message
    assert [event.sequence for event in watcher.events] == list(range(1, len(watcher.events) + 1))
    assert len(provider.delivered) == CALLS
