"""Sessions for an asyncio program, in confined worker processes: one owner's sessions share a worker, nobody else's.

A worker holds nothing that cannot be lost: after every turn this process has the pages that changed. When a worker
dies, its sessions go on in another from their last finished turn.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from sandbox.checkpoint import Checkpoint
from sandbox.image import Loaded
from sandbox.limits import Limits
from sandbox.live import Answer, WorkerSession
from sandbox.process import MOST_HELD_BYTES, Process, WorkerLost, started
from sandbox.text import Text
from sandbox.turn import OutputListener, Turn


class PoolFull(Exception):
    """No more sessions fit; the message names the limit."""


class JailMissing(Exception):
    """Workers cannot be confined on this machine, and there would be several owners; the message says why."""


class LiveSession(Protocol):
    """A session somewhere."""

    async def execute(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on."""
        ...

    async def attach(self, name: str, text: Text) -> None:
        """Make `name` in the session a `str` with the characters of `text`, whose source must stay.

        Raises:
            MemoryError: it does not fit into the guest's memory.
            WorkerLost: the process was lost, and so was the one after it.
        """
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

    Without a jail only one owner at a time is served, unless `unconfined` allows it.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        sessions: int,
        spares: int = 1,
        worker_bytes: int = MOST_HELD_BYTES,
        unconfined: bool = False,
    ) -> None:
        self._loaded = loaded
        self._worker_bytes = worker_bytes
        self._most = sessions
        self._unconfined = unconfined
        self._spares_wanted = spares
        self._spares: list[asyncio.Task[Process]] = []
        self._workers: dict[str, asyncio.Task[Process]] = {}
        self._live: set[WorkerSession] = set()
        self._last_session = 0

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        return tuple(self._loaded.images)

    def prepare(self) -> None:
        """Start the spare workers, in the background."""
        while len(self._spares) < self._spares_wanted:
            self._spares.append(asyncio.create_task(started(self._loaded, self._worker_bytes)))

    async def create(self, owner: str, image: str, limits: Limits) -> WorkerSession:
        """Start a session."""
        golden = self._loaded.images[image]
        if len(self._live) >= self._most:
            raise PoolFull(f"this server runs at most {self._most} sessions at once")
        self._last_session += 1
        session = WorkerSession(self, owner, self._last_session, Checkpoint.of(golden), limits)
        self._live.add(session)
        try:
            await session.wake()
        except BaseException:
            await session.close()
            raise
        return session

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker, a new one where it has none that lives."""
        task = self._workers.get(owner)
        if task is None or _is_lost(task):
            lost = [task] if task else []
            while self._spares and _is_lost(self._spares[0]):
                lost.append(self._spares.pop(0))
            task = (
                self._spares.pop(0) if self._spares else asyncio.create_task(started(self._loaded, self._worker_bytes))
            )
            self._workers[owner] = task
            self.prepare()
            for gone in lost:
                await _end(gone)
        process = await asyncio.shield(task)
        if process.unconfined and len(self._workers) > 1 and not self._unconfined:
            raise JailMissing(f"several owners cannot be kept apart here: {process.unconfined}")
        return process

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session; a worker without sessions is ended, never given to another owner."""
        self._live.discard(session)
        if not any(other.owner == session.owner for other in self._live):
            task = self._workers.pop(session.owner, None)
            if task is not None:
                await _end(task)

    async def close(self) -> None:
        """Stop every turn and end every session and worker."""
        for session in list(self._live):
            await session.close()
        for task in [*self._spares, *self._workers.values()]:
            await _end(task)


def _is_lost(task: asyncio.Task[Process]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or not task.result().alive)


async def _end(task: asyncio.Task[Process]) -> None:
    """End a worker, once it has started."""
    with suppress(WorkerLost):
        await (await task).close()
