"""REPL sessions for callers who bring their own loop: each with a row, an account, and model calls paid from it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter

from rlm_server.clock import DAY_MS, now
from rlm_server.contexts.background import keep_up
from rlm_server.contexts.contexts import Contexts
from rlm_server.contexts.object_store import ObjectStoreUnavailable
from rlm_server.database import requests
from rlm_server.database.engine import Connection, DatabaseError
from rlm_server.database.requests import Request
from rlm_server.ledger import Amounts, Balance, Ledger, names
from rlm_server.repl.coverage import Coverage, summary
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.tracing import TracedContext, Tracer
from rlm_server.sessions import forks, session_table
from rlm_server.sessions.ends import Ends
from rlm_server.sessions.forks import NewForks
from rlm_server.sessions.one_at_a_time import OneAtATime
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.session_table import SessionFilter, SessionRow, SessionTable
from rlm_server.sessions.state import End, EndReason, SessionEnded, SessionState
from rlm_server.sessions.taking_up import StateLost, TakingUp
from rlm_server.sessions.turn_line import TurnLine
from rlm_server.sessions.turns import Turns
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import cancel_and_wait, run_to_completion
from sandbox.corpora.corpus import Corpus
from sandbox.pool.live_sessions import PoolFull
from sandbox.pool.pool import LiveSession, Pool
from sandbox.pool.process import WorkerLost
from sandbox.pool.snapshots import StoreFull

log = logging.getLogger(__name__)

ENDED_SECONDS = DAY_MS / 1000
"""For so long after its end a session is shown, and says why it ended. Then it is forgotten."""
UPKEEP_SECONDS = 60.0
"""So often the use of sessions is written down, and those that ended long enough ago are forgotten."""
AT_ONCE = 200
"""Rows that are read, or forgotten, at once."""


class TooManySessions(Exception):
    """The tenant has as many sessions as it may; the message names the limit."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A session as it is now: its row, and where it lives the session itself."""

    row: SessionRow
    live: ReplSession | None = None


class Sessions:
    """Owns the live sessions, and knows those that have ended.

    An async context manager: entering it takes up those that a former server left, and leaving it puts all away for the
    next one. Detached turns get `grace_seconds` to end then, unless `hurry` is set. The limits of time of sessions are
    those of `ends`.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        contexts: Contexts,
        table: SessionTable,
        turns: Turns,
        ends: Ends,
        shares: Shares,
        limits_of: Callable[[str], RunLimits],
        *,
        grace_seconds: float,
        hurry: asyncio.Event,
    ) -> None:
        self._pool, self._ledger, self._contexts, self._table = pool, ledger, contexts, table
        self._turns, self._shares = turns, shares
        self._grace_seconds, self._hurry = grace_seconds, hurry
        self.ends, self.line = ends, TurnLine(turns)
        self._taking_up = TakingUp(pool, contexts, turns, self.line, limits_of)
        self._sessions: dict[str, ReplSession] = {}
        self._ending: dict[str, ReplSession] = {}
        """Those that take no more turns, and whose end is not written yet."""
        self._of_tenant: Counter[str] = Counter()
        self._creating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant
        self._forking, self._pausing = OneAtATime(), OneAtATime()
        self._written: dict[str, int] = {}
        """How many turns of each session are written down."""
        self._sooner = asyncio.Event()
        """Is set when a session may end before the sessions are looked at again."""
        self._look_at = 0
        """When they are, in Unix milliseconds."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._take_up_left()
        self._tasks = [
            asyncio.create_task(self._end_the_old()),
            asyncio.create_task(keep_up("sessions", self._keep_rows, UPKEEP_SECONDS)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            await cancel_and_wait(task)
        await self._let_detached_end()
        for session in list(self._sessions.values()):
            try:
                await self._put_away(session)
            except Exception:  # the database's; the others are not to wait for it
                log.exception("session %s could not be put away in order", session.id)
        try:
            await self._write_uses(session for session in self._sessions.values() if session.live.kept)
        except DatabaseError:
            log.exception("when sessions were last used could not be written down")

    async def _put_away(self, session: ReplSession) -> None:
        """End a session here. The next server takes it up, unless it could not be stored."""
        await self.line.stop(session)
        await session.live.put_away()
        await session.tracer.give_up()
        await session.held.aclose()
        if not session.live.kept:
            reason = "the server stopped, and the session could not be stored"
            await self._close(session.present, End(EndReason.RESTART, reason, now()))

    async def _let_detached_end(self) -> None:
        """Wait for turns that nobody reads; those that somebody reads have ended with their calls."""
        tasks = [turn.task for session in self._sessions.values() for turn in session.turns]
        if not tasks:
            return
        hurried = asyncio.create_task(self._hurry.wait())
        ended = asyncio.create_task(_until_ended(tasks))
        await asyncio.wait([ended, hurried], timeout=self._grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait(ended)
        await cancel_and_wait(hurried)

    # ---- what a former server left -------------------------------------------------------------------------------

    async def _take_up_left(self) -> None:
        """Take up every session that a former server left, or end it where that cannot be."""
        after = ""
        await self._table.pause_all()
        while rows := await self._table.living(after, AT_ONCE):
            after = rows[-1].id
            await asyncio.gather(*map(self._take_up, rows))
        await self._ledger.close_left(names.SESSION, self._sessions)  # those that have no rows
        self._pool.keep_only(self._sessions, names.SESSION)

    async def _take_up(self, row: SessionRow) -> None:
        try:
            session = await self._taking_up.take_up(row)
        except StateLost as lost:
            log.warning("session %s does not go on: %s", row.id, lost)
            await self._close(row, End(EndReason.STATE_LOST, f"the session could not go on: {lost}", now()))
        else:
            self._written[row.id] = row.turns
            self._add(session)

    def _add(self, session: ReplSession) -> None:
        """Note a session that lives from now on."""
        context = session.asked.context
        if context is not None:
            session.tracer = Tracer(
                TracedContext(session.row.tenant, self._shares, partial(self._contexts.lineage, context))
            )
        self._sessions[session.id] = session
        self._of_tenant[session.row.tenant] += 1
        self._heed_times(session)

    async def wake(self, session: ReplSession) -> None:
        """Do what is to be done before a turn of a session is asked for. One that cannot go on is ended.

        Raises:
            SessionEnded: it cannot, or has ended.
            PoolFull, WorkerLost, ObjectStoreUnavailable: it cannot go on now.
        """
        if session.paused:
            await self.prepare(session)
            session.paused = False
            await self._table.move(session.id, SessionState.ACTIVE)

    async def prepare(self, session: ReplSession) -> None:
        """Do what is to be done before the state of a session is used; raises as `wake`."""
        try:
            await self._taking_up.wake(session)
        except StateLost as lost:
            how = End(EndReason.STATE_LOST, f"the session could not go on: {lost}", now())
            await self._end_or_log(session, how)
            raise SessionEnded(session.id, session.end or how) from lost

    async def _read_state(self, session: ReplSession) -> None:
        """Read a session that was taken up, and have it sleep on."""
        await self.prepare(session)
        with suppress(StoreFull, OSError):
            await session.live.hibernate()

    # ---- beginning -----------------------------------------------------------------------------------------------

    async def create(self, new: NewSession) -> Shown:
        """Start a session; a repeated request returns the one it started, for as long as that is known.

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

    async def _create(self, new: NewSession) -> Shown:
        known = await self.asked_before(new.request)
        if known is not None:
            return known
        most = self._shares.limits(new.tenant).tenant_sessions
        if self._of_tenant[new.tenant] >= most:
            raise TooManySessions(f"a tenant may have {most} sessions (tenant_sessions)")
        row = new.row(names.SESSION + secrets.token_hex(16), now())
        async with AsyncExitStack() as held:
            corpus = await held.enter_async_context(self._contexts.pinned(new.context)) if new.context else None
            live = await self._begin(new, row.id, corpus)
            try:
                await self._ledger.open_account(
                    row.id,
                    tenant=new.tenant,
                    parent=new.payer,
                    limit=new.budget,
                    also=lambda connection: session_table.insert(connection, row, new.request),
                )
            except BaseException:
                await live.close()
                raise
            session = ReplSession(row, new, live, held.pop_all(), self._turns.memo(new), row.used_at)
        live.keep_note(lambda: self.line.note(session))
        self._add(session)
        return Shown(row, session)

    async def _begin(self, new: NewSession, id: str, corpus: Corpus | None) -> LiveSession:
        """Bring a new session into a worker, with its context."""
        limits = new.limits.sandbox
        if new.snapshot is not None:
            corpora = () if corpus is None else (corpus,)
            return await self._pool.create_from(new.tenant, new.image, limits, new.snapshot, id, corpora)
        live = await self._pool.create(new.tenant, new.image, limits, id)
        if corpus is not None:
            try:
                await live.attach("context", corpus)
            except BaseException:
                await live.close()
                raise
        return live

    async def forked_before(self, request: Request | None) -> list[Shown] | None:
        """Return the sessions that a request made of another; None where it has made none.

        Raises:
            RequestIdReused: it asked for others.
        """
        known = await self._table.answered(request)
        if known is None:
            return None
        rows = await self._table.several(forks.ids.validate_json(known))
        return [self._shown(row) for row in rows]

    async def fork(self, session: ReplSession, asked: NewForks, request: Request | None) -> list[Shown]:
        """Make sessions that begin as another is after its last finished turn: all, or none.

        Raises:
            RequestIdReused: the request asked for others.
            TooManySessions: the tenant may not have so many.
            StoreFull: they do not fit beside what the tenant has stored.
            SessionEnded: the session has ended.
        """
        async with self._forking.of(request):
            known = await self.forked_before(request)
            return known if known is not None else await run_to_completion(self._fork(session, asked, request))

    async def _fork(self, session: ReplSession, asked: NewForks, request: Request | None) -> list[Shown]:
        tenant = session.row.tenant
        most = self._shares.limits(tenant).tenant_sessions
        if self._of_tenant[tenant] + asked.count > most:
            raise TooManySessions(f"a tenant may have {most} sessions (tenant_sessions)")
        session.check_living()
        self._of_tenant[tenant] += asked.count  # while a turn is waited for, other sessions may begin
        try:
            made = await forks.fork(self._ledger, self._taking_up, session, asked, request)
        finally:
            self._of_tenant[tenant] -= asked.count
        for one in made:
            self._add(one)
        return [Shown(one.present, one) for one in made]

    async def pause(self, session: ReplSession, request: Request | None) -> Shown:
        """Store a session and give back its memory, after a turn that is under way; a repeated request does nothing.

        Raises:
            RequestIdReused: the request asked for something else.
            StoreFull: it does not fit beside what the tenant has stored.
        """
        async with self._pausing.of(request):
            if await self._table.answered(request) is None:
                await session.live.hibernate()
                session.check_living()
                if not session.turns:
                    session.paused = True
                    await self._table.move(session.id, SessionState.PAUSED)
                if request is not None:
                    await self._table.answer(session.id, request, session.id, now())
        return Shown(session.present, session)

    async def asked_before(self, request: Request | None) -> Shown | None:
        """Return the session that a request started, where it is known.

        Raises:
            RequestIdReused: it asked for another then.
        """
        row = None if request is None else await self._table.by_request(request)
        return None if row is None else self._shown(row)

    # ---- what there is -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._sessions)

    def count(self, tenant: str) -> int:
        """Return how many sessions a tenant has, those that hibernate included."""
        return self._of_tenant.get(tenant, 0)

    async def get(self, tenant: str, session_id: str) -> ReplSession | None:
        """Return a tenant's live session, or None: another tenant's does not exist for this one.

        Raises:
            SessionEnded: it has ended.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.row.tenant == tenant:
            due = self.ends.due(session, now())
            if due is None:
                return session
            await self.end(session, due)
        shown = await self._found(tenant, session_id)
        if shown is not None and shown.live is None and shown.row.end is None:  # it has ended while its row was read
            shown = await self._found(tenant, session_id)
        if shown is not None and shown.row.end is not None:
            raise SessionEnded(session_id, shown.row.end)
        return None

    async def _found(self, tenant: str, session_id: str) -> Shown | None:
        row = await self._table.get(tenant, session_id)
        return None if row is None else self._shown(row)

    async def show(self, tenant: str, session_id: str) -> Shown | None:
        """Return a tenant's session, also where it has ended; None where there is none, or it is another tenant's."""
        with suppress(SessionEnded):
            session = await self.get(tenant, session_id)
            if session is not None:
                return Shown(session.present, session)
        row = await self._table.get(tenant, session_id)
        return None if row is None else self._shown(row)

    async def page(self, asked: SessionFilter, before: str | None, most: int) -> list[Shown]:
        """Return up to `most` sessions, the newest first, from the one after the place `before` on."""
        return [self._shown(row) for row in await self._table.page(asked, before, most)]

    def _shown(self, row: SessionRow) -> Shown:
        """Show a session as it is now, where its row is behind."""
        session = self._sessions.get(row.id)
        if session is not None:
            return Shown(session.present, session)
        ending = self._ending.get(row.id)
        if ending is not None and ending.end is not None and row.end is None:
            return Shown(session_table.ended(ending.present, ending.end))
        return Shown(row)

    async def coverage(self, session: ReplSession) -> Coverage:
        """Return how much of its context a session has looked at."""
        if session.dormant:
            with suppress(SessionEnded, PoolFull, WorkerLost, ObjectStoreUnavailable):  # it is not known then
                await self._read_state(session)
        corpora, seen = session.live.corpora, session.live.seen
        if not corpora:
            return Coverage()
        blocks = seen[0] if seen else 0
        return await self._shares.threads.run(
            Purpose.COVERAGE, session.row.tenant, lambda _: summary(corpora[0], blocks)
        )

    # ---- changing ------------------------------------------------------------------------------------------------

    async def update(self, session: ReplSession, change: SessionChange, request: Request | None) -> Shown:
        """Change a session that lives; a repeated request changes nothing.

        Raises:
            RequestIdReused: the request asked for something else.
            SessionEnded: it has ended meanwhile.
        """
        async with session.changing:
            session.check_living()
            row = change.of(session.row)
            if await self._table.change(row, request, now()):
                session.row = row
                self._heed_times(session)
        return Shown(session.present, session)

    async def interrupt(
        self, tenant: str, session_id: str, turn_id: str = "", request: Request | None = None
    ) -> bool | None:
        """Stop the turn under way, or a detached one, and say whether there was one; a repeated request stops nothing.

        None where there is no such session.

        Raises:
            SessionEnded: it has ended.
            RequestIdReused: the request asked for something else.
        """
        known = await self._table.answered(request)
        if known is not None:
            return _stopped.validate_json(known)
        session = await self.get(tenant, session_id)
        if session is None or request is None:
            return None if session is None else await self.line.interrupt(session, turn_id)
        async with session.changing:
            known = await self._table.answered(request)
            if known is not None:
                return _stopped.validate_json(known)
            stopped = await self.line.interrupt(session, turn_id)
            await self._table.answer(session.id, request, _stopped.dump_json(stopped).decode(), now())
            return stopped

    # ---- ending --------------------------------------------------------------------------------------------------

    async def delete(self, tenant: str, session_id: str, request: Request | None = None) -> Amounts | None:
        """End a session and return what it spent; a repeated request returns that again. None where there is none.

        Raises:
            SessionEnded: it has ended.
            RequestIdReused: the request asked for something else.
        """
        known = await self._table.answered(request)
        if known is not None:
            return _amounts.validate_json(known)
        try:
            session = await self.get(tenant, session_id)
            if session is not None:
                return await self.end(session, End(EndReason.DELETED, "the session was deleted", now()), request)
        except SessionEnded:
            spent = await self._deleted_before(session_id, request)
            if spent is None:
                raise
            return spent
        return None

    async def _deleted_before(self, session_id: str, request: Request | None) -> Amounts | None:
        """Return what a session spent that this request has ended, also where that could not be written then."""
        if request is None:
            return None
        ending = self._ending.get(session_id)
        if ending is not None:
            async with ending.changing:
                if session_id in self._ending and ending.end is not None and ending.end.reason is EndReason.DELETED:
                    return await self._bury(ending, ending.end, request)
        known = await self._table.answered(request)
        return None if known is None else _amounts.validate_json(known)

    async def delete_all(self, tenant: str) -> None:
        """End all of a tenant's sessions, and forget them."""
        deleted = End(EndReason.DELETED, "the tenant was deleted", now())
        for session in [one for one in self._sessions.values() if one.row.tenant == tenant]:
            with suppress(SessionEnded):
                await self.end(session, deleted)
        while await self._table.forget_some(tenant, AT_ONCE):
            pass

    async def end(self, session: ReplSession, how: End, request: Request | None = None) -> Amounts:
        """End a session, keep how, and return what it spent. One whose end could not be written is ended again later.

        Raises:
            SessionEnded: another has ended it meanwhile.
        """
        session.check_living()
        session.end = how
        self._ending[session.id] = session
        if self._sessions.pop(session.id, None) is not None:
            self._of_tenant[session.row.tenant] -= 1
        self._written.pop(session.id, None)
        return await run_to_completion(self._end(session, how, request))

    async def _end(self, session: ReplSession, how: End, request: Request | None) -> Amounts:
        async with session.changing:
            try:
                await session.live.close()
            finally:
                await self.line.stop(session)
            await session.tracer.give_up()
            await session.held.aclose()
            return await self._bury(session, how, request)

    async def _bury(self, session: ReplSession, how: End, request: Request | None = None) -> Amounts:
        """Keep how a session ended that is stopped."""
        spent = await self._close(session.present, how, request)
        self._ending.pop(session.id, None)
        return spent

    async def _close(self, row: SessionRow, how: End, request: Request | None = None) -> Amounts:
        """Close a session's account and keep how it ended."""

        def keep(connection: Connection, balance: Balance) -> None:
            session_table.end(connection, row.id, how, row.used_at, row.turns)
            kept = _amounts.dump_json(balance.posted).decode()
            requests.answer(connection, request, kept, how.at, thing=row.id)

        return (await self._ledger.close_account(row.id, also=keep)).posted

    async def _end_or_log(self, session: ReplSession, how: End) -> None:
        try:
            await self.end(session, how)
        except SessionEnded:
            pass
        except Exception:  # the database's; the others are not to wait for it
            log.exception("session %s could not be ended in order", session.id)

    async def _end_the_old(self) -> None:
        while True:
            self._sooner.clear()
            pause = self.ends.pause(self._sessions.values(), now())
            self._look_at = now() + round(pause * 1000)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            for session in list(self._sessions.values()):
                how = self.ends.due(session, now())
                if how is not None:
                    await self._end_or_log(session, how)

    def _heed_times(self, session: ReplSession) -> None:
        """Have the sessions looked at earlier where this one may end earlier."""
        if self.ends.soonest(session) < self._look_at:
            self._sooner.set()

    # ---- upkeep --------------------------------------------------------------------------------------------------

    async def _keep_rows(self) -> None:
        """Write down the use of sessions, write ends that could not be, and forget what ended long enough ago."""
        await self._write_uses(self._sessions.values())
        for session in list(self._ending.values()):
            if session.end is not None and not session.changing.locked():
                await self._bury(session, session.end)
        for session in list(self._sessions.values()):
            self.line.tidy(session)
        while await self._table.forget_ended(now() - round(ENDED_SECONDS * 1000), AT_ONCE) == AT_ONCE:
            pass

    async def _write_uses(self, sessions: Iterable[ReplSession]) -> None:
        rows = [one.present for one in sessions if self._written.get(one.id, 0) != one.turns_ended]
        if rows:
            await self._table.used([(row.id, row.used_at, row.turns) for row in rows])
            self._written |= {row.id: row.turns for row in rows if row.id in self._sessions}


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What is to be new of a session: None stays as it is. A time of 0 goes back to what the server says."""

    labels: dict[str, str] | None = None
    idle_ms: int | None = None
    life_ms: int | None = None

    def of(self, row: SessionRow) -> SessionRow:
        """Return the row as it is after the change."""
        return replace(
            row,
            labels=row.labels if self.labels is None else self.labels,
            idle_ms=row.idle_ms if self.idle_ms is None else self.idle_ms or None,
            life_ms=row.life_ms if self.life_ms is None else self.life_ms or None,
        )


async def _until_ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


_amounts = TypeAdapter(Amounts)
_stopped = TypeAdapter(bool)
