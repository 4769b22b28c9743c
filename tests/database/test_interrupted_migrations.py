"""A start that is killed while it brings a database up to date leaves one that the next start brings up to date."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from rlm_server.database import sqlite
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.snapshot import snapshot
from tests.database.test_migrations import check, make
from tests.databases import postgres_database

FORMER = 5
"""The version before: the first whose contexts are kept."""
STRIDE = {"sqlite": 31, "postgres": 60}
"""Between the moments of two deaths: in statements of SQLite, and in what Postgres tells of its work."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def bring_up_to_date(at: str | Path, moments: int) -> None:
    """The victim: opens a database, and is killed after so many moments of its work."""
    left = count(moments, -1)

    def moment(*_: object) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(at, Path):
        sqlite.connect = watched(moment)  # type: ignore[assignment]
    else:
        psycopg.connect = told(moment)
    asyncio.run(opened(at))


async def opened(at: str | Path) -> None:
    async with await Database.open(at, MIGRATIONS):
        pass


def watched(moment: Callable[..., None]) -> Callable[[Path, float], sqlite3.Connection]:
    """Connect to SQLite so that each statement is a moment, before it runs."""
    connect = sqlite.connect

    def connected(path: Path, busy_timeout: float) -> sqlite3.Connection:
        connection = connect(path, busy_timeout)
        connection.set_trace_callback(moment)
        return connection

    return connected


def told(moment: Callable[..., None]) -> Callable[..., Any]:
    """Connect to Postgres so that what it says of its work, in the middle of a script, is a moment."""
    connect = psycopg.connect

    def connected(*words: Any, **named: Any) -> Any:
        connection = connect(*words, **named)
        connection.execute("SET client_min_messages = debug1")
        connection.add_notice_handler(moment)
        return connection

    return connected


def killed(at: str | Path, moments: int) -> bool:
    """Whether a start was killed after so many moments. It was not where it had come to its end before."""
    victim = _FORKS.Process(target=bring_up_to_date, args=(at, moments))
    victim.start()
    victim.join(60)
    assert victim.exitcode in (0, -signal.SIGKILL)
    return victim.exitcode != 0


def schema(at: str | Path) -> int:
    with snapshot(at) as found:
        return found.schema


async def test_a_file_whose_migration_was_killed_is_brought_up_to_date_by_the_next_start(tmp_path: Path) -> None:
    await make(tmp_path / "former", FORMER)
    reached = set[int]()
    for moments in count(0, STRIDE["sqlite"]):
        at = tmp_path / f"{moments}.sqlite"
        shutil.copyfile(tmp_path / "former", at)
        if not killed(at, moments):
            break
        reached.add(schema(at))
        await check(at, FORMER)
    assert FORMER in reached
    assert len(reached) > 2


async def test_a_postgres_database_whose_migration_was_killed_is_brought_up_to_date_by_the_next_start(
    postgres: str,
) -> None:
    reached = set[int]()
    for moments in count(0, STRIDE["postgres"]):
        with postgres_database(postgres) as at:
            await make(at, FORMER)
            if not killed(at, moments):
                break
            reached.add(schema(at))
            await check(at, FORMER)
    assert len(reached) > 2
    assert FORMER in reached
