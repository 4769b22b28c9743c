"""What calls cost is written into the books while the code that made them goes on."""

from __future__ import annotations

import asyncio
import logging
from unittest.mock import patch

import pytest

from rlm_server.database.engine import DatabaseLostError
from rlm_server.ledger import Limit
from rlm_server.repl import owed as owing
from rlm_server.repl.owed import Owed
from sandbox.door import DoorRefusal
from tests.broker.books import PAYER, Books
from tests.repl.stage import Stage, errors

CALLS = 5


async def test_a_calls_cost_shares_a_commit_with_the_next_ones_hold(books: Books) -> None:
    stage = Stage(books)
    with patch.object(owing, "PATIENCE", 3600.0):
        before = books.commits
        for number in range(CALLS):
            assert await stage.calls.ask([f"question {number}"], None) == [{"ok": f"QUESTION {number}"}]
        assert books.commits - before == CALLS
        await stage.owed.settled()
    assert books.commits - before == CALLS + 1
    assert await stage.costs() == {f"{call.call_id}.1": call.spent for call in stage.finished}
    assert await books.unresolved() == 0


async def test_what_is_owed_counts_before_the_next_call_is_paid(books: Books) -> None:
    stage = Stage(books)
    await books.set_limit(PAYER.account, Limit(calls=1))
    with patch.object(owing, "PATIENCE", 3600.0):
        assert await stage.calls.ask(["first"], None) == [{"ok": "FIRST"}]
        with pytest.raises(DoorRefusal, match="calls"):
            await stage.calls.ask(["second"], None)
        assert {kind for kind, _ in errors((await stage.calls.ask(["first", "third"], None))[1:])} == {"LimitExceeded"}
    assert stage.script.asked.total() == 1


async def test_a_cost_that_cannot_be_written_is_logged_unless_somebody_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(error: Exception) -> bool:
        raise error

    owed = Owed(lambda: None)
    for error in (DatabaseLostError("away"), ValueError("a fault")):
        owed.add(asyncio.create_task(fails(error)), (DatabaseLostError,))
    await owed.settled()
    await asyncio.sleep(0)
    assert not owed.any
    assert [(one.levelno, one.exc_info[1].args) for one in caplog.records if one.exc_info and one.exc_info[1]] == [
        (logging.ERROR, ("a fault",))
    ]
