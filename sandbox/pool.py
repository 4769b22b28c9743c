"""Sessions for an asyncio program: turns run on threads beside the event loop, requests are answered on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from sandbox.door import HostCall, Json
from sandbox.engine import THREAD_STACK_BYTES
from sandbox.image import Loaded
from sandbox.limits import Limits
from sandbox.session import Session
from sandbox.text import Text
from sandbox.turn import OutputListener, Turn

Answer = Callable[[HostCall], Awaitable[Json]]
"""Answers the guest's requests; a `DoorRefusal` it raises is raised inside the guest."""


class PoolFull(Exception):
    """No more sessions fit; the message names the limit."""


class LiveSession(Protocol):
    """A session somewhere: in this process, or in a worker's."""

    async def execute(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        """Run a turn. Cancelling the task stops the turn and rolls it back before the cancellation goes on."""
        ...

    async def attach(self, name: str, text: Text) -> Turn:
        """Make `name` in the session a `str` with the characters of `text`."""
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

    async def create(self, image: str, limits: Limits) -> LiveSession:
        """Start a session from the golden image of this name.

        Raises:
            KeyError: there is no such image.
            PoolFull: no more sessions fit.
        """
        ...

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        ...

    async def close(self) -> None:
        """Stop every turn and end every session."""
        ...


class LocalPool:
    """Sessions in this process. Every session can be in a turn at once: each has a thread when it needs one.

    A turn that waits for a child's turn keeps its thread, so there must be as many threads as sessions.
    """

    def __init__(self, loaded: Loaded, *, sessions: int) -> None:
        self._loaded = loaded
        self._most = sessions
        threading.stack_size(THREAD_STACK_BYTES)
        self._threads = ThreadPoolExecutor(sessions, thread_name_prefix="turn")
        self._live: set[LocalSession] = set()

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images sessions can start from."""
        return tuple(self._loaded.images)

    async def create(self, image: str, limits: Limits) -> LocalSession:
        """Start a session from the golden image of this name."""
        golden = self._loaded.images[image]
        if len(self._live) >= self._most:
            raise PoolFull(f"this server runs at most {self._most} sessions at once")
        session = LocalSession(Session(self._loaded.program, golden, limits), self._threads, self._live.discard)
        self._live.add(session)
        return session

    async def close(self) -> None:
        """Stop every turn and end every session."""
        for session in list(self._live):
            await session.close()
        self._threads.shutdown()


class LocalSession:
    """A session of a `LocalPool`; one turn at a time, others wait their turn."""

    def __init__(self, session: Session, threads: ThreadPoolExecutor, on_close: Callable[[LocalSession], None]) -> None:
        self._session = session
        self._threads = threads
        self._on_close = on_close
        self._one_at_a_time = asyncio.Lock()
        self._closed = False

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        return self._session.checkpoint.private_bytes

    async def execute(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        """Run a turn."""
        loop = asyncio.get_running_loop()
        answering: set[asyncio.Task[Json] | None] = set()

        async def answered(call: HostCall) -> Json:
            task = asyncio.current_task()
            answering.add(task)
            try:
                return await answer(call)
            finally:
                answering.discard(task)

        def handler(call: HostCall) -> Future[Json]:
            return asyncio.run_coroutine_threadsafe(answered(call), loop)

        def printed(stream: int, data: bytes) -> None:
            loop.call_soon_threadsafe(listener, stream, data)

        async with self._one_at_a_time:
            try:
                return await self._on_thread(lambda: self._session.execute(code, handler, printed))
            finally:  # a stopped turn's request has been cancelled, and may still be settling
                if unsettled := [task for task in answering if task]:
                    await asyncio.wait(unsettled)

    async def attach(self, name: str, text: Text) -> Turn:
        """Make `name` in the session a `str` with the characters of `text`."""
        async with self._one_at_a_time:
            return await self._on_thread(lambda: self._session.attach(name, text))

    async def _on_thread(self, work: Callable[[], Turn]) -> Turn:
        if self._closed:
            raise RuntimeError("the session is closed")
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():  # the thread may be about to start the turn: say it until it hears
                self._session.interrupt()
                await asyncio.wait([running], timeout=0.05)
            raise

    async def close(self) -> None:
        """End the session; a running turn is stopped first."""
        if self._closed:
            return
        self._closed = True
        while self._one_at_a_time.locked():
            self._session.interrupt()
            await asyncio.sleep(0.01)
        self._session.close()
        self._on_close(self)
