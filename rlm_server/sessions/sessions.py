"""REPL sessions for callers who bring their own loop: each with an account, and model calls paid from it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from rlm_server.broker.broker import Broker
from rlm_server.broker.calls import Payer
from rlm_server.clock import now
from rlm_server.contexts.contexts import Context, Contexts
from rlm_server.ledger import Amounts, Ledger, Limit
from rlm_server.repl.coverage import Coverage, summary
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, CodeFinished, Printed
from rlm_server.repl.functions import Functions, Repl
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.metering import metered
from rlm_server.repl.model_calls import CallOptions, Memo, ModelCalls
from rlm_server.repl.output import OutputBatcher
from rlm_server.repl.tracing import Tracer
from sandbox.cancellation import cancel_and_wait, run_to_completion
from sandbox.limits import Limits
from sandbox.pool.pool import LiveSession, Pool

log = logging.getLogger(__name__)

BUDGET_WAIT_SECONDS = 60.0
"""How long a turn waits for room that other turns of its tenant hold."""

PREFIX = "ses_"
"""Of the ids of sessions, and of their accounts."""

REMEMBERED_RESULTS = 64
"""Of a session's turns, by request id."""
REMEMBERED_ENDS = 10_000
"""Of sessions that a limit ended."""

Happening = Printed | CallFinished | CallTraced | CodeFinished
"""What a caller sees of a turn while it runs; `CodeFinished` is the last."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session as a caller asks for it, checked."""

    tenant: str
    request_id: str | None
    image: str
    context: Context | None
    sub_model: str
    budget: Limit
    limits: Limits


@dataclass(slots=True)
class ReplSession:
    """A live session."""

    id: str
    asked: NewSession
    live: LiveSession
    held: AsyncExitStack
    """Holds the context, for as long as the session lives."""
    created_at: int
    began_at: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)
    tracer: Tracer = field(default_factory=Tracer)
    running: int = 0
    turn: asyncio.Task[None] | None = None
    """The newest one."""
    one_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    memo: Memo = field(default_factory=Memo)
    results: OrderedDict[str, CodeFinished] = field(default_factory=OrderedDict)


class SessionEnded(Exception):
    """The session is no longer there: it was deleted, or a limit ended it, which the message names."""


class TooManySessions(Exception):
    """The tenant has as many sessions as it may; the message names the limit."""


class Sessions:
    """Owns the live sessions. An async context manager: leaving it ends them."""

    def __init__(
        self,
        pool: Pool,
        broker: Broker,
        ledger: Ledger,
        contexts: Contexts,
        functions: Functions,
        *,
        idle_seconds: float,
        life_seconds: float,
        tenant_sessions: int,
    ) -> None:
        self._pool, self._broker, self._ledger, self._contexts = pool, broker, ledger, contexts
        self._functions = functions
        self._idle_seconds, self._life_seconds, self._tenant_sessions = idle_seconds, life_seconds, tenant_sessions
        self._sessions: dict[str, ReplSession] = {}
        self._of_tenant: Counter[str] = Counter()
        self._why_ended: OrderedDict[tuple[str, str], str] = OrderedDict()  # by tenant and session
        self._by_request: dict[tuple[str, str], str] = {}
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._ledger.close_left(PREFIX)  # sessions end with their server, also where it was killed
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
            await asyncio.sleep(min(30.0, self._idle_seconds, self._life_seconds))
            for session in list(self._sessions.values()):
                why = self._over(session)
                if why:
                    self._why_ended[session.asked.tenant, session.id] = why
                    while len(self._why_ended) > REMEMBERED_ENDS:
                        self._why_ended.popitem(last=False)
                    try:
                        await self.delete(session)
                    except Exception:  # the database's; the others are not to wait for it
                        log.exception("session %s could not be ended in order", session.id)

    def _over(self, session: ReplSession) -> str:
        """Name the limit that ends a session; nothing where none does."""
        now = time.monotonic()
        if now - session.began_at > self._life_seconds:
            return f"the session was ended: it may exist for {self._life_seconds:g} s (session_seconds)"
        if not session.running and now - session.used_at > self._idle_seconds:
            limit = f"{self._idle_seconds:g} s (session_idle_seconds)"
            return f"the session was ended: it may be without a turn for {limit}"
        return ""

    async def create(self, new: NewSession) -> ReplSession:
        """Start a session; a repeated request id returns the one it started.

        Raises:
            TooManySessions: the tenant has as many as it may.
            PoolFull: no more sessions fit.
            MemoryError: the context does not fit into the guest's memory.
            WorkerLost: the process it was to live in was lost, twice.
        """
        async with self._creating[new.tenant]:
            return await run_to_completion(self._create(new))

    async def _create(self, new: NewSession) -> ReplSession:
        known = self._by_request.get((new.tenant, new.request_id or ""))
        if known in self._sessions:
            return self._sessions[known]
        if self._of_tenant[new.tenant] >= self._tenant_sessions:
            raise TooManySessions(f"a tenant may have {self._tenant_sessions} sessions (tenant_sessions)")
        live = await self._pool.create(new.tenant, new.image, new.limits)
        session_id = PREFIX + secrets.token_hex(16)
        try:
            async with AsyncExitStack() as held:
                if new.context:
                    await live.attach("context", await held.enter_async_context(self._contexts.held(new.context)))
                await self._ledger.open_account(session_id, tenant=new.tenant, parent=new.tenant, limit=new.budget)
                session = ReplSession(session_id, new, live, held.pop_all(), now())
        except BaseException:
            await live.close()
            raise
        if new.context:
            session.tracer = Tracer(partial(self._contexts.lineage, new.context))
        self._sessions[session_id] = session
        self._of_tenant[new.tenant] += 1
        if new.request_id:
            self._by_request[new.tenant, new.request_id] = session_id
        return session

    async def coverage(self, session: ReplSession) -> Coverage:
        """Return how much of its context a session has looked at."""
        corpora, seen = session.live.corpora, session.live.seen
        return await asyncio.to_thread(summary, corpora[0], seen[0] if seen else 0) if corpora else Coverage()

    def get(self, tenant: str, session_id: str) -> ReplSession | None:
        """Return a tenant's session, or None: another tenant's does not exist for this one.

        Raises:
            SessionEnded: a limit ended it.
        """
        session = self._sessions.get(session_id)
        if session is None and (tenant, session_id) in self._why_ended:
            raise SessionEnded(self._why_ended[tenant, session_id])
        return session if session and session.asked.tenant == tenant else None

    async def delete(self, session: ReplSession) -> Amounts:
        """End a session and return what it spent."""
        return await run_to_completion(self._delete(session))

    async def _delete(self, session: ReplSession) -> Amounts:
        if self._sessions.pop(session.id, None):
            self._of_tenant[session.asked.tenant] -= 1
        self._by_request.pop((session.asked.tenant, session.asked.request_id or ""), None)
        await session.live.close()
        if session.turn:
            await asyncio.wait([session.turn])  # it is over by now but for its hold
        await session.tracer.settle()
        await session.held.aclose()
        return (await self._ledger.close_account(session.id)).posted

    async def execute(self, session: ReplSession, code: str, request_id: str | None) -> AsyncGenerator[Happening, None]:
        """Run code as a turn and yield what happens; a repeated request id yields its first result and runs nothing.

        Closing the iterator stops the turn and rolls it back.

        Raises:
            SessionEnded: the session was ended while this waited for its turn.
        """
        async with session.one_turn:
            if request_id and request_id in session.results:
                yield session.results[request_id]
                return
            if session.id not in self._sessions:
                raise SessionEnded(self._why_ended.get((session.asked.tenant, session.id), "the session was deleted"))
            async with aclosing(self._happenings(session, code, request_id)) as happenings:
                async for happening in happenings:
                    yield happening

    async def _happenings(
        self, session: ReplSession, code: str, request_id: str | None
    ) -> AsyncGenerator[Happening, None]:
        happenings: asyncio.Queue[Happening | None] = asyncio.Queue()
        session.turn = task = asyncio.create_task(self._turn(session, code, happenings.put_nowait))
        task.add_done_callback(lambda _: happenings.put_nowait(None))
        try:
            while happening := await happenings.get():
                if isinstance(happening, CodeFinished) and request_id:
                    session.results[request_id] = happening
                    while len(session.results) > REMEMBERED_RESULTS:
                        session.results.popitem(last=False)
                yield happening
            task.result()
        finally:
            await cancel_and_wait(task)

    async def _turn(self, session: ReplSession, code: str, tell: Callable[[Happening], None]) -> None:
        def reported(body: CallStarted | CallFinished | CallTraced) -> None:
            if not isinstance(body, CallStarted):
                tell(body)

        limits = RunLimits()
        options = CallOptions(
            session.asked.sub_model, limits.sub_tokens, limits.batch, time.monotonic() + limits.wall_seconds
        )
        payer = Payer(session.id, session.asked.tenant, session.id, session.id)
        calls = ModelCalls(self._broker, payer, options, session.memo, session.tracer, reported)
        answer = partial(self._functions.answer_session, Repl(session.live, calls))
        session.running += 1
        try:
            with OutputBatcher(tell) as output:
                execute = partial(session.live.execute, code, answer, output.take)
                soon = time.monotonic() + BUDGET_WAIT_SECONDS
                result, _ = await metered(self._ledger, payer, session.asked.limits, execute, deadline=soon)
            await session.tracer.settle()
        finally:
            session.running -= 1
            session.used_at = time.monotonic()
        tell(CodeFinished(result))
