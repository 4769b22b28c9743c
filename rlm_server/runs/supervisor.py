"""Starts, watches, cancels and recovers runs. Every run is a task of this room's, and ends before the room closes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from rlm_server.clock import now
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import Contexts
from rlm_server.ledger import UNITS, BudgetExceeded, Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.tracing import TracedContext, Tracer
from rlm_server.runs.event_log import EventLog, replay
from rlm_server.runs.events import Event, EventOrigin, RunFinished, RunStarted
from rlm_server.runs.journal import RunRow
from rlm_server.runs.node import Node
from rlm_server.runs.node_context import whole_context
from rlm_server.runs.recovery import recover
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import Outcome, Services, Task, Tree
from sandbox.cancellation import run_to_completion

log = logging.getLogger(__name__)


class TooManyRuns(Exception):
    """The server runs as many runs as it may; the message names the limit."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run as a caller asks for it, checked."""

    tenant: str
    request_id: str | None
    question: str
    context: Context | None
    model: str
    sub_model: str
    budget: Limit
    limits: RunLimits
    image: str


@dataclass(slots=True)
class _Live:
    event_log: EventLog
    task: asyncio.Task[None] = field(init=False)
    tree: Tree | None = None


class Supervisor:
    """Owns the runs that are going on. An async context manager: leaving it cancels them and waits for their end."""

    def __init__(self, services: Services, contexts: Contexts, *, most: int) -> None:
        self._services = services
        self._contexts = contexts
        self._most = most
        self._live: dict[str, _Live] = {}
        self._stack = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._creating = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await recover(self._services.journal, self._services.ledger)
        await self._stack.enter_async_context(self._group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for live in self._live.values():
            live.task.cancel()
        await self._stack.__aexit__(None, None, None)

    async def create(self, new: NewRun) -> RunRow:
        """Start a run and return it; a repeated request id returns the run it started.

        Raises:
            BudgetExceeded: the budget is more than what the tenant has left.
            ContextGone, ContextDamaged: the context was deleted, or its files are not whole.
            TooManyRuns: as many as may are going on.
        """
        async with self._creating:
            return await run_to_completion(self._create(new))

    async def _create(self, new: NewRun) -> RunRow:
        journal, ledger = self._services.journal, self._services.ledger
        if new.request_id is not None:
            known = await journal.by_request(new.tenant, new.request_id)
            if known is not None:
                return known
        if len(self._live) >= self._most:
            raise TooManyRuns(f"this server runs at most {self._most} runs at once; try again when one has ended")
        check_affordable(new.tenant, new.budget, (await ledger.balance(new.tenant)).left)
        if new.context:
            await self._contexts.pin(new.context)
        try:
            return await self._begin(new)
        except BaseException:
            if new.context:
                self._contexts.unpin(new.context)
            raise

    async def _begin(self, new: NewRun) -> RunRow:
        journal, ledger = self._services.journal, self._services.ledger
        run_id = "run_" + secrets.token_hex(16)
        row = RunRow(
            run_id, new.tenant, new.request_id, new.context.id if new.context else None, new.model, new.sub_model,
            new.budget, now(),
        )  # fmt: skip
        await journal.create(row, new.question)
        await ledger.open_account(run_id, tenant=new.tenant, parent=new.tenant, limit=new.budget)
        live = self._live[run_id] = _Live(EventLog(journal, run_id))
        live.task = self._group.create_task(self._run(row, new, live))
        await asyncio.sleep(0)  # a task that is cancelled before its first step never takes it
        return row

    async def _run(self, row: RunRow, new: NewRun, live: _Live) -> None:
        origin, event_log = EventOrigin(row.id, "", 0), live.event_log
        keeping = asyncio.create_task(event_log.serve())
        outcome = Outcome(RunState.FAILED, reason="an internal error of the server; it has been logged")
        try:
            event_log.emit(
                origin,
                RunStarted(
                    new.question, row.model, row.sub_model, new.context.characters if new.context else 0, row.budget
                ),
            )
            deadline = time.monotonic() + new.limits.wall_seconds
            node_context = whole_context(self._contexts.corpus(new.context)) if new.context else None
            corpus = node_context.corpus if node_context else None
            traced = (
                TracedContext(new.tenant, self._services.shares, partial(self._contexts.lineage, new.context))
                if new.context
                else None
            )
            async with Tracer(traced) as tracer:
                live.tree = Tree(self._services, row, new.limits, new.image, deadline, event_log, corpus, tracer)
                outcome = await Node(live.tree, Task(row.id, "", 0, new.question, node_context, row.model)).run()
        except asyncio.CancelledError:
            outcome = Outcome(RunState.CANCELLED, reason="cancelled")
        except Exception:
            log.exception("run %s failed", row.id)
        finally:
            await run_to_completion(self._finish(row.id, outcome, live, keeping))
            if new.context:
                self._contexts.unpin(new.context)

    async def _finish(self, run_id: str, outcome: Outcome, live: _Live, keeping: asyncio.Task[None]) -> None:
        event_log = live.event_log
        try:
            if live.tree:
                live.tree.memo.close()
                await self._services.journal.cover(run_id, await live.tree.coverage())
            spent = (await self._services.ledger.balance(run_id)).posted
            event_log.emit(
                EventOrigin(run_id, "", 0), RunFinished(outcome.state, outcome.reason, spent, outcome.answer)
            )
            await keeping
        except Exception:  # the database's: the next start ends this run, and the others go on
            log.exception("the end of run %s could not be kept", run_id)
        finally:
            del self._live[run_id]

    async def cancel(self, run_id: str) -> None:
        """Stop a run and everything under it, and return when it has stopped; one that has ended stays as it is."""
        live = self._live.get(run_id)
        if live:
            live.task.cancel()
            await asyncio.wait([live.task])

    async def coverage(self, run_id: str) -> Coverage:
        """Return how much of its context a run's whole tree has looked at so far."""
        live = self._live.get(run_id)
        return await live.tree.coverage() if live and live.tree else await self._services.journal.coverage(run_id)

    def watch(self, run_id: str, from_sequence: int) -> AsyncIterator[Event]:
        """Yield the run's events from a number on, until its last."""
        live = self._live.get(run_id)
        return live.event_log.watch(from_sequence) if live else replay(self._services.journal, run_id, from_sequence)


def check_affordable(tenant: str, budget: Limit, left: Limit) -> None:
    """Refuse a budget that is beyond what the tenant has left for good; a window that is nearly used up begins anew."""
    for unit in UNITS:
        asked, has = getattr(budget, unit), getattr(left, unit)
        if asked is not None and has is not None and asked > has:
            raise BudgetExceeded(tenant, unit, has, 0, asked)
