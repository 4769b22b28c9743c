"""A server that is killed, again and again, while several tenants spend money, loses none of it and pays nothing twice.

RLM_TEST_KILLS sets how often, over both kinds of database together.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.fake_provider.faults import WAITING
from tests.fake_provider.server import FakeProvider, Fault, chance
from tests.system import money_audit as audit
from tests.system.money_load import ANSWER, Load, make_tenants
from tests.system.stage import Caller, eventually
from tests.system.test_process import address, process

KILLS = max(2, int(os.environ.get("RLM_TEST_KILLS", "4"))) // 2
"""On each kind of database."""
FAULT_RATE = 0.1
ABOVE_THE_BOUND = {Fault.OUTPUT_ABOVE, Fault.INPUT_ABOVE}
"""A provider that bills more than it was asked for is another matter."""
FAULTS = [*(fault for fault in Fault if fault not in WAITING | ABOVE_THE_BOUND), Fault.STALL]
GONE_SECONDS = 20
"""Within which the connections of a dead server end."""


async def test_a_server_that_is_killed_loses_no_money_and_pays_nothing_twice(
    tmp_path: Path, database_at: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_DATABASE_URL", database_at if isinstance(database_at, str) else "")
    monkeypatch.setenv("RLM_RUNS", "1000")
    monkeypatch.setenv("RLM_REDACT_CONTENTS", "true")  # else the runs go on, and ask what was under way once more
    monkeypatch.setenv("RLM_ROOT_ATTEMPTS", "1")  # a call that is asked again would be billed again, rightly
    at = audit.database(tmp_path)
    assert at == database_at
    keys, load, rng = await make_tenants(at), Load(), random.Random(KILLS)
    left = 0
    async with FakeProvider(answer=ANSWER, latency=0.02, chance=chance(FAULT_RATE, KILLS, FAULTS)).serving() as fake:
        bill = audit.Bill(fake)
        for life in range(KILLS + 1):
            async with process(tmp_path, fake) as server:
                where = await address(server)
                callers = {tenant: Caller(where, key) for tenant, key in keys.items()}
                audited = audit.check_recovered(at, bill, load.job_of)
                await check_replays(load, callers, bill, audit.spent(at))
                if life < KILLS:
                    load.killed = False
                    working = load.start(callers)
                    await at_a_random_moment(fake, load, rng, last=life == KILLS - 1)
                    load.killed = True
                    server.send_signal(signal.SIGKILL)
                    await server.wait()
                    await asyncio.gather(*working)
                    async with asyncio.timeout(GONE_SECONDS):
                        await fake.idle()
                    note_lost(load, at)
                    left += audit.check_killed(at, bill, load.job_of)
                for caller in callers.values():
                    await caller.channel.close(None)
    assert audited.certain
    assert audited.ambiguous
    assert left, "some calls were in flight"
    print(f"{len(load.jobs)} runs, {load.turns} turns, {left} holds left, {load.refused} refused, {audited}")


async def at_a_random_moment(fake: FakeProvider, load: Load, rng: random.Random, *, last: bool) -> None:
    """Wait for some requests; the last time also for everything that must have happened, and for one in flight."""
    moment = fake.requests + rng.randint(1, 150)
    await eventually(lambda: fake.requests >= moment)
    if last:
        await eventually(lambda: load.turns and load.refused and any(job.ended for job in load.jobs))
        fake.faults.append(Fault.STALL)
        await eventually(lambda: not fake.faults)


def note_lost(load: Load, at: str | Path) -> None:
    """Learn of the runs whose creation was not answered any more."""
    for row in audit.rows(at, "SELECT id, request_id FROM run"):
        load.job_of.setdefault(row["id"], row["request_id"])


async def check_replays(load: Load, callers: dict[str, Caller], bill: audit.Bill, spent: dict[str, int]) -> None:
    """What was asked for before is the same run, which tells the same story and asks no model again."""
    before = bill.jobs()
    for job in load.jobs:
        if job.run_id:
            run_id, caller = job.run_id, callers[job.tenant]
            await load.create(job, caller)
            assert job.run_id == run_id
            ended = await caller.ended(run_id)
            assert ended.events[: len(job.events)] == job.events
            assert len(ended.events) == len(job.events) or not job.ended
            job.events = ended.events
            told = {ended.run.spent.nano_usd, ended.events[-1].run_finished.spent.nano_usd}
            assert told == {spent.get(run_id, 0)}, ended.run
    assert bill.jobs() == before
