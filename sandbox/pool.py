"""Sessions for an asyncio program, in confined worker processes: one owner's sessions share a worker, nobody else's.

A worker holds nothing that cannot be lost: after every turn this process has the pages that changed. When a worker
dies, its sessions go on in another from their last finished turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from sandbox.door import DoorRefusal, HostCall, Json, granted, parse, refused
from sandbox.image import Loaded
from sandbox.limits import Limits
from sandbox.process import Process, WorkerLost, started
from sandbox.stored import Stored
from sandbox.text import Text
from sandbox.turn import OutputListener, Status, Stop, Turn, TurnError
from sandbox.wire import Frame, Kind, WireError

log = logging.getLogger(__name__)

INTERRUPT_SECONDS = 5.0
"""A worker that has not stopped a turn by then is killed."""
INTERRUPT_EVERY = 0.05
TURN_SLACK_SECONDS = 10.0
"""A worker that runs a turn for so much longer than it may is killed."""

Answer = Callable[[HostCall], Awaitable[Json]]
"""Answers the guest's requests; a `DoorRefusal` it raises is raised inside the guest."""


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
        """Make `name` in the session a `str` with the characters of `text`, whose descriptor must stay open.

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

    def __init__(self, loaded: Loaded, *, sessions: int, spares: int = 1, unconfined: bool = False) -> None:
        self._loaded = loaded
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
            self._spares.append(asyncio.create_task(started(self._loaded)))

    async def create(self, owner: str, image: str, limits: Limits) -> WorkerSession:
        """Start a session."""
        golden = self._loaded.images[image]
        if len(self._live) >= self._most:
            raise PoolFull(f"this server runs at most {self._most} sessions at once")
        self._last_session += 1
        session = WorkerSession(self, owner, self._last_session, Stored.of(golden, limits))
        self._live.add(session)
        try:
            await session.wake()
        except BaseException:
            await self.ended(session)
            raise
        return session

    async def worker(self, owner: str) -> Process:
        """Return the owner's worker, a new one where it has none that lives."""
        task = self._workers.get(owner)
        if task is None or _is_lost(task):
            lost = [task] if task else []
            while self._spares and _is_lost(self._spares[0]):
                lost.append(self._spares.pop(0))
            task = self._spares.pop(0) if self._spares else asyncio.create_task(started(self._loaded))
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


class WorkerSession:
    """A session of a `WorkerPool`; one turn at a time, others wait. It outlives its worker."""

    def __init__(self, pool: WorkerPool, owner: str, number: int, stored: Stored) -> None:
        self.owner = owner
        self.number = number
        self._pool = pool
        self._stored = stored
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self._turn: _Turn | None = None

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        return self._stored.private_bytes

    async def wake(self) -> Process:
        """Return the process the session lives in, after bringing it there where it is in none."""
        if self._process is None or not self._process.alive:
            process = await self._pool.worker(self.owner)
            process.open(self.number, self._stored)
            self._process = process
        return self._process

    async def attach(self, name: str, text: Text) -> None:
        """Make `name` in the session a `str` with the characters of `text`."""
        said = {"name": name, "form": text.form.name, "characters": text.characters}

        def ask(process: Process) -> Frame:
            return Frame(Kind.ATTACH, self.number, said={**said, "descriptor": process.hand_over(text.fd)})

        turn = await self._run(ask, _nothing_to_ask, _unheard, text)
        if turn.error:
            failure = MemoryError if turn.error.type == "MemoryError" else WorkerLost
            raise failure(f"the text could not be attached: {turn.error.message}")

    async def execute(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        """Run a turn."""
        data = code.encode("utf-8", "surrogatepass")
        return await self._run(lambda _: Frame(Kind.EXECUTE, self.number, data=data), answer, listener, None)

    async def _run(
        self, ask: Callable[[Process], Frame], answer: Answer, listener: OutputListener, text: Text | None
    ) -> Turn:
        """Run a turn. One that is lost with its worker before it asked for anything is run once more."""
        async with self._one_at_a_time:
            turn = _Turn(self, ask, answer, listener, text)
            ended = await self._take(turn)
            if ended.error and ended.error.type is Stop.WORKER_LOST and not turn.heard:
                ended = await self._take(_Turn(self, ask, answer, listener, text))
            return ended

    async def _take(self, turn: _Turn) -> Turn:
        if self._closed:
            raise RuntimeError("the session is closed")
        self._turn = turn
        running = asyncio.create_task(turn.run())
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            turn.stop()
            await asyncio.wait([running])
            raise
        finally:
            self._turn = None

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        if self._closed:
            return
        self._closed = True
        if self._turn:
            self._turn.stop()
        async with self._one_at_a_time:
            if self._process and self._process.alive:
                self._process.send(Frame(Kind.CLOSE, self.number))
            await self._pool.ended(self)

    @property
    def stored(self) -> Stored:
        """The session's last checkpoint."""
        return self._stored


class _Turn:
    """One turn in a worker: what it asks for is answered, what it prints is heard, and it ends or is ended."""

    def __init__(
        self,
        session: WorkerSession,
        ask: Callable[[Process], Frame],
        answer: Answer,
        listener: OutputListener,
        text: Text | None,
    ) -> None:
        self._session, self._ask, self._answer, self._listener = session, ask, answer, listener
        self._text = text
        self._answering: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._process: Process | None = None
        self._stopped = False
        self._interrupting: asyncio.TimerHandle | None = None
        self.heard = False
        """Whether the turn has asked for anything, so that running it again would repeat that."""

    async def run(self) -> Turn:
        """Run the turn to its end."""
        try:
            self._process = await self._session.wake()
            if self._stopped:
                return _undone(Stop.INTERRUPTED, "the turn was interrupted")
            with self._process.following(self._session.number, self._events.put_nowait):
                self._process.send(self._ask(self._process))
                return await self._follow()
        except WireError as error:
            if self._process:
                self._process.kill()
            log.error("a worker was killed: it sent %s", error)  # noqa: TRY400
            return _undone(Stop.WORKER_LOST, "the process that ran the turn was killed; " + _AS_BEFORE)
        except WorkerLost as lost:
            return _undone(Stop.WORKER_LOST, f"{lost}; {_AS_BEFORE}")
        finally:
            if self._interrupting:
                self._interrupting.cancel()
            await self._settle()

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
        loop = asyncio.get_running_loop()
        self._interrupting = loop.call_later(INTERRUPT_EVERY, self._interrupt, seconds_left - INTERRUPT_EVERY)

    async def _settle(self) -> None:
        """Wait until nothing the turn asked for is still being answered."""
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)

    async def _follow(self) -> Turn:
        limit = self._session.stored.limits.turn_seconds + TURN_SLACK_SECONDS
        while True:
            try:
                async with asyncio.timeout(None if self._answering else limit):
                    frame = await self._events.get()
            except TimeoutError:
                if self._process:
                    self._process.kill()
                raise WorkerLost("the process that ran the turn hung and was killed") from None
            if frame is None:
                raise WorkerLost("the process that ran the turn died")
            match frame.kind:
                case Kind.OUTPUT:
                    self._listener(frame.number, frame.data)
                case Kind.CALL:
                    self.heard = True
                    task = asyncio.create_task(self._reply(frame))
                    self._answering.add(task)
                    task.add_done_callback(self._answered)
                case Kind.DONE:
                    return self._session.stored.take(frame, self._text)
                case Kind.FAILED:
                    return _undone("MemoryError", str(frame.said.get("message")))

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._events.put_nowait(Frame(Kind.REPLY))  # for `_follow`: the turn's time runs again

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


_AS_BEFORE = "the session is as it was before this turn"


def _undone(type: str, message: str) -> Turn:
    return Turn(Status.ROLLED_BACK, "", "", 0, False, 0.0, 0, TurnError(type, message))


async def _nothing_to_ask(call: HostCall) -> Json:
    raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")


def _unheard(_stream: int, _data: bytes) -> None:
    pass
