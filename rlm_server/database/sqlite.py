"""A SQLite file as the server's database: the embedded default."""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from rlm_server.database.engine import (
    READERS,
    Connection,
    DatabaseBusyError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLostError,
    DatabaseOwnedError,
    in_savepoint,
    transaction,
    translated,
    unseen,
)

T = TypeVar("T")

BEGIN = ("BEGIN IMMEDIATE",)
"""What begins a transaction that writes."""

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


def typed(error: BaseException) -> DatabaseError | None:
    """The type of a failure of the database itself; None for a fault of the function (a constraint, say)."""
    # Errors raised by the Python binding itself carry no code. Of a code, the low byte is the primary one, the rest
    # refines it: https://www.sqlite.org/rescode.html
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    if code is None or code & 0xFF not in _TYPED:
        return None
    kind, text = _TYPED[code & 0xFF]
    failure = kind(f"{text} ({error})")
    failure.__cause__ = error
    return failure


class SQLite:
    """A file with one owner, in WAL mode; every commit is flushed to the disk (`synchronous=FULL`)."""

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        checker: sqlite3.Connection,
        readers: Sequence[sqlite3.Connection],
        lock: int,
    ) -> None:
        self._path, self._writer, self._checker = path, writer, checker
        self._lock = lock
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for reader in readers:
            self._idle.put(reader)
        self.epoch = _next_epoch(writer)

    @classmethod
    def open(cls, path: Path, migrations: Sequence[str], busy_timeout: float) -> Self:
        """Open or create the file; see `Database.open`."""
        # Resolved, so that two names of one file share one lock.
        path = path.resolve()
        lock = _own(path)
        connections: list[sqlite3.Connection] = []
        try:
            with translated(typed):
                connections.append(connect(path, busy_timeout))
                _migrate(connections[0], migrations)
                for _ in range(1 + READERS):
                    connections.append(connect(path, busy_timeout))
                    connections[-1].execute("PRAGMA query_only = ON")
                return cls(path, connections[0], connections[1], connections[2:], lock)
        except BaseException:
            for connection in connections:
                connection.close()
            os.close(lock)
            raise

    def transact(self, functions: Iterator[Callable[[Connection], Any]]) -> list[Any]:
        """Run functions in one durable transaction, each in a savepoint of its own; see `Engine.transact`."""
        with transaction(self._writer, BEGIN, typed):
            return [in_savepoint(self._writer, function, typed) for function in functions]

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function over one snapshot; see `Engine.read`."""
        connection = self._idle.get()
        try:
            with translated(typed):
                connection.execute("BEGIN")
                return function(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.put(connection)

    def check(self) -> None:
        """Make sure that the file is there and is read; see `Engine.check`."""
        if not self._path.exists():
            raise DatabaseLostError(f"{self._path} is no longer there")
        with translated(typed):
            (epoch,) = self._checker.execute("SELECT epoch FROM owner").fetchone()
        if epoch != self.epoch:
            raise DatabaseOwnedError("another server has taken the database over; this one must stop")

    def close(self) -> None:
        """Close the connections and let go of the file."""
        while not self._idle.empty():
            self._idle.get().close()
        self._checker.close()
        # Last, because it flushes the log into the file when no other connection is left.
        self._writer.close()
        os.close(self._lock)


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


def connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Open one more connection to a file, which is made where it is missing."""
    # Made here so that nobody else on the machine may read it; SQLite gives its log files the same mode. One that is
    # there is never opened: closing it would let go of all locks that this process has on it, as POSIX wants it, and
    # another process would take the log away from under the owner (https://www.sqlite.org/howtocorrupt.html, 2.2).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
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
    for number, script in unseen(migrations, version):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _next_epoch(connection: sqlite3.Connection) -> int:
    connection.execute("CREATE TABLE IF NOT EXISTS owner (epoch INTEGER NOT NULL) STRICT")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO owner SELECT 0 WHERE NOT EXISTS (SELECT * FROM owner)")
    (epoch,) = connection.execute("UPDATE owner SET epoch = epoch + 1 RETURNING epoch").fetchone()
    connection.execute("COMMIT")
    return int(epoch)
