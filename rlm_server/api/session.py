"""The servicer of `SessionService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from rlm.v1 import session_pb2, session_pb2_grpc

from rlm_server.api import key_account, requests, responses, session_messages
from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.api.limits import lowered
from rlm_server.api.snapshots import SnapshotServicer, snapshot
from rlm_server.broker.routes import Routes
from rlm_server.config.defaults import Defaults
from rlm_server.contexts.contexts import Contexts
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
_CHANGEABLE = ("labels", "idle_time", "life_time")


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
        sub_model = request.sub_model or self._defaults.sub_model
        requests.check_offered(self._offered(), "sub_model", sub_model)
        asked = requests.budget(request.budget) if request.HasField("budget") else None
        ceiling = self._defaults.limits_of(tenant())
        repeatable, named = requests.repeatable(tenant(), request), requests.labels(request.labels)
        ends = self._sessions.ends
        idle_ms = requests.time_span(request, "idle_time", "idle_time", ends.idle_ms)
        life_ms = requests.time_span(request, "life_time", "life_time", ends.life_ms)
        known = await self._sessions.asked_before(repeatable)
        if known is not None:
            return session_pb2.CreateSessionResponse(session=await self._message(known))
        begun_from = await self._snapshot(request)
        wanted = request.image if begun_from is None else begun_from.image
        image = requests.image(wanted, self._defaults.images_of(tenant()))
        context_id = request.context_id if begun_from is None else begun_from.context or ""
        payer = await requests.payer(self._book, tenant(), request.account_id)
        budget = asked if asked is not None else await self._book.usual(payer, self._defaults.budget)
        check_affordable(budget, await self._ledger.ancestry(payer.account if payer is not None else tenant()))
        new = NewSession(
            tenant(),
            repeatable,
            image,
            await requests.context(self._contexts, tenant(), context_id),
            sub_model,
            budget,
            replace(ceiling, sandbox=lowered("limits", request.limits, ceiling.sandbox)),
            payer,
            named,
            idle_ms,
            life_ms,
            begun_from.id if begun_from is not None else None,
        )
        return session_pb2.CreateSessionResponse(session=await self._message(await self._sessions.create(new)))

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
        asked = await self._asked_for(request)
        size, list_name = requests.page_size(request.page_size, 100, 1_000), requests.list_name("sessions", asked)
        place = requests.page_place(request.page_token, list_name)
        found = await self._sessions.page(asked, place, size + 1)
        written = await self._messages(found[:size])
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].row.place)
        return session_pb2.ListSessionsResponse(sessions=page, next_page_token=token)

    async def _asked_for(self, request: session_pb2.ListSessionsRequest) -> SessionFilter:
        for place, state in enumerate(request.states):
            if state not in session_messages.STATES:
                raise InvalidField(f"states[{place}]", f"must be a state of a session, not {state}")
        since, until = (requests.time_if_set(request, name, name) for name in ("since", "until"))
        customer = None
        if request.account_id:
            customer = await requests.customer_path(self._book, tenant(), request.account_id, "account_id")
        states = frozenset(session_messages.STATES[state] for state in request.states)
        return SessionFilter(
            tenant(), states, requests.labels(request.labels), since, until, customer, key_account.path()
        )

    async def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: Any
    ) -> session_pb2.UpdateSessionResponse:
        """Change a session."""
        repeatable = requests.repeatable(tenant(), request)
        await self._check_covers(request.session.session_id)
        shown = await self._sessions.asked_before(repeatable)
        if shown is None:
            session = await self._session(request.session.session_id)
            shown = await self._sessions.update(session, self._change(request), repeatable)
        return session_pb2.UpdateSessionResponse(session=await self._message(shown))

    def _change(self, request: session_pb2.UpdateSessionRequest) -> SessionChange:
        asked, paths, ends = request.session, list(request.update_mask.paths), self._sessions.ends
        if not paths:
            raise InvalidField("update_mask", "must name what changes")
        for path in paths:
            if path not in _CHANGEABLE:
                raise InvalidField("update_mask", f"may have {', '.join(_CHANGEABLE)}, not {path[:100]!r}")
        labels = requests.labels(asked.labels, "session.labels")
        idle_ms = requests.time_span(asked, "idle_time", "session.idle_time", ends.idle_ms)
        life_ms = requests.time_span(asked, "life_time", "session.life_time", ends.life_ms)
        return SessionChange(
            labels if "labels" in paths else None,
            _changed(idle_ms) if "idle_time" in paths else None,
            _changed(life_ms) if "life_time" in paths else None,
        )

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

    async def _snapshot(self, request: session_pb2.CreateSessionRequest) -> SnapshotRow | None:
        """Return the snapshot that a new session begins from."""
        if not request.snapshot_id:
            return None
        key_account.check("")
        found = await self._snapshots.get(tenant(), request.snapshot_id)
        if found is None:
            raise NotFound("snapshot", request.snapshot_id)
        if request.image not in ("", found.image):
            raise InvalidField("image", f"must be the snapshot's, which is {found.image!r}, or empty")
        if request.context_id:
            raise InvalidField("context_id", "must be empty with a snapshot_id: it is the snapshot's")
        return found

    # ---- what it becomes -----------------------------------------------------------------------------------------

    async def CreateSnapshot(
        self, request: session_pb2.CreateSnapshotRequest, context: Any
    ) -> session_pb2.CreateSnapshotResponse:
        """Keep a session as it is."""
        repeatable, labels = requests.repeatable(tenant(), request), requests.labels(request.labels)
        requests.check_name("name", request.name)
        key_account.check("")
        row = await self._snapshots.asked_before(repeatable)
        if row is None:
            new = NewSnapshot(tenant(), repeatable, request.name, labels)
            row = await self._snapshots.create(await self._prepared(request.session_id), new)
        return session_pb2.CreateSnapshotResponse(snapshot=snapshot(row))

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Any
    ) -> session_pb2.ForkSessionResponse:
        """Make sessions that begin as one is."""
        repeatable, ends = requests.repeatable(tenant(), request), self._sessions.ends
        if not 0 <= request.count <= MAX_FORKS:
            raise InvalidField("count", f"must be from 0 to {MAX_FORKS}, not {request.count}")
        asked = NewForks(
            request.count or 1,
            requests.labels(request.labels),
            requests.budget(request.budget) if request.HasField("budget") else None,
            requests.time_span(request, "idle_time", "idle_time", ends.idle_ms),
            requests.time_span(request, "life_time", "life_time", ends.life_ms),
        )
        made = await self._sessions.forked_before(repeatable)
        if made is None:
            session = await self._prepared(request.session_id)
            budget = session.row.budget if asked.budget is None else asked.budget
            check_affordable(budget, await self._ledger.ancestry(payer_of(session.row)))
            made = await self._sessions.fork(session, asked, repeatable)
        return session_pb2.ForkSessionResponse(sessions=await self._messages(made))

    async def PauseSession(
        self, request: session_pb2.PauseSessionRequest, context: Any
    ) -> session_pb2.PauseSessionResponse:
        """Store a session and give back its memory."""
        session = await self._session(request.session_id)
        shown = await self._sessions.pause(session, requests.repeatable(tenant(), request))
        return session_pb2.PauseSessionResponse(session=await self._message(shown))

    # ---- turns ---------------------------------------------------------------------------------------------------

    async def Execute(
        self, request: session_pb2.ExecuteRequest, context: Any
    ) -> AsyncIterator[session_pb2.ExecuteResponse]:
        """Run a turn. It is stopped where its caller goes away, unless it is detached."""
        session, asked = await self._awake(request.session_id), _turn(request)
        line = self._sessions.line
        happenings = line.execute_detached(session, asked) if request.detached else line.execute(session, asked)
        async with aclosing(happenings):
            async for one in happenings:
                yield session_messages.told(one)

    async def ExecuteOnce(
        self, request: session_pb2.ExecuteOnceRequest, context: Any
    ) -> session_pb2.ExecuteOnceResponse:
        """Run a turn and return what came of it. It is stopped where its caller goes away."""
        session = await self._awake(request.session_id)
        return session_messages.collected(await self._sessions.line.execute_once(session, _turn(request)))

    async def WatchTurn(
        self, request: session_pb2.WatchTurnRequest, context: Any
    ) -> AsyncIterator[session_pb2.WatchTurnResponse]:
        """Stream what happens in a detached turn."""
        session = await self._awake(request.session_id)
        requests.check_not_negative("from_sequence", request.from_sequence)
        asked = requests.request_id(request.request_id)
        if asked is None and not request.turn_id:
            raise InvalidField("turn_id", "or request_id must say which turn")
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

    def _offered(self) -> Routes:
        return self._routes_of(tenant())

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


def _changed(value: int | None) -> int:
    """Return what a time changes to: 0 for what the server says."""
    return 0 if value is None else value


def _turn(request: session_pb2.ExecuteRequest | session_pb2.ExecuteOnceRequest) -> TurnRequest:
    code = requests.required_bytes("code", request.code, MAX_CODE)
    requests.request_id(request.request_id)
    return TurnRequest(code, request.request_id)
