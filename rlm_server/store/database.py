"""One SQLite database file: a single writer that commits in groups, and readers that never wait for it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

GROUP = 256
"""The most functions that share one commit, so that the first of them is not kept waiting for long."""

READERS = 2
"""Read connections, each with a thread of its own."""


class DatabaseError(Exception):
    """The database could not do what was asked; nothing of it was done."""


class DatabaseOwnedError(DatabaseError):
    """Another process, or another `Database`, has the file open for writing."""


class DatabaseVersionError(DatabaseError):
    """The file was written by a newer version of this software."""


class DatabaseClosedError(DatabaseError):
    """The database was used after `close()`."""


class DatabaseBusyError(DatabaseError):
    """A foreign connection kept the file locked for longer than the busy timeout."""


class DatabaseFullError(DatabaseError):
    """The disk is full."""


_TYPED = {
    sqlite3.SQLITE_BUSY: (DatabaseBusyError, "the database is locked by a foreign connection; try again"),
    sqlite3.SQLITE_LOCKED: (DatabaseBusyError, "the database is locked by a foreign connection; try again"),
    sqlite3.SQLITE_FULL: (DatabaseFullError, "the disk of the database is full; free some space"),
    sqlite3.SQLITE_IOERR: (DatabaseError, "the disk of the database failed"),
    sqlite3.SQLITE_READONLY: (DatabaseError, "the database cannot be written"),
    sqlite3.SQLITE_CANTOPEN: (DatabaseError, "the database cannot be opened"),
    sqlite3.SQLITE_CORRUPT: (DatabaseError, "the database is damaged"),
    sqlite3.SQLITE_NOTADB: (DatabaseError, "the file is not a database"),
}


def _typed(error: BaseException) -> DatabaseError | None:
    """The type of a failure of the database itself; None for a fault of the function (a constraint, say)."""
    # Errors raised by the Python binding itself carry no code. Of a code, the low byte is the primary one, the rest
    # refines it: https://www.sqlite.org/rescode.html
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    if code is None or code & 0xFF not in _TYPED:
        return None
    kind, text = _TYPED[code & 0xFF]
    typed = kind(f"{text} ({error})")
    typed.__cause__ = error
    return typed


@dataclass(frozen=True, slots=True)
class _Write:
    function: Callable[[sqlite3.Connection], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


class Database:
    """A SQLite file with one owner. Made by `Database.open`; belongs to the event loop that opened it.

    Writes are answered only once they are durable (WAL, `synchronous=FULL`).
    """

    def __init__(self, writer: sqlite3.Connection, readers: Sequence[sqlite3.Connection], lock: int) -> None:
        self._writer = writer
        self._lock = lock
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for reader in readers:
            self._idle.put(reader)
        self._pool = ThreadPoolExecutor(len(readers), thread_name_prefix="database-reader")
        self._thread = threading.Thread(target=self._serve, name="database-writer", daemon=True)
        self._thread.start()
        self._closed: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, path: str | Path, migrations: Sequence[str], *, busy_timeout: float = 5.0) -> Self:
        """Open the file, creating it where it is missing, and bring its schema up to date.

        `migrations` are SQL scripts in the order they are applied; the file remembers how many it has seen, so the
        list may only ever grow at its end. A script must not begin or commit a transaction. `busy_timeout` is in
        seconds and matters only where a foreign tool holds the file.

        Raises:
            DatabaseOwnedError: someone else has it open for writing.
            DatabaseVersionError: it has seen more migrations than are given.
            DatabaseError: it cannot be opened, or is not a database.
        """
        return await asyncio.to_thread(cls._open, Path(path), tuple(migrations), busy_timeout)

    @classmethod
    def _open(cls, path: Path, migrations: Sequence[str], busy_timeout: float) -> Self:
        # Resolved, so that two names of one file share one lock.
        path = path.resolve()
        lock = _own(path)
        connections: list[sqlite3.Connection] = []
        try:
            connections.append(_connect(path, busy_timeout))
            _migrate(connections[0], migrations)
            for _ in range(READERS):
                connections.append(_connect(path, busy_timeout))
                connections[-1].execute("PRAGMA query_only = ON")
            return cls(connections[0], connections[1:], lock)
        except BaseException as error:
            for connection in connections:
                connection.close()
            os.close(lock)
            typed = _typed(error)
            if typed is None:
                raise
            raise typed from error

    def submit(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Queue a write and return at once; functions run in the order they were submitted.

        The function runs on the writer's thread in a savepoint of its own: its exception undoes its work alone and
        is given to its caller. It must not begin, commit or roll back. Cancelling the future leaves the function
        run or not run, as a whole. The future ends after the commit.

        Raises:
            DatabaseClosedError: `close()` was called.
        """
        self._refuse_if_closed()
        write = _Write(function)
        self._writes.put(write)
        return asyncio.wrap_future(write.future, loop=asyncio.get_running_loop())

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` as `submit` does, and wait until its work is durable.

        Raises:
            DatabaseFullError: the disk is full.
            DatabaseBusyError: a foreign connection holds the file.
            DatabaseClosedError: `close()` was called.
            Exception: whatever the function raised.
        """
        return await self.submit(function)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on a read-only connection, over one snapshot that holds every write answered before.

        Raises:
            DatabaseClosedError: `close()` was called.
            Exception: whatever the function raised.
        """
        self._refuse_if_closed()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, function)

    async def close(self) -> None:
        """Finish what is queued, then release the file. Closing again is harmless."""
        if self._closed is None:
            self._writes.put(None)
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
        while not self._idle.empty():
            self._idle.get().close()
        # Last, because it flushes the log into the file when no other connection is left.
        self._writer.close()
        os.close(self._lock)

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._idle.get()
        try:
            connection.execute("BEGIN")
            return function(connection)
        except sqlite3.Error as error:
            typed = _typed(error)
            if typed is None:
                raise
            raise typed from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.put(connection)

    def _serve(self) -> None:
        while True:
            group, last = self._next_group()
            self._commit([write for write in group if write.future.set_running_or_notify_cancel()])
            if last:
                return

    def _next_group(self) -> tuple[list[_Write], bool]:
        group: list[_Write] = []
        write = self._writes.get()
        while write is not None:
            group.append(write)
            if len(group) == GROUP or self._writes.empty():
                return group, False
            write = self._writes.get()
        return group, True

    def _commit(self, group: list[_Write]) -> None:
        if not group:
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            answers = [self._attempt(write.function) for write in group]
            self._writer.execute("COMMIT")
        except BaseException as error:
            self._abandon()
            for write in group:
                write.future.set_exception(_undone(error))
            return
        for write, answer in zip(group, answers, strict=True):
            if isinstance(answer, _Failed):
                write.future.set_exception(_typed(answer.error) or answer.error)
            else:
                write.future.set_result(answer)

    def _attempt(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        self._writer.execute("SAVEPOINT one")
        try:
            answer = function(self._writer)
        except BaseException as error:
            if not self._writer.in_transaction:
                raise
            self._writer.execute("ROLLBACK TO one")
            answer = _Failed(error)
        # SQLite gives up the whole transaction on some errors, even where the function swallowed the exception.
        if not self._writer.in_transaction:
            raise DatabaseError("the transaction ended inside one of its functions")
        self._writer.execute("RELEASE one")
        return answer

    def _abandon(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")


def _undone(error: BaseException) -> DatabaseError:
    """Say to one function of a group that the group as a whole was undone, each with an exception of its own."""
    undone = _typed(error) or DatabaseError(f"the transaction was undone: {error}")
    undone.__cause__ = error
    return undone


def _own(path: Path) -> int:
    """Take the lock beside the file; the lock ends with its owner, however that ends."""
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise DatabaseOwnedError(
            f"{path} is already open for writing, by process {owner or 'unknown'}; stop that process first"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    # Made here so that nobody else on the machine may read it; SQLite gives its log files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise DatabaseVersionError(
            f"the database has schema version {version}, this software knows up to {len(migrations)}; use a newer one"
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
