"""A process that is killed in the middle of its calls: what was answered is kept, and the rest is as the law says."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Ledger, Limit, Query
from tests.ledger.accounting import a_hold, soon

DEATHS = int(os.environ.get("RLM_TEST_KILLS", "5"))
AT_ONCE = 12
LIMIT = 1_000_000
ORDER = ("", "pending", "dispatched", "posted")


async def spend(at: str, life: int) -> None:
    """The victim: calls without an end, each of whose steps is said once it was answered."""
    async with await Database.open(at if "://" in at else Path(at), MIGRATIONS) as database:
        ledger = Ledger(database)

        async def calls(lane: int) -> None:
            for number in range(1_000_000):
                hold = a_hold("run", Amounts(nano_usd=number % 5 + 1, calls=1), id=f"{life}-{lane}-{number}")
                await ledger.reserve(hold, deadline=soon(), dispatch=number % 2 == 0)
                if number % 2:
                    print(hold.id, "pending", flush=True)
                    await ledger.dispatch(hold.id)
                print(hold.id, "dispatched", flush=True)
                await ledger.post(hold.id, Amounts(nano_usd=1, calls=1), None)
                print(hold.id, "posted", flush=True)

        await asyncio.gather(*(calls(lane) for lane in range(AT_ONCE)))


async def said_until_killed(at: str | Path, life: int, lines: int) -> dict[str, str]:
    """Start the victim, kill it once it has said so many lines, and return the last word on each hold."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.test_deaths", str(at), str(life), stdout=asyncio.subprocess.PIPE
    )
    assert victim.stdout is not None
    said: dict[str, str] = {}
    number = 0
    while line := await victim.stdout.readline():
        if not line.endswith(b"\n"):
            break  # the death cut it off
        hold, state = line.decode().split()
        said[hold] = state
        number += 1
        if number == lines:
            victim.kill()  # what is in the pipe by now was said before the death
    assert await victim.wait() == -9
    return said


def states(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT id, state FROM hold").fetchall())


async def test_what_was_answered_before_a_death_is_kept_and_the_rest_is_recovered(database_at: str | Path) -> None:
    random.seed(7)
    async with await Database.open(database_at, MIGRATIONS) as database:
        await Ledger(database).open_account("acme", tenant="acme", parent=None, limit=Limit(nano_usd=LIMIT))
        await Ledger(database).open_account("run", tenant="acme", parent="acme", limit=Limit())
    for life in range(DEATHS):
        said = await said_until_killed(database_at, life, random.randint(1, 400))
        async with await Database.open(database_at, MIGRATIONS) as database:
            ledger, found = Ledger(database), await database.read(states)
            for hold, state in said.items():
                assert ORDER.index(found.get(hold, "")) >= ORDER.index(state)
            recovery = await ledger.recover()
            assert recovery.voided == sum(state == "pending" for state in found.values())
            assert recovery.posted == sum(state == "dispatched" for state in found.values())
            balance, entries = await ledger.balance("acme"), await ledger.entries(Query("acme"))
            assert balance.pending == Amounts()
            assert balance.posted == sum((entry.actual for entry in entries), Amounts())
            assert balance.posted.nano_usd <= LIMIT
            assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))


if __name__ == "__main__":
    asyncio.run(spend(sys.argv[1], int(sys.argv[2])))
