"""What several tenants do with a server that may die at any moment: runs with children, and sessions with calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
from rlm.v1 import run_pb2, session_pb2, types_pb2

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Limit
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.tenants import Tenants
from rlm_server.tenants.terms import OwnTerms
from tests.system.stage import USD, Caller, code

TENANTS = {"rich": 1_000 * USD, "modest": 20 * USD, "poor": USD // 2}
"""What each may spend in all."""
RUN_BUDGET = USD // 4
SUBCALLS = 6

# No two prompts of a job may be of one length: a child's context is longer than its parent's by less than the step.
ANSWER = code(
    f"llm_query_batched([context + ' ' + 'x' * 10 * n for n in range({SUBCALLS})])",
    "rlm_query_batched(['child of ' + context], [context + '+'])",
    "FINAL(context)",
)
"""What the provider says to everything. A child does the same, and what would be its child is one call."""


async def make_tenants(at: str | Path) -> dict[str, str]:
    """Make the tenants in a new database; return their keys."""
    async with await Database.open(at, MIGRATIONS) as database:
        tenants, keys = Tenants(database), Keys(database)
        for name, limit in TENANTS.items():
            await tenants.create(name, OwnTerms(budget=Limit(nano_usd=limit)), {})
        return {name: (await keys.create(name))[1] for name in TENANTS}


@dataclass
class Job:
    """A run as its caller knows it; `run_id` is empty where the answer to its creation was lost."""

    name: str
    tenant: str
    context_id: str = ""
    run_id: str = ""
    events: list[run_pb2.RunEvent] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].WhichOneof("body") == "run_finished"


@dataclass
class Load:
    """What was done over all lives of the server."""

    jobs: list[Job] = field(default_factory=list)
    job_of: dict[str, str] = field(default_factory=dict)
    """The job of a run or session, by its id."""
    turns: int = 0
    refused: int = 0
    killed: bool = False
    """Whether the server was, in its present life."""
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def start(self, callers: dict[str, Caller]) -> list[asyncio.Task[None]]:
        """Have every tenant make runs and use a session, until the server is gone."""
        acts = (self._run, self._run, self._session)
        return [
            asyncio.create_task(self._until_killed(act, tenant, caller))
            for tenant, caller in callers.items()
            for act in acts
        ]

    async def create(self, job: Job, caller: Caller) -> None:
        """Create a job's run, or ask for it again."""
        run = await caller.create(
            f"What is {job.name}?",
            context_id=job.context_id,
            request_id=job.name,
            budget=types_pb2.Budget(nano_usd=RUN_BUDGET),
            limits=run_pb2.RunLimits(max_depth=1),
        )
        job.run_id = run.run_id
        self.job_of[run.run_id] = job.name

    async def _run(self, tenant: str, caller: Caller) -> None:
        job = Job(f"job-{next(self._numbers)}", tenant)
        job.context_id = (await caller.upload(job.name)).context_id
        self.jobs.append(job)
        await self.create(job, caller)
        async for event in caller.watch(job.run_id):
            job.events.append(event)

    async def _session(self, tenant: str, caller: Caller) -> None:
        name = f"job-{next(self._numbers)}"
        session = await caller.open_session(budget=types_pb2.Budget(nano_usd=RUN_BUDGET))
        self.job_of[session] = name
        for turn in range(3):
            prompts = f"[{name!r} + ' ' + 'x' * (100 * {turn + 1} + n) for n in range({SUBCALLS})]"
            seen = await caller.turn(session, f"_ = llm_query_batched({prompts})", request_id=f"turn-{turn}")
            assert seen.result.status == session_pb2.TURN_STATUS_OK, seen
            self.turns += 1
        await caller.delete(session)

    async def _until_killed(self, act: Callable[[str, Caller], Awaitable[None]], tenant: str, caller: Caller) -> None:
        while True:
            try:
                await act(tenant, caller)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.refused += 1
                    return  # what a poor tenant has left will not become more
                if not self.killed:
                    raise
                return
            except asyncio.CancelledError:  # grpc.aio cancels a call whose messages it can no longer send
                if not self.killed:
                    raise
                return
