"""A database of an earlier version is brought up to date with everything that was in it."""

from __future__ import annotations

from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Ledger, Limit, Query, Usage
from rlm_server.runs.journal import Journal

BEFORE_WINDOWS = 6
"""Migrations of the last version whose holds had neither an epoch nor an entry's number."""


def fill(connection: Connection) -> None:
    connection.execute("INSERT INTO tenant VALUES ('acme', 1)")
    connection.execute("INSERT INTO account VALUES ('acme', 'acme', NULL, 0, 0, 100, NULL, NULL" + ", 0" * 12 + ")")
    connection.execute("UPDATE account SET posted_nano_usd = 7, pending_nano_usd = 5 WHERE id = 'acme'")
    hold = "INSERT INTO hold VALUES (?, 'acme', 'acme', 'run', 'n', 'm', 'v', ?, 1, 1, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0)"
    for id, reserved, resolved, cost in (("late", 1, 9, 4), ("early", 2, 8, 3)):
        connection.execute(hold, (id, 5, reserved, "posted", resolved, cost, 1, 1, 6))
    unresolved = "INSERT INTO hold (id, account, tenant, run, node, model, price_version, nano_usd, tokens, calls, "
    connection.execute(
        unresolved + "reserved_at, state) VALUES ('sent', 'acme', 'acme', 'run', 'n', 'm', 'v', 5, 0, 0, 3, "
        "'dispatched')"
    )
    run = "INSERT INTO run (id, tenant, model, sub_model, created_at) VALUES ('run', 'acme', 'm', 'm', 1)"
    connection.execute(run)
    for node, parent in (("run", None), ("second", "run"), ("a third", "run")):
        connection.execute(
            "INSERT INTO node (id, run, parent, depth, state, question) VALUES (?, 'run', ?, 0, 'succeeded', '')",
            (node, parent),
        )


async def test_holds_accounts_and_nodes_of_before_are_counted_on(tmp_path: Path) -> None:
    path = tmp_path / "rlm.sqlite"
    async with await Database.open(path, MIGRATIONS[:BEFORE_WINDOWS]) as database:
        await database.write(fill)
    async with await Database.open(path, MIGRATIONS) as database:
        ledger = Ledger(database)
        entries = await ledger.entries(Query("acme"))
        assert [(e.hold.id, e.number, e.actual, e.usage) for e in entries] == [
            ("early", 1, Amounts(3, 1, 1), Usage(input=6)),
            ("late", 2, Amounts(4, 1, 1), Usage(input=6)),
        ]
        assert (await ledger.recover()).posted == 1
        balance = await ledger.balance("acme")
        assert (balance.limit, balance.posted) == (Limit(nano_usd=100), Amounts(nano_usd=12))
        assert [e.number for e in await ledger.entries(Query("acme"))] == [1, 2, 3]
        assert [node.id for node in await Journal(database).nodes("run")] == ["run", "second", "a third"]
