"""A session of a pool. It lives in a worker process, and outlives it because the pool has its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.limits import Limits
from sandbox.pool.disk_threads import Abandoned, DiskThreads, Going
from sandbox.pool.process import Process, WorkerLost
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_turn import Answer, WorkerTurn
from sandbox.turn import OutputListener, RestartListener, Status, Stop, Turn, TurnError
from sandbox.vm.checkpoint import Checkpoint
from sandbox.wire.frames import Frame, Kind, WireError
from sandbox.wire.sessions import take_end, write_corpus
from sandbox.wire.turns import Observed, read_failure

log = logging.getLogger(__name__)

Ask = Callable[[Process, int], Frame]
"""Makes the frame that asks a worker for the turn of a number."""


class SessionHost(Protocol):
    """What a session needs of its pool."""

    store: SessionStore | None
    threads: DiskThreads
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


class SessionClosed(RuntimeError):
    """The session was closed, perhaps while somebody waited for it."""

    def __init__(self) -> None:
        super().__init__("the session is closed")


class TooManyTurns(Exception):
    """As many turns wait for the session as may; the message names the limit."""


class WorkerSession:
    """A session of a `WorkerPool`. It runs one turn at a time, and others wait. It outlives its worker."""

    def __init__(self, host: SessionHost, owner: str, number: int, checkpoint: Checkpoint, limits: Limits) -> None:
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
        """For each corpus, the blocks code has looked at, in undone turns too: see `sandbox.corpora.coverage`."""
        self._stored: Path | None = None
        self._host = host
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._in_line = 0  # turns that wait for the one that runs
        self._going: Going | None = None  # while it is written or read
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

    async def begin(self) -> None:
        """Bring a new session into a worker."""
        await self._turn_comes()
        try:
            await self.wake()
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
        store, path = self._host.store, self._stored
        if store is None or path is None:
            raise SessionClosed

        going = self._going = Going()

        def read() -> Checkpoint:
            self.checkpoint = store.get(path, self.owner, self.image, self._corpora, going.check)
            self._stored = None
            store.remove(path, self.owner)
            return self.checkpoint

        try:
            return await self._host.threads.run(self.owner, going, read)
        finally:
            self._going = None

    async def hibernate(self) -> None:
        """Write the session to a file, and free all it holds. A running turn ends first; the next turn wakes it.

        Raises:
            OSError: it cannot be written; the session stays live.
            StoreFull: it does not fit beside the owner's other stored sessions; it stays live.
        """
        async with self._one_at_a_time:
            store, checkpoint = self._host.store, self.checkpoint
            if self._closed or store is None or checkpoint is None:
                return

            going = self._going = Going()

            def write() -> None:
                self._stored = store.put(checkpoint, self.owner, going.check)

            try:
                await self._host.threads.run(self.owner, going, write)
            except Abandoned:  # it is being closed
                return
            except asyncio.CancelledError:
                if self._stored:
                    store.remove(self._stored, self.owner)
                    self._stored = None
                raise
            finally:
                self._going = None
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

        turn = await self._run(ask, _nothing_to_ask, _unheard, _unheard, corpus)
        if turn.error:
            failure = _FAILURES.get(turn.error.type, CorpusDamaged)
            raise failure(f"the text could not be attached: {turn.error.message}")

    async def execute(
        self,
        code: str,
        answer: Answer,
        listener: OutputListener,
        restarted: RestartListener = lambda _: None,
    ) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on.

        A cancelled turn leaves no trace, however late the cancellation came. A turn that was returned is kept. If the
        worker is lost before the turn made a request, `restarted` is called and the turn runs once more.
        """
        data = code.encode("utf-8", "surrogatepass")

        def ask(_: Process, number: int) -> Frame:
            return Frame(Kind.EXECUTE, self.number, data=data, turn=number)

        return await self._run(ask, answer, listener, restarted, None)

    async def _run(
        self, ask: Ask, answer: Answer, listener: OutputListener, restarted: RestartListener, corpus: Corpus | None
    ) -> Turn:
        """Run a turn. If its worker is lost before it made a request, it runs once more.

        Raises:
            TooManyTurns: too many others wait already.
        """
        await self._turn_comes()
        try:
            turn = self._next_turn(answer, listener)
            ended = await self._take(turn, ask, corpus)
            if ended.error and ended.error.type is Stop.WORKER_LOST and not (turn.asked or turn.stopped):
                restarted(ended.error.message)
                ended = await self._take(self._next_turn(answer, listener), ask, corpus)
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

    def _next_turn(self, answer: Answer, listener: OutputListener) -> WorkerTurn:
        self._turns += 1
        return WorkerTurn(self.number, self._turns, self.limits, answer, listener)

    async def _take(self, turn: WorkerTurn, ask: Ask, corpus: Corpus | None) -> Turn:
        if self._closed:
            raise SessionClosed
        self._turn, self._trimmed = turn, False
        try:
            process, checkpoint = await self.wake()
            if turn.stopped:
                return undone(Stop.INTERRUPTED, "the turn was interrupted")
            try:
                end = await turn.run(process, ask)
            except asyncio.CancelledError:
                if turn.end is not None:
                    self._give_up(turn.end, turn.observed, process, checkpoint, corpus)
                raise
            return self._kept(end, turn.observed, process, checkpoint, corpus)
        except Abandoned:
            return undone(Stop.INTERRUPTED, "the turn was interrupted")
        except WorkerLost as lost:
            return turn.lost(f"{lost}; the session is as it was before this turn")
        finally:
            self._turn = None

    def _kept(
        self,
        end: Frame,
        observed: Observed,
        process: Process,
        checkpoint: Checkpoint,
        corpus: Corpus | None,
        *,
        keep: bool = True,
    ) -> Turn:
        """Read how a turn ended and, to `keep` it, apply what it changed. A worker that lies about either is killed.

        Raises:
            WorkerLost: the worker was killed.
        """
        try:
            if end.kind is Kind.FAILED:
                return undone("MemoryError", read_failure(end))
            turn, seen = take_end(end, checkpoint, self.limits, observed, corpus, keep=keep)
        except WireError as error:
            log.error("a worker was killed: it sent %s", error)  # noqa: TRY400
            process.kill()
            raise WorkerLost("the process that ran the turn was killed") from None
        self.saw(seen[: len(checkpoint.layout.corpora)])  # a corpus whose attaching failed does not count
        self.private_bytes = checkpoint.private_bytes
        if corpus is None:  # a turn of code, which is paid for as such
            process.own_time.ran += turn.running_seconds if keep else observed.seconds
        return turn

    def _give_up(
        self, end: Frame, observed: Observed, process: Process, checkpoint: Checkpoint, corpus: Corpus | None
    ) -> None:
        """Drop what a cancelled turn changed, even if the turn ended before it could be stopped.

        In that case the worker is ahead of the checkpoint. So it forgets the session, and the next turn brings it anew.
        """
        with suppress(WorkerLost):
            turn = self._kept(end, observed, process, checkpoint, corpus, keep=False)
            if turn.status is not Status.ROLLED_BACK:
                process.leave(self.number)
                self._process = None

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
        if self._going is not None:
            self._going.give_up()

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        if self._closed:
            return
        self._closed = True
        self.interrupt()
        self.give_up()
        async with self._one_at_a_time:
            if self._process and self._process.alive:
                self._process.leave(self.number)
            if self.checkpoint:
                self.checkpoint.close()
            if self._stored and self._host.store is not None:
                self._host.store.remove(self._stored, self.owner)
            await self._host.ended(self)


_FAILURES: dict[str, type[Exception]] = {"MemoryError": MemoryError, **dict.fromkeys(Stop, WorkerLost)}


def undone(type: str, message: str) -> Turn:
    """Return the result of a turn that left no trace."""
    return Turn(Status.ROLLED_BACK, "", "", 0, False, 0.0, 0, TurnError(type, message))


async def _nothing_to_ask(call: HostCall) -> Json:
    raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")


def _unheard(*_: object) -> None:
    pass
