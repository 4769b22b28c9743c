"""REPL sessions for callers who bring their own loop: each with an account, and model calls paid from it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from types import TracebackType
from typing import Self

from rlm_server.clock import now
from rlm_server.contexts.contexts import Contexts
from rlm_server.database import labels
from rlm_server.database.requests import Request, RequestIdReused
from rlm_server.ledger import Amounts, Ledger, names
from rlm_server.repl.coverage import Coverage, summary
from rlm_server.repl.tracing import TracedContext, Tracer
from rlm_server.sessions.ends import Ends, SessionEnded
from rlm_server.sessions.happenings import Happening
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.turns import Turns
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import run_to_completion
from sandbox.pool.pool import Pool

log = logging.getLogger(__name__)

LABELS = "session"
"""The kind of sessions' labels."""

SESSION_TURNS = 64
"""Turns of one session that are asked for and have not ended: one runs, the others wait for it."""


class TooManySessions(Exception):
    """The tenant has as many sessions as it may; the message names the limit."""


class SessionLineFull(Exception):
    """As many turns of the session wait for each other as may."""

    def __init__(self, used: int) -> None:
        super().__init__(f"{used} turns of this session have not ended; the limit is {SESSION_TURNS} (session_turns)")
        self.unit, self.limit, self.used = "session_turns", SESSION_TURNS, used


class Sessions:
    """Owns the live sessions. An async context manager: leaving it ends them.

    Their limits of time are those of `ends`.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        contexts: Contexts,
        turns: Turns,
        ends: Ends,
        shares: Shares,
    ) -> None:
        self._pool, self._ledger, self._contexts, self._turns, self._ends = pool, ledger, contexts, turns, ends
        self._shares = shares
        self._sessions: dict[str, ReplSession] = {}
        self._of_tenant: Counter[str] = Counter()
        self._turns_asked_for: Counter[str] = Counter()  # by session
        self._by_request: dict[tuple[str, str], tuple[str, str]] = {}  # the session, and a hash of what was asked for
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._ledger.close_left(names.SESSION)  # sessions end with their server, also where it was killed
        self._reaper = asyncio.create_task(self._end_the_old())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reaper:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        for session in list(self._sessions.values()):
            await self.delete(session)

    async def _end_the_old(self) -> None:
        while True:
            await asyncio.sleep(self._ends.look_seconds)
            for session in list(self._sessions.values()):
                reason = self._ends.due(session)
                if reason:
                    self._ends.remember(session, reason)
                    try:
                        await self.delete(session)
                    except Exception:  # the database's; the others are not to wait for it
                        log.exception("session %s could not be ended in order", session.id)

    async def create(self, new: NewSession) -> ReplSession:
        """Start a session; a repeated request returns the one it started, for as long as that lives.

        Raises:
            RequestIdReused: the request asked for another session.
            AccountClosed: the customer who is to pay was closed.
            TooManySessions: the tenant has as many as it may.
            PoolFull: no more sessions fit.
            MemoryError: the context does not fit into the guest's memory.
            WorkerLost: the process it was to live in was lost, twice.
        """
        async with self._creating[new.tenant]:
            return await run_to_completion(self._create(new))

    async def _create(self, new: NewSession) -> ReplSession:
        known = self.asked_before(new.request)
        if known is not None:
            return known
        most = self._shares.limits(new.tenant).tenant_sessions
        if self._of_tenant[new.tenant] >= most:
            raise TooManySessions(f"a tenant may have {most} sessions (tenant_sessions)")
        live = await self._pool.create(new.tenant, new.image, new.limits.sandbox)
        session_id = names.SESSION + secrets.token_hex(16)
        try:
            async with AsyncExitStack() as held:
                if new.context:
                    await live.attach("context", await held.enter_async_context(self._contexts.pinned(new.context)))
                await self._ledger.open_account(session_id, tenant=new.tenant, parent=new.payer, limit=new.budget)
                if new.labels:
                    await self._ledger.change(
                        new.tenant, lambda connection, _: labels.put(connection, LABELS, session_id, new.labels)
                    )
                memo = self._turns.memo(new)
                session = ReplSession(session_id, new, live, held.pop_all(), now(), memo)
        except BaseException:
            await live.close()
            raise
        if new.context:
            session.tracer = Tracer(
                TracedContext(new.tenant, self._shares, partial(self._contexts.lineage, new.context))
            )
        self._sessions[session_id] = session
        self._of_tenant[new.tenant] += 1
        if new.request is not None:
            self._by_request[new.tenant, new.request.id] = session_id, new.request.content_sha256
        return session

    def asked_before(self, request: Request | None) -> ReplSession | None:
        """Return the session that a request started, while it lives.

        Raises:
            RequestIdReused: it asked for another then.
        """
        if request is None:
            return None
        session_id, content = self._by_request.get((request.tenant, request.id), ("", ""))
        session = self._sessions.get(session_id)
        if session is not None and content != request.content_sha256:
            raise RequestIdReused(request.id)
        return session

    def __len__(self) -> int:
        return len(self._sessions)

    def count(self, tenant: str) -> int:
        """Return how many sessions a tenant has, those that hibernate included."""
        return self._of_tenant.get(tenant, 0)

    async def coverage(self, session: ReplSession) -> Coverage:
        """Return how much of its context a session has looked at."""
        corpora, seen = session.live.corpora, session.live.seen
        if not corpora:
            return Coverage()
        blocks = seen[0] if seen else 0
        return await self._shares.threads.run(
            Purpose.COVERAGE, session.asked.tenant, lambda _: summary(corpora[0], blocks)
        )

    def get(self, tenant: str, session_id: str) -> ReplSession | None:
        """Return a tenant's session, or None: another tenant's does not exist for this one.

        Raises:
            SessionEnded: a limit ended it.
        """
        session = self._sessions.get(session_id)
        if session is None:
            self._ends.check(tenant, session_id)
        return session if session and session.asked.tenant == tenant else None

    async def delete_all(self, tenant: str) -> None:
        """End all of a tenant's sessions."""
        for session in [one for one in self._sessions.values() if one.asked.tenant == tenant]:
            await self.delete(session)

    async def delete(self, session: ReplSession) -> Amounts:
        """End a session and return what it spent."""
        return await run_to_completion(self._delete(session))

    async def _delete(self, session: ReplSession) -> Amounts:
        if self._sessions.pop(session.id, None):
            self._of_tenant[session.asked.tenant] -= 1
        if session.asked.request is not None:
            self._by_request.pop((session.asked.tenant, session.asked.request.id), None)
        try:
            await session.live.close()
            if session.turn:
                await asyncio.wait([session.turn])  # it is over by now but for its hold
        finally:
            self._turns.forget(session)
        await session.tracer.give_up()
        await session.held.aclose()
        return (await self._ledger.close_account(session.id)).posted

    async def execute(self, session: ReplSession, code: str, request_id: str | None) -> AsyncGenerator[Happening, None]:
        """Run code as a turn and yield what happens; a repeated request id yields its first result and runs nothing.

        Closing the iterator stops the turn and rolls it back.

        Raises:
            SessionEnded: the session was ended while this waited for its turn.
            ResultForgotten: the request has run, and its result is no longer remembered.
            SessionLineFull: too many wait already.
        """
        asked_for = self._turns_asked_for.get(session.id, 0)
        if asked_for >= SESSION_TURNS:
            raise SessionLineFull(asked_for)
        self._turns_asked_for[session.id] += 1
        try:
            async with session.one_turn, aclosing(self._turn(session, code, request_id)) as happenings:
                async for happening in happenings:
                    yield happening
        finally:
            self._turns_asked_for[session.id] -= 1
            if not self._turns_asked_for[session.id]:
                del self._turns_asked_for[session.id]

    async def _turn(self, session: ReplSession, code: str, request_id: str | None) -> AsyncGenerator[Happening, None]:
        known = self._turns.result(session, request_id)
        if known is not None:
            yield known
            return
        if session.id not in self._sessions:
            self._ends.check(session.asked.tenant, session.id)
            raise SessionEnded("the session was deleted")
        async with aclosing(self._turns.run(session, code, request_id)) as happenings:
            async for happening in happenings:
                yield happening
