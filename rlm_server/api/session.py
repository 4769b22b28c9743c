"""The servicer of `SessionService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from google.protobuf.duration_pb2 import Duration
from rlm.v1 import session_pb2, session_pb2_grpc

from rlm_server.api import key_account, requests, responses, session_messages, work_lists
from rlm_server.api.auth import tenant
from rlm_server.api.errors import NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.api.limits import lowered
from rlm_server.api.snapshots import SnapshotServicer, snapshot
from rlm_server.broker.routes import Routes
from rlm_server.config.defaults import Defaults
from rlm_server.contexts.contexts import Contexts
from rlm_server.database.requests import Request
from rlm_server.ledger import Ledger
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.runs.supervisor import check_affordable
from rlm_server.sessions.forks import NewForks, payer_of
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.session_table import SessionFilter
from rlm_server.sessions.sessions import SessionChange, Sessions, Shown
from rlm_server.sessions.snapshot_table import SnapshotRow
from rlm_server.sessions.snapshots import NewSnapshot, Snapshots
from rlm_server.sessions.turn import TurnRequest, turn_id_of
from rlm_server.shares.shares import Shares

MAX_CODE = 1_000_000
"""Bytes of UTF-8 of one turn's code."""
MAX_FORKS = 64
"""Sessions that one call makes."""
_CHANGEABLE = {"labels": "labels", "idle_time": "idle_ms", "life_time": "life_ms"}
"""What can be changed of a session, and what it is called in `SessionChange`."""


class SessionServicer(SnapshotServicer, session_pb2_grpc.SessionServiceServicer):
    """Serves REPLs to those who bring their own loop."""

    def __init__(
        self,
        sessions: Sessions,
        contexts: Contexts,
        ledger: Ledger,
        routes_of: Callable[[str], Routes],
        defaults: Defaults,
        book: CustomerBook,
        snapshots: Snapshots,
        shares: Shares,
        idle_seconds: float,
    ) -> None:
        super().__init__(snapshots, shares, idle_seconds)
        self._sessions, self._contexts, self._ledger = sessions, contexts, ledger
        self._routes_of, self._defaults, self._book = routes_of, defaults, book

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Any
    ) -> session_pb2.CreateSessionResponse:
        """Start a session."""
        with FieldChecks() as check:
            repeatable = check(requests.repeatable, tenant(), request)
            known = await self._sessions.asked_before(repeatable)
            if known is not None:
                return session_pb2.CreateSessionResponse(session=await self._message(known))
            new = self._asked(check, request, repeatable)
            begun_from = await self._snapshot(check, request)
        context_id = request.context_id
        if begun_from is not None:
            images, context_id = self._defaults.images_of(tenant()), begun_from.context or ""
            new = replace(new, snapshot=begun_from.id, image=requests.image(begun_from.image, images))
        payer = await requests.payer(self._book, tenant(), request.account_id)
        budget = new.budget if request.HasField("budget") else await self._book.usual(payer, self._defaults.budget)
        check_affordable(budget, await self._ledger.ancestry(payer.account if payer is not None else tenant()))
        context_there = await requests.context(self._contexts, tenant(), context_id)
        new = replace(new, customer=payer, budget=budget, context=context_there)
        return session_pb2.CreateSessionResponse(session=await self._message(await self._sessions.create(new)))

    def _asked(
        self, check: FieldChecks, request: session_pb2.CreateSessionRequest, repeatable: Request | None
    ) -> NewSession:
        """Read a session that is asked for, but for what has to be looked up: what it begins from, and who pays."""
        sub_model, ends = request.sub_model or self._defaults.sub_model, self._sessions.ends
        check(requests.check_offered, self._routes_of(tenant()), "sub_model", sub_model)
        ceiling = self._defaults.limits_of(tenant())
        sandbox = check(lowered, "limits", request.limits, ceiling.sandbox)
        if request.snapshot_id and request.context_id:
            check.wrong("context_id", "must be empty with a snapshot_id: it is the snapshot's")
        return NewSession(
            tenant(),
            repeatable,
            "" if request.snapshot_id else check(requests.image, request.image, self._defaults.images_of(tenant())),
            None,
            sub_model,
            check(requests.budget, request.budget),
            replace(ceiling, sandbox=sandbox),
            labels=check(requests.labels, request.labels),
            idle_ms=check(requests.time_span, request, "idle_time", "idle_time", ends.idle_ms),
            life_ms=check(requests.time_span, request, "life_time", "life_time", ends.life_ms),
        )

    async def _snapshot(self, check: FieldChecks, request: session_pb2.CreateSessionRequest) -> SnapshotRow | None:
        """Return the snapshot that a new session begins from."""
        if not request.snapshot_id:
            return None
        key_account.check("")
        check(requests.check_name, "image", request.image)
        found = await self._snapshots.get(tenant(), request.snapshot_id)
        if found is None:
            raise NotFound("snapshot", request.snapshot_id)
        if request.image not in ("", found.image):
            check.wrong("image", f"must be the snapshot's, which is {found.image!r}, or empty")
        return found

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: Any) -> session_pb2.GetSessionResponse:
        """Describe a session."""
        shown = await self._sessions.show(tenant(), request.session_id)
        if shown is None or not key_account.covers(shown.row.customer):
            raise NotFound("session", request.session_id)
        return session_pb2.GetSessionResponse(session=await self._message(shown))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Any
    ) -> session_pb2.ListSessionsResponse:
        """List the tenant's sessions."""
        asked = await work_lists.asked(request, SessionFilter, self._book, "session", session_messages.STATES)
        found = await self._sessions.page(asked.filter, asked.place, asked.size + 1)
        written = await self._messages(found[: asked.size])
        page, token = responses.page(asked.name, written, len(found), lambda shown: found[shown - 1].row.place)
        return session_pb2.ListSessionsResponse(sessions=page, next_page_token=token)

    async def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: Any
    ) -> session_pb2.UpdateSessionResponse:
        """Change a session."""
        with FieldChecks() as check:
            repeatable = check(requests.repeatable, tenant(), request)
            shown = await self._sessions.asked_before(repeatable)
            change = check(self._change, request) if shown is None else SessionChange()
        await self._check_covers(request.session.session_id)
        if shown is None:
            session = await self._session(request.session.session_id)
            shown = await self._sessions.update(session, change, repeatable)
        return session_pb2.UpdateSessionResponse(session=await self._message(shown))

    def _change(self, request: session_pb2.UpdateSessionRequest) -> SessionChange:
        asked, ends = request.session, self._sessions.ends
        with FieldChecks() as check:
            said: dict[str, Any] = {
                "labels": check(requests.labels, asked.labels, "session.labels"),
                "idle_time": check(_new_time, asked, "idle_time", ends.idle_ms),
                "life_time": check(_new_time, asked, "life_time", ends.life_ms),
            }
            paths = check(requests.changed_fields, request.update_mask, asked, _CHANGEABLE)
        return SessionChange(**{_CHANGEABLE[path]: said[path] for path in paths})

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Any
    ) -> session_pb2.DeleteSessionResponse:
        """End a session."""
        repeatable = requests.repeatable(tenant(), request)
        await self._check_covers(request.session_id)
        spent = await self._sessions.delete(tenant(), request.session_id, repeatable)
        if spent is None:
            raise NotFound("session", request.session_id)
        return session_pb2.DeleteSessionResponse(spent=responses.amounts(spent))

    # ---- what it becomes -----------------------------------------------------------------------------------------

    async def CreateSnapshot(
        self, request: session_pb2.CreateSnapshotRequest, context: Any
    ) -> session_pb2.CreateSnapshotResponse:
        """Keep a session as it is."""
        key_account.check("")
        with FieldChecks() as check:
            repeatable = check(requests.repeatable, tenant(), request)
            check(requests.check_name, "name", request.name)
            labels = check(requests.labels, request.labels)
        row = await self._snapshots.asked_before(repeatable)
        if row is None:
            new = NewSnapshot(tenant(), repeatable, request.name, labels)
            row = await self._snapshots.create(await self._prepared(request.session_id), new)
        return session_pb2.CreateSnapshotResponse(snapshot=snapshot(row))

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Any
    ) -> session_pb2.ForkSessionResponse:
        """Make sessions that begin as one is."""
        with FieldChecks() as check:
            repeatable = check(requests.repeatable, tenant(), request)
            made = await self._sessions.forked_before(repeatable)
            asked = check(self._forks, request) if made is None else NewForks(0)
        if made is None:
            session = await self._prepared(request.session_id)
            budget = session.row.budget if asked.budget is None else asked.budget
            check_affordable(budget, await self._ledger.ancestry(payer_of(session.row)))
            made = await self._sessions.fork(session, asked, repeatable)
        return session_pb2.ForkSessionResponse(sessions=await self._messages(made))

    def _forks(self, request: session_pb2.ForkSessionRequest) -> NewForks:
        ends = self._sessions.ends
        with FieldChecks() as check:
            if not 0 <= request.count <= MAX_FORKS:
                check.wrong("count", f"must be from 0 to {MAX_FORKS}, not {request.count}")
            budget = check(requests.budget, request.budget)
            return NewForks(
                request.count or 1,
                check(requests.labels, request.labels),
                budget if request.HasField("budget") else None,
                check(requests.time_span, request, "idle_time", "idle_time", ends.idle_ms),
                check(requests.time_span, request, "life_time", "life_time", ends.life_ms),
            )

    async def PauseSession(
        self, request: session_pb2.PauseSessionRequest, context: Any
    ) -> session_pb2.PauseSessionResponse:
        """Store a session and give back its memory."""
        repeatable = requests.repeatable(tenant(), request)
        session = await self._session(request.session_id)
        shown = await self._sessions.pause(session, repeatable)
        return session_pb2.PauseSessionResponse(session=await self._message(shown))

    # ---- turns ---------------------------------------------------------------------------------------------------

    async def Execute(
        self, request: session_pb2.ExecuteRequest, context: Any
    ) -> AsyncIterator[session_pb2.ExecuteResponse]:
        """Run a turn. It is stopped where its caller goes away, unless it is detached."""
        asked = _turn(request)
        session = await self._awake(request.session_id)
        line = self._sessions.line
        happenings = line.execute_detached(session, asked) if request.detached else line.execute(session, asked)
        async with aclosing(happenings):
            async for one in happenings:
                yield session_messages.told(one)

    async def ExecuteOnce(
        self, request: session_pb2.ExecuteOnceRequest, context: Any
    ) -> session_pb2.ExecuteOnceResponse:
        """Run a turn and return what came of it. It is stopped where its caller goes away."""
        asked = _turn(request)
        session = await self._awake(request.session_id)
        return session_messages.collected(await self._sessions.line.execute_once(session, asked))

    async def WatchTurn(
        self, request: session_pb2.WatchTurnRequest, context: Any
    ) -> AsyncIterator[session_pb2.WatchTurnResponse]:
        """Stream what happens in a detached turn."""
        with FieldChecks() as check:
            check(requests.check_not_negative, "from_sequence", request.from_sequence)
            asked = check(requests.request_id, request.request_id)
            if not request.request_id and not request.turn_id:
                check.wrong("turn_id", "or request_id must say which turn")
        session = await self._awake(request.session_id)
        turn_id = request.turn_id if asked is None else turn_id_of(asked)
        happenings = self._sessions.line.watch(session, turn_id, request.from_sequence)
        async with aclosing(happenings):
            async for one in happenings:
                yield session_pb2.WatchTurnResponse(event=session_messages.told(one))

    async def InterruptSession(
        self, request: session_pb2.InterruptSessionRequest, context: Any
    ) -> session_pb2.InterruptSessionResponse:
        """Stop a turn."""
        repeatable = requests.repeatable(tenant(), request)
        await self._check_covers(request.session_id)
        stopped = await self._sessions.interrupt(tenant(), request.session_id, request.turn_id, repeatable)
        if stopped is None:
            raise NotFound("session", request.session_id)
        return session_pb2.InterruptSessionResponse(interrupted=stopped)

    # ---- what they have in common ----------------------------------------------------------------------------------

    async def _session(self, session_id: str) -> ReplSession:
        session = await self._sessions.get(tenant(), session_id)
        if session is None or not key_account.covers(session.row.customer):
            raise NotFound("session", session_id)
        return session

    async def _check_covers(self, session_id: str) -> None:
        """Know nothing of a session that the caller's key is not for, whether it lives or has ended."""
        if key_account.path():
            shown = await self._sessions.show(tenant(), session_id)
            if shown is None or not key_account.covers(shown.row.customer):
                raise NotFound("session", session_id)

    async def _prepared(self, session_id: str) -> ReplSession:
        session = await self._session(session_id)
        await self._sessions.prepare(session)
        return session

    async def _awake(self, session_id: str) -> ReplSession:
        session = await self._session(session_id)
        await self._sessions.wake(session)
        return session

    async def _message(self, shown: Shown) -> session_pb2.Session:
        (message,) = await self._messages([shown])
        if shown.live is not None and shown.row.context is not None:
            message.coverage.CopyFrom(responses.coverage(await self._sessions.coverage(shown.live)))
        return message

    async def _messages(self, found: Sequence[Shown]) -> list[session_pb2.Session]:
        balances = await self._ledger.balances([shown.row.id for shown in found])
        ends = self._sessions.ends
        return [session_messages.session(*one, ends) for one in zip(found, balances, strict=True)]


def _new_time(asked: session_pb2.Session, name: str, most: int) -> int:
    """Return what a time changes to, in milliseconds: 0, for what the server says, where it is 0 or not set."""
    if getattr(asked, name) == Duration():
        return 0
    return requests.time_span(asked, name, f"session.{name}", most) or 0


def _turn(request: session_pb2.ExecuteRequest | session_pb2.ExecuteOnceRequest) -> TurnRequest:
    with FieldChecks() as check:
        code = check(requests.required_bytes, "code", request.code, MAX_CODE)
        check(requests.request_id, request.request_id)
    return TurnRequest(code, request.request_id)
