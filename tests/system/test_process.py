"""The server as a process of its own: killed in the middle of a run, and started again on the same data."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rlm.v1 import run_pb2

from tests.fake_provider.server import FakeProvider, Fault
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Caller, eventually

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "rlm_server.commands.cli", "serve", "--listen", "127.0.0.1:0", "--data-dir")


@asynccontextmanager
async def process(data_dir: Path, provider: FakeProvider, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the server with one model, at a provider of our own; it is killed where the test left it running."""
    model = {"base_url": f"{provider.url}/v1", "input_usd_per_million": 1, "output_usd_per_million": 5}
    started = await asyncio.create_subprocess_exec(
        *SERVE,
        str(data_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "RLM_MODELS": json.dumps({"fake": model}), "RLM_MODEL": "fake", **settings},
        cwd=ROOT,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def address(started: asyncio.subprocess.Process) -> str:
    assert started.stdout is not None
    line = (await started.stdout.readline()).decode().strip()
    assert line.startswith("serving on "), line
    return line.removeprefix("serving on ")


async def test_a_server_that_was_killed_in_a_run_goes_on_with_it_and_its_books_are_in_order(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with FakeProvider(answer="```repl\nFINAL(len(context))\n```").serving() as provider:
        async with process(data_dir, provider) as first:
            caller = Caller(await address(first), key := (data_dir / "development-key").read_text().strip())
            context = await caller.upload("a text that stays")
            done = await caller.ask(context_id=context.context_id)
            assert (done.run.state, done.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, "17")
            await provider.received.get()
            provider.faults.append(Fault.STALL)
            run = await caller.create(context_id=context.context_id)
            await provider.received.get()
            seen = await caller.until(run.run_id, "turn_started")

            async with process(data_dir, provider) as second:
                out, err = await second.communicate()
                assert second.returncode == 1
                assert b"already open for writing, by process" in err
                assert b"Traceback" not in out + err

            first.send_signal(signal.SIGKILL)
            await first.wait()
            await caller.channel.close(None)

        (hold,) = rows(data_dir, "SELECT * FROM hold WHERE model <> '' AND run = ?", run.run_id)
        assert hold["state"] == "dispatched"
        async with process(data_dir, provider) as third:
            caller = Caller(await address(third), key)
            ended = await caller.ended(run.run_id)
            assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, "17")
            (replied,) = ended.bodies("model_replied")
            in_full = ended.run.spent.nano_usd - replied.spent.nano_usd
            assert in_full == hold["nano_usd"], "what was dispatched is paid in full"
            assert ended.events[seen.sequence - 1] == seen
            check_story(ended)
            check_settled(data_dir)
            assert await caller.ended(done.run.run_id) == done
            again = await caller.upload("a text that stays")
            assert (again.sha256, again.context_id == context.context_id) == (context.sha256, False)
            assert (await caller.ask(context_id=context.context_id)).run.answer == "17"
            await caller.channel.close(None)

            third.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                out, err = await third.communicate()
            assert third.returncode == 0, err
            assert b"stopping" in out
            assert b"Traceback" not in err


def workers_of(server: asyncio.subprocess.Process) -> list[Path]:
    """The processes a server has started, as folders of /proc."""
    tasks = Path(f"/proc/{server.pid}/task").glob("*/children")
    return [Path("/proc") / pid for task in tasks for pid in task.read_text().split()]


def runs(process: Path) -> bool:
    """Whether a process is there, and not only waiting to be noted as dead."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_server_that_was_killed_leaves_no_worker_behind_even_one_in_a_turn(tmp_path: Path) -> None:
    async with FakeProvider().serving() as provider, process(tmp_path / "data", provider) as server:
        caller = Caller(await address(server), (tmp_path / "data" / "development-key").read_text().strip())
        turn = caller.execute(await caller.open_session(), "print('go', flush=True)\nwhile True: pass")
        await anext(aiter(turn))
        workers = workers_of(server)
        assert all(runs(worker) for worker in workers)
        assert workers
        server.send_signal(signal.SIGKILL)
        await server.wait()
        await eventually(lambda: not any(runs(worker) for worker in workers))
        turn.cancel()
        await caller.channel.close(None)
