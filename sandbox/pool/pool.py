"""Sessions for an asyncio program, in confined worker processes. Only sessions of the same owner share a worker.

A worker can be lost at any time: after every turn this process has the pages that changed. When a worker dies, its
sessions continue in another worker from their last finished turn. A session hibernates when it has been idle for long,
or when another needs its slot: it is written to a file, and is read back when it is next used.
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
    """Workers cannot be confined on this machine, so it cannot serve several owners; the message says why."""


class LiveSession(Protocol):
    """A session, wherever it lives."""

    async def execute(
        self, code: str, answer: Answer, listener: OutputListener, restarted: RestartListener = ...
    ) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on.

        If the worker is lost before the turn made a request, `restarted` is called and the turn runs once more.
        """
        ...

    async def attach(self, name: str, corpus: Corpus) -> None:
        """Make `name` in the session a `str`, or a sequence of them, with the characters of a corpus.

        The files of the corpus must stay as long as the session.

        Raises:
            MemoryError: a text does not fit into the guest's memory.
            WorkerLost: the worker was lost, and so was the one that replaced it.
        """
        ...

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The attached corpora, in order."""
        ...

    @property
    def seen(self) -> list[int]:
        """For each corpus, the blocks that code has looked at: see `sandbox.corpora.coverage`."""
        ...

    def saw(self, seen: list[int]) -> None:
        """Note, for each corpus, blocks that were shown to code without its reading them itself."""
        ...

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        ...

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        ...


class Pool(Protocol):
    """What creates sessions and ends them."""

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
    """Sessions in worker processes. `spares` workers are kept loaded, so that a new owner need not wait for one.

    At most `sessions` are live at once. With a `store`, more sessions exist: an idle session hibernates when another
    needs its slot, or after `rest_seconds`. Without a store, a session beyond the limit is refused. A worker may hold
    `worker_bytes` of memory. Without a jail, only one owner at a time is served, unless `unconfined` is set.
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
        self._live: dict[WorkerSession, float] = {}  # when each was last used, the longest idle first
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

    # ---- for sessions --------------------------------------------------------------------------------------------

    async def admit(self, session: WorkerSession) -> None:
        """Give a session a slot among the live ones. Where all slots are taken, an idle session hibernates.

        Raises:
            PoolFull: no session is idle, there is no store, or the idle session could not be written.
        """
        while session not in self._live and len(self._live) >= self._most:
            idle = next((other for other in self._live if other.idle), None)
            if idle is None or self.store is None:
                raise PoolFull(f"this server runs at most {self._most} sessions at once")
            try:
                await idle.hibernate()
            except OSError as error:
                log.exception("an idle session could not be written")
                raise PoolFull(
                    f"no place could be made: an idle session could not be written: {error.strerror}"
                ) from None
        self.used(session)
        if self.store and self._hibernator is None:
            self._hibernator = asyncio.create_task(self._hibernate_idle_sessions())

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use, so that it is the last of the live ones to hibernate."""
        self._live.pop(session, None)
        self._live[session] = time.monotonic()

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker. Where the owner has no live worker, a new one is taken."""
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
        """Free a session's slot. A worker left without sessions is ended, never given to another owner."""
        self._live.pop(session, None)
        if not any(other.owner == session.owner for other in self._live):
            task = self._workers.pop(session.owner, None)
            if task is not None:
                await asyncio.shield(self._end(task))

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        await self.left(session)

    # ---- hibernation and the end ---------------------------------------------------------------------------------

    async def _hibernate_idle_sessions(self) -> None:
        while True:
            await asyncio.sleep(self._rest_seconds / 4)
            now = time.monotonic()
            idle = [(session, now - since) for session, since in self._live.items() if session.idle]
            for session, seconds in idle:
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
        """End a worker once it has started. A caller may stop waiting for that; `close` waits for all of them."""
        ending = asyncio.create_task(_ended(worker))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending


def _is_lost(task: asyncio.Task[Process]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or not task.result().alive)


async def _ended(worker: asyncio.Task[Process]) -> None:
    with suppress(WorkerLost):
        await (await worker).close()
