"""The database's own server is killed under load, and comes back: no call fails for it, and the books are whole."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Ledger, Limit, Query
from tests.databases import postgres, start_again
from tests.ledger.accounting import a_hold, soon

CALLS = 1500
AT_ONCE = 50


async def test_a_postgres_that_is_killed_and_started_again_loses_nothing_and_counts_nothing_twice() -> None:
    with postgres() as server:
        async with await Database.open(server.get_uri(), MIGRATIONS) as database:
            ledger = Ledger(database)
            await ledger.open_account("acme", tenant="acme", parent=None, limit=Limit(calls=CALLS))
            await ledger.open_account("run", tenant="acme", parent="acme", limit=Limit())
            to_come, done = iter(range(CALLS)), 0
            halfway = asyncio.Event()

            async def lane() -> None:
                nonlocal done
                for number in to_come:
                    hold = a_hold("run", Amounts(nano_usd=5, calls=1), id=f"hold-{number}")
                    await ledger.reserve(hold, deadline=soon(), dispatch=number % 2 == 0)
                    if number % 2:
                        await ledger.dispatch(hold.id)
                    await ledger.post(hold.id, Amounts(nano_usd=3, calls=1), None)
                    done += 1
                    if done == CALLS // 3:
                        halfway.set()

            def kill_and_start_again() -> None:
                pid = server.get_pid()
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                while Path(f"/proc/{pid}").exists():
                    time.sleep(0.01)
                start_again(server)

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(lane())
                await halfway.wait()
                await asyncio.to_thread(kill_and_start_again)

            balance, entries = await ledger.balance("acme"), await ledger.entries(Query("acme"))
            assert balance.posted == Amounts(nano_usd=3 * CALLS, calls=CALLS)
            assert balance.pending == Amounts()
            assert sorted(entry.hold.id for entry in entries) == sorted(f"hold-{number}" for number in range(CALLS))
            assert await ledger.unresolved() == 0
