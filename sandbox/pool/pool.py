"""Sessions for an asyncio program, in confined worker processes: one owner's sessions share a worker, nobody else's.

A worker holds nothing that cannot be lost: after every turn this process has the pages that changed. When a worker
dies, its sessions go on in another from their last finished turn. A session that is idle for long, or whose place is
wanted, hibernates: it is written to a file, and comes back when it is used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Protocol

from sandbox.corpora.corpus import Corpus
from sandbox.limits import Limits, PoolLimits
from sandbox.pool.process import Process, WorkerLost, started
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.pool.worker_turn import Answer
from sandbox.turn import OutputListener, RestartListener, Turn
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.image import Loaded

log = logging.getLogger(__name__)

DEFAULT = PoolLimits()


class PoolFull(Exception):
    """No more sessions fit; the message names the limit."""


class JailMissing(Exception):
    """Workers cannot be confined on this machine, and there would be several owners; the message says why."""


class LiveSession(Protocol):
    """A session somewhere."""

    async def execute(
        self, code: str, answer: Answer, listener: OutputListener, restarted: RestartListener = ...
    ) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on.

        Where its worker is lost before it asked for anything, `restarted` is told, and the turn runs once more.
        """
        ...

    async def attach(self, name: str, corpus: Corpus) -> None:
        """Make `name` in the session a `str`, or a sequence of them, with the characters of a corpus, which must stay.

        Raises:
            MemoryError: a text does not fit into the guest's memory.
            WorkerLost: the process was lost, and so was the one after it.
        """
        ...

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """What was attached, in order."""
        ...

    @property
    def seen(self) -> list[int]:
        """Of each corpus, the blocks code has looked at: see `sandbox.corpora.coverage`."""
        ...

    def saw(self, seen: list[int]) -> None:
        """Note that code was shown blocks of each corpus otherwise than by reading them itself."""
        ...

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        ...

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        ...


class Pool(Protocol):
    """A place where sessions live."""

    async def create(self, owner: str, image: str, limits: Limits) -> LiveSession:
        """Start a session from the golden image of this name.

        Raises:
            KeyError: there is no such image.
            PoolFull: no more sessions fit.
            JailMissing: the machine cannot keep several owners apart.
        """
        ...

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        ...

    async def close(self) -> None:
        """Stop every turn and end every session."""
        ...


class WorkerPool:
    """Sessions in worker processes. `spares` workers wait, loaded, so that a new owner need not wait for one.

    At most `sessions` are live at once. With a `store` others hibernate: those that rest when a place is wanted, and
    those that have rested for `rest_seconds`; without one there are no others. A worker may hold `worker_bytes` of
    memory. Without a jail only one owner at a time is served, unless `unconfined` allows it.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        sessions: int,
        spares: int = 1,
        worker_bytes: int = DEFAULT.worker_bytes,
        store: SessionStore | None = None,
        rest_seconds: float = DEFAULT.rest_seconds,
        unconfined: bool = False,
    ) -> None:
        self._loaded = loaded
        self._most = sessions
        self._worker_bytes = worker_bytes
        self._unconfined = unconfined
        self._spares_wanted = spares
        self._spares: list[asyncio.Task[Process]] = []
        self._workers: dict[str, asyncio.Task[Process]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.store = store
        self._rest_seconds = rest_seconds
        self._sessions: set[WorkerSession] = set()
        self._live: dict[WorkerSession, float] = {}  # since when each is idle, the longest first
        self._last_session = 0
        self._hibernator: asyncio.Task[None] | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        return tuple(self._loaded.images)

    @property
    def live(self) -> int:
        """How many sessions are live, not hibernating."""
        return len(self._live)

    def prepare(self) -> None:
        """Start the spare workers, in the background."""
        while len(self._spares) < self._spares_wanted:
            self._spares.append(self._start())

    async def create(self, owner: str, image: str, limits: Limits) -> WorkerSession:
        """Start a session."""
        golden = self._loaded.images[image]
        self._last_session += 1
        session = WorkerSession(self, owner, self._last_session, Checkpoint.of(golden), limits)
        self._sessions.add(session)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    # ---- what sessions ask of it ---------------------------------------------------------------------------------

    async def admit(self, session: WorkerSession) -> None:
        """Give a session a place among the live ones; where there is none, one that is idle hibernates.

        Raises:
            PoolFull: none is idle.
        """
        while session not in self._live and len(self._live) >= self._most:
            resting = next((other for other in self._live if other.idle), None)
            if resting is None or self.store is None:
                raise PoolFull(f"this server runs at most {self._most} sessions at once")
            try:
                await resting.hibernate()
            except OSError as error:
                log.exception("an idle session could not be written")
                raise PoolFull(
                    f"no place could be made: an idle session could not be written: {error.strerror}"
                ) from None
        self.used(session)
        if self.store and self._hibernator is None:
            self._hibernator = asyncio.create_task(self._hibernate_idle_sessions())

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use: of the live ones it is the last to hibernate."""
        self._live.pop(session, None)
        self._live[session] = time.monotonic()

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker, a new one where it has none that lives."""
        task = self._workers.get(owner)
        if task is None or _is_lost(task):
            lost = [task] if task else []
            while self._spares and _is_lost(self._spares[0]):
                lost.append(self._spares.pop(0))
            task = self._spares.pop(0) if self._spares else self._start()
            self._workers[owner] = task
            self.prepare()
            for gone in lost:
                self._end(gone)
        process = await asyncio.shield(task)
        if process.unconfined and len(self._workers) > 1 and not self._unconfined:
            raise JailMissing(f"several owners cannot be kept apart here: {process.unconfined}")
        return process

    def _start(self) -> asyncio.Task[Process]:
        return asyncio.create_task(started(self._loaded, self._worker_bytes))

    async def left(self, session: WorkerSession) -> None:
        """Take away a session's place; a worker without sessions is ended, never given to another owner."""
        self._live.pop(session, None)
        if not any(other.owner == session.owner for other in self._live):
            task = self._workers.pop(session.owner, None)
            if task is not None:
                await asyncio.shield(self._end(task))

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        await self.left(session)

    # ---- rest ----------------------------------------------------------------------------------------------------

    async def _hibernate_idle_sessions(self) -> None:
        while True:
            await asyncio.sleep(self._rest_seconds / 4)
            now = time.monotonic()
            resting = [(session, now - since) for session, since in self._live.items() if session.idle]
            for session, seconds in resting:
                if seconds > self._rest_seconds:
                    try:
                        await session.hibernate()
                    except OSError:
                        log.exception("an idle session could not be written")
                elif seconds > self._rest_seconds / 4:
                    session.trim()

    async def close(self) -> None:
        """Stop every turn and end every session and worker."""
        if self._hibernator:
            self._hibernator.cancel()
            await asyncio.wait([self._hibernator])
        for session in list(self._sessions):
            await session.close()
        for task in [*self._spares, *self._workers.values()]:
            self._end(task)
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, worker: asyncio.Task[Process]) -> asyncio.Task[None]:
        """End a worker, once it has started. Whoever waits for that may stop waiting; `close` does wait."""
        ending = asyncio.create_task(_ended(worker))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending


def _is_lost(task: asyncio.Task[Process]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or not task.result().alive)


async def _ended(worker: asyncio.Task[Process]) -> None:
    with suppress(WorkerLost):
        await (await worker).close()
