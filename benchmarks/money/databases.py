"""New databases of either kind, and proof that what they commit is on the disk."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS
from tests.databases import KINDS, postgres_database, postgres_server

__all__ = ["KINDS", "Databases", "databases"]

SQLITE_FULL = 2
"""https://www.sqlite.org/pragma.html#pragma_synchronous"""
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


@dataclass(frozen=True, slots=True)
class Databases:
    """Where new databases are made."""

    folder: Path
    postgres: str
    """The URL of a server's first database."""

    @contextmanager
    def place(self, kind: str) -> Iterator[str | Path]:
        """Yield where a new database of a kind is."""
        if kind == "sqlite":
            folder = self.folder / secrets.token_hex(8)
            folder.mkdir(mode=0o700)
            yield folder / "rlm.sqlite"
        else:
            with postgres_database(self.postgres) as url:
                yield url

    @asynccontextmanager
    async def ledgers(self, kind: str) -> AsyncIterator[Database]:
        """Open a new database of a kind that has the ledger's tables alone, and whose commits are durable."""
        with self.place(kind) as at:
            async with await Database.open(at, MIGRATIONS) as database:
                await database.write(_refuse_forgetful_sqlite if kind == "sqlite" else _refuse_forgetful_postgres)
                yield database


@contextmanager
def databases(folder: Path) -> Iterator[Databases]:
    """Start a Postgres server; SQLite's files go to `folder`."""
    with postgres_server() as postgres:
        yield Databases(folder, postgres)


def _refuse_forgetful_sqlite(connection: Connection) -> None:
    (level,) = connection.execute("PRAGMA synchronous").fetchone()
    if level != SQLITE_FULL:
        raise RuntimeError(f"SQLite commits with synchronous = {level}")


def _refuse_forgetful_postgres(connection: Connection) -> None:
    for setting in DURABLE:
        (value,) = connection.execute(f"SHOW {setting}").fetchone()
        if value != "on":
            raise RuntimeError(f"Postgres commits with {setting} = {value}")
