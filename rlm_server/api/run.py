"""The servicer of `RunService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rlm.v1 import run_pb2, run_pb2_grpc, types_pb2

from rlm_server.api import asked as besides
from rlm_server.api import completion, key_account, requests, responses, work_lists
from rlm_server.api import tools as tool_requests
from rlm_server.api.auth import tenant
from rlm_server.api.completion import PassingTexts
from rlm_server.api.errors import InvalidField, NotFound, WatcherTooSlow
from rlm_server.api.field_checks import FieldChecks
from rlm_server.api.heartbeats import with_heartbeats
from rlm_server.api.limits import lowered
from rlm_server.broker.routes import Routes
from rlm_server.config.defaults import Defaults
from rlm_server.contexts.contexts import Contexts
from rlm_server.database.requests import Request
from rlm_server.ledger import Balance, Ledger, names
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.repl.limits import MAX_QUESTION, RunLimits
from rlm_server.runs.cuts import size_of
from rlm_server.runs.events import Event, RunFinished
from rlm_server.runs.journal import Journal, RunRow
from rlm_server.runs.redaction import ContentsRedacted, Redaction
from rlm_server.runs.run_list import ListedRun, RunFilter, RunList
from rlm_server.runs.state import RunState
from rlm_server.runs.supervisor import NewRun, Supervisor
from rlm_server.shares.shares import Shares
from rlm_server.tools.deployed import DeployedTools
from rlm_server.tools.waiting import ResultRefused
from sandbox.cancellation import run_to_completion, until_ended

ANSWER_PIECE = 64 << 10
"""Characters of an answer in one message."""
TAKEN_SECONDS = 60.0
"""How long a watcher may take nothing of what is sent to it, before its stream is ended."""


class RunServicer(run_pb2_grpc.RunServiceServicer):
    """Starts runs, shows them as they go, and stops them."""

    def __init__(
        self,
        supervisor: Supervisor,
        journal: Journal,
        contexts: Contexts,
        ledger: Ledger,
        routes_of: Callable[[str], Routes],
        defaults: Defaults,
        book: CustomerBook,
        runs: RunList,
        texts: PassingTexts,
        redaction: Redaction,
        shares: Shares,
        deployed: DeployedTools,
        stopping: Callable[[], bool],
    ) -> None:
        """`stopping` says whether calls that are cancelled now are so because the server stops."""
        self._stopping = stopping
        self._supervisor, self._journal, self._contexts = supervisor, journal, contexts
        self._ledger, self._routes_of, self._defaults = ledger, routes_of, defaults
        self._book, self._runs, self._texts, self._redaction = book, runs, texts, redaction
        self._besides, self._shares, self._deployed = besides.AskedReader(shares.threads), shares, deployed

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Any) -> run_pb2.CreateRunResponse:
        """Start a run."""
        with FieldChecks() as check:
            repeatable = self._redaction.of_request(check(requests.repeatable, tenant(), request))
            known = await self._journal.by_request(repeatable)
            if known is not None:
                return run_pb2.CreateRunResponse(run=await self._message(known))
            former = await self._known(request.continue_run_id) if request.continue_run_id else None
            usual = None if former is None else (former.model, former.sub_model)
            new = await self._asked(check, request, repeatable, usual)
            check(_check_continuing, request)
            deployed = tool_requests.deployed(check, request.deployment_tools, self._deployed.of(tenant()))
            tools = await tool_requests.read(
                check, request.tools, self._defaults.limits_of(tenant()), tenant(), self._shares, deployed
            )
        context_id = request.context_id
        if request.continue_run_id:
            if former is None:
                raise NotFound("run", request.continue_run_id)
            continued = await self._supervisor.continued(former)
            new, context_id = replace(new, image=continued.image, continues=continued), former.context or ""
        given = await requests.context(self._contexts, tenant(), context_id)
        besides.check_direct(new, given, "", self._routes_of(tenant()))
        new = replace(new, tools=tools, deployed=deployed, context=given)
        run = await self._supervisor.create(await self._paid(new, request))
        return run_pb2.CreateRunResponse(run=await self._message(run))

    async def Complete(self, request: run_pb2.CompleteRequest, context: Any) -> run_pb2.CompleteResponse:
        """Run a question over a text to its end. The run is stopped where its caller goes away."""
        with FieldChecks() as check:
            repeatable = self._redaction.of_request(check(requests.repeatable, tenant(), request))
            known = await self._journal.by_request(repeatable)
            if known is None:
                new = await self._asked(check, request, repeatable)
                check(completion.check_text, request)
        if known is None:
            new = replace(new, limits=completion.within_deadline(new.limits, context))
            known = await self._completed(new, request)
        else:
            await self._ended(known.id, repeatable)
        return run_pb2.CompleteResponse(run=await self._message(await self._row(known.id)))

    async def _completed(self, new: NewRun, request: run_pb2.CompleteRequest) -> RunRow:
        """Make a run, over the text that came with it if there is one, and return it when it has ended."""
        given = await requests.context(self._contexts, tenant(), request.context_id)
        besides.check_direct(new, given, request.text, self._routes_of(tenant()))
        new = replace(await self._paid(new, request), context=given)
        if not request.text:
            return await self._made_and_ended(new)
        stored = await self._texts.keep(tenant(), request.text)
        try:
            return await self._made_and_ended(replace(new, context=stored))
        finally:
            if not self._left(new.request):
                await run_to_completion(self._texts.drop(stored))

    async def _made_and_ended(self, new: NewRun) -> RunRow:
        making = asyncio.ensure_future(self._make(new))
        try:
            run = await asyncio.shield(making)
        except asyncio.CancelledError:
            if not self._left(new.request):
                await run_to_completion(self._stop(making))
            raise
        await self._ended(run.id, new.request)
        return run

    def _left(self, request: Request | None) -> bool:
        """Whether the next server is to go on with a run: its caller, who asks again there, waits for it."""
        return request is not None and self._stopping()

    async def _make(self, new: NewRun) -> RunRow:
        run = await self._supervisor.create(new)
        if new.context is not None and new.context.run is not None:
            await self._contexts.give_to_run(new.context, run.id)
        return run

    async def _stop(self, making: asyncio.Future[RunRow]) -> None:
        await until_ended(making)
        if not making.cancelled() and making.exception() is None:
            await self._supervisor.cancel(making.result().id)

    async def _ended(self, run_id: str, request: Request | None) -> None:
        """Wait for a run's end, and stop it where nobody waits any more."""
        try:
            await self._supervisor.ended(run_id)
        except asyncio.CancelledError:
            if not self._left(request):
                await run_to_completion(self._supervisor.cancel(run_id))
            raise

    async def _asked(
        self,
        check: FieldChecks,
        request: besides.Asking,
        repeatable: Request | None,
        usual: tuple[str, str] | None = None,
    ) -> NewRun:
        """Read a run that is asked for, but for what has to be looked up: its context and who pays.

        `usual` are the models where none is named, its own and that of sub-calls, instead of the server's.
        """
        usual_model, usual_sub_model = usual or (self._defaults.model, self._defaults.sub_model)
        model = request.model or usual_model
        sub_model = request.sub_model or (request.model or usual_sub_model)
        offered = self._routes_of(tenant())
        check(requests.check_offered, offered, "model", model)
        if request.sub_model or not request.model:
            check(requests.check_offered, offered, "sub_model", sub_model)
        return NewRun(
            tenant(),
            repeatable,
            check(requests.required, "question", request.question, MAX_QUESTION),
            None,
            model,
            sub_model,
            check(requests.budget, request.budget),
            check(self._limits, request.limits),
            check(requests.image, request.image, self._defaults.images_of(tenant())),
            None,
            check(requests.labels, request.labels),
            await self._besides.read(check, request, offered, (model, sub_model), self._defaults.limits_of(tenant())),
        )

    async def _paid(self, new: NewRun, request: besides.Asking) -> NewRun:
        """Return a run with who pays for it, and with the usual budget where it asked for none."""
        payer = await requests.payer(self._book, tenant(), request.account_id)
        budget = new.budget if request.HasField("budget") else await self._book.usual(payer, self._defaults.budget)
        return replace(new, customer=payer, budget=budget)

    def _limits(self, wanted: run_pb2.RunLimits) -> RunLimits:
        ceiling = self._defaults.limits_of(tenant())
        with FieldChecks() as check:
            limits = check(lowered, "limits", wanted, ceiling)
            sandbox = check(lowered, "limits.sandbox", wanted.sandbox, ceiling.sandbox)
        if not wanted.HasField("max_depth"):
            limits = replace(limits, max_depth=min(self._defaults.depth, ceiling.max_depth))
        return replace(limits, sandbox=sandbox)

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.GetRunResponse:
        """Return a run."""
        return run_pb2.GetRunResponse(run=await self._message(await self._row(request.run_id)))

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Any) -> run_pb2.ListRunsResponse:
        """List the tenant's runs."""
        wanted = await work_lists.asked(request, RunFilter, self._book, "run", _STATES)
        found = await self._runs.page(wanted.filter, wanted.place, wanted.size + 1)
        balances = await self._ledger.balances([one.run.id for one in found[: wanted.size]])
        written = list(map(_run, found, balances))
        page, token = responses.page(wanted.name, written, len(found), lambda shown: found[shown - 1].place)
        return run_pb2.ListRunsResponse(runs=page, next_page_token=token)

    async def WatchRun(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.WatchRunResponse]:
        """Stream a run's events."""
        wanted = _filter(request)
        run = await self._row(request.run_id)
        await self._check_node(run, request.node_id)
        sequence = wanted.first
        async with (
            aclosing(self._supervisor.watch(run.id, wanted.first, run.tenant)) as events,
            aclosing(with_heartbeats(events)) as told,
        ):
            async for some in told:
                for event in (None,) if some is None else some:
                    if event is not None:
                        sequence = event.sequence
                        if not wanted.has(event) and not isinstance(event.body, RunFinished):
                            continue
                    # Written and not yielded, because whoever yields cannot tell how long that takes.
                    try:
                        async with asyncio.timeout(TAKEN_SECONDS):
                            await context.write(_watched(event and self._supervisor.whole(run.id, event)))
                    except TimeoutError:
                        raise WatcherTooSlow(TAKEN_SECONDS, sequence) from None
        return
        yield  # which makes it a stream

    async def ListRunEvents(self, request: run_pb2.ListRunEventsRequest, context: Any) -> run_pb2.ListRunEventsResponse:
        """List what has happened in a run."""
        list_name = f"events {request.run_id}"
        with FieldChecks() as check:
            wanted = check(_filter, request)
            size = check(requests.page_size, request.page_size, 100, 1_000)
            place = check(requests.page_token, request.page_token, list_name, 1)
        run = await self._row(request.run_id)
        await self._check_node(run, request.node_id)
        events = await self._journal.events(run.id, wanted.first if place is None else place[0], size)
        last = await self._journal.last_sequence(run.id)
        listed, read = self._listed(run.id, events, wanted)
        return run_pb2.ListRunEventsResponse(
            events=listed,
            next_page_token=responses.page_token(list_name, read + 1) if 0 < read < last else "",
        )

    def _listed(self, run: str, events: list[Event], wanted: _EventFilter) -> tuple[list[run_pb2.RunEvent], int]:
        """Write as many of the first events as an answer may have; return them, and the number of the last one read.

        A call that waits is told whole, and may be as long as a message.
        """
        listed, size, read = list[run_pb2.RunEvent](), 0, 0
        for event in events:
            if wanted.has(event):
                written = responses.event(self._supervisor.whole(run, event))
                size += written.ByteSize()
                if listed and size > responses.MOST_ITEMS:
                    break
                listed.append(written)
            read = event.sequence
        return listed, read

    async def ListNodes(self, request: run_pb2.ListNodesRequest, context: Any) -> run_pb2.ListNodesResponse:
        """List the nodes of a run's tree."""
        list_name = f"nodes {request.run_id}"
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            place = check(requests.page_token, request.page_token, list_name, 1)
        run = await self._row(request.run_id)
        first = 0 if place is None else place[0]
        nodes = await self._journal.nodes(run.id, first, size + 1, responses.MOST_NODE_TEXT)
        balances = await self._ledger.balances([node.id for node in nodes[:size]])
        written = list(map(responses.node, nodes, balances))
        page, token = responses.page(list_name, written, len(nodes), lambda shown: first + shown)
        return run_pb2.ListNodesResponse(nodes=page, next_page_token=token)

    async def ReadAnswer(
        self, request: run_pb2.ReadAnswerRequest, context: Any
    ) -> AsyncIterator[run_pb2.ReadAnswerResponse]:
        """Stream an answer, however long it is."""
        requests.check_not_negative("offset", request.offset)
        run = await self._row(request.run_id)
        node = request.node_id or run.id
        start, at = 0, 0
        while True:
            found = await self._journal.answer_piece(run.id, node, start, ANSWER_PIECE)
            if found is None:
                raise NotFound("node", node)
            piece, whole = found
            if whole and not start and not piece:
                raise ContentsRedacted(node)
            if request.offset > whole:
                raise InvalidField("offset", f"must be from 0 to {whole}, the bytes of the answer")
            start, end = start + len(piece), at + size_of(piece)
            if end > request.offset or end >= whole:
                skipped = piece.encode()[max(0, request.offset - at) :]
                try:
                    text = skipped.decode()
                except UnicodeDecodeError:
                    raise InvalidField("offset", "must be where a character begins") from None
                yield run_pb2.ReadAnswerResponse(offset=max(at, request.offset), text=text, answer_size_bytes=whole)
            at = end
            if at >= whole or not piece:
                return

    async def SubmitResult(self, request: run_pb2.SubmitResultRequest, context: Any) -> run_pb2.SubmitResultResponse:
        """Answer a call that a run waits for."""
        with FieldChecks() as check:
            asked = self._redaction.of_request(check(requests.repeatable, tenant(), request))
            submitted = check(tool_requests.submitted, request)
        if not await self._journal.was_asked(asked):
            run = await self._row(request.run_id)
            try:
                await self._supervisor.submit(run.id, request.call_id, submitted, asked)
            except ResultRefused as error:
                raise InvalidField(error.field, str(error)) from None
        return run_pb2.SubmitResultResponse()

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Any) -> run_pb2.CancelRunResponse:
        """Stop a run."""
        repeatable = requests.repeatable(tenant(), request)
        await self._journal.was_asked(repeatable)
        run = await self._row(request.run_id)
        await self._supervisor.cancel(run.id, repeatable)
        return run_pb2.CancelRunResponse(run=await self._message(await self._row(run.id)))

    async def DeleteRun(self, request: run_pb2.DeleteRunRequest, context: Any) -> run_pb2.DeleteRunResponse:
        """Forget a run that has ended."""
        repeatable = requests.repeatable(tenant(), request)
        known, run = await self._journal.was_asked(repeatable), await self._journal.get(tenant(), request.run_id)
        if run is not None and key_account.covers(run.customer):
            await self._supervisor.delete(run.id, repeatable)
        elif not known:
            raise NotFound("run", request.run_id)
        return run_pb2.DeleteRunResponse()

    async def _row(self, run_id: str) -> RunRow:
        run = await self._known(run_id)
        if run is None:
            raise NotFound("run", run_id)
        return run

    async def _known(self, run_id: str) -> RunRow | None:
        """Return a run, or None where there is none that the caller's key covers."""
        run = await self._journal.get(tenant(), run_id)
        return run if run is not None and key_account.covers(run.customer) else None

    async def _check_node(self, run: RunRow, node: str) -> None:
        if node and await self._journal.answer_piece(run.id, node, 0, 0) is None:
            raise NotFound("node", node)

    async def _message(self, run: RunRow) -> run_pb2.Run:
        found = await self._runs.one(run.id, responses.MOST_TEXT)
        if found is None:  # deleted meanwhile
            raise NotFound("run", run.id)
        (balance,) = await self._ledger.balances([run.id])
        message = _run(found, balance)
        besides.write(await self._journal.asked(run.id), message)
        coverage = await self._supervisor.coverage(run.id) if run.context is not None else None
        if coverage is not None:
            message.coverage.CopyFrom(responses.coverage(coverage))
        return message


def _check_continuing(request: run_pb2.CreateRunRequest) -> None:
    """Refuse what a run that continues another has from that."""
    if not request.continue_run_id:
        return
    with FieldChecks() as check:
        for field, given in (("context_id", request.context_id), ("image", request.image)):
            check(_check_not_given, field, given)
        if request.strategy not in (run_pb2.STRATEGY_UNSPECIFIED, run_pb2.STRATEGY_RLM):
            check(_check_not_given, "strategy", "other")


def _check_not_given(field: str, given: str) -> None:
    if given:
        raise InvalidField(field, "must not be given with a continue_run_id: it is that of the run that is continued")


def _run(listed: ListedRun, balance: Balance) -> run_pb2.Run:
    run, root = listed.run, listed.root
    return run_pb2.Run(
        run_id=run.id,
        state=responses.state(root.state),
        question=root.question,
        context_id=run.context or "",
        model=run.model,
        sub_model=run.sub_model,
        answer=root.answer,
        answer_size_bytes=root.answer_bytes,
        end_message=root.reason,
        end_reason=responses.end_reason(root.state, root.reason),
        budget=responses.budget(run.budget),
        spent=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        create_time=responses.time(run.created_at),
        end_time=responses.time(run.ended_at) if run.ended_at is not None else None,
        cut=responses.cut_texts(root.cut),
        labels=run.labels,
        account_id=names.last_of(run.customer, run.tenant),
        last_sequence=listed.last_sequence,
        node_count=listed.node_count,
    )


_STATES = {run_pb2.RunState.Value(f"RUN_STATE_{state.upper()}"): state for state in RunState}
_KINDS = {
    kind: name.removeprefix("RUN_EVENT_KIND_").lower()
    for name, kind in run_pb2.RunEventKind.items()
    if kind != run_pb2.RUN_EVENT_KIND_UNSPECIFIED
}


@dataclass(frozen=True, slots=True)
class _EventFilter:
    """Which events of a run are wanted: from a number on, of these kinds, of this node; all where empty."""

    first: int
    kinds: frozenset[str]
    node: str

    def has(self, event: Event) -> bool:
        of_kind = not self.kinds or event.body.kind in self.kinds
        return of_kind and (not self.node or event.origin.node == self.node)


def _filter(wanted: run_pb2.WatchRunRequest | run_pb2.ListRunEventsRequest) -> _EventFilter:
    with FieldChecks() as check:
        check(requests.check_not_negative, "from_sequence", wanted.from_sequence)
        kinds = check(requests.choices, "kinds", wanted.kinds, _KINDS, "a kind of an event")
    return _EventFilter(wanted.from_sequence, kinds, wanted.node_id)


def _watched(event: Event | None) -> run_pb2.WatchRunResponse:
    if event is None:
        return run_pb2.WatchRunResponse(heartbeat=types_pb2.Heartbeat())
    return run_pb2.WatchRunResponse(event=responses.event(event))
