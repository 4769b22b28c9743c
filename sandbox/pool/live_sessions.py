"""The live sessions of a pool: who waits to be one, and who hibernates to make room."""

from __future__ import annotations

import asyncio
import logging
import time

from sandbox.pool.disk_threads import Abandoned
from sandbox.pool.live_slots import Asking, Slots
from sandbox.pool.snapshots import StoreFull
from sandbox.pool.worker_session import WorkerSession

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""A session that could not be written is left alone for so long. Who waits for a slot looks again as often."""
TOLD_SECONDS = 10.0
"""That sessions cannot be written is logged once in so long: a full disk refuses every one of them."""


class PoolFull(Exception):
    """No more sessions fit; the message names the limit."""


class OwnerFull(PoolFull):
    """No more sessions of this owner fit: its stored ones may have no more bytes. The message names the limit."""


class LiveSessions:
    """The live sessions, in their slots. Where `stores` is set, idle ones hibernate to make room for others.

    One who finds no room waits for `slot_seconds`.
    """

    def __init__(self, slots: Slots, slot_seconds: float, *, stores: bool) -> None:
        self._slots, self._slot_seconds, self._stores = slots, slot_seconds, stores
        self._used: dict[WorkerSession, float] = {}  # when each was last used, the longest idle first
        self._asking: dict[WorkerSession, Asking] = {}
        self._leaving: dict[WorkerSession, asyncio.Task[None]] = {}
        self._counted: set[WorkerSession] = set()  # of those that leave, as the slots know it
        self._told_at = -TOLD_SECONDS
        self._refused: dict[WorkerSession, tuple[float, Exception]] = {}  # when a session could not be written, and why

    def __len__(self) -> int:
        return len(self._used)

    def any_of(self, owner: str) -> bool:
        """Whether an owner has live sessions, or one that waits to be."""
        return self._slots.knows(owner)

    def idle_seconds(self) -> list[tuple[WorkerSession, float]]:
        """Return the idle sessions, and for how long each has been."""
        now = time.monotonic()
        return [(session, now - since) for session, since in self._used.items() if session.idle]

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use, so that it is the last of its owner's to hibernate."""
        self._used.pop(session, None)
        self._used[session] = time.monotonic()

    # ---- coming and going ----------------------------------------------------------------------------------------

    async def enter(self, session: WorkerSession) -> None:
        """Give a session a slot. Where there is none for its owner, it waits until others make room.

        Raises:
            PoolFull: there was no room in time.
            Abandoned: `give_up` was called.
        """
        if session not in self._used:
            asking = self._slots.ask(session.owner)
            if not asking.granted.done():
                await self._wait(session, asking)
        self.used(session)

    async def _wait(self, session: WorkerSession, asking: Asking) -> None:
        self._asking[session] = asking
        deadline = time.monotonic() + self._slot_seconds
        try:
            while not asking.granted.done() and (left := deadline - time.monotonic()) > 0:
                self.make_room()
                await asyncio.wait([asking.granted], timeout=min(left, RETRY_SECONDS))
        except asyncio.CancelledError:
            if asking.granted.done() and asking.granted.result():
                self._slots.free(session.owner)
            raise
        finally:
            del self._asking[session]
            timely = asking.granted.done()
            self._slots.withdraw(asking)
        if not timely:
            raise self._refusal(session.owner)
        if not asking.granted.result():
            raise Abandoned

    def give_up(self, session: WorkerSession) -> None:
        """Have a session that waits to enter wait no longer."""
        asking = self._asking.get(session)
        if asking is not None:
            self._slots.withdraw(asking)

    def left(self, session: WorkerSession) -> None:
        """Free a session's slot, if it has one."""
        self._stays(session)
        self._refused.pop(session, None)
        if self._used.pop(session, None) is not None:
            self._slots.free(session.owner)

    def _refusal(self, owner: str) -> PoolFull:
        for session, (_, error) in self._refused.items():
            if session.owner == owner and isinstance(error, StoreFull):
                return OwnerFull(f"no place could be made: {error}")
        for _, error in self._refused.values():
            if isinstance(error, OSError):
                reason = f"an idle session could not be written: {error.strerror}"
                return PoolFull(f"no place could be made: {reason}")
        return PoolFull(
            f"this server runs at most {self._slots.most} sessions at once, "
            f"and none of them made room within {self._slot_seconds:g} seconds"
        )

    # ---- making room ---------------------------------------------------------------------------------------------

    def make_room(self) -> None:
        """Have idle sessions leave, as many as those in line are in want of."""
        if not (self._stores and self._slots.waiting):
            return
        now = time.monotonic()
        idle: dict[str, list[WorkerSession]] = {}
        stuck: dict[str, list[WorkerSession]] = {}  # idle as well, but the owner's stored sessions have no room
        for session in self._used:
            if session.idle and session not in self._leaving:
                since, error = self._refused.get(session, (-RETRY_SECONDS, None))
                if now - since >= RETRY_SECONDS:
                    idle.setdefault(session.owner, []).append(session)
                elif isinstance(error, StoreFull):
                    stuck.setdefault(session.owner, []).append(session)
        for asking in self._slots.lacking():
            owner = self._slots.yielding(asking.owner, idle)
            if owner is not None:
                self.have_leave(_first(idle, owner))
                continue
            owner = self._slots.yielding(asking.owner, stuck)
            if owner is not None and owner != asking.owner and self._slots.is_entitled(asking.owner):
                self._begin(_first(stuck, owner), forfeit=True)

    def have_leave(self, session: WorkerSession) -> asyncio.Task[None]:
        """Have a session hibernate, if it is idle. It stays where it cannot be written."""
        return self._begin(session, forfeit=False)

    def _begin(self, session: WorkerSession, *, forfeit: bool) -> asyncio.Task[None]:
        if session in self._leaving:
            return self._leaving[session]
        self._slots.leave(session.owner)
        self._counted.add(session)
        task = self._leaving[session] = asyncio.create_task(self._leave(session, forfeit))
        return task

    async def _leave(self, session: WorkerSession, forfeit: bool) -> None:
        try:
            if session.idle and forfeit:
                log.warning("an idle session of %r, which may not be stored, was ended to make room", session.owner)
                await session.forfeit(OwnerFull(f"the session was ended to make room: {self._refused[session][1]}"))
            elif session.idle:
                await session.hibernate()
        except Exception as error:
            self._refuse(session, error)
        finally:
            self._stays(session)
            del self._leaving[session]
            self.make_room()

    def _refuse(self, session: WorkerSession, error: Exception) -> None:
        """Note that a session could not be written."""
        now = time.monotonic()
        self._refused[session] = now, error
        if not isinstance(error, StoreFull) and now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            log.error("an idle session could not be written: %s", reason)

    def _stays(self, session: WorkerSession) -> None:
        """Note that a session is no longer about to leave its slot: it has left, or it stays."""
        if session in self._counted:
            self._counted.discard(session)
            self._slots.stay(session.owner)

    async def close(self) -> None:
        """Wait for the sessions that are leaving."""
        if self._leaving:
            await asyncio.wait(self._leaving.values())


def _first(sessions: dict[str, list[WorkerSession]], owner: str) -> WorkerSession:
    """Take an owner's first session out of the lists."""
    session = sessions[owner].pop(0)
    if not sessions[owner]:
        del sessions[owner]
    return session
