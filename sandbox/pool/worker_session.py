"""A session of a pool: it lives in a worker process, and outlives it, since the pool has its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json, granted, parse, refused
from sandbox.limits import Limits
from sandbox.pool.process import Process, WorkerLost
from sandbox.pool.snapshots import SessionStore
from sandbox.turn import OutputListener, Status, Stop, Turn, TurnError
from sandbox.vm.checkpoint import Checkpoint
from sandbox.wire.frames import Frame, Kind, WireError
from sandbox.wire.sessions import take_end, write_corpus

log = logging.getLogger(__name__)

INTERRUPT_SECONDS = 5.0
"""A worker that has not stopped a turn by then is killed."""
INTERRUPT_EVERY = 0.05
TURN_SLACK_SECONDS = 10.0
"""A worker that runs a turn for so much longer than it may is killed."""

Answer = Callable[[HostCall], Awaitable[Json]]
"""Answers the guest's requests; a `DoorRefusal` it raises is raised inside the guest."""


class SessionHost(Protocol):
    """Where sessions live: what one needs of its pool."""

    store: SessionStore | None

    async def admit(self, session: WorkerSession) -> None:
        """Give a session a place among the live ones."""
        ...

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use."""
        ...

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker, a new one where it has none that lives."""
        ...

    async def left(self, session: WorkerSession) -> None:
        """Take away a session's place."""
        ...

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session."""
        ...


class WorkerSession:
    """A session of a `WorkerPool`; one turn at a time, others wait. It outlives its worker."""

    def __init__(self, home: SessionHost, owner: str, number: int, checkpoint: Checkpoint, limits: Limits) -> None:
        self.owner = owner
        self.number = number
        self.limits = limits
        self.image = checkpoint.image
        self.private_bytes = 0
        """Bytes of memory that are the session's own."""
        self.checkpoint: Checkpoint | None = checkpoint
        """The state after the last finished turn; None while it hibernates."""
        self._corpora: tuple[Corpus, ...] = ()  # while it hibernates
        self.seen: list[int] = []
        """Of each corpus, the blocks code has looked at, in undone turns too: see `sandbox.corpora.coverage`."""
        self._stored: Path | None = None
        self._home = home
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self._trimmed = False  # since the last turn
        self._turn: _Turn | None = None

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """What was attached, in order."""
        return self.checkpoint.layout.corpora if self.checkpoint else self._corpora

    @property
    def idle(self) -> bool:
        """Whether no turn is running or waiting to."""
        return not self._one_at_a_time.locked()

    async def begin(self) -> None:
        """Bring the session, which is new, into a worker."""
        async with self._one_at_a_time:
            await self.wake()

    async def wake(self) -> tuple[Process, Checkpoint]:
        """Return the process the session lives in and its state, after bringing it there where it is in none.

        Raises:
            PoolFull, JailMissing, WorkerLost: there is no place for it.
            SnapshotRefused: its stored form is not as it was written.
            OSError: its stored form, or a file of a corpus, cannot be read.
        """
        process, checkpoint = self._process, self.checkpoint
        if process is not None and process.alive and checkpoint is not None:
            self._home.used(self)
            return process, checkpoint
        await self._home.admit(self)
        try:
            if checkpoint is None:
                checkpoint = await self._read()
            process = await self._home.worker(self.owner)
            process.open(self.number, checkpoint, self.limits)
        except BaseException:
            if self.checkpoint is None:  # it has not come back, and takes no place
                await self._home.left(self)
            raise
        self._process = process
        return process, checkpoint

    async def _read(self) -> Checkpoint:
        store, path = self._home.store, self._stored
        if store is None or path is None:
            raise RuntimeError("the session is closed")

        def read() -> Checkpoint:
            self.checkpoint, self._stored = store.get(path, self.owner, self.image, self._corpora), None
            path.unlink(missing_ok=True)
            return self.checkpoint

        return await run_to_completion(asyncio.to_thread(read))

    async def hibernate(self) -> None:
        """Write the session to a file and free all it holds; the next turn brings it back. A running turn ends first.

        Raises:
            OSError: it cannot be written; the session stays as it is.
        """
        async with self._one_at_a_time:
            store, checkpoint = self._home.store, self.checkpoint
            if self._closed or store is None or checkpoint is None:
                return

            def write() -> None:
                self._stored = store.put(checkpoint, self.owner)

            try:
                await run_to_completion(asyncio.to_thread(write))
            except asyncio.CancelledError:
                if self._stored:
                    self._stored.unlink(missing_ok=True)
                    self._stored = None
                raise
            self._corpora = checkpoint.layout.corpora
            self.checkpoint = None
            if self._process and self._process.alive:
                self._process.leave(self.number)
            self._process = None
            checkpoint.close()
            await self._home.left(self)

    async def attach(self, name: str, corpus: Corpus) -> None:
        """Make `name` in the session a `str`, or a sequence of them, with the characters of a corpus.

        Raises:
            MemoryError: a text does not fit into the guest's memory.
            CorpusDamaged: it cannot be mapped.
            WorkerLost: the process was lost, and so was the one after it.
            OSError: a file of the corpus cannot be opened.
        """

        def ask(process: Process) -> Frame:
            header = {"name": name, "corpus": write_corpus(corpus, process.hand_over)}
            return Frame(Kind.ATTACH, self.number, header=header)

        turn = await self._run(ask, _nothing_to_ask, _unheard, corpus)
        if turn.error:
            failure = _FAILURES.get(turn.error.type, CorpusDamaged)
            raise failure(f"the text could not be attached: {turn.error.message}")

    async def execute(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on."""
        frame = Frame(Kind.EXECUTE, self.number, data=code.encode("utf-8", "surrogatepass"))
        return await self._run(lambda _: frame, answer, listener, None)

    async def _run(
        self, ask: Callable[[Process], Frame], answer: Answer, listener: OutputListener, corpus: Corpus | None
    ) -> Turn:
        """Run a turn. One that is lost with its worker before it asked for anything is run once more."""
        async with self._one_at_a_time:
            turn = _Turn(self, answer, listener, corpus)
            ended = await self._take(turn, ask)
            if ended.error and ended.error.type is Stop.WORKER_LOST and not turn.asked:
                ended = await self._take(_Turn(self, answer, listener, corpus), ask)
            return ended

    async def _take(self, turn: _Turn, ask: Callable[[Process], Frame]) -> Turn:
        if self._closed:
            raise RuntimeError("the session is closed")
        self._turn, self._trimmed = turn, False
        try:
            return await turn.run(ask)
        finally:
            self._turn = None

    def saw(self, seen: list[int]) -> None:
        """Note which blocks of each corpus a turn has looked at."""
        self.seen += [0] * (len(seen) - len(self.seen))
        for number, blocks in enumerate(seen):
            self.seen[number] |= blocks

    def trim(self) -> None:
        """Free memory that is held only so that the next turn is quick; does nothing while a turn runs."""
        if self.idle and self.checkpoint and not self._trimmed:
            self.checkpoint.pages.trim()
            self._trimmed = True

    def interrupt(self) -> None:
        """Stop the running turn and roll it back; does nothing between turns."""
        if self._turn:
            self._turn.stop()

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        if self._closed:
            return
        self._closed = True
        self.interrupt()
        async with self._one_at_a_time:
            if self._process and self._process.alive:
                self._process.leave(self.number)
            if self.checkpoint:
                self.checkpoint.close()
            if self._stored:
                self._stored.unlink(missing_ok=True)
            await self._home.ended(self)


class _Turn:
    """One turn in a worker: what it asks for is answered, what it prints is heard, and it ends or is ended."""

    def __init__(self, session: WorkerSession, answer: Answer, listener: OutputListener, corpus: Corpus | None) -> None:
        self._session, self._answer, self._listener, self._corpus = session, answer, listener, corpus
        self._loop = asyncio.get_running_loop()
        self._answering: set[asyncio.Task[None]] = set()
        self._process: Process | None = None
        self._checkpoint: Checkpoint | None = None
        self._ended: asyncio.Future[Turn] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._interrupting: asyncio.TimerHandle | None = None
        self.asked = False
        """Whether the turn has asked for anything, so that running it again would repeat that."""

    async def run(self, ask: Callable[[Process], Frame]) -> Turn:
        """Run the turn to its end. Cancelling stops it first, and waits until it has stopped."""
        number = self._session.number
        try:
            process, self._checkpoint = await self._session.wake()
            self._process = process
            if self._stopped:
                return undone(Stop.INTERRUPTED, "the turn was interrupted")
            process.follow(number, self._heard)
            try:
                process.send(ask(process))
                self._time()
                return await self._wait()
            finally:
                process.unfollow(number)
        except WorkerLost as lost:
            return undone(Stop.WORKER_LOST, f"{lost}; {_AS_BEFORE}")
        finally:
            for timer in (self._timer, self._interrupting):
                if timer:
                    timer.cancel()
            if self._answering:
                await self._settle()

    async def _wait(self) -> Turn:
        try:
            return await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([self._ended])
            self._ended.exception()  # what it was is of no more interest
            raise

    def stop(self) -> None:
        """Stop the turn; a worker that does not is killed."""
        if not self._stopped:
            self._stopped = True
            self._interrupt(INTERRUPT_SECONDS)

    def _interrupt(self, seconds_left: float) -> None:
        for task in self._answering:
            task.cancel()
        if self._process is None:
            return
        if seconds_left <= 0:
            self._process.kill()
            return
        # Said again until it is heard: the worker may be about to start the turn, or to ask for something.
        self._process.send(Frame(Kind.INTERRUPT, self._session.number))
        self._interrupting = self._loop.call_later(INTERRUPT_EVERY, self._interrupt, seconds_left - INTERRUPT_EVERY)

    async def _settle(self) -> None:
        """Wait until nothing the turn asked for is still being answered."""
        for task in self._answering:
            task.cancel()
        await asyncio.wait(self._answering)

    # ---- what the worker says ------------------------------------------------------------------------------------

    def _heard(self, frame: Frame | None) -> None:
        if self._ended.done():
            return
        if frame is None:
            self._ended.set_exception(WorkerLost("the process that ran the turn died"))
            return
        match frame.kind:
            case Kind.OUTPUT:
                self._listener(frame.number, frame.data)
            case Kind.CALL:
                self.asked = True
                task = self._loop.create_task(self._reply(frame))
                self._answering.add(task)
                task.add_done_callback(self._answered)
                self._time()
            case Kind.DONE:
                self._take(frame)
            case Kind.FAILED:
                self._ended.set_result(undone("MemoryError", str(frame.header.get("message"))))

    def _take(self, frame: Frame) -> None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        try:
            turn, seen = take_end(frame, checkpoint, self._corpus)
            self._session.saw(seen)
            self._session.private_bytes = checkpoint.private_bytes
            self._ended.set_result(turn)
        except WireError as error:
            log.error("a worker was killed: it sent %s", error)  # noqa: TRY400
            if self._process:
                self._process.kill()
            self._ended.set_exception(WorkerLost("the process that ran the turn was killed"))

    def _time(self) -> None:
        """Begin the turn's time anew, or let it rest while something is being answered."""
        if self._timer:
            self._timer.cancel()
        limit = self._session.limits.turn_seconds + TURN_SLACK_SECONDS
        self._timer = None if self._answering else self._loop.call_later(limit, self._hung)

    def _hung(self) -> None:
        if self._process:
            self._process.kill()
        if not self._ended.done():
            self._ended.set_exception(WorkerLost("the process that ran the turn hung and was killed"))

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not self._ended.done():
            self._time()

    async def _reply(self, frame: Frame) -> None:
        try:
            reply = granted(await self._answer(parse(frame.data)))
        except DoorRefusal as refusal:
            reply = refused(refusal.type, str(refusal))
        except asyncio.CancelledError:
            self.stop()
            return
        except Exception:
            log.exception("a host call failed")
            reply = refused("RuntimeError", "the host could not answer; this is a fault of the server's")
        if self._process and self._process.alive:
            self._process.send(Frame(Kind.REPLY, self._session.number, frame.number, data=reply))


_FAILURES: dict[str, type[Exception]] = {"MemoryError": MemoryError, **dict.fromkeys(Stop, WorkerLost)}

_AS_BEFORE = "the session is as it was before this turn"


def undone(type: str, message: str) -> Turn:
    """Return the end of a turn that left no trace."""
    return Turn(Status.ROLLED_BACK, "", "", 0, False, 0.0, 0, TurnError(type, message))


async def _nothing_to_ask(call: HostCall) -> Json:
    raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")


def _unheard(_stream: int, _data: bytes) -> None:
    pass
