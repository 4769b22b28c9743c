"""The server's database: writes that commit in groups, one owner, and reads that never wait for a write."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rlm_server.database.engine import (
    READERS,
    Connection,
    DatabaseClosedError,
    DatabaseError,
    Engine,
    Failed,
    is_postgres,
)
from rlm_server.database.line import Line
from rlm_server.database.visit import Visit
from rlm_server.shares.gate import Gate
from rlm_server.shares.host_time import current, measured_function

T = TypeVar("T")

GROUP = 256
"""The most functions that share one commit, so that the first of them is not kept waiting for long."""

GROUP_SECONDS = 0.01
"""After so long a group of several owners' functions is committed, though more of them wait."""


@dataclass(frozen=True, slots=True)
class _Write:
    owner: str
    function: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    """Of the event loop, which alone changes it."""

    def answer(self, answer: Any) -> None:
        """Have whoever waits go on. A `Failed` stands for an exception."""
        if self.future.done():  # given up meanwhile
            return
        if not isinstance(answer, Failed):
            self.future.set_result(answer)
        elif isinstance(answer.error, StopIteration):  # which no future takes
            self.future.set_exception(RuntimeError("a write raised StopIteration"))
        else:
            self.future.set_exception(answer.error)


class Database:
    """A database with one owner. Made by `Database.open`; belongs to the event loop that opened it.

    Writes are answered only once they are durable. Each is somebody's: by default of the tenant that the present work
    is charged to. Those of one owner run in the order they were submitted; owners take turns, by what theirs took, so
    that a write never waits for all those of another.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.commits = 0
        """How many there have been since it was opened."""
        self._loop = asyncio.get_running_loop()
        self._line: Line[_Write] = Line()
        self._readers = Gate(calls=READERS, tenant_calls=READERS // 2, reserved=READERS // 4)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="database-reader")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="database-check")
        self._thread = threading.Thread(target=self._serve, name="database-writer", daemon=True)
        self._thread.start()
        self._closed: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, at: str | Path, migrations: Sequence[str], *, busy_timeout: float = 5.0) -> Self:
        """Open a SQLite file by its path, or a Postgres database by its URL, and bring its schema up to date.

        A file is created where it is missing. `migrations` are SQL scripts in the order they are applied; the database
        remembers how many it has seen, so the list may only ever grow at its end. A script must not begin or commit a
        transaction. `busy_timeout` is in seconds and matters only where a foreign tool holds a lock.

        Raises:
            DatabaseOwnedError: someone else has it open for writing.
            DatabaseVersionError: it has seen more migrations than are given.
            DatabaseError: it cannot be opened, or is not a database.
        """
        return cls(await asyncio.to_thread(_engine, at, tuple(migrations), busy_timeout))

    @classmethod
    async def visit(cls, at: str | Path, migrations: Sequence[str], *, busy_timeout: float = 5.0) -> Self:
        """Open a database for a command, beside the server that owns it, or without one.

        One that is new, or of an older version, is brought up to date first, which needs that no server has it.

        Raises:
            DatabaseOwnedError: it is of an older version, and a server has it.
            DatabaseVersionError: it has seen more migrations than are given.
            DatabaseError: it cannot be opened, or is not a database.
        """
        engine = await asyncio.to_thread(Visit.open, at, tuple(migrations), busy_timeout)
        if engine is None:
            await (await cls.open(at, migrations, busy_timeout=busy_timeout)).close()
            engine = await asyncio.to_thread(Visit.open, at, tuple(migrations), busy_timeout)
        if engine is None:
            raise DatabaseError("the database changed meanwhile; try again")
        return cls(engine)

    @property
    def epoch(self) -> int:
        """Which owner of the database this is: every `open` is one more than the one before."""
        return self._engine.epoch

    def submit(
        self, function: Callable[[Connection], T], *, patience: float = 0.0, owner: str | None = None
    ) -> asyncio.Future[T]:
        """Queue a write and return at once.

        With `patience` it waits so many seconds for another write that it can share a commit with. `owner` says whose
        it is, where it is not the present work's.

        The function runs on the writer's thread, in a transaction that it must not end. Its exception undoes its own
        work alone, and reaches its caller. It may be run again where its first run was undone, so it must change
        nothing but the database. Cancelling the future leaves the function run or not run, as a whole. The future ends
        after the commit.

        Raises:
            DatabaseClosedError: `close()` was called.
        """
        self._refuse_if_closed()
        future: asyncio.Future[T] = self._loop.create_future()
        write = _Write(_present() if owner is None else owner, measured_function(function), future)
        self._line.put(write.owner, write, time.monotonic() + patience if patience else 0.0)
        return future

    def hurry(self, patience: float = 0.0) -> None:
        """Have what was submitted before committed within so many seconds, however patient it is."""
        self._line.hurry(time.monotonic() + patience)

    async def write(self, function: Callable[[Connection], T], *, patience: float = 0.0) -> T:
        """Run `function` as `submit` does, and wait until its work is durable.

        Raises:
            DatabaseFullError: the disk is full.
            DatabaseBusyError: a foreign connection holds a lock.
            DatabaseLostError: the database cannot be reached.
            DatabaseClosedError: `close()` was called.
            Exception: whatever the function raised.
        """
        return await self.submit(function, patience=patience)

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on a read-only connection, over one snapshot that holds every write answered before.

        Raises:
            DatabaseLostError: the database cannot be reached.
            DatabaseClosedError: `close()` was called.
            Exception: whatever the function raised.
        """
        self._refuse_if_closed()
        owner = _present()
        async with self._readers.slot(owner, owner, deadline=None):  # nobody has every reader
            self._refuse_if_closed()
            read = measured_function(self._engine.read)
            return await asyncio.get_running_loop().run_in_executor(self._pool, read, function)

    async def check(self) -> None:
        """Make sure that the database can be reached and is still this owner's, whatever else is done with it.

        Raises:
            DatabaseError: it cannot, or is not.
        """
        self._refuse_if_closed()
        await asyncio.get_running_loop().run_in_executor(self._checker, self._engine.check)

    async def close(self) -> None:
        """Finish what is queued, then release the database. Closing again is harmless."""
        if self._closed is None:
            self._line.close()
            self._closed = asyncio.ensure_future(asyncio.to_thread(self._finish))
        await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise DatabaseClosedError("the database is closed")

    def _finish(self) -> None:
        self._thread.join()
        self._pool.shutdown(wait=True)
        self._checker.shutdown(wait=True)
        self._engine.close()

    def _serve(self) -> None:
        while self._line.wait(GROUP):
            group: list[_Write] = []
            with closing(self._taken(group)) as functions:
                first = next(functions, None)
                if first is not None:  # else all were cancelled
                    self._commit(group, chain([first], functions))

    def _taken(self, group: list[_Write]) -> Generator[Callable[[Connection], Any]]:
        """Take writes in their turns into a group, and yield the function of each, to be run before the next.

        As many are taken as wait at the beginning, but one that comes meanwhile may be among them: it is another
        owner's turn then.
        """
        began, shared, most = time.monotonic(), False, min(GROUP, self._line.waiting)
        while len(group) < most and (write := self._line.take()) is not None:
            started = time.monotonic()
            try:
                if not write.future.cancelled():
                    group.append(write)
                    shared = shared or write.owner != group[0].owner
                    yield write.function
            finally:
                now = time.monotonic()
                self._line.took(now - started)
            if shared and now - began >= GROUP_SECONDS:
                return

    def _commit(self, group: list[_Write], functions: Iterator[Callable[[Connection], Any]]) -> None:
        """Run the functions of a group, which grows as they are taken, and answer them once they are kept."""
        try:
            answers = self._engine.transact(functions)
            self.commits += 1
        except BaseException as error:
            answers = [Failed(_undone(error)) for _ in group]
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits
            # Once for all: to wake the event loop for each takes as long as its statements do.
            self._loop.call_soon_threadsafe(_answer, list(zip(group, answers, strict=True)))


def _answer(answered: Sequence[tuple[_Write, Any]]) -> None:
    for write, answer in answered:
        write.answer(answer)


def _present() -> str:
    """Return whose the present work is: the tenant that it is charged to, or "" for the server's own."""
    charged_to = current()
    return charged_to.tenant if charged_to is not None else ""


def _undone(error: BaseException) -> DatabaseError:
    """Say to one function of a group that the group as a whole was undone, each with an exception of its own."""
    undone = type(error)(str(error)) if isinstance(error, DatabaseError) else None
    undone = undone or DatabaseError(f"the transaction was undone: {error}")
    undone.__cause__ = error
    return undone


def _engine(at: str | Path, migrations: Sequence[str], busy_timeout: float) -> Engine:
    # Imported here, because only one of them is needed.
    if is_postgres(at):
        from rlm_server.database.postgres import Postgres

        return Postgres.open(str(at), migrations, busy_timeout)
    from rlm_server.database.sqlite import SQLite

    return SQLite.open(Path(at), migrations, busy_timeout)
