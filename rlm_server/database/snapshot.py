"""All rows of a database at one moment, read beside the server that owns it; and put into an empty one."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm_server.database.engine import Connection, DatabaseError, DatabaseMissingError, is_postgres

BATCH = 500
"""Rows that are put in at once."""

_OWN = frozenset({"owner", "sqlite_sequence"})
"""Tables that say whose a database is: each has its own."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the schema. `parent` is its column that refers to its own rows, empty where there is none."""

    name: str
    columns: tuple[str, ...]
    parent: str
    numbered: str
    """Its column that the database numbers, empty where there is none."""
    first_rows: int = 0
    """How many rows it has in a database that is new."""

    @property
    def every_row(self) -> str:
        """The statement that finds every row, those that others refer to first."""
        columns = ", ".join(f"t.{column}" for column in self.columns)
        if not self.parent:
            return f"SELECT {columns} FROM {self.name} t"  # noqa: S608 - names of the schema
        return (
            f"WITH RECURSIVE below (id, depth) AS (SELECT id, 0 FROM {self.name} WHERE {self.parent} IS NULL "  # noqa: S608
            f"UNION ALL SELECT n.id, below.depth + 1 FROM {self.name} n JOIN below ON n.{self.parent} = below.id) "
            f"SELECT {columns} FROM {self.name} t JOIN below ON t.id = below.id ORDER BY below.depth"
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A database at one moment. `schema` is how many migrations it has seen, `rows` yields what a statement finds."""

    schema: int
    rows: Callable[[str], Iterator[Sequence[Any]]]


@contextmanager
def snapshot(at: str | Path) -> Iterator[Snapshot]:
    """Read a database, whoever owns it, as it is at one moment.

    Raises:
        DatabaseMissingError: there is none.
        DatabaseError: it cannot be read.
    """
    with _postgres(at) if is_postgres(at) else _sqlite(Path(at)) as found:
        yield found


def tables(migrations: Sequence[str]) -> list[Table]:
    """Return the tables that these migrations lead to, each after those that it refers to."""
    with closing(sqlite3.connect(":memory:")) as scratch:
        for script in migrations:
            scratch.executescript(script)
        names = [name for (name,) in scratch.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found, refers = {}, {}
        for name in sorted(set(names) - _OWN):
            columns = tuple(column[1] for column in scratch.execute(f"PRAGMA table_info({name})"))
            keys = scratch.execute(f"PRAGMA foreign_key_list({name})").fetchall()
            refers[name] = {key[2] for key in keys} - {name}
            (made,) = scratch.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            numbered = re.search(r"(\w+)\s+INTEGER PRIMARY KEY AUTOINCREMENT", made)
            parent = next((key[3] for key in keys if key[2] == name), "")
            (first_rows,) = scratch.execute(f"SELECT count(*) FROM {name}").fetchone()  # noqa: S608
            found[name] = Table(name, columns, parent, numbered[1] if numbered else "", first_rows)
    ordered: list[Table] = []
    while found:
        ready = [name for name in found if not refers[name] & found.keys()]
        ordered += [found.pop(name) for name in ready]
    return ordered


def put(connection: Connection, table: Table, rows: Iterable[Sequence[Any]], *, postgres: bool) -> None:
    """Put rows into an empty table."""
    columns, marks = ", ".join(table.columns), ", ".join("?" for _ in table.columns)
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608 - names of the schema
    batch: list[Sequence[Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= BATCH:
            connection.executemany(statement, batch)
            batch = []
    if batch:
        connection.executemany(statement, batch)
    if table.numbered and postgres:  # SQLite goes on by itself after the greatest
        connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{table.name}', '{table.numbered}'), "  # noqa: S608
            f"coalesce(max({table.numbered}), 0) + 1, false) FROM {table.name}"
        )


@contextmanager
def _sqlite(path: Path) -> Iterator[Snapshot]:
    if not path.is_file():
        raise DatabaseMissingError(f"there is no database at {path}")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            (schema,) = reader.execute("PRAGMA user_version").fetchone()
            yield Snapshot(schema, lambda statement: iter(reader.execute(statement)))
    except sqlite3.Error as error:
        raise DatabaseError(f"{path} cannot be read: {error}") from error


@contextmanager
def _postgres(url: str | Path) -> Iterator[Snapshot]:
    # Imported here, because only a database of this kind needs it.
    import psycopg

    from rlm_server.database.postgres import BEGIN_READING
    from rlm_server.database.postgres_dialect import PostgresConnection

    try:
        with psycopg.connect(str(url), autocommit=True, connect_timeout=5) as raw:
            PostgresConnection(raw)  # which has values read as they were written
            raw.execute(BEGIN_READING)
            try:
                (schema,) = raw.execute("SELECT version FROM rlm_owner").fetchone() or (0,)
            except psycopg.errors.UndefinedTable:
                raise DatabaseMissingError("no server has used the database yet") from None
            yield Snapshot(int(schema), lambda statement: raw.cursor().stream(statement))
    except psycopg.Error as error:
        raise DatabaseError(f"the database cannot be read: {' '.join(str(error).split())}") from error
