"""Starts, watches, cancels and recovers runs. Every run is a task of this room's, and ends before the room closes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
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
from rlm_server.runs.asked import Asked
from rlm_server.runs.counters import RunCounters
from rlm_server.runs.event_log import EventLog, Quota, replay, used_up
from rlm_server.runs.events import Event, EventOrigin, RunFinished, RunStarted, WrittenEvent
from rlm_server.runs.journal import CREATING, PATIENCE, RunRow
from rlm_server.runs.leftovers import end_below
from rlm_server.runs.node import SERVER_STOPPED
from rlm_server.runs.node_context import whole_context
from rlm_server.runs.past.entries import Carried, Happened, RunAsked, Said, ToolAsked
from rlm_server.runs.past.past import RunPast
from rlm_server.runs.past.remains import Continued, Remains
from rlm_server.runs.past.run_file import RunFile
from rlm_server.runs.places import Place, Places
from rlm_server.runs.recovery import LeftRun, recover, settled_past
from rlm_server.runs.retention import forget_ended
from rlm_server.runs.root import Root
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import NO_DATABASE, Outcome, Services, Task, Tree, kept_form, kept_outcome
from rlm_server.shares.held import TooMuchHeld
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.threads import Purpose
from rlm_server.tools.deployed import Deployed
from rlm_server.tools.tool import Tool
from rlm_server.tools.tool_calls import RunTools
from rlm_server.tools.waiting import Submitted
from rlm_server.tracing.spans import span
from sandbox.cancellation import cancel_and_wait, run_to_completion
from sandbox.pool.sealing import SnapshotRefused

log = logging.getLogger(__name__)

RESTARTED = "the server was started anew"
"""Why runs go on that a former server left."""
MOST_LEFT = 8
"""So often a run goes on again where processes that work for it are lost."""
LOOK_AGAIN_SECONDS = 0.2
"""So often a database that is away is asked again."""


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


class RunNotContinuable(Exception):
    """Nothing is kept of a run that another is to continue."""

    def __init__(self, run: str) -> None:
        super().__init__(
            f"nothing is kept of the run {run} that another could continue: it did not succeed, newer ones took its "
            "place (tenant_continuable_runs), or contents of its tenant's runs are redacted; begin a new run over its "
            "context"
        )
        self.run = run


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
    asked: Asked = field(default_factory=Asked)
    tools: tuple[Tool, ...] = ()
    deployed: Mapping[str, Deployed] = field(default_factory=dict)
    """Tools of the deployment, by their names."""
    continues: Continued | None = None
    """What the run has of another that it continues."""

    @property
    def payer(self) -> str:
        """The account that the run's is under."""
        return self.tenant if self.customer is None else self.customer.account


@dataclass(slots=True)
class _Live:
    row: RunRow
    limits: RunLimits
    image: str
    context: Context | None
    question: str | None
    """None where it is read from the journal when the run begins, and so is what was asked besides."""
    asked: Asked | None
    file: RunFile
    event_log: EventLog
    tools: RunTools
    question_bytes: int = 0
    """Of its question, which is in memory alone while it waits in line."""
    past: RunPast | None = None
    continues: str = ""
    """The run that it continues, if it does."""
    resumed: str = ""
    """Why it goes on, where it has a past."""
    times_left: int = 0
    """How often it was left for what this process can do something about, such as a worker that died."""
    left: bool = False
    """Whether what works for it is to stop, so that it goes on later."""
    task: asyncio.Task[None] = field(init=False)
    keeping: asyncio.Task[None] = field(init=False)
    working: asyncio.Task[Outcome] | None = None
    tree: Tree | None = None

    def leave(self, why: str) -> bool:
        """Have what works for it leave it as it is. Returns False where nobody could go on with it later."""
        if not self.file.kept:
            return False
        self.left, self.resumed = True, why
        if self.tree is not None:
            self.tree.left = True
        return True


class Supervisor:
    """Owns the runs that are going on. An async context manager: entering it takes up those that a former server left,
    and leaving it puts them away for the next one, and waits for that.
    """

    def __init__(
        self,
        services: Services,
        contexts: Contexts,
        *,
        most: int,
        tenant_limits: Callable[[str], TenantLimits],
        weights: Mapping[str, float],
        deployed_of: Callable[[str], Mapping[str, Deployed]] = lambda _: {},
    ) -> None:
        """`deployed_of` returns the deployment's tools that a tenant may have, by their names."""
        self._deployed_of = deployed_of
        self._services = services
        self._contexts = contexts
        self._limits = tenant_limits
        self._places = Places(most, lambda tenant: tenant_limits(tenant).tenant_runs, weights)
        self._live: dict[str, _Live] = {}
        self.counters = RunCounters()
        self._stack = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stopping = False
        self._remains = Remains(
            services.files, services.pool, lambda tenant: tenant_limits(tenant).tenant_continuable_runs
        )

    async def __aenter__(self) -> Self:
        left = await recover(self._services, self._contexts, self._remains)
        await self._stack.enter_async_context(self._group)
        for one in left:
            await self._take_up(one)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        for live in self._live.values():
            live.leave(RESTARTED)
            live.task.cancel()
        await self._stack.__aexit__(None, None, None)

    async def _take_up(self, left: LeftRun) -> None:
        """Go on with a run that a former server left."""
        row, asked = left.row, left.past.asked
        live = _Live(
            row,
            asked.limits,
            asked.image,
            left.context,
            asked.question,
            asked.besides,
            left.file,
            await self._event_log(row, left.file, asked.limits),
            self._tools(
                row,
                [one.tool() for one in asked.tools],
                asked.limits,
                self._deployed_again(row, asked),
                left.past.tool_calls,
            ),
            past=left.past,
            continues=asked.continues,
            resumed=RESTARTED,
        )
        self._begin_work(live)

    async def _event_log(self, row: RunRow, file: RunFile, limits: RunLimits) -> EventLog:
        """Return what keeps the events of a run from now on."""
        journal = self._services.journal
        quota = Quota(limits.event_bytes, self._limits(row.tenant).tenant_kept_bytes)
        last, size = await journal.last_sequence(row.id), await journal.event_bytes(row.id)
        redaction = self._services.redaction.of(row.tenant, row.id)
        return EventLog(journal, row.id, quota, last, redaction, before=partial(_happened, file), size=size)

    def _deployed_again(self, row: RunRow, asked: RunAsked) -> Mapping[str, Deployed]:
        """Return those of the deployment's tools that a run was to have, and that there are still."""
        return {name: one for name, one in self._deployed_of(row.tenant).items() if name in asked.deployed}

    def _tools(
        self,
        row: RunRow,
        tools: Sequence[Tool],
        limits: RunLimits,
        deployed: Mapping[str, Deployed],
        expected: Iterable[str] = (),
    ) -> RunTools:
        """Return the tools of a run, until they are closed.

        Raises:
            TooMuchHeld: the tenant has as much of the server's memory as it may.
        """
        plays = client.NAME in (row.model, row.sub_model)
        services = self._services
        return RunTools(
            row.id, row.tenant, tools, limits, services.waiting, services.shares,
            deployed=deployed, ledger=services.ledger, client_plays=plays, expected=expected,
        )  # fmt: skip

    async def continued(self, row: RunRow) -> Continued:
        """Return what another run has of one that it continues.

        Raises:
            RunNotEnded: it goes on.
            RunNotContinuable: nothing is kept of it.
        """
        if row.id in self._live:
            raise RunNotEnded(row.id)
        if not self._remains.has(row.tenant, row.id):
            raise RunNotContinuable(row.id)
        try:
            entries = await self._services.shares.threads.run(
                Purpose.READING, row.tenant, lambda _: self._services.files.read(row.id, row.tenant)
            )
        except (SnapshotRefused, OSError):
            raise RunNotContinuable(row.id) from None
        past = RunPast.of(entries)
        root = None if past is None else past.nodes.get(row.id)
        if past is None or root is None or root.standing is None:
            raise RunNotContinuable(row.id)
        said = [Said(one.role, one.content) for one in root.messages]
        if said[0].role != "user":  # it was answered directly
            said.insert(0, Said("user", past.asked.question))
        return Continued(row.id, past.asked.image, tuple(said), root.standing)

    async def _written_down(self, new: NewRun, run_id: str, file: RunFile) -> RunPast:
        """Write down what is asked for, and of a run that continues another what it has of that."""
        of, tools = new.continues, tuple(map(ToolAsked.of, new.tools))
        asked = RunAsked(
            new.question, new.limits, new.image, new.asked, tools, tuple(new.deployed), "" if of is None else of.run
        )
        file.add(asked)
        past = RunPast(asked)
        if of is not None:
            carried = await self._carried(new, run_id, of)
            file.add(carried)
            past.take(carried)
        return past

    async def _carried(self, new: NewRun, run_id: str, of: Continued) -> Carried:
        """Return what a run has of another that it continues: its conversation, and its session where it had one."""
        standing = replace(
            of.standing, draft="", shown=0, calls=0, errors=0, seen={}, seconds_left=new.limits.wall_seconds,
            failures=0, refused=0, best="",
        )  # fmt: skip
        return Carried(run_id, of.messages, standing, await self._forked(new, run_id, of.run))

    async def _forked(self, new: NewRun, run_id: str, of: str) -> bool:
        """Make the session of a run that begins as that of another has ended; False where that had none."""
        corpora = () if new.context is None else (self._contexts.corpus(new.context),)
        try:
            former = self._services.pool.take_up(new.tenant, new.image, new.limits.sandbox, of, corpora)
        except SnapshotRefused:
            return False
        try:
            for made in await former.fork([run_id]):
                await made.put_away()
        finally:
            await former.put_away()
        return True

    def _begin_work(self, live: _Live) -> None:
        self._live[live.row.id] = live
        live.task = self._group.create_task(self._run(live))

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
        kept_asked, redacted_asked = new.asked.kept_form(redaction)
        question_bytes = sys.getsizeof(new.question) + new.asked.size if redacted else 0
        tools = self._tools(row, new.tools, new.limits, new.deployed)
        try:
            held.take(new.tenant, question_bytes, "the question of a run")
        except TooMuchHeld:
            tools.close()
            raise
        file = self._services.files.create(run_id, new.tenant, lambda: redaction.wanted)
        try:
            past = await self._written_down(new, run_id, file)
            made = await asyncio.gather(  # in one commit
                journal.create(
                    row, kept, new.request, asked=kept_asked, redacted=redacted + redacted_asked, patience=PATIENCE
                ),
                ledger.open_account(
                    run_id,
                    tenant=new.tenant,
                    parent=new.payer,
                    limit=new.budget,
                    reserve=closing.reserve(new.budget, price),
                ),
                return_exceptions=True,
            )
            _raise_first(made)
        except BaseException:
            held.give_back(new.tenant, question_bytes)
            tools.close()
            self._drop(row, file)
            raise
        quota = Quota(new.limits.event_bytes, self._limits(new.tenant).tenant_kept_bytes)
        self.counters.started += 1
        # Where its question is in the journal, what waits in line holds no more than it must.
        question = None if self._places.in_line(new.tenant) and not redacted else new.question
        said = new.asked if question is not None else None
        event_log = EventLog(journal, run_id, quota, redaction=redaction, before=partial(_happened, file))
        live = _Live(row, new.limits, new.image, new.context, question, said, file, event_log, tools, question_bytes)
        if new.continues is not None:
            live.past, live.continues = past, new.continues.run
        self._begin_work(live)
        await asyncio.sleep(0)  # a task that is cancelled before its first step never takes it
        return row

    async def _run(self, live: _Live) -> None:
        began, row = time.monotonic(), live.row
        live.keeping = asyncio.create_task(live.event_log.serve())
        outcome = Outcome(RunState.FAILED, reason="an internal error of the server; it has been logged")
        try:
            with span("run", rlm__run_id=row.id, rlm__tenant=row.tenant, gen_ai__request__model=row.model) as told:
                outcome = await self._worked(live)
                told.note(rlm__state=outcome.state)
        except asyncio.CancelledError:
            outcome = Outcome(RunState.CANCELLED, reason="cancelled")
            if self._stopping and not live.left:
                outcome = Outcome(RunState.FAILED, reason=f"{SERVER_STOPPED}, and could not be kept")
        except ContextDamaged as error:
            outcome = Outcome(RunState.FAILED, reason=cut(str(error), MAX_REASON))
        except Exception:
            log.exception("run %s failed", row.id)
        finally:
            if self._stopping and live.left:
                await run_to_completion(self._put_away(live))
            else:
                await run_to_completion(self._finish(live, outcome))
                self.counters.ended[outcome.state] += 1
                self.counters.seconds.add(time.monotonic() - began)
            if live.context is not None:
                self._contexts.unpin(live.context)

    async def _worked(self, live: _Live) -> Outcome:
        """Work for a run until it ends; where the work had to be left, once it can go on."""
        while True:
            async with self._places.place(live.row.tenant) as place:
                live.working = asyncio.create_task(self._work(live, place))
                try:
                    await asyncio.wait([live.working])
                finally:
                    if not live.working.done():
                        await cancel_and_wait(live.working)
            if not live.left:
                try:
                    return live.working.result()
                except DatabaseError:
                    if not live.leave(NO_DATABASE):
                        raise
            await self._again(live)

    async def _again(self, live: _Live) -> None:
        """Once the database is there again, have a run ready to go on from what its file says."""
        told_on = await live.event_log.flushed()
        await self._until_reachable(live)
        if live.tree is not None:
            live.tree.memo.close()
        live.file.close()
        live.file, live.past = await settled_past(self._services, live.row)
        if told_on:
            live.event_log.before = partial(_happened, live.file)
        else:
            await asyncio.wait([live.keeping])
            live.keeping.exception()  # marks it as retrieved
            live.event_log = await self._event_log(live.row, live.file, live.limits)
            live.keeping = asyncio.create_task(live.event_log.serve())
        live.question, live.asked, live.left, live.tree = live.past.asked.question, live.past.asked.besides, False, None

    async def _until_reachable(self, live: _Live) -> None:
        while True:
            try:
                await self._services.journal.last_sequence(live.row.id)
            except DatabaseError:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            else:
                return

    async def _put_away(self, live: _Live) -> None:
        """Leave a run to the next server."""
        live.event_log.stop()
        await asyncio.wait([live.keeping])
        if not live.keeping.cancelled():
            live.keeping.exception()  # marks it as retrieved: what was not kept is in the file
        if live.tree is not None:
            live.tree.memo.close()
        live.file.close()
        live.tools.close()
        self._services.shares.held.give_back(live.row.tenant, live.question_bytes)
        del self._live[live.row.id]

    async def _work(self, live: _Live, place: Place) -> Outcome:
        row, context, question, said, limits = live.row, live.context, live.question, live.asked, live.limits
        if question is None:
            root = await self._services.journal.root(row.id)
            assert root is not None  # noqa: S101
            question = root.question
        if said is None:
            said = await self._services.journal.asked(row.id)
        characters = context.content.characters if context is not None else 0
        node_context = whole_context(self._contexts.corpus(context)) if context is not None else None
        corpus = node_context.corpus if node_context is not None else None
        deadline, event_log = time.monotonic() + _seconds_left(live), live.event_log
        traced = (
            TracedContext(row.tenant, self._services.shares, partial(self._contexts.lineage, context))
            if context is not None
            else None
        )
        if not event_log.last:
            event_log.emit(
                EventOrigin(row.id, "", 0),
                RunStarted(question, row.model, row.sub_model, characters, row.budget, live.continues),
            )
        async with Tracer(traced) as tracer:
            tree = Tree(
                self._services,
                row,
                said.lowered(limits),
                live.image,
                deadline,
                event_log,
                corpus,
                tracer,
                place,
                live.tools,
                live.file,
                said,
                context.content if context is not None else None,
                live.past,
                live.resumed,
                partial(self._leave, live),
            )
            if live.past is not None:
                await tree.go_on(live.past)
            live.tree = tree  # from here on its root ends what is below it
            return await Root(live.tree, Task(row.id, "", 0, question, node_context, row.model)).run()

    async def _leave(self, live: _Live, why: str) -> None:
        """Have all that works for a run stop, whoever calls this included; returns where it cannot go on later."""
        live.times_left += why != NO_DATABASE
        if live.working is not None and live.times_left <= MOST_LEFT and live.leave(why):
            live.working.cancel()
            await asyncio.get_running_loop().create_future()  # until that reaches whoever called

    async def _finish(self, live: _Live, outcome: Outcome) -> None:
        event_log, journal, ledger = live.event_log, self._services.journal, self._services.ledger
        run_id = live.row.id
        try:
            if live.tree is not None:
                live.tree.memo.close()
                if live.tree.context is not None:
                    await journal.cover(run_id, await live.tree.coverage())
            else:  # no node of it began here
                if live.past is not None:
                    await end_below(self._services, event_log, live.row, run_id, live.past)
                await ledger.close_account(run_id)
                ended, redacted = kept_form(outcome, self._services.redaction.of(live.row.tenant, run_id), root=True)
                await journal.move(run_id, ended.state, reason=ended.reason, redacted=redacted)
            if outcome.state is RunState.CANCELLED:  # perhaps when it had ended, and only that was still to be told
                outcome = await kept_outcome(journal, run_id) or outcome
            spent = (await ledger.balance(run_id)).posted
            self.counters.nano_usd += spent.nano_usd
            event_log.emit(
                EventOrigin(run_id, "", 0), RunFinished(outcome.state, outcome.reason, spent, outcome.answer)
            )
            await live.keeping
            if outcome.state is RunState.SUCCEEDED and live.file.kept:
                self._remains.add(live.row.tenant, run_id)
            else:
                self._drop(live.row, live.file)
        except DatabaseError as error:  # the next start ends this run, and the others go on
            log.error("the end of run %s could not be kept: %s", run_id, type(error).__name__)  # noqa: TRY400
        except Exception:
            log.exception("the end of run %s could not be kept", run_id)
        finally:
            live.file.close()
            live.tools.close()
            self._services.shares.held.give_back(live.row.tenant, live.question_bytes)
            del self._live[run_id]

    def _drop(self, row: RunRow, file: RunFile) -> None:
        """Remove what a run could go on from, or another could continue: file, and session that was put away."""
        file.remove()
        self._services.pool.forget(row.tenant, row.id)

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
        self._remains.forget(run_id)
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
        tasks = [live.task for live in self._live.values() if live.row.tenant == tenant]
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

    def watch(self, run_id: str, from_sequence: int, tenant: str) -> AsyncGenerator[list[Event], None]:
        """Yield the run's events from a number on, until its last, as many at a time as are there.

        They are read at the pace of its tenant.
        """
        live, pace = self._live.get(run_id), partial(self._services.shares.pace.wait, tenant)
        if live is not None:
            return live.event_log.watch(from_sequence, pace)
        return replay(self._services.journal, run_id, from_sequence, pace)


def _raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _happened(file: RunFile, one: WrittenEvent) -> None:
    """Write an event down before it is kept."""
    event, origin = one.event, one.event.origin
    file.add(
        Happened(
            event.sequence, event.at, origin.node, origin.parent, origin.depth, origin.turn, one.body, one.cut, one.size
        )
    )


def _seconds_left(live: _Live) -> float:
    """Return what a run has left of its time, in which it was not away."""
    root = live.past.nodes.get(live.row.id) if live.past is not None else None
    return live.limits.wall_seconds if root is None or root.standing is None else root.standing.seconds_left


def check_affordable(budget: Limit, above: Sequence[Balance]) -> None:
    """Refuse a budget beyond what an account above has left for good; a window that is nearly used up begins anew."""
    for balance in above:
        for unit in UNITS:
            asked, has = getattr(budget, unit), getattr(balance.left, unit)
            if asked is not None and has is not None and asked > has:
                raise BudgetExceeded(balance.account, unit, has, 0, asked)
