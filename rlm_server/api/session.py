"""The servicer of `SessionService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from rlm.v1 import session_pb2, session_pb2_grpc

from rlm_server.api import key_account, requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.errors import NotFound
from rlm_server.api.limits import lowered
from rlm_server.broker.routes import Routes
from rlm_server.config.defaults import Defaults
from rlm_server.contexts.contexts import Contexts
from rlm_server.ledger import Ledger
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.repl.events import CallFinished, CallTraced, Printed, TurnRestarted, UntoldCalls
from rlm_server.runs.supervisor import check_affordable
from rlm_server.sessions.happenings import Happening, LeftOut
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.sessions import Sessions

MAX_CODE = 1 << 20
"""Characters of one turn's code."""


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves REPLs to those who bring their own loop."""

    def __init__(
        self,
        sessions: Sessions,
        contexts: Contexts,
        ledger: Ledger,
        routes_of: Callable[[str], Routes],
        defaults: Defaults,
        book: CustomerBook,
    ) -> None:
        self._sessions, self._contexts, self._ledger = sessions, contexts, ledger
        self._routes_of, self._defaults, self._book = routes_of, defaults, book

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Any
    ) -> session_pb2.CreateSessionResponse:
        """Start a session."""
        sub_model = request.sub_model or self._defaults.sub_model
        requests.check_offered(self._offered(), "sub_model", sub_model)
        asked = requests.budget(request.budget) if request.HasField("budget") else None
        ceiling = self._defaults.limits_of(tenant())
        repeatable, named = requests.repeatable(tenant(), request), requests.labels(request.labels)
        known = self._sessions.asked_before(repeatable)
        if known is not None:
            return session_pb2.CreateSessionResponse(session=await self._message(known))
        image = requests.image(request.image, self._defaults.images_of(tenant()))
        payer = await requests.payer(self._book, tenant(), request.account_id)
        budget = asked if asked is not None else await self._book.usual(payer, self._defaults.budget)
        check_affordable(budget, await self._ledger.ancestry(payer.account if payer is not None else tenant()))
        new = NewSession(
            tenant(),
            repeatable,
            image,
            await requests.context(self._contexts, tenant(), request.context_id),
            sub_model,
            budget,
            replace(ceiling, sandbox=lowered("limits", request.limits, ceiling.sandbox)),
            payer,
            named,
        )
        return session_pb2.CreateSessionResponse(session=await self._message(await self._sessions.create(new)))

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: Any) -> session_pb2.GetSessionResponse:
        """Describe a session."""
        return session_pb2.GetSessionResponse(session=await self._message(self._session(request.session_id)))

    async def Execute(
        self, request: session_pb2.ExecuteRequest, context: Any
    ) -> AsyncIterator[session_pb2.ExecuteResponse]:
        """Run a turn. It is stopped where its caller goes away."""
        session = self._session(request.session_id)
        code = requests.required("code", request.code, MAX_CODE)
        request_id = requests.request_id(request.request_id)
        async with aclosing(self._sessions.execute(session, code, request_id)) as happenings:
            async for happening in happenings:
                yield _response(happening)

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Any
    ) -> session_pb2.DeleteSessionResponse:
        """End a session."""
        spent = await self._sessions.delete(self._session(request.session_id))
        return session_pb2.DeleteSessionResponse(spent=responses.amounts(spent))

    def _offered(self) -> Routes:
        return self._routes_of(tenant())

    def _session(self, session_id: str) -> ReplSession:
        session = self._sessions.get(tenant(), session_id)
        if session is None or not key_account.covers(session.asked.customer_path):
            raise NotFound("session", session_id)
        return session

    async def _message(self, session: ReplSession) -> session_pb2.Session:
        options = session.asked
        return session_pb2.Session(
            session_id=session.id,
            image=options.image,
            context_id=options.context.id if options.context else "",
            sub_model=options.sub_model,
            budget=responses.budget(options.budget),
            create_time=responses.time(session.created_at),
            labels=options.labels,
            account_id=options.customer.id if options.customer is not None else options.tenant,
            coverage=responses.coverage(await self._sessions.coverage(session)) if options.context else None,
        )


def _response(happening: Happening) -> session_pb2.ExecuteResponse:
    if isinstance(happening, Printed):
        return session_pb2.ExecuteResponse(output=responses.output(happening))
    if isinstance(happening, TurnRestarted):
        return session_pb2.ExecuteResponse(turn_restarted=responses.turn_restarted(happening))
    if isinstance(happening, CallFinished):
        return session_pb2.ExecuteResponse(call_finished=responses.finished_call(happening.call))
    if isinstance(happening, UntoldCalls):
        return session_pb2.ExecuteResponse(untold_calls=responses.untold_calls(happening))
    if isinstance(happening, LeftOut):
        return session_pb2.ExecuteResponse(left_out=responses.left_out(happening))
    if isinstance(happening, CallTraced):
        return session_pb2.ExecuteResponse(call_traced=responses.traced_call(happening))
    return session_pb2.ExecuteResponse(result=responses.turn_result(happening.result))
