"""Sessions for an asyncio program, in confined worker processes. Only sessions of the same owner share a worker.

A worker can be lost at any time: after every turn this process has the pages that changed. When a worker dies, its
sessions continue in another worker from their last finished turn. A session hibernates when it has been idle for long,
or when another needs its slot: it is written to a file, and is read back when it is next used.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Protocol
from weakref import WeakValueDictionary

from sandbox.corpora.corpus import Corpus
from sandbox.inputs import InputListener, Inputs
from sandbox.limits import Limits, PoolLimits
from sandbox.pool.disk_threads import DiskThreads, Going
from sandbox.pool.held import Held
from sandbox.pool.live_sessions import LiveSessions
from sandbox.pool.live_slots import Slots
from sandbox.pool.process import Process, WorkerLost, started
from sandbox.pool.records import Beside
from sandbox.pool.sealing import SnapshotRefused
from sandbox.pool.snapshots import Incoming, Restored, SessionStore, Stored
from sandbox.pool.worker_session import Note, WorkerSession
from sandbox.pool.worker_turn import Answer
from sandbox.turn import OutputListener, RestartListener, Turn
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.image import Loaded
from sandbox.vm.instance import Image

DEFAULT = PoolLimits()

IDLE_WORKERS = 8
"""Workers that stay for owners without sessions; where there are more, those that have stayed longest end."""


class JailMissing(Exception):
    """Workers cannot be confined on this machine, so it cannot serve several owners; the message says why."""


class LiveSession(Protocol):
    """A session, wherever it lives."""

    def supply(self, corpora: tuple[Corpus, ...]) -> None:
        """Say which corpora are attached to a session that was taken up, before it wakes."""
        ...

    def keep_note(self, make: Callable[[], Callable[[], bytes]]) -> None:
        """Have `make` make the note that is stored with all of the session, in place of those of its turns so far.

        What it returns is called in a thread, and only where the note is needed.
        """
        ...

    async def fork(self, names: Sequence[str]) -> Sequence[LiveSession]:
        """Make sessions that begin as this is after its last finished turn, kept under these names: all, or none.

        Raises:
            StoreFull: their files do not fit beside the owner's others.
        """
        ...

    async def snapshot(self, name: str, note: bytes) -> int:
        """Keep the state after the last finished turn as a snapshot, with a note. Returns its size in bytes.

        Raises:
            StoreFull: it does not fit beside the owner's others.
        """
        ...

    async def hibernate(self) -> None:
        """Have the session hibernate. A running turn ends first; the next turn wakes it.

        Raises:
            StoreFull, OSError: it cannot be stored; it stays live.
        """
        ...

    async def execute(
        self,
        code: str,
        answer: Answer,
        listener: OutputListener,
        restarted: RestartListener = ...,
        note: Note = ...,
        inputs: Inputs | None = None,
        heard: InputListener = ...,
    ) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on.

        If the worker is lost before the turn made a request, `restarted` is called and the turn runs once more. What
        `note` makes of the turn is stored with it, where the session is kept.

        With `inputs`, the turn is first told what these have noted, and then adds to them what it is told by chance.
        `heard` is called with each addition, before a request is answered that the turn made knowing of it.
        """
        ...

    async def add_note(self, note: bytes) -> None:
        """Store a note with a session that is kept, of what came to be besides its turns."""
        ...

    async def recall(self) -> list[bytes]:
        """Return the notes that were stored with a session that was taken up, which wakes for that.

        Raises:
            SnapshotRefused: what was stored is not as it was written.
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
    def running_seconds(self) -> float:
        """What the turn that is under way has run so far, at least; 0 where none is."""
        ...

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        ...

    @property
    def kept(self) -> bool:
        """Whether its state is stored after each turn, so that it outlives this process."""
        ...

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        ...

    async def put_away(self) -> None:
        """End the session here, as `close`. If it is kept, another process can take it up."""
        ...


class Pool(Protocol):
    """What creates sessions and ends them."""

    async def create(self, owner: str, image: str, limits: Limits, name: str = "") -> LiveSession:
        """Start a session from the golden image of this name. With a name of its own, it is kept.

        Raises:
            KeyError: there is no such image.
            PoolFull: no more sessions fit.
            JailMissing: the machine cannot keep several owners apart.
        """
        ...

    async def create_from(
        self, owner: str, image: str, limits: Limits, snapshot: str, name: str = "", corpora: tuple[Corpus, ...] = ()
    ) -> LiveSession:
        """Start a session from a snapshot, to which these corpora were attached.

        Raises:
            KeyError: there is no such image.
            SnapshotRefused: there is no such snapshot, or it is not as it was written, or has more than the limits say.
            PoolFull: no more sessions fit.
        """
        ...

    def incoming(self, name: str, owner: str) -> AbstractContextManager[Incoming]:
        """Take a snapshot's file from elsewhere, to be kept under a name."""
        ...

    def keep_only(self, names: Container[str], prefix: str = "") -> None:
        """Remove what former processes kept under other names that begin with a prefix: of sessions that ended."""
        ...

    def forget(self, owner: str, name: str) -> None:
        """Remove what is kept under a name of a session that was put away; does nothing where nothing is."""
        ...

    def take_up(
        self, owner: str, image: str, limits: Limits, name: str, corpora: tuple[Corpus, ...] = ()
    ) -> LiveSession:
        """Go on with a session that another process kept under a name. It hibernates until it is used.

        Raises:
            KeyError: there is no such image.
            SnapshotRefused: nothing is stored of it, or it is of another owner or image, or of another secret.
            OSError: its file cannot be read.
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

    At most `sessions` are live at once, shared between owners as `sandbox.pool.live_slots` says, with a reserve of up
    to `reserved`. With a `store`, more sessions exist: an idle session hibernates when another needs its slot, or after
    `rest_seconds`. A session that finds no slot within `slot_seconds` is refused. A worker whose owner has no session
    left stays `idle_worker_seconds` for when the owner comes back. A worker may hold `worker_bytes` of
    memory and runs `worker_turns` turns at once, or as many as there are processors; for one session, `waiting_turns`
    wait in line. Of the requests and replies of one owner, the server holds `held_bytes` at once. Without a jail, only
    one owner at a time is served, unless `unconfined` is set.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        sessions: int,
        spares: int = 1,
        reserved: int = 0,
        slot_seconds: float = DEFAULT.slot_seconds,
        worker_bytes: int = DEFAULT.worker_bytes,
        held_bytes: int = DEFAULT.held_bytes,
        worker_turns: int = DEFAULT.worker_turns,
        waiting_turns: int = DEFAULT.waiting_turns,
        idle_worker_seconds: float = DEFAULT.idle_worker_seconds,
        store: SessionStore | None = None,
        rest_seconds: float = DEFAULT.rest_seconds,
        unconfined: bool = False,
    ) -> None:
        self._loaded = loaded
        self._held_bytes = held_bytes
        self._held: WeakValueDictionary[str, Held] = WeakValueDictionary()  # by owner, for as long as anything is held
        self._worker_bytes, self._worker_turns = worker_bytes, worker_turns
        self._unconfined = unconfined
        self._spares_wanted = spares
        self._spares: list[asyncio.Task[Process]] = []
        self._workers: dict[str, asyncio.Task[Process]] = {}
        self._idle_worker_seconds = idle_worker_seconds
        self._idle: dict[str, asyncio.TimerHandle] = {}
        """Ends the workers of owners that have no session, the next to end first."""
        self._ending: set[asyncio.Task[None]] = set()
        self.store = store
        self._rest_seconds = rest_seconds
        self._sessions: set[WorkerSession] = set()
        self._live = LiveSessions(Slots(sessions, reserved), slot_seconds, stores=store is not None)
        self.threads = DiskThreads()
        self.turn_threads = DiskThreads("turns")  # a turn's few pages do not wait for whole sessions
        self.waiting_turns = waiting_turns
        self._last_session = 0
        self._ended_seconds: defaultdict[str, float] = defaultdict(float)
        """Of workers that have ended, what nobody has taken yet: see `take_worker_seconds`."""
        self._host_seconds: defaultdict[str, float] = defaultdict(float)
        """The same of this process: see `take_host_seconds`."""
        self._hibernator: asyncio.Task[None] | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        return tuple(self._loaded.images)

    @property
    def live(self) -> int:
        """How many sessions are live, not hibernating."""
        return len(self._live)

    @property
    def unkept(self) -> int:
        """How many sessions with a name are not kept, as their state could not be stored."""
        return sum(bool(session.name) and not session.kept for session in self._sessions)

    @property
    def workers(self) -> int:
        """How many owners have a worker process."""
        return len(self._workers)

    def keep_only(self, names: Container[str], prefix: str = "") -> None:
        """Remove what former processes kept under other names that begin with a prefix: of sessions that ended."""
        if self.store is not None:
            self.store.keep_only(names, prefix)

    def forget(self, owner: str, name: str) -> None:
        """Remove what is kept under a name of a session that was put away; does nothing where nothing is."""
        if self.store is not None:
            self.store.forget(name, owner)

    def incoming(self, name: str, owner: str) -> AbstractContextManager[Incoming]:
        """Take a snapshot's file from elsewhere, to be kept under a name."""
        return self._store().incoming(name, owner, self._loaded.images)

    def take_host_seconds(self) -> Mapping[str, float]:
        """Return the seconds of processor time that each owner's sessions took of this process since the last call.

        That is writing and reading stored ones, and reading what their worker sends, and writing the answers.
        """
        taken, self._host_seconds = self._host_seconds, defaultdict(float)
        for threads in (self.threads, self.turn_threads):
            for owner, seconds in threads.take_host_seconds().items():
                taken[owner] += seconds
        for owner, task in self._workers.items():
            if task.done() and not _is_lost(task):
                taken[owner] += task.result().take_host_seconds()
        return {owner: seconds for owner, seconds in taken.items() if seconds}

    def take_worker_seconds(self, owner: str) -> float:
        """Return those that an owner's worker took since the last call, besides running turns of code."""
        task = self._workers.get(owner)
        running = task.result().take_own_seconds() if task is not None and task.done() and not _is_lost(task) else 0.0
        ended: float = self._ended_seconds.pop(owner, 0.0)
        return running + ended

    def prepare(self) -> None:
        """Start the spare workers, in the background."""
        while len(self._spares) < self._spares_wanted:
            self._spares.append(self._start())

    async def create(self, owner: str, image: str, limits: Limits, name: str = "") -> WorkerSession:
        """Start a session. With a name it is kept under it: `take_up` in another process goes on with it."""
        golden = self._loaded.images[image]
        return await self._begun(self._made(owner, golden, limits, Checkpoint.of(golden), name))

    async def _begun(self, session: WorkerSession) -> WorkerSession:
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session

    def take_up(
        self, owner: str, image: str, limits: Limits, name: str, corpora: tuple[Corpus, ...] = ()
    ) -> WorkerSession:
        """Go on with a session that another process kept under a name. It hibernates until it is used.

        `corpora` are those attached to it. More of its file than the header is not looked at before it wakes.

        Raises:
            KeyError: there is no such image.
            SnapshotRefused: nothing is stored of it, or it is of another owner or image, or of another secret.
            OSError: its file cannot be read.
        """
        store, golden = self._store(), self._loaded.images[image]
        return self._made(owner, golden, limits, store.find(name, owner, golden), name, corpora)

    async def fork(self, session: WorkerSession, names: Sequence[str]) -> list[WorkerSession]:
        """Make sessions that begin as another is after its last finished turn, kept under these names: all, or none.

        They hibernate until they are used.

        Raises:
            StoreFull: their files do not fit beside the owner's others.
            TooManyTurns, SessionClosed, SnapshotRefused, OSError: as `WorkerSession.with_state`.
        """
        store = self._store()
        made: list[Stored] = []

        def write(state: Checkpoint, seen: Sequence[int], go_on: Callable[[], None]) -> tuple[Corpus, ...]:
            made.extend(store.put(state, session.owner, go_on, name=name, beside=Beside(seen)) for name in names)
            return state.layout.corpora

        try:
            corpora = await session.with_state(write)
        except BaseException:
            for one in made:
                store.remove(one, session.owner)
            raise
        return [
            self._made(session.owner, session.image, session.limits, stored, name, corpora)
            for name, stored in zip(names, made, strict=True)
        ]

    async def snapshot(self, session: WorkerSession, name: str, note: bytes) -> int:
        """Keep a session's state after its last finished turn as a snapshot, with a note. Returns its size in bytes.

        Raises:
            StoreFull: it does not fit beside the owner's others.
            TooManyTurns, SessionClosed, SnapshotRefused, OSError: as `WorkerSession.with_state`.
        """
        store = self._store()

        def write(state: Checkpoint, seen: Sequence[int], go_on: Callable[[], None]) -> int:
            return store.put_snapshot(name, state, session.owner, Beside(seen, note), go_on).size

        try:
            return await session.with_state(write)
        except BaseException:
            store.remove_snapshot(name, session.owner)
            raise

    async def create_from(
        self,
        owner: str,
        image: str,
        limits: Limits,
        snapshot: str,
        name: str = "",
        corpora: tuple[Corpus, ...] = (),
    ) -> WorkerSession:
        """Start a session from a snapshot, as `create`. `corpora` are those attached to it.

        Raises:
            KeyError: there is no such image.
            SnapshotRefused: there is no such snapshot, or it is not as it was written, or has more than the limits say.
            PoolFull, OSError: no more sessions fit; it cannot be read.
        """
        store, golden = self._store(), self._loaded.images[image]
        going = Going()

        def read() -> Restored:
            stored = store.find_snapshot(snapshot, owner, golden)
            return store.get(stored, owner, golden, corpora, going.check, limits)

        found = await self.threads.run(owner, going, read)
        session = self._made(owner, golden, limits, found.checkpoint, name)
        session.saw(found.seen)
        return await self._begun(session)

    def _store(self) -> SessionStore:
        if self.store is None:
            raise SnapshotRefused("no sessions are stored here")
        return self.store

    def _made(
        self,
        owner: str,
        image: Image,
        limits: Limits,
        state: Checkpoint | Stored,
        name: str,
        corpora: tuple[Corpus, ...] = (),
    ) -> WorkerSession:
        self._last_session += 1
        session = WorkerSession(self, owner, self._last_session, image, limits, state, name=name, corpora=corpora)
        self._sessions.add(session)
        return session

    # ---- for sessions --------------------------------------------------------------------------------------------

    async def admit(self, session: WorkerSession) -> None:
        """Give a session a slot among the live ones. Where there is none for its owner, it waits for one.

        Raises:
            PoolFull: there was no room in time.
            Abandoned: `give_up` was called.
        """
        try:
            await self._live.enter(session)
        except BaseException:
            await self._end_unused(session.owner)
            raise
        if self.store and self._hibernator is None:
            self._hibernator = asyncio.create_task(self._hibernate_idle_sessions())

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use, so that it is the last of its owner's to hibernate."""
        self._live.used(session)

    def rested(self) -> None:
        """Note that a turn has ended, so that its session may make room for others."""
        self._live.make_room()

    def give_up(self, session: WorkerSession) -> None:
        """Have a session that waits for a slot wait no longer."""
        self._live.give_up(session)

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker. Where the owner has no live worker, a new one is taken."""
        self._come_back(owner)
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
        held = self._held.get(owner)
        if held is None:
            held = self._held[owner] = Held(self._held_bytes)
        process.held = held
        if process.unconfined and len(self._workers) > 1 and not self._unconfined:
            raise JailMissing(f"several owners cannot be kept apart here: {process.unconfined}")
        return process

    def _start(self) -> asyncio.Task[Process]:
        return asyncio.create_task(started(self._loaded, self._worker_bytes, self._worker_turns))

    async def left(self, session: WorkerSession) -> None:
        """Free a session's slot."""
        self._live.left(session)
        await self._end_unused(session.owner)

    async def _end_unused(self, owner: str) -> None:
        """End an owner's worker that has no sessions left, or let it stay a while. No other owner ever gets it."""
        if self._live.any_of(owner) or owner not in self._workers:
            return
        task = self._workers[owner]
        if self._idle_worker_seconds and task.done() and not _is_lost(task) and not task.result().unconfined:
            self._stay(owner)
        else:
            await asyncio.shield(self._end_of(owner))

    def _stay(self, owner: str) -> None:
        """Let the worker of an owner without sessions be for a while."""
        self._come_back(owner)
        self._idle[owner] = asyncio.get_running_loop().call_later(self._idle_worker_seconds, self._end_of, owner)
        while len(self._idle) > IDLE_WORKERS:
            self._end_of(next(iter(self._idle)))

    def _come_back(self, owner: str) -> None:
        """Note that an owner needs its worker."""
        if owner in self._idle:
            self._idle.pop(owner).cancel()

    def _end_of(self, owner: str) -> asyncio.Task[None]:
        """End an owner's worker."""
        self._come_back(owner)
        task = self._workers.pop(owner)
        if task.done() and not _is_lost(task):
            self._ended_seconds[owner] += task.result().take_own_seconds()
            self._host_seconds[owner] += task.result().take_host_seconds()
        return self._end(task)

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        await self.left(session)

    # ---- hibernation and the end ---------------------------------------------------------------------------------

    async def _hibernate_idle_sessions(self) -> None:
        while True:
            await asyncio.sleep(self._rest_seconds / 4)
            for session, seconds in self._live.idle_seconds():
                if seconds > self._rest_seconds:
                    await self._live.have_leave(session)
                elif seconds > self._rest_seconds / 4:
                    session.trim()

    async def close(self) -> None:
        """Stop every turn and end every session and worker. Kept sessions can be taken up by another process."""
        if self._hibernator:
            self._hibernator.cancel()
            await asyncio.wait([self._hibernator])
        for session in self._sessions:
            session.give_up()
        for session in list(self._sessions):
            await session.put_away()
        await self._live.close()
        for owner in list(self._idle):
            self._end_of(owner)
        for task in [*self._spares, *self._workers.values()]:
            self._end(task)
        if self._ending:
            await asyncio.wait(self._ending)
        self.threads.close()
        self.turn_threads.close()

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
