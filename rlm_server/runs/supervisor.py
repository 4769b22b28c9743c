"""Starts, watches, cancels and recovers runs. Every run is a task of this room's, and ends before the room closes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from rlm_server.broker.providers import client
from rlm_server.clock import now
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import ContextDamaged, Contexts
from rlm_server.database.engine import DatabaseError
from rlm_server.database.requests import Request
from rlm_server.ledger import UNITS, Balance, BudgetExceeded, Limit, names
from rlm_server.ledger.customers import Customer
from rlm_server.repl.bounds import MAX_REASON, cut
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import ModelCallRequested, ToolCallRequested
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.tracing import TracedContext, Tracer
from rlm_server.runs import closing
from rlm_server.runs.counters import RunCounters
from rlm_server.runs.event_log import EventLog, Quota, replay, used_up
from rlm_server.runs.events import Event, EventOrigin, RunFinished, RunStarted
from rlm_server.runs.journal import CREATING, PATIENCE, RunRow
from rlm_server.runs.node import Node
from rlm_server.runs.node_context import whole_context
from rlm_server.runs.places import Place, Places
from rlm_server.runs.recovery import recover
from rlm_server.runs.retention import forget_ended
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import Outcome, Services, Task, Tree, kept_form, kept_outcome
from rlm_server.shares.held import TooMuchHeld
from rlm_server.shares.limits import TenantLimits
from rlm_server.tools.deployed import Deployed
from rlm_server.tools.tool import Tool
from rlm_server.tools.tool_calls import RunTools
from rlm_server.tools.waiting import Submitted
from rlm_server.tracing.spans import span
from sandbox.cancellation import run_to_completion

log = logging.getLogger(__name__)


class TooManyRuns(Exception):
    """As many runs of a tenant wait as may; the message names the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} runs of this tenant wait for their turn, and more may not (tenant_waiting_runs): try again when "
            "some have ended, or cancel some"
        )
        self.limit = limit


class RunQuotaExceeded(Exception):
    """As much is kept of a tenant's runs as may be; the message names the limit."""

    def __init__(self, limit: int, used: int) -> None:
        super().__init__(f"tenant_kept_bytes: {used_up(used, limit)}")
        self.limit, self.used = limit, used


class RunNotEnded(Exception):
    """A run that is to be deleted goes on."""

    def __init__(self, run: str) -> None:
        super().__init__(f"the run {run} has not ended: cancel it first")


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run as a caller asks for it, checked."""

    tenant: str
    request: Request | None
    question: str
    context: Context | None
    model: str
    sub_model: str
    budget: Limit
    limits: RunLimits
    image: str
    customer: Customer | None = None
    """Who pays; None for the tenant itself."""
    labels: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    deployed: Mapping[str, Deployed] = field(default_factory=dict)
    """Tools of the deployment, by their names."""

    @property
    def payer(self) -> str:
        """The account that the run's is under."""
        return self.tenant if self.customer is None else self.customer.account


@dataclass(slots=True)
class _Live:
    tenant: str
    event_log: EventLog
    tools: RunTools
    question_bytes: int = 0
    """Of its question, which is in memory alone while it waits in line."""
    task: asyncio.Task[None] = field(init=False)
    tree: Tree | None = None


class Supervisor:
    """Owns the runs that are going on. An async context manager: leaving it cancels them and waits for their end."""

    def __init__(
        self,
        services: Services,
        contexts: Contexts,
        *,
        most: int,
        tenant_limits: Callable[[str], TenantLimits],
        weights: Mapping[str, float],
    ) -> None:
        self._services = services
        self._contexts = contexts
        self._limits = tenant_limits
        self._places = Places(most, lambda tenant: tenant_limits(tenant).tenant_runs, weights)
        self._live: dict[str, _Live] = {}
        self.counters = RunCounters()
        self._stack = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        await recover(self._services.journal, self._services.ledger, self._services.redaction)
        await self._stack.enter_async_context(self._group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for live in self._live.values():
            live.task.cancel()
        await self._stack.__aexit__(None, None, None)

    async def create(self, new: NewRun) -> RunRow:
        """Start a run and return it, pending; a repeated request id returns the run it started.

        Raises:
            BudgetExceeded: the budget is more than what the tenant, or its customer, has left.
            AccountClosed: the customer was closed.
            RequestIdReused: the request asked for another run before.
            ContextUnknown, ContextDamaged: the context was deleted, or its files are not whole.
            RunQuotaExceeded: as much is kept of the tenant's runs as may be.
            TooManyRuns: as many of the tenant's as may wait already.
        """
        async with self._creating.setdefault(new.tenant, asyncio.Lock()):
            return await run_to_completion(self._create(new))

    async def _create(self, new: NewRun) -> RunRow:
        journal, ledger = self._services.journal, self._services.ledger
        if new.request is not None:
            known = await journal.by_request(new.request)
            if known is not None:
                return known
        limits = self._limits(new.tenant)
        kept, above = await asyncio.gather(journal.kept_bytes(new.tenant), ledger.ancestry(new.payer))
        if kept >= limits.tenant_kept_bytes:
            raise RunQuotaExceeded(limits.tenant_kept_bytes, kept)
        if self._places.in_line(new.tenant) > limits.tenant_waiting_runs:
            raise TooManyRuns(limits.tenant_waiting_runs)
        check_affordable(new.budget, above)
        if new.context is not None:
            await self._contexts.pin(new.context)
        try:
            return await self._begin(new)
        except BaseException:
            if new.context is not None:
                self._contexts.unpin(new.context)
            raise

    async def _begin(self, new: NewRun) -> RunRow:
        journal, ledger = self._services.journal, self._services.ledger
        run_id = names.RUN + secrets.token_hex(16)
        row = RunRow(
            run_id, new.tenant, new.request.id if new.request is not None and new.request.method == CREATING else None,
            new.context.id if new.context else None, new.model, new.sub_model, new.budget, now(),
            customer=new.customer.path if new.customer is not None else "", labels=new.labels,
        )  # fmt: skip
        price = self._services.broker.routes.route(new.model).price
        redaction, held = self._services.redaction.of(new.tenant, run_id), self._services.shares.held
        kept, redacted = redaction.text("question", new.question)
        question_bytes = sys.getsizeof(new.question) if redacted else 0
        tools = RunTools(
            run_id, new.tenant, new.tools, new.limits, self._services.waiting, self._services.shares,
            deployed=new.deployed, ledger=ledger, client_plays=client.NAME in (new.model, new.sub_model),
        )  # fmt: skip
        try:
            held.take(new.tenant, question_bytes, "the question of a run")
        except TooMuchHeld:
            tools.close()
            raise
        made = await asyncio.gather(  # in one commit
            journal.create(row, kept, new.request, redacted=redacted, patience=PATIENCE),
            ledger.open_account(
                run_id,
                tenant=new.tenant,
                parent=new.payer,
                limit=new.budget,
                reserve=closing.reserve(new.budget, price),
            ),
            return_exceptions=True,
        )
        for failure in made:
            if isinstance(failure, BaseException):
                held.give_back(new.tenant, question_bytes)
                tools.close()
                raise failure
        quota = Quota(new.limits.event_bytes, self._limits(new.tenant).tenant_kept_bytes)
        self.counters.started += 1
        live = self._live[run_id] = _Live(
            new.tenant, EventLog(journal, run_id, quota, redaction=redaction), tools, question_bytes
        )
        # Where its question is in the journal, what waits in line holds no more than it must.
        question = None if self._places.in_line(new.tenant) and not redacted else new.question
        live.task = self._group.create_task(self._run(row, question, new.context, new.limits, new.image, live))
        await asyncio.sleep(0)  # a task that is cancelled before its first step never takes it
        return row

    async def _run(
        self,
        row: RunRow,
        question: str | None,
        context: Context | None,
        limits: RunLimits,
        image: str,
        live: _Live,
    ) -> None:
        keeping, began = asyncio.create_task(live.event_log.serve()), time.monotonic()
        outcome = Outcome(RunState.FAILED, reason="an internal error of the server; it has been logged")
        try:
            with span("run", rlm__run_id=row.id, rlm__tenant=row.tenant, gen_ai__request__model=row.model) as told:
                async with self._places.place(row.tenant) as place:
                    outcome = await self._work(row, question, context, limits, image, live, place)
                told.note(rlm__state=outcome.state)
        except asyncio.CancelledError:
            outcome = Outcome(RunState.CANCELLED, reason="cancelled")
        except ContextDamaged as error:
            outcome = Outcome(RunState.FAILED, reason=cut(str(error), MAX_REASON))
        except Exception:
            log.exception("run %s failed", row.id)
        finally:
            await run_to_completion(self._finish(row.id, outcome, live, keeping))
            self.counters.ended[outcome.state] += 1
            self.counters.seconds.add(time.monotonic() - began)
            if context is not None:
                self._contexts.unpin(context)

    async def _work(
        self,
        row: RunRow,
        question: str | None,
        context: Context | None,
        limits: RunLimits,
        image: str,
        live: _Live,
        place: Place,
    ) -> Outcome:
        if question is None:
            root = await self._services.journal.root(row.id)
            assert root is not None  # noqa: S101
            question = root.question
        characters = context.content.characters if context is not None else 0
        node_context = whole_context(self._contexts.corpus(context)) if context is not None else None
        corpus = node_context.corpus if node_context is not None else None
        deadline, event_log = time.monotonic() + limits.wall_seconds, live.event_log
        traced = (
            TracedContext(row.tenant, self._services.shares, partial(self._contexts.lineage, context))
            if context is not None
            else None
        )
        event_log.emit(
            EventOrigin(row.id, "", 0), RunStarted(question, row.model, row.sub_model, characters, row.budget)
        )
        async with Tracer(traced) as tracer:
            live.tree = Tree(self._services, row, limits, image, deadline, event_log, corpus, tracer, place, live.tools)
            return await Node(live.tree, Task(row.id, "", 0, question, node_context, row.model)).run()

    async def _finish(self, run_id: str, outcome: Outcome, live: _Live, keeping: asyncio.Task[None]) -> None:
        event_log, journal, ledger = live.event_log, self._services.journal, self._services.ledger
        try:
            if live.tree is not None:
                live.tree.memo.close()
                if live.tree.context is not None:
                    await journal.cover(run_id, await live.tree.coverage())
            else:  # no node of it began
                await ledger.close_account(run_id)
                ended, redacted = kept_form(outcome, self._services.redaction.of(live.tenant, run_id), root=True)
                await journal.move(run_id, ended.state, reason=ended.reason, redacted=redacted)
            if outcome.state is RunState.CANCELLED:  # perhaps when it had ended, and only that was still to be told
                outcome = await kept_outcome(journal, run_id) or outcome
            spent = (await ledger.balance(run_id)).posted
            self.counters.nano_usd += spent.nano_usd
            event_log.emit(
                EventOrigin(run_id, "", 0), RunFinished(outcome.state, outcome.reason, spent, outcome.answer)
            )
            await keeping
        except DatabaseError as error:  # the next start ends this run, and the others go on
            log.error("the end of run %s could not be kept: %s", run_id, type(error).__name__)  # noqa: TRY400
        except Exception:
            log.exception("the end of run %s could not be kept", run_id)
        finally:
            live.tools.close()
            self._services.shares.held.give_back(live.tenant, live.question_bytes)
            del self._live[run_id]

    async def submit(self, run_id: str, call: str, submitted: Submitted, request: Request | None = None) -> None:
        """Answer a call that a run waits for; raises as `WaitingCalls.submit` does, and where the call has ended.

        Raises:
            RequestIdReused: the request answered another call, or otherwise, before.
        """

        async def keep() -> None:
            await self._services.journal.note(request, run_id)

        await self._services.waiting.submit(run_id, call, submitted, keep)

    def whole(self, run_id: str, event: Event) -> Event:
        """Return an event with its contents, though they are redacted, where a client needs them to answer a call."""
        if not event.cut or not isinstance(event.body, ToolCallRequested | ModelCallRequested):
            return event
        body = self._services.waiting.body(run_id, event.body.call_id)
        return event if body is None else replace(event, body=body, cut=())

    async def ended(self, run_id: str) -> None:
        """Wait until a run has ended."""
        live = self._live.get(run_id)
        if live is not None:
            await asyncio.wait([live.task])

    def working(self, tenant: str) -> int:
        """Return how many runs of a tenant are at work."""
        return self._places.load(tenant).inside

    def waiting(self, tenant: str) -> int:
        """Return how many runs of a tenant wait for their turn."""
        return self._places.load(tenant).waiting

    async def delete(self, run_id: str, request: Request | None = None) -> None:
        """Forget a run that has ended, and all that is kept of it. What it spent stays in the ledger.

        Raises:
            RunNotEnded: it goes on.
            RequestIdReused: the request asked for something else before.
        """
        if run_id in self._live:
            raise RunNotEnded(run_id)
        await self._services.journal.note(request, run_id, deletes=True)
        await self._services.journal.forget(run_id)

    async def cancel(self, run_id: str, request: Request | None = None) -> None:
        """Stop a run and everything under it, and return when it has stopped; one that has ended stays as it is.

        Raises:
            RequestIdReused: the request asked for something else before.
        """
        await self._services.journal.note(request, run_id)
        live = self._live.get(run_id)
        if live is not None:
            live.task.cancel()
            await asyncio.wait([live.task])

    async def delete_all(self, tenant: str) -> None:
        """Stop all of a tenant's runs and forget them."""
        tasks = [live.task for live in self._live.values() if live.tenant == tenant]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await forget_ended(self._services.journal, tenant, 1 << 62, self.delete)

    async def coverage(self, run_id: str) -> Coverage:
        """Return how much of its context a run's whole tree has looked at so far."""
        live = self._live.get(run_id)
        if live is not None and live.tree is not None:
            return await live.tree.coverage()
        return await self._services.journal.coverage(run_id)

    def watch(self, run_id: str, from_sequence: int, tenant: str) -> AsyncGenerator[Event, None]:
        """Yield the run's events from a number on, until its last. They are read at the pace of its tenant."""
        live, pace = self._live.get(run_id), partial(self._services.shares.pace.wait, tenant)
        if live is not None:
            return live.event_log.watch(from_sequence, pace)
        return replay(self._services.journal, run_id, from_sequence, pace)


def check_affordable(budget: Limit, above: Sequence[Balance]) -> None:
    """Refuse a budget beyond what an account above has left for good; a window that is nearly used up begins anew."""
    for balance in above:
        for unit in UNITS:
            asked, has = getattr(budget, unit), getattr(balance.left, unit)
            if asked is not None and has is not None and asked > has:
                raise BudgetExceeded(balance.account, unit, has, 0, asked)
