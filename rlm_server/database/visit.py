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
    DatabaseVersionError,
    Typed,
    Writer,
    in_savepoint,
    translated,
)

T = TypeVar("T")

Begin = tuple[str, ...]
"""The statements that begin a transaction."""


class Visit:
    """The engine of a visitor."""

    epoch = 0

    def __init__(self, writer: Any, begin: Begin, typed: Typed) -> None:
        self._writer, self._begin, self._typed = writer, begin, typed
        self._one = threading.Lock()

    @staticmethod
    def open(at: str | Path, migrations: Sequence[str], busy_timeout: float) -> Visit | None:
        """Open a database, or return None where it is not there, or is of an older version.

        Raises:
            DatabaseVersionError: it is of a newer version.
            DatabaseError: it cannot be opened.
        """
        if isinstance(at, str) and at.startswith(("postgresql://", "postgres://")):
            opened, version = _postgres(at, busy_timeout)
        elif Path(at).exists():
            opened, version = _sqlite(Path(at), busy_timeout)
        else:
            return None
        if version == len(migrations):
            return opened
        opened.close()
        if version > len(migrations):
            raise DatabaseVersionError(
                f"the database has schema version {version}, this software knows up to {len(migrations)}; use a newer "
                "one"
            )
        return None

    def transact(self, functions: Iterator[Callable[[Connection], Any]]) -> list[Any]:
        """Run functions in one durable transaction; see `Engine.transact`."""
        return self._within(self._begin, lambda: [in_savepoint(self._writer, one, self._typed) for one in functions])

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function over one snapshot; see `Engine.read`."""
        return self._within(("BEGIN",), lambda: function(self._writer))

    def _within(self, begin: Begin, work: Callable[[], T]) -> T:
        writer: Writer = self._writer
        with self._one, translated(self._typed):
            try:
                for statement in begin:
                    writer.execute(statement)
                answer = work()
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            return answer

    def check(self) -> None:
        """Make sure that the database is there; see `Engine.check`."""
        self.read(lambda connection: connection.execute("SELECT 1").fetchone())

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


def _sqlite(path: Path, busy_timeout: float) -> tuple[Visit, int]:
    from rlm_server.database.sqlite import connect, typed

    with translated(typed):
        connection = connect(path, busy_timeout)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return Visit(connection, ("BEGIN IMMEDIATE",), typed), int(version)


def _postgres(url: str, busy_timeout: float) -> tuple[Visit, int]:
    import psycopg

    from rlm_server.database.postgres import connected, typed

    try:
        connection = connected(url, busy_timeout)
    except psycopg.Error as error:
        raise typed(error) or DatabaseError(f"the database cannot be opened ({error})") from error
    version = 0
    with suppress(psycopg.errors.UndefinedTable), translated(typed):
        (version,) = connection.execute("SELECT version FROM rlm_owner").fetchone()
    # Every transaction of the owner's begins by changing this row.
    return Visit(connection, ("BEGIN", "SELECT epoch FROM rlm_owner FOR UPDATE"), typed), int(version)
