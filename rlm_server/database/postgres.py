"""A Postgres database as the server's database, for what outgrows one file.

One server owns it at a time: it holds an advisory lock, and every transaction begins by touching the row that says
whose turn it is (`rlm_owner`). A server that was cut off and replaced finds another's epoch there and can write nothing
more. The row also counts commits, so that after a lost connection it is known whether the last transaction was kept.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import psycopg

from rlm_server.database.engine import (
    READERS,
    Connection,
    DatabaseBusyError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLostError,
    DatabaseOwnedError,
    in_savepoint,
    refuse_if_ended,
    translated,
    unseen,
)
from rlm_server.database.postgres_dialect import PostgresConnection, in_postgres

T = TypeVar("T")

log = logging.getLogger(__name__)

LOCK = 0x726C6D
"""The advisory lock of the owner, within its database."""

PATIENCE_SECONDS = 30.0
"""How long a database that is away is waited for, with the work in hand, before that work fails."""

PAUSE_SECONDS = 0.25
"""Between two tries to reach it."""

BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""What begins a transaction that reads, of one moment."""

_NOTICED: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How a connection is noticed to be gone whose other side fell silent: in seconds, and the last in milliseconds.
https://www.postgresql.org/docs/current/libpq-connect.html"""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TYPED: dict[str, tuple[type[DatabaseError], str]] = {
    "53100": (DatabaseFullError, "the disk of the database is full; free some space"),
    "55P03": (DatabaseBusyError, "the database is locked by a foreign connection; try again"),
    "57014": (DatabaseBusyError, "the database cancelled the work; try again"),
    "40P01": (DatabaseBusyError, "the database is locked by a foreign connection; try again"),
    "25006": (DatabaseError, "the database cannot be written"),
    "28000": (DatabaseError, "the database does not let this server in"),
    "28P01": (DatabaseError, "the database does not let this server in"),
    "3D000": (DatabaseError, "there is no such database"),
}
_TYPED_CLASSES: dict[str, tuple[type[DatabaseError], str]] = {
    "08": (DatabaseLostError, "the database cannot be reached"),
    "53": (DatabaseBusyError, "the database has no resources left; try again"),
    "57": (DatabaseLostError, "the database cannot be reached"),
    "58": (DatabaseError, "the disk of the database failed"),
    "XX": (DatabaseError, "the database is damaged"),
}
_DURABLE = ("fsync", "full_page_writes")


def typed(error: BaseException) -> DatabaseError | None:
    """The type of a failure of the database itself; None for a fault of the function (a constraint, say)."""
    if not isinstance(error, psycopg.Error):
        return None
    code = error.sqlstate
    if code is None:  # the connection is gone, or never came about
        code = "08" if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) else ""
    kind_and_text = _TYPED.get(code) or _TYPED_CLASSES.get(code[:2])
    if kind_and_text is None:
        return None
    kind, text = kind_and_text
    failure = kind(f"{text} ({_line(error)})")
    failure.__cause__ = error
    return failure


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def connected(url: str, busy_timeout: float) -> PostgresConnection:
    """Open a connection whose every commit is flushed to the disk."""
    raw = psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=5,
        application_name="rlm-server",
        prepare_threshold=1,
        **_NOTICED,
    )
    raw.execute(f"SET lock_timeout = {int(busy_timeout * 1000)}")
    raw.execute("SET synchronous_commit = on")
    return PostgresConnection(raw)


class Postgres:
    """A database with one owner at a time, whose every commit is flushed to the disk (`synchronous_commit`)."""

    def __init__(self, url: str, busy_timeout: float) -> None:
        self._url = url
        self._busy_timeout = busy_timeout
        self._readers: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        for _ in range(READERS):
            self._readers.put(_Reader(self))
        self._checker = _Reader(self)
        self._commits = 0
        self.epoch = 0
        self._writer = self.connect()

    @classmethod
    def open(cls, url: str, migrations: Sequence[str], busy_timeout: float) -> Self:
        """Reach the database and become its owner; see `Database.open`."""
        try:
            self = cls(url, busy_timeout)
        except psycopg.Error as error:
            raise typed(error) or DatabaseError(f"the database cannot be opened ({error})") from error
        try:
            with translated(typed):
                self._refuse_unsafe()
                self._own()
                _migrate(self._writer, migrations)
                self.epoch, self._commits = _next_epoch(self._writer)
        except BaseException:
            self._writer.close()
            raise
        return self

    def connect(self) -> PostgresConnection:
        """Open one more connection."""
        return connected(self._url, self._busy_timeout)

    def transact(self, functions: Iterator[Callable[[Connection], Any]]) -> list[Any]:
        """Run functions in one durable transaction; see `Engine.transact`.

        Where the connection is lost the database is waited for, and the work is done again unless it had been kept.
        """
        give_up = time.monotonic() + PATIENCE_SECONDS
        taken: list[Callable[[Connection], Any]] = []
        while True:
            committing: list[Any] | None = None
            try:
                self._begin()
                committing = self._answers(taken, functions)
                self._writer.execute("COMMIT")
            except BaseException as error:
                if not self._writer.broken:
                    self._writer.abandon()
                    failure = typed(error)
                    if failure is None:
                        raise
                    raise failure from error
                log.warning("the connection to the database was lost: %s", _line(error))
                self._reconnect(give_up)
                if committing is None or not self._kept():
                    continue
            self._commits += 1
            return committing

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function over one snapshot; see `Engine.read`."""
        reader = self._readers.get()
        try:
            with translated(typed):
                return reader.read(function)
        finally:
            self._readers.put(reader)

    def check(self) -> None:
        """Make sure that the database is reached, can be written and is this server's; see `Engine.check`."""
        with translated(typed):
            epoch, only_read = self._checker.once(_ask_owner)
        if epoch != self.epoch:
            raise DatabaseOwnedError("another server has taken the database over; this one must stop")
        if only_read:
            raise DatabaseLostError("the database is a copy that cannot be written")

    def close(self) -> None:
        """Close the connections; another server may own the database then."""
        while not self._readers.empty():
            self._readers.get().close()
        self._checker.close()
        self._writer.close()

    # ---- a transaction -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._writer.execute("BEGIN")
        turn = self._writer.execute("UPDATE rlm_owner SET commits = ? WHERE epoch = ?", (self._commits + 1, self.epoch))
        if turn.rowcount != 1:
            raise DatabaseOwnedError("another server has taken the database over; this one must stop")

    def _answers(
        self, taken: list[Callable[[Connection], Any]], functions: Iterator[Callable[[Connection], Any]]
    ) -> list[Any]:
        """Run those that were taken before, and then the others, which are kept among those that were taken."""
        # A savepoint for each would double the trips to the database, and failures are rare: a second run finds them.
        try:
            answers = [function(self._writer) for function in taken]
            for function in functions:
                taken.append(function)
                answers.append(function(self._writer))
        except BaseException:
            if self._writer.broken:
                raise
        else:
            refuse_if_ended(self._writer)
            return answers
        refuse_if_ended(self._writer)
        self._writer.execute("ROLLBACK")
        self._begin()
        return [in_savepoint(self._writer, function, typed) for function in taken]

    # ---- who owns it ---------------------------------------------------------------------------------------------

    def _refuse_unsafe(self) -> None:
        for setting in _DURABLE:
            (value,) = self._writer.execute(f"SHOW {setting}").fetchone()
            if value != "on":
                raise DatabaseError(f"the database runs with {setting} = {value}, and may lose what it said it kept")

    def _own(self) -> None:
        # A server that was killed has the lock until Postgres sees that its connection is gone.
        give_up = time.monotonic() + self._busy_timeout
        while self._writer.execute("SELECT pg_try_advisory_lock(?)", (LOCK,)).fetchone() != (1,):
            if time.monotonic() >= give_up:
                raise DatabaseOwnedError("another server has the database; stop that one, or use another database")
            time.sleep(min(PAUSE_SECONDS, self._busy_timeout))

    def _reconnect(self, give_up: float) -> None:
        """Reach the database again and take its lock; the epoch tells whether another server was there meanwhile."""
        self._writer.close()
        while True:
            try:
                writer = self.connect()
                # The lock may still be with this server's former connection, which the database takes for alive.
                writer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ? AND usename = current_user "
                    "AND application_name = 'rlm-server'",
                    (self._writer.pid,),
                )
                self._writer = writer
                self._own()
            except (psycopg.Error, DatabaseOwnedError) as error:
                if time.monotonic() >= give_up:
                    raise DatabaseLostError(f"the database cannot be reached ({_line(error)})") from None
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def _kept(self) -> bool:
        """Whether the transaction that was being committed when the connection was lost is there."""
        found = self._writer.execute("SELECT commits FROM rlm_owner WHERE epoch = ?", (self.epoch,)).fetchone()
        return found is not None and found[0] == self._commits + 1


def _ask_owner(connection: Connection) -> tuple[int, bool]:
    found = connection.execute("SELECT epoch, pg_is_in_recovery() FROM rlm_owner").fetchone()
    return int(found[0]), bool(found[1])


class _Reader:
    """A connection for reading, made when it is first needed and again when it was lost."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._connection: PostgresConnection | None = None

    def read(self, function: Callable[[Connection], T]) -> T:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.once(function)
            except psycopg.Error as error:
                gone = self._connection is None or self._connection.broken
                if not gone or not isinstance(typed(error), DatabaseLostError) or time.monotonic() >= give_up:
                    raise
            time.sleep(PAUSE_SECONDS)

    def once(self, function: Callable[[Connection], T]) -> T:
        """Read without patience."""
        if self._connection is None or self._connection.broken:
            self._connection = self._database.connect()
        connection = self._connection
        connection.execute(BEGIN_READING)
        try:
            return function(connection)
        finally:
            if not connection.broken:
                connection.abandon()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _migrate(connection: PostgresConnection, migrations: Sequence[str]) -> None:
    connection.execute("""
        CREATE TABLE IF NOT EXISTS rlm_owner (
            one     BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
            epoch   BIGINT NOT NULL,
            commits BIGINT NOT NULL,
            version BIGINT NOT NULL
        );
        INSERT INTO rlm_owner VALUES (true, 0, 0, 0) ON CONFLICT DO NOTHING;
    """)
    (version,) = connection.execute("SELECT version FROM rlm_owner").fetchone()
    for number, script in unseen(migrations, version):
        done = f"UPDATE rlm_owner SET version = {number}"  # noqa: S608 - a number
        connection.execute(f"BEGIN;\n{in_postgres(script)}\n;{done};\nCOMMIT;")


def _next_epoch(connection: PostgresConnection) -> tuple[int, int]:
    row = connection.execute("UPDATE rlm_owner SET epoch = epoch + 1 RETURNING epoch, commits").fetchone()
    return int(row[0]), int(row[1])
