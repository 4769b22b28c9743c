"""A database of the first version takes the new contexts; its runs stay, and what refers to them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS

FIRST_VERSION = 3


async def test_runs_outlive_the_contexts_of_the_first_version(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    async with await Database.open(path, MIGRATIONS[:FIRST_VERSION]):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("""
            PRAGMA foreign_keys = ON;
            INSERT INTO tenant VALUES ('t', 1);
            INSERT INTO context VALUES ('ctx_1', 't', 'name', 'sha', 1, 1, 'ASCII', 1);
            INSERT INTO run VALUES ('run_1', 't', 'request', 'ctx_1', 'm', 'm', 1, 1, 1, 1, NULL);
            INSERT INTO node VALUES ('run_1', 'run_1', NULL, 0, 'running', 'q', '', '', 0);
            INSERT INTO node VALUES ('node_1', 'run_1', 'run_1', 1, 'running', 'q', '', '', 0);
            INSERT INTO event VALUES ('run_1', 1, 1, 'run_1', '', 0, 0, '{}');
        """)
    async with await Database.open(path, MIGRATIONS) as database:
        assert await database.read(lambda db: db.execute("SELECT id, context FROM run").fetchall()) == [
            ("run_1", "ctx_1")
        ]
        nodes = await database.read(lambda db: db.execute("SELECT id, parent FROM node ORDER BY rowid").fetchall())
        assert nodes == [("run_1", None), ("node_1", "run_1")]
        assert await database.read(lambda db: db.execute("SELECT count(*) FROM event").fetchone()) == (1,)
        assert await database.read(lambda db: db.execute("SELECT count(*) FROM context").fetchone()) == (0,)
        assert await database.read(lambda db: db.execute("PRAGMA foreign_key_check").fetchall()) == []
        targets = await database.read(
            lambda db: [
                {row[2] for row in db.execute(f"PRAGMA foreign_key_list({table})")}
                for table in ("run", "node", "event")
            ]
        )
        assert targets == [{"tenant"}, {"run", "node"}, {"run"}]
