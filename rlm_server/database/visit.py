"""A database as a visitor has it: a command that looks or changes something beside the server that owns it.

A visitor takes no lock of the owner's and never changes the schema. It has one connection. Its transactions and the
owner's exclude each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rlm_server.database.engine import (
    Connection,
    DatabaseError,
    Typed,
    Writer,
    in_savepoint,
    is_postgres,
    transaction,
    translated,
    unseen,
)

T = TypeVar("T")


class Visit:
    """The engine of a visitor.

    `to_write` and `to_read` are the statements that begin a transaction which writes, and one which only reads.
    """

    epoch = 0

    def __init__(self, writer: Writer, to_write: Sequence[str], to_read: Sequence[str], typed: Typed) -> None:
        self._writer, self._to_write, self._to_read, self._typed = writer, to_write, to_read, typed
        self._one = threading.Lock()

    @staticmethod
    def open(at: str | Path, migrations: Sequence[str], busy_timeout: float) -> Visit | None:
        """Open a database, or return None where it is not there, or is of an older version.

        Raises:
            DatabaseVersionError: it is of a newer version.
            DatabaseError: it cannot be opened.
        """
        if is_postgres(at):
            opened, version = _postgres(str(at), busy_timeout)
        elif Path(at).exists():
            opened, version = _sqlite(Path(at), busy_timeout)
        else:
            return None
        if version == len(migrations):
            return opened
        opened.close()
        unseen(migrations, version)  # which refuses a newer one
        return None

    def transact(self, functions: Iterator[Callable[[Connection], Any]]) -> list[Any]:
        """Run functions in one durable transaction; see `Engine.transact`."""
        with self._one, transaction(self._writer, self._to_write, self._typed):
            return [in_savepoint(self._writer, function, self._typed) for function in functions]

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function over one snapshot; see `Engine.read`."""
        with self._one, transaction(self._writer, self._to_read, self._typed):
            return function(self._writer)

    def check(self) -> None:
        """Make sure that the database is there; see `Engine.check`."""
        self.read(lambda connection: connection.execute("SELECT 1").fetchone())

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


def _sqlite(path: Path, busy_timeout: float) -> tuple[Visit, int]:
    from rlm_server.database.sqlite import BEGIN, connect, typed

    with translated(typed):
        connection = connect(path, busy_timeout)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return Visit(connection, BEGIN, ("BEGIN",), typed), int(version)


def _postgres(url: str, busy_timeout: float) -> tuple[Visit, int]:
    import psycopg

    from rlm_server.database.postgres import BEGIN_READING, connected, typed

    try:
        connection = connected(url, busy_timeout)
    except psycopg.Error as error:
        raise typed(error) or DatabaseError(f"the database cannot be opened ({error})") from error
    version = 0
    with suppress(psycopg.errors.UndefinedTable), translated(typed):
        (version,) = connection.execute("SELECT version FROM rlm_owner").fetchone()
    # Every transaction of the owner's begins by changing this row.
    to_write = ("BEGIN", "SELECT epoch FROM rlm_owner FOR UPDATE")
    return Visit(connection, to_write, (BEGIN_READING,), typed), int(version)
