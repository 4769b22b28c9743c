"""A session of a pool. It lives in a worker process, and outlives it because the pool has its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.inputs import InputListener, Inputs
from sandbox.limits import Limits
from sandbox.pool.disk_threads import Abandoned, DiskThreads
from sandbox.pool.process import Process, WorkerLost
from sandbox.pool.session_file import SessionFile, T, Work
from sandbox.pool.snapshots import Restored, SessionStore, Stored, StoreFull
from sandbox.pool.worker_turn import Answer, WorkerTurn
from sandbox.turn import OutputListener, RestartListener, Status, Stop, Turn, TurnError
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.instance import Image
from sandbox.wire.frames import Frame, Kind, WireError
from sandbox.wire.sessions import Ended, read_end, write_corpus
from sandbox.wire.turns import Observed, read_failure, write_turn_request

log = logging.getLogger(__name__)

Note = Callable[[Turn], bytes]
"""Makes what is to be stored with a turn that has ended, and with it alone."""

Ask = Callable[[Process, int], Frame]
"""Makes the frame that asks a worker for the turn of a number."""


class SessionHost(Protocol):
    """What a session needs of its pool."""

    store: SessionStore | None
    threads: DiskThreads
    turn_threads: DiskThreads
    """Those that store what a turn changed."""
    waiting_turns: int
    """How many turns may wait in line for one session."""

    async def admit(self, session: WorkerSession) -> None:
        """Give a session a slot among the live ones."""
        ...

    def used(self, session: WorkerSession) -> None:
        """Note that a session is in use."""
        ...

    def rested(self) -> None:
        """Note that a turn has ended."""
        ...

    def give_up(self, session: WorkerSession) -> None:
        """Have a session that waits for a slot wait no longer."""
        ...

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker. Where the owner has no live worker, a new one is taken."""
        ...

    async def left(self, session: WorkerSession) -> None:
        """Free a session's slot."""
        ...

    async def ended(self, session: WorkerSession) -> None:
        """Forget a session."""
        ...

    async def fork(self, session: WorkerSession, names: Sequence[str]) -> list[WorkerSession]:
        """Make sessions that begin as another is."""
        ...

    async def snapshot(self, session: WorkerSession, name: str, note: bytes) -> int:
        """Keep a session's state as a snapshot."""
        ...


class SessionClosed(RuntimeError):
    """The session was closed, perhaps while somebody waited for it."""

    def __init__(self) -> None:
        super().__init__("the session is closed")


class TooManyTurns(Exception):
    """As many turns wait for the session as may; the message names the limit."""


class WorkerSession:
    """A session of a `WorkerPool`. It runs one turn at a time, and others wait. It outlives its worker.

    One with a name is kept: its state after each turn is stored before anybody is told of the turn's end, and another
    process can take it up.
    """

    def __init__(
        self,
        host: SessionHost,
        owner: str,
        number: int,
        image: Image,
        limits: Limits,
        state: Checkpoint | Stored,
        *,
        name: str = "",
        corpora: tuple[Corpus, ...] = (),
    ) -> None:
        """Make a session of a state. `corpora` are those of a stored one."""
        self.owner = owner
        self.number = number
        self.limits = limits
        self.image = image
        self.name = name
        self.private_bytes = 0
        """Bytes of memory that are the session's own."""
        self.checkpoint: Checkpoint | None = None if isinstance(state, Stored) else state
        """The state after the last finished turn; None while it hibernates."""
        self._corpora = corpora  # while it hibernates
        self.seen: list[int] = []
        """For each corpus, the blocks code has looked at, in undone turns too: see `sandbox.corpora.coverage`."""
        self._file: SessionFile | None = None
        if host.store is not None:
            stored = state if isinstance(state, Stored) else None
            self._file = SessionFile(host.store, host.threads, host.turn_threads, owner, name, stored)
        self._host = host
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._in_line = 0  # turns that wait for the one that runs
        self._forfeited: Exception | None = None  # why it was ended
        self._closed = False
        self._trimmed = False  # since the last turn
        self._turn: WorkerTurn | None = None
        self._turns = 0  # how many have begun; a turn's frames carry its number, so none is taken for another turn's

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The attached corpora, in order."""
        return self.checkpoint.layout.corpora if self.checkpoint else self._corpora

    @property
    def running_seconds(self) -> float:
        """What the turn that is under way has run so far, at least; 0 where none is."""
        return self._turn.running_seconds if self._turn is not None else 0.0

    @property
    def idle(self) -> bool:
        """Whether no turn is running or waiting to run."""
        return not (self._in_line or self._one_at_a_time.locked())

    @property
    def kept(self) -> bool:
        """Whether its state after the last finished turn is stored, so that it outlives this process."""
        return self._file is not None and self._file.kept

    def supply(self, corpora: tuple[Corpus, ...]) -> None:
        """Say which corpora are attached to a session that was taken up, before it wakes."""
        self._corpora = corpora

    def keep_note(self, make: Callable[[], Callable[[], bytes]]) -> None:
        """Have `make` make the note that is stored with all of the session, in place of those of its turns so far.

        What it returns is called in a thread, and only where the note is needed.
        """
        if self._file is not None:
            self._file.note = make

    async def begin(self) -> None:
        """Bring a session into a worker. A new one with a name is stored first.

        Raises:
            SessionClosed: it was closed meanwhile.
        """
        await self._turn_comes()
        try:
            _, checkpoint = await self.wake()
            if self._file is not None and not self._file.kept:
                await self._file.add_turn(checkpoint, None, self.seen, b"")
        except Abandoned:
            raise SessionClosed from None
        finally:
            self._turn_ends()

    async def wake(self) -> tuple[Process, Checkpoint]:
        """Return the process the session lives in and its state. A session that is in no process is brought into one.

        Raises:
            PoolFull, JailMissing, WorkerLost: there is no process for it.
            Abandoned: it is no longer wanted.
            SnapshotRefused: its stored form is not as it was written.
            OSError: its stored form, or a file of a corpus, cannot be read.
        """
        if self._forfeited is not None:
            raise self._forfeited
        process, checkpoint = self._process, self.checkpoint
        if process is not None and process.alive and checkpoint is not None:
            self._host.used(self)
            return process, checkpoint
        await self._host.admit(self)
        try:
            if checkpoint is None:
                checkpoint = await self._read()
            process = await self._host.worker(self.owner)
            process.open(self.number, checkpoint, self.limits)
        except BaseException:
            if self.checkpoint is None:  # it did not wake, so it needs no slot
                await self._host.left(self)
            raise
        self._process = process
        return process, checkpoint

    async def _read(self) -> Checkpoint:
        if self._file is None:
            raise SessionClosed

        def take(read: Restored) -> None:
            self.checkpoint, self.private_bytes = read.checkpoint, read.checkpoint.private_bytes
            self.saw(read.seen)

        await self._file.read(self.image, self._corpora, take)
        if self.checkpoint is None:
            raise SessionClosed
        return self.checkpoint

    async def hibernate(self) -> None:
        """Write the session to a file, and free all it holds. A running turn ends first; the next turn wakes it.

        Raises:
            OSError: it cannot be written; the session stays live.
            StoreFull: it does not fit beside the owner's other stored sessions; it stays live.
        """
        async with self._one_at_a_time:
            file, checkpoint = self._file, self.checkpoint
            if self._closed or file is None or checkpoint is None:
                return
            try:
                await file.write(checkpoint, self.seen)
            except Abandoned:  # it is being closed
                return
            self._corpora = checkpoint.layout.corpora
            await self._let_go()

    async def forfeit(self, reason: Exception) -> None:
        """End the session for its owner's fault. Whoever uses it again is told the reason."""
        async with self._one_at_a_time:
            if not self._closed and self.checkpoint is not None:
                self._forfeited = reason
                await self._let_go()

    async def _let_go(self) -> None:
        """Free all that a live session holds."""
        checkpoint, self.checkpoint = self.checkpoint, None
        if self._process and self._process.alive:
            self._process.leave(self.number)
        self._process = None
        if checkpoint is not None:
            checkpoint.close()
        await self._host.left(self)

    async def attach(self, name: str, corpus: Corpus) -> None:
        """Make `name` in the session a `str`, or a sequence of them, with the characters of a corpus.

        Raises:
            MemoryError: a text does not fit into the guest's memory.
            CorpusDamaged: it cannot be mapped.
            WorkerLost: the worker was lost, and so was the one that replaced it.
            OSError: a file of the corpus cannot be opened.
        """

        def ask(process: Process, number: int) -> Frame:
            header = {"name": name, "corpus": write_corpus(corpus, process.hand_over)}
            return Frame(Kind.ATTACH, self.number, header=header, turn=number)

        turn = await self._run(ask, partial(self._next_turn, _nothing_to_ask, _unheard), _unheard, corpus)
        if turn.error:
            failure = _FAILURES.get(turn.error.type, CorpusDamaged)
            raise failure(f"the text could not be attached: {turn.error.message}")

    async def execute(
        self,
        code: str,
        answer: Answer,
        listener: OutputListener,
        restarted: RestartListener = lambda _: None,
        note: Note = lambda _: b"",
        inputs: Inputs | None = None,
        heard: InputListener = lambda _: None,
    ) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on.

        A cancelled turn leaves no trace, however late the cancellation came. A turn that was returned is kept. If the
        worker is lost before the turn made a request, `restarted` is called and the turn runs once more. What `note`
        makes of the turn's result is stored with it, unless it was rolled back.

        With `inputs`, the turn is first told what these have noted, and then adds to them what it is told by chance.
        `heard` is called with each addition, before a request is answered that the turn made knowing of it.
        """
        data = code.encode("utf-8", "surrogatepass")

        def ask(_: Process, number: int) -> Frame:
            return write_turn_request(self.number, number, data, inputs)

        begin = partial(self._next_turn, answer, listener, inputs, heard)
        return await self._run(ask, begin, restarted, None, note)

    async def _run(
        self,
        ask: Ask,
        begin: Callable[[], WorkerTurn],
        restarted: RestartListener,
        corpus: Corpus | None,
        note: Note = lambda _: b"",
    ) -> Turn:
        """Run a turn. If its worker is lost before it made a request, it runs once more.

        Raises:
            TooManyTurns: too many others wait already.
        """
        await self._turn_comes()
        try:
            turn = begin()
            ended = await self._take(turn, ask, corpus, note)
            if ended.error and ended.error.type is Stop.WORKER_LOST and not (turn.asked or turn.stopped):
                restarted(ended.error.message)
                ended = await self._take(begin(), ask, corpus, note)
            if ended.status is Status.ROLLED_BACK and self.checkpoint is not None and (noted := note(ended)):
                await self._store(self.checkpoint, None, noted)
            return ended
        finally:
            self._turn_ends()

    async def _turn_comes(self) -> None:
        """Wait until no other turn runs. `_turn_ends` must follow."""
        if self._in_line >= self._host.waiting_turns:
            raise TooManyTurns(f"at most {self._host.waiting_turns} turns may wait for one session (waiting_turns)")
        self._in_line += 1
        try:
            await self._one_at_a_time.acquire()
        finally:
            self._in_line -= 1

    def _turn_ends(self) -> None:
        self._one_at_a_time.release()
        self._host.rested()

    def _next_turn(
        self,
        answer: Answer,
        listener: OutputListener,
        inputs: Inputs | None = None,
        heard: InputListener = lambda _: None,
    ) -> WorkerTurn:
        self._turns += 1
        return WorkerTurn(self.number, self._turns, self.limits, answer, listener, inputs, heard)

    async def _take(self, turn: WorkerTurn, ask: Ask, corpus: Corpus | None, note: Note) -> Turn:
        if self._closed:
            raise SessionClosed
        self._turn, self._trimmed = turn, False
        try:
            process, checkpoint = await self.wake()
            if turn.stopped:
                return undone(Stop.INTERRUPTED, "the turn was interrupted")
            try:
                end = await turn.run(process, ask)
                return await self._keep(end, turn.observed, process, checkpoint, corpus, note)
            except (asyncio.CancelledError, Abandoned):
                if turn.end is not None:
                    self._give_up(turn.end, turn.observed, process, checkpoint, corpus)
                raise
        except Abandoned:
            return undone(Stop.INTERRUPTED, "the turn was interrupted")
        except WorkerLost as lost:
            return turn.lost(f"{lost}; the session is as it was before this turn")
        finally:
            self._turn = None

    async def _keep(
        self,
        end: Frame,
        observed: Observed,
        process: Process,
        checkpoint: Checkpoint,
        corpus: Corpus | None,
        note: Note,
    ) -> Turn:
        """Read how a turn ended, store what it changed, and apply that.

        Raises:
            WorkerLost: the worker was killed, as it lied.
            Abandoned: the session is being closed; nothing was applied.
        """
        if end.kind is Kind.FAILED:
            return self._undone(end, process)
        ended = self._read_end(end, observed, process, checkpoint, corpus)
        turn = ended.turn
        if turn.status is not Status.ROLLED_BACK:
            await self._store(checkpoint, ended, note(turn))
        ended.apply(checkpoint)
        self.private_bytes = checkpoint.private_bytes
        if corpus is None:  # a turn of code, which is paid for as such
            process.own_time.ran += turn.running_seconds
        return turn

    def _undone(self, end: Frame, process: Process) -> Turn:
        try:
            return undone("MemoryError", read_failure(end))
        except WireError as error:
            raise _killed(process, error) from None

    def _read_end(
        self, end: Frame, observed: Observed, process: Process, checkpoint: Checkpoint, corpus: Corpus | None
    ) -> Ended:
        """Read how a turn ended. A worker that lies about it is killed. Raises `WorkerLost` then."""
        try:
            ended = read_end(end, checkpoint, self.limits, observed, corpus)
        except WireError as error:
            raise _killed(process, error) from None
        self.saw(ended.seen[: len(checkpoint.layout.corpora)])  # a corpus whose attaching failed does not count
        return ended

    def _give_up(
        self, end: Frame, observed: Observed, process: Process, checkpoint: Checkpoint, corpus: Corpus | None
    ) -> None:
        """Drop what a cancelled turn changed, even if the turn ended before it could be stopped.

        In that case the worker is ahead of the checkpoint. So it forgets the session, and the next turn brings it anew.
        """
        if end.kind is Kind.FAILED:
            return
        with suppress(WorkerLost):
            turn = self._read_end(end, observed, process, checkpoint, corpus).turn
            if corpus is None:
                process.own_time.ran += observed.seconds
            if turn.status is not Status.ROLLED_BACK:
                process.leave(self.number)
                self._process = None

    # ---- what outlives the process -------------------------------------------------------------------------------

    async def _store(self, checkpoint: Checkpoint, ended: Ended | None, note: bytes) -> None:
        if self._file is not None:
            await self._file.add_turn(checkpoint, ended, self.seen, note)

    async def with_state(self, work: Work[T]) -> T:
        """Have work done in a thread with the state after the last finished turn, and what code has looked at.

        It waits in line as a turn does, and does not wake the session. The state must be neither changed nor kept.

        Raises:
            TooManyTurns: too many others wait already.
            SessionClosed: it was closed meanwhile.
            SnapshotRefused, OSError: its stored form cannot be read.
        """
        await self._turn_comes()
        try:
            if self._closed or self._file is None:
                raise SessionClosed
            if self._forfeited is not None:
                raise self._forfeited
            return await self._file.use(self.checkpoint, self.seen, self.image, self._corpora, work)
        except Abandoned:
            raise SessionClosed from None
        finally:
            self._turn_ends()

    async def add_note(self, note: bytes) -> None:
        """Store a note with a session that is kept, of what came to be besides its turns.

        Raises:
            TooManyTurns: too many turns wait for the session already.
        """
        await self._turn_comes()
        try:
            if self.checkpoint is not None and not self._closed:
                with suppress(Abandoned):
                    await self._store(self.checkpoint, None, note)
        finally:
            self._turn_ends()

    async def fork(self, names: Sequence[str]) -> list[WorkerSession]:
        """Make sessions that begin as this is after its last finished turn, kept under these names: all, or none.

        They hibernate until they are used.

        Raises:
            StoreFull: their files do not fit beside the owner's others.
            TooManyTurns, SessionClosed, SnapshotRefused, OSError: as `with_state`.
        """
        return await self._host.fork(self, names)

    async def snapshot(self, name: str, note: bytes) -> int:
        """Keep the state after the last finished turn as a snapshot, with a note. Returns its size in bytes.

        Raises:
            StoreFull: it does not fit beside the owner's others.
            TooManyTurns, SessionClosed, SnapshotRefused, OSError: as `with_state`.
        """
        return await self._host.snapshot(self, name, note)

    async def recall(self) -> list[bytes]:
        """Return the notes that another process stored with the state that this session began with, which is read.

        Raises:
            PoolFull, JailMissing, WorkerLost, SnapshotRefused, OSError: as `wake`.
            SessionClosed: it was closed meanwhile.
        """
        if self._file is None:
            return []
        if self._file.foreign:
            await self.begin()
        return self._file.notes

    def saw(self, seen: list[int]) -> None:
        """Note the blocks of each corpus that a turn has looked at."""
        self.seen += [0] * (len(seen) - len(self.seen))
        for number, blocks in enumerate(seen):
            self.seen[number] |= blocks

    def trim(self) -> None:
        """Free memory that is held only to make the next turn fast. Does nothing while a turn runs."""
        if self.idle and self.checkpoint and not self._trimmed:
            self.checkpoint.pages.trim()
            self._trimmed = True

    def interrupt(self) -> None:
        """Stop the running turn and roll it back. Does nothing between turns."""
        if self._turn:
            self._turn.stop()
            self._host.give_up(self)

    def give_up(self) -> None:
        """Have the session wait for no slot, and be written or read no further. To be called before `close`."""
        self._host.give_up(self)
        if self._file is not None:
            self._file.give_up()

    async def close(self) -> None:
        """End the session; a running turn is stopped first. Nothing stays of it."""
        await self._end(stays=False)

    async def put_away(self) -> None:
        """End the session here; a running turn is stopped first. If it is kept, another process can take it up."""
        await self._end(stays=True)

    async def _end(self, *, stays: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self.interrupt()
        self.give_up()
        async with self._one_at_a_time:
            file, checkpoint = self._file, self.checkpoint
            stays = stays and bool(self.name)
            if stays and file is not None and checkpoint is not None:
                with suppress(StoreFull, OSError):
                    await file.write(checkpoint, self.seen)
            if self._process and self._process.alive:
                self._process.leave(self.number)
            if checkpoint:
                checkpoint.close()
            if file is not None and not stays:
                file.remove()
            await self._host.ended(self)


_FAILURES: dict[str, type[Exception]] = {"MemoryError": MemoryError, **dict.fromkeys(Stop, WorkerLost)}


def _killed(process: Process, error: WireError) -> WorkerLost:
    log.error("a worker was killed: it sent %s", error)
    process.kill()
    return WorkerLost("the process that ran the turn was killed")


def undone(type: str, message: str) -> Turn:
    """Return the result of a turn that left no trace."""
    return Turn(Status.ROLLED_BACK, "", "", 0, False, 0.0, 0, TurnError(type, message))


async def _nothing_to_ask(call: HostCall) -> Json:
    raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")


def _unheard(*_: object) -> None:
    pass
