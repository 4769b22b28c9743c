"""Sessions that a former server left: which go on, and what is done before one of them is used again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import ContextDamaged, Contexts
from rlm_server.repl.limits import RunLimits
from rlm_server.sessions import turn_notes
from rlm_server.sessions.session import NewSession, ReplSession
from rlm_server.sessions.session_table import SessionRow
from rlm_server.sessions.turn_line import TurnLine
from rlm_server.sessions.turns import Turns
from sandbox.pool.pool import LiveSession, Pool
from sandbox.pool.sealing import SnapshotRefused


class StateLost(Exception):
    """A session cannot go on; the message says why."""


class TakingUp:
    """Takes up sessions by their rows. They sleep, and nothing is read of them, until they are used."""

    def __init__(
        self, pool: Pool, contexts: Contexts, turns: Turns, line: TurnLine, limits_of: Callable[[str], RunLimits]
    ) -> None:
        self._pool, self._contexts, self._turns, self._line = pool, contexts, turns, line
        self._limits_of = limits_of

    async def take_up(self, row: SessionRow) -> ReplSession:
        """Take up a session.

        Raises:
            StateLost: its state, its image or its context is not there.
        """
        context = await self._context_of(row)
        try:
            live = self._pool.take_up(row.tenant, row.image, row.limits, row.id)
        except KeyError:
            raise StateLost(f"there is no image {row.image!r} any more") from None
        except (SnapshotRefused, OSError) as error:
            raise StateLost(f"its state cannot be used: {error}") from None
        return self.made(row, live, context, dormant=True)

    async def _context_of(self, row: SessionRow) -> Context | None:
        if row.context is None:
            return None
        context = await self._contexts.get(row.tenant, row.context)
        if context is None:
            raise StateLost(f"its context {row.context} was deleted")
        return context

    def made(self, row: SessionRow, live: LiveSession, context: Context | None, *, dormant: bool) -> ReplSession:
        """Return a session that was not asked for by itself. Its context stays for as long as it does."""
        limits = replace(self._limits_of(row.tenant), sandbox=row.limits)
        asked = NewSession(
            row.tenant,
            None,
            row.image,
            context,
            row.sub_model,
            row.budget,
            limits,
            labels=row.labels,
            idle_ms=row.idle_ms,
            life_ms=row.life_ms,
        )
        held = AsyncExitStack()
        if context is not None:
            self._contexts.hold(context)
            held.callback(self._contexts.unpin, context)
        memo = self._turns.memo(asked)
        session = ReplSession(row, asked, live, held, memo, row.used_at, turns_ended=row.turns)
        session.dormant = session.paused = dormant
        if not dormant:
            live.keep_note(lambda: self._line.note(session))
        return session

    async def wake(self, session: ReplSession) -> None:
        """Do what is left to be done before a session is used that a former server left, or that was forked.

        Raises:
            StateLost: its state or its context is not as it was written.
            PoolFull, WorkerLost: it cannot be brought into a worker now.
            ObjectStoreUnavailable: its context cannot be had now.
        """
        async with session.waking:
            if not session.dormant:
                return
            try:
                if session.asked.context is not None:
                    session.live.supply((await self._contexts.open_held(session.asked.context),))
                ran = turn_notes.read(await session.live.recall())
            except (SnapshotRefused, ContextDamaged) as error:
                raise StateLost(f"its state cannot be used: {error}") from error
            self._line.restore(session, ran)
            session.live.keep_note(lambda: self._line.note(session))
            session.dormant = False
