"""What an engine of the database does, how it fails, and where statements run.

`sqlite` and `postgres` are the engines. Statements are written once, in the SQL that both understand, with `?` for
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

READERS = 4
"""Read connections, each with a thread of its own."""


class DatabaseError(Exception):
    """The database could not do what was asked; nothing of it was done."""


class DatabaseOwnedError(DatabaseError):
    """Another server, or another `Database`, has it open for writing."""


class DatabaseMissingError(DatabaseError):
    """There is none yet: no server has made it."""


class DatabaseVersionError(DatabaseError):
    """It was written by a newer version of this software."""


class DatabaseClosedError(DatabaseError):
    """The database was used after `close()`."""


class DatabaseBusyError(DatabaseError):
    """A foreign connection kept it locked for longer than the busy timeout."""


class DatabaseFullError(DatabaseError):
    """The disk is full."""


class DatabaseLostError(DatabaseError):
    """The database cannot be reached. Where it was lost during a commit, the work may have been done all the same."""


class Cursor(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All the rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Where statements run. Its owner begins and ends the transaction around them."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""
        ...

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> Any:
        """Run one statement for each row of values."""
        ...


class Writer(Connection, Protocol):
    """The connection that writes, as its owner sees it."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open. It is not where the connection was lost."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


@dataclass(frozen=True, slots=True)
class Failed:
    """What a function of a group raised; its work alone was undone."""

    error: BaseException


class Engine(Protocol):
    """One kind of database. `transact` is called by one thread, `check` by another, `read` by several."""

    @property
    def epoch(self) -> int:
        """Which owner of the database this is: one more than the owner before."""
        ...

    def transact(self, functions: Iterator[Callable[[Connection], Any]]) -> list[Any]:
        """Run functions in one durable transaction; a `Failed` stands for the answer of one that raised.

        Each is taken once those before it have run. It is undone alone where it raises, and may be run again where the
        whole transaction was undone.

        Raises:
            DatabaseError: the transaction as a whole failed.
        """
        ...

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function over one snapshot, on a connection that cannot write."""
        ...

    def check(self) -> None:
        """Make sure that the database is there and still this owner's. Waits for nothing that others do with it.

        Raises:
            DatabaseError: it is not.
        """
        ...

    def close(self) -> None:
        """Release the database."""
        ...


Typed = Callable[[BaseException], DatabaseError | None]
"""Gives a failure of the database itself its type; None for a fault of the function (a broken constraint, say)."""


@contextmanager
def translated(typed: Typed) -> Iterator[None]:
    """Raise a failure of the database itself as its type, and any other error as it is."""
    try:
        yield
    except BaseException as error:
        failure = typed(error)
        if failure is None:
            raise
        raise failure from error


@contextmanager
def transaction(writer: Writer, begin: Sequence[str], typed: Typed) -> Iterator[None]:
    """Commit what is done inside, or undo it where something is raised. `begin` are the statements that begin it."""
    with translated(typed):
        try:
            for statement in begin:
                writer.execute(statement)
            yield
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise


def in_savepoint(writer: Writer, function: Callable[[Connection], Any], typed: Typed) -> Any:
    """Run one function of a group in a savepoint; a `Failed` stands for the answer of one that raised.

    Raises:
        DatabaseError: the function ended the transaction, and the whole group with it.
    """
    writer.execute("SAVEPOINT one")
    try:
        answer = function(writer)
    except BaseException as error:
        if not writer.in_transaction:
            raise
        writer.execute("ROLLBACK TO one")
        answer = Failed(typed(error) or error)
    refuse_if_ended(writer)
    writer.execute("RELEASE one")
    return answer


def refuse_if_ended(writer: Writer) -> None:
    """Refuse to go on in a transaction that a function ended, or that some errors end even where they are caught.

    Raises:
        DatabaseError: it was ended.
    """
    if not writer.in_transaction:
        raise DatabaseError("the transaction ended inside one of its functions")


def unseen(migrations: Sequence[str], version: int) -> Sequence[tuple[int, str]]:
    """The migrations that a database of a version has not had, each with the version it leads to.

    Raises:
        DatabaseVersionError: it has had more than there are.
    """
    if version > len(migrations):
        raise DatabaseVersionError(
            f"the database has schema version {version}, this software knows up to {len(migrations)}; use a newer one, "
            "or restore a backup of before the upgrade"
        )
    return tuple(enumerate(migrations[version:], start=version + 1))


def is_postgres(at: str | Path) -> bool:
    """Whether this names a Postgres database, by its URL, and no file."""
    return isinstance(at, str) and at.startswith(("postgresql://", "postgres://"))


def following(prefix: str) -> str:
    """The least text after all that begin with `prefix`, which is not empty; for a search of these in an index."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
