"""The server's side of one worker process: starts it, exchanges frames with it, and notices when it hangs or dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import thread_time
from typing import Protocol

from sandbox.limits import Limits, PoolLimits
from sandbox.memory.memory import PAGE
from sandbox.memory.pages import PageFile
from sandbox.pool.fair_clock import FairClock
from sandbox.pool.frame_limits import MAX_STRAY, FrameBounds
from sandbox.pool.held import Held
from sandbox.pool.last_words import LastWords
from sandbox.pool.own_time import OwnTime
from sandbox.pool.priority import give_way
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.image import Loaded
from sandbox.wire.frames import Frame, Kind, Parser, WireError, send_descriptor
from sandbox.wire.sessions import write_session

log = logging.getLogger(__name__)

START_SECONDS = 60.0
PING_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""A worker that does not answer for so long is killed."""

FRAMES_AT_ONCE = 32
"""Frames taken in one step of the event loop."""

WRITTEN_AT_ONCE = 1 << 18
"""Bytes given to the socket at a time: the loop copies what the socket does not take."""

MAX_REASON = 1000
"""Characters of why a worker is not in a jail."""

# Isolated from the environment and the current folder, with this very package.
_ROOT = str(Path(__file__).parents[2])
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from sandbox.worker.worker import main; main()"

Listener = Callable[[Frame | None], None]
"""Told of every frame about a session; None when the worker has died."""


class UnderWay(Protocol):
    """A turn that is under way."""

    @property
    def ran(self) -> float:
        """The seconds it has run so far."""
        ...


class WorkerLost(Exception):
    """The worker died or was killed; its sessions can continue in another worker."""


async def started(
    loaded: Loaded, most_bytes: int = PoolLimits().worker_bytes, turns: int = PoolLimits().worker_turns
) -> Process:
    """Start a worker that may hold `most_bytes` of memory, and wait until it is loaded and confined.

    At most `turns` turns run in it at once; 0 stands for as many as this process has processors.

    Raises:
        WorkerLost: it did not start.
    """
    ours, theirs = socket.socketpair()
    our_descriptors, their_descriptors = socket.socketpair()
    words = LastWords()
    try:
        with theirs, their_descriptors, words:
            handed = (theirs.fileno(), their_descriptors.fileno())
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-c", _PROGRAM, *map(str, handed), pass_fds=handed, env={}, cwd="/",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=words.writing,
            )  # fmt: skip
            give_way(process.pid)
        worker = Process(process, our_descriptors, words, most_bytes, turns or len(os.sched_getaffinity(0)))
    except BaseException as error:
        ours.close()
        our_descriptors.close()
        words.finish()
        if isinstance(error, ProcessLookupError):
            raise WorkerLost("a worker process died as it started") from None
        raise
    try:
        await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        async with asyncio.timeout(START_SECONDS):
            await worker.load(loaded)
    except TimeoutError:
        await worker.close()
        raise WorkerLost("a worker process did not start in time") from None
    except BaseException:
        await worker.close()
        raise
    return worker


class Process(asyncio.Protocol):
    """A worker process. Its frames are passed to the listener of the session they belong to."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        descriptors: socket.socket,
        words: LastWords,
        most_bytes: int,
        turns: int,
    ) -> None:
        self._turns = turns
        self.clock = FairClock(turns)
        """For how long a turn could have run."""
        self._process, self._words = process, words
        self._handle = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        self._most_bytes = most_bytes
        self._pages: dict[int, PageFile] = {}
        descriptors.setblocking(False)
        self._descriptors = descriptors
        self._bounds: dict[int, FrameBounds] = {}
        self._loosest = FrameBounds()  # of all sessions there were: their frames may come late
        self._stray = 0
        self._pings = 0  # that are not answered yet
        self._parser = Parser(self._allow)
        self._waiting: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._full = False  # whether the socket takes no more at present
        self.held = Held()
        """What is held of its owner's requests and replies."""
        self._transport: asyncio.Transport | None = None
        self._listeners: dict[int, Listener] = {}
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._last_descriptor = 0
        self._unsent: deque[tuple[int, int]] = deque()
        self._last_heard = 0.0
        self._watch: asyncio.Task[None] | None = None
        self.alive = True
        self.turns: set[UnderWay] = set()
        """Those that are under way."""
        self.own_time = OwnTime(process.pid)
        self._host_seconds = 0.0
        self._arrived: deque[Frame] = deque()
        self.unconfined = ""
        """Why the worker is not in a jail; empty where it is."""

    # ---- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take bytes that arrived. A worker that sends anything but frames within its limits is killed."""
        self._last_heard, began = asyncio.get_running_loop().time(), thread_time()
        self._guarded(lambda: self._arrived.extend(self._parser.feed(data)))
        self._host_seconds += thread_time() - began
        self._take_some()

    def _take_some(self) -> None:
        """Take what has arrived, so much that nobody else waits long. Nothing more is read before all is taken."""
        began = thread_time()
        for _ in range(min(FRAMES_AT_ONCE, len(self._arrived))):
            self._guarded(lambda: self._take(self._arrived.popleft()))
        self._host_seconds += thread_time() - began
        if self._transport is None:
            return
        if self._arrived:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._take_some)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except WireError as error:
            log.error("worker %d was killed: it sent %s", self._process.pid, error)  # noqa: TRY400
            self.kill()
            self._arrived.clear()
            if self._transport is not None:
                self._transport.abort()  # nothing else of it is read

    def _allow(self, kind: Kind, session: int, header_bytes: int, data_bytes: int) -> int:
        return self._bounds.get(session, self._loosest).allow(kind, header_bytes, data_bytes)

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.READY:
            self._pings -= self._ready.done()
            if self._pings < 0:
                raise WireError("an answer to nothing")
            unconfined = frame.header.get("unconfined", "")
            if not isinstance(unconfined, str) or len(unconfined) > MAX_REASON:
                raise WireError("a reason that is no text, or too long")
            if not self._ready.done():
                self._ready.set_result(unconfined)
        elif listener := self._listeners.get(frame.session):
            listener(frame)
        else:
            self._stray += 1
            if self._stray > MAX_STRAY:
                raise WireError(f"{self._stray} frames of no turn that runs")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Note that the worker is gone, and notify all who wait for it."""
        while self._arrived:
            self._guarded(lambda: self._take(self._arrived.popleft()))
        if self.alive:
            log.error("worker %d died", self._process.pid)
        self.alive = False
        self._waiting.clear()
        self._waiting_bytes = 0
        self._tell_last_words()
        self._drop_descriptors()
        if not self._ready.done():
            self._ready.set_exception(WorkerLost("a worker process did not start"))
            self._ready.exception()  # marks it as retrieved, as nobody may be waiting
        for listener in list(self._listeners.values()):
            listener(None)

    def send(self, frame: Frame) -> None:
        """Send a frame, as soon as the socket takes it. A frame to a dead worker is dropped."""
        if self._transport is None or not self.alive:
            return
        self._pings += frame.kind is Kind.PING
        parts = frame.encode()
        size = sum(map(len, parts))
        self._waiting += parts if size > WRITTEN_AT_ONCE else [b"".join(parts)]
        self._waiting_bytes += size
        self._write()

    def _write(self) -> None:
        while self._waiting and self._transport is not None and not self._full:
            part = self._waiting.popleft()
            if len(part) > WRITTEN_AT_ONCE:
                rest = memoryview(part)
                part = rest[:WRITTEN_AT_ONCE]
                self._waiting.appendleft(rest[WRITTEN_AT_ONCE:])
            self._waiting_bytes -= len(part)
            self._transport.write(part)

    def pause_writing(self) -> None:
        """Note that the socket takes no more at present."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on writing."""
        self._full = False
        self._write()

    @property
    def unsent(self) -> int:
        """Bytes that the worker has not taken from the socket yet."""
        return self._waiting_bytes + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def hand_over(self, fd: int) -> int:
        """Give the worker a descriptor, and return the number by which frames name it."""
        if not self.alive:
            raise WorkerLost("the process that was to run the turn died")
        self._last_descriptor += 1
        self._unsent.append((self._last_descriptor, os.dup(fd)))
        if len(self._unsent) == 1:
            self._send_descriptors()
        return self._last_descriptor

    def _hand_over_file(self, path: Path) -> int:
        """Give the worker a file to read."""
        with path.open("rb") as file:
            return self.hand_over(file.fileno())

    def _send_descriptors(self) -> None:
        """Send as many descriptors as the socket takes now, and the rest later.

        The worker takes a descriptor from the socket only when a frame names it.
        """
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                number, fd = self._unsent[0]
                send_descriptor(self._descriptors, number, fd)
                os.close(fd)
                self._unsent.popleft()
        except BlockingIOError:
            loop.add_writer(self._descriptors, self._send_descriptors)
        except OSError:
            self.kill()
        else:
            loop.remove_writer(self._descriptors)

    def _drop_descriptors(self) -> None:
        if self._descriptors.fileno() >= 0:
            asyncio.get_running_loop().remove_writer(self._descriptors)
            self._descriptors.close()
        while self._unsent:
            os.close(self._unsent.popleft()[1])

    # ---- sessions ------------------------------------------------------------------------------------------------

    async def load(self, loaded: Loaded) -> None:
        """Have the worker load the program and its images, and confine itself."""
        images = {
            name: {
                "descriptor": self.hand_over(image.fd),
                "size": image.size,
                "packages": None if image.packages is None else self._hand_over_file(image.packages),
            }
            for name, image in loaded.images.items()
        }
        stdlib = self._hand_over_file(loaded.stdlib)
        header = {"compiled": str(Path(loaded.compiled)), "stdlib": stdlib, "images": images, "turns": self._turns}
        self.send(Frame(Kind.LOAD, header=header))
        self.unconfined = await self._ready
        self._last_heard = asyncio.get_running_loop().time()
        self._watch = asyncio.create_task(self._keep_watch())

    def take_host_seconds(self) -> float:
        """Return the seconds of processor time since the last call that its frames took of this process.

        That is reading them, and what the door's threads read and write for its owner.
        """
        seconds, self._host_seconds = self._host_seconds, 0.0
        return seconds + self.held.take_seconds()

    def take_own_seconds(self) -> float:
        """Return the seconds of processor time since the last call that the worker took besides turns of code."""
        return self.own_time.take(sum(turn.ran for turn in self.turns))

    def open(self, session: int, checkpoint: Checkpoint, limits: Limits) -> None:
        """Bring a session into the worker.

        Raises:
            WorkerLost: the worker has died.
            OSError: a file of a corpus cannot be opened.
        """
        self.own_time.begin()
        self.send(write_session(session, checkpoint, limits, self.hand_over))
        self._pages[session] = checkpoint.pages
        self._bounds[session] = bounds = FrameBounds.of(checkpoint, limits)
        self._loosest = self._loosest.with_(bounds)

    def leave(self, session: int) -> None:
        """Have the worker forget a session."""
        self._pages.pop(session, None)
        self._bounds.pop(session, None)
        self.send(Frame(Kind.CLOSE, session))

    def follow(self, session: int, listener: Listener) -> None:
        """Pass every frame about a session to `listener`, until `unfollow`."""
        if not self.alive:
            raise WorkerLost("the process that was to run the turn died")
        self._listeners[session] = listener

    def unfollow(self, session: int) -> None:
        """Stop passing on the session's frames."""
        self._listeners.pop(session, None)

    # ---- the end -------------------------------------------------------------------------------------------------

    def _tell_last_words(self) -> None:
        words = self._words.finish()
        if words:
            log.error("worker %d had written to its standard error: %a", self._process.pid, words)

    async def _keep_watch(self) -> None:
        loop = asyncio.get_running_loop()
        while self.alive:
            self.send(Frame(Kind.PING))
            await asyncio.sleep(PING_SECONDS)
            held = self._held_bytes()
            if held > self._most_bytes:
                log.error("worker %d was killed: it holds %d bytes of memory", self._process.pid, held)
                self.kill()
            elif loop.time() - self._last_heard > SILENCE_SECONDS:
                log.error("worker %d was killed: it does not answer", self._process.pid)
                self.kill()

    def _held_bytes(self) -> int:
        """Return the bytes of memory the worker holds: its own, and those in the files of its sessions' pages.

        Pages of other files, such as texts, are not counted: they belong to the page cache, and would be counted once
        for each session that reads them.
        """
        files = sum(os.fstat(pages.fd).st_blocks for pages in self._pages.values() if pages.fd >= 0) * 512
        try:
            _, resident, shared, *_ = map(int, Path(f"/proc/{self._process.pid}/statm").read_text().split())
        except (OSError, ValueError):
            return files
        return files + (resident - shared) * PAGE

    def kill(self) -> None:
        """End the process at once."""
        self.alive = False
        with suppress(ProcessLookupError):
            if self._handle >= 0:  # asyncio's own kill may reap the process before its waiter does
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            elif not hasattr(os, "pidfd_open"):
                self._process.kill()

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        if self._watch:
            self._watch.cancel()
        self.kill()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._transport:
            self._transport.abort()
        self._drop_descriptors()
        await self._process.wait()
        self._tell_last_words()
