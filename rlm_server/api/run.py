"""The servicer of `RunService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from rlm.v1 import run_pb2, run_pb2_grpc

from rlm_server.api import requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound, WatcherTooSlow
from rlm_server.api.limits import lowered
from rlm_server.broker.routes import Routes
from rlm_server.config.defaults import Defaults
from rlm_server.contexts.contexts import Contexts
from rlm_server.ledger import Ledger
from rlm_server.repl.limits import MAX_QUESTION, RunLimits
from rlm_server.runs.journal import Journal, RunRow
from rlm_server.runs.supervisor import NewRun, Supervisor

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
        routes: Routes,
        defaults: Defaults,
    ) -> None:
        self._supervisor, self._journal, self._contexts = supervisor, journal, contexts
        self._ledger, self._routes, self._defaults = ledger, routes, defaults

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Any) -> run_pb2.CreateRunResponse:
        """Start a run."""
        model = request.model or self._defaults.model
        sub_model = request.sub_model or (request.model or self._defaults.sub_model)
        requests.check_offered(self._routes, "model", model)
        requests.check_offered(self._routes, "sub_model", sub_model)
        new = NewRun(
            tenant(),
            requests.request_id(request.request_id),
            requests.required("question", request.question, MAX_QUESTION),
            await requests.context(self._contexts, tenant(), request.context_id),
            model,
            sub_model,
            requests.budget(request.budget) if request.HasField("budget") else self._defaults.budget,
            self._limits(request.limits),
            requests.image(request.image, self._defaults.images),
        )
        return run_pb2.CreateRunResponse(run=await self._message(await self._supervisor.create(new)))

    def _limits(self, asked: run_pb2.RunLimits) -> RunLimits:
        ceiling = self._defaults.limits_of(tenant())
        limits = lowered("limits", asked, ceiling)
        if not asked.HasField("max_depth"):
            limits = replace(limits, max_depth=min(self._defaults.depth, ceiling.max_depth))
        return replace(limits, sandbox=lowered("limits.sandbox", asked.sandbox, ceiling.sandbox))

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.GetRunResponse:
        """Return a run with its tree."""
        return run_pb2.GetRunResponse(run=await self._message(await self._row(request.run_id)))

    async def WatchRun(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.WatchRunResponse]:
        """Stream a run's events."""
        run = await self._row(request.run_id)
        if request.from_sequence < 0:
            raise InvalidField("from_sequence", "must not be negative")
        async with aclosing(self._supervisor.watch(run.id, request.from_sequence)) as events:
            async for event in events:
                # Written and not yielded, because whoever yields cannot tell how long that takes.
                try:
                    async with asyncio.timeout(TAKEN_SECONDS):
                        await context.write(run_pb2.WatchRunResponse(event=responses.event(event)))
                except TimeoutError:
                    raise WatcherTooSlow(TAKEN_SECONDS, event.sequence) from None
        return
        yield  # which makes it a stream

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Any) -> run_pb2.CancelRunResponse:
        """Stop a run."""
        run = await self._row(request.run_id)
        await self._supervisor.cancel(run.id)
        return run_pb2.CancelRunResponse(run=await self._message(await self._row(run.id)))

    async def DeleteRun(self, request: run_pb2.DeleteRunRequest, context: Any) -> run_pb2.DeleteRunResponse:
        """Forget a run that has ended."""
        run = await self._row(request.run_id)
        await self._supervisor.delete(run.id)
        return run_pb2.DeleteRunResponse()

    async def _row(self, run_id: str) -> RunRow:
        run = await self._journal.get(tenant(), run_id)
        if run is None:
            raise NotFound("run", run_id)
        return run

    async def _message(self, run: RunRow) -> run_pb2.Run:
        nodes = await self._journal.nodes(run.id)
        root = await self._journal.root(run.id)
        if root is None:  # deleted meanwhile
            raise NotFound("run", run.id)
        balances = await self._ledger.balances([node.id for node in nodes])
        coverage = await self._supervisor.coverage(run.id) if run.context is not None else None
        message = run_pb2.Run(
            run_id=run.id,
            state=responses.state(root.state),
            question=root.question,
            context_id=run.context or "",
            model=run.model,
            sub_model=run.sub_model,
            reason=root.reason,
            budget=responses.budget(run.budget),
            spent=responses.amounts(balances[0].posted),
            pending=responses.amounts(balances[0].pending),
            create_time=responses.time(run.created_at),
            end_time=responses.time(run.ended_at) if run.ended_at is not None else None,
            last_sequence=await self._journal.last_sequence(run.id),
            nodes=map(responses.node, nodes, balances),
            coverage=responses.coverage(coverage) if coverage is not None else None,
        )
        responses.fill_answer(message, root)
        return message
