"""What a process that died left unfinished is ended by the next: nothing is held, and every run says what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Hold, Ledger, Limit, names
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from rlm_server.runs.cuts import CutText
from rlm_server.runs.events import Event, RunFinished
from rlm_server.runs.journal import Journal
from rlm_server.runs.node import SERVER_STOPPED
from rlm_server.runs.past.remains import Remains
from rlm_server.runs.past.run_file import RunFiles
from rlm_server.runs.recovery import recover
from rlm_server.runs.redaction import Redaction
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import Services
from rlm_server.shares.threads import Threads
from rlm_server.tenants.tenants import Tenants
from sandbox.pool.snapshots import SessionStore
from tests.runs.stage import END, a_node, a_run, an_event, in_rows

SECRET = bytes(32)
SPENT = Amounts(nano_usd=7, tokens=3, calls=1)


@dataclass(frozen=True)
class Process:
    """What a process has of the database; its end is its death."""

    journal: Journal
    ledger: Ledger
    folder: Path
    redacts: tuple[str, ...] = ()
    """The tenants whose contents are redacted."""

    async def begin(self, run: str = "run") -> None:
        """Start a run that has spent something, as the supervisor does."""
        await self.journal.create(a_run(run), "What?")
        await self.ledger.open_account(run, tenant="acme", parent="acme", limit=Limit(nano_usd=100))
        await self.journal.move(run, RunState.RUNNING)
        await self.ledger.post(await self.send(run, SPENT), SPENT, None)

    async def end(self, run: str, answer: str = "42") -> None:
        """End a run but for its last event."""
        await self.ledger.close_account(run)
        await self.journal.move(run, RunState.SUCCEEDED, answer=answer)

    async def open_child(self, child: str) -> None:
        await self.ledger.open_account(child, tenant="acme", parent="run", limit=Limit(nano_usd=50), carve=True)

    async def send(self, account: str, amounts: Amounts) -> str:
        """Send a model call, and return its hold."""
        hold = Hold(f"hold of {account}", account, amounts, "model", "", "acme", "run", account)
        await self.ledger.reserve(hold, deadline=0.0, dispatch=True)
        return hold.id

    async def recover(self) -> None:
        files = RunFiles(self.folder / "runs", SECRET, SessionStore(self.folder / "sessions", SECRET))
        pool: Any = SimpleNamespace(keep_only=lambda *_: None, images=("core",))
        redaction, nothing = Redaction(self.redacts.__contains__, b"secret"), cast(Any, None)
        shares: Any = SimpleNamespace(threads=Threads())
        services = Services(nothing, self.ledger, pool, self.journal, nothing, shares, redaction, files, nothing)
        try:
            assert await recover(services, nothing, Remains(files, pool, lambda _: 1)) == []
        finally:
            shares.threads.close()

    async def events(self, run: str) -> list[Event]:
        return await self.journal.events(run, 1, 100)

    async def last(self, run: str) -> tuple[int, object]:
        (*_, event) = await self.events(run)
        return event.sequence, event.body

    async def closed(self, account: str) -> bool:
        statement = await self.ledger.statement("acme", account)
        assert statement is not None
        return statement.closed


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[Process]:
    async with await Database.open(folder / "rlm.sqlite", MIGRATIONS) as database:
        await Tenants(database).ensure("acme")
        ledger = Ledger(database)
        await ledger.open_account("acme", tenant="acme", parent=None, limit=Limit())
        yield Process(Journal(database), ledger, folder)


async def test_a_run_that_was_going_on_has_failed_and_says_what_it_spent(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.journal.append("run", in_rows(an_event(1), an_event(2)))
    async with process(tmp_path) as second:
        await second.recover()
        (root,) = await second.journal.nodes("run")
        assert (root.state, root.reason) == (RunState.FAILED, SERVER_STOPPED)
        assert await second.last("run") == (3, RunFinished(RunState.FAILED, SERVER_STOPPED, SPENT, ""))
        assert await second.closed("run")


async def test_what_may_have_been_sent_is_paid_for_in_full(tmp_path: Path) -> None:
    sent = Amounts(nano_usd=20)
    async with process(tmp_path) as first:
        await first.begin()
        await first.open_child(names.NODE + "1")
        await first.journal.add_node(a_node(names.NODE + "1"))
        await first.send(names.NODE + "1", sent)
    async with process(tmp_path) as second:
        await second.recover()
        assert {node.state for node in await second.journal.nodes("run")} == {RunState.FAILED}
        assert await second.last("run") == (1, RunFinished(RunState.FAILED, SERVER_STOPPED, SPENT + sent, ""))
        balance = await second.ledger.balance("acme")
        assert (balance.posted, balance.pending) == (SPENT + sent, Amounts())


async def test_a_child_that_has_an_account_and_is_no_node_yet_gives_its_share_back(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.open_child(names.NODE + "1")
    async with process(tmp_path) as second:
        await second.recover()
        assert await second.closed(names.NODE + "1")
        assert await second.closed("run")


async def test_a_run_that_had_no_account_yet_has_failed_too(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.journal.create(a_run(), "What?")
    async with process(tmp_path) as second:
        await second.recover()
        assert await second.last("run") == (1, RunFinished(RunState.FAILED, SERVER_STOPPED, Amounts(), ""))


async def test_a_run_whose_end_was_kept_but_not_told_tells_it(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.end("run")
    async with process(tmp_path) as second:
        await second.recover()
        assert await second.last("run") == (1, RunFinished(RunState.SUCCEEDED, "", SPENT, "42"))


async def test_runs_that_have_ended_stay_as_they_are_and_so_do_recovered_ones(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.begin("ended")
        await first.end("ended")
        await first.journal.append("ended", in_rows(an_event(1), an_event(2, END)))
    async with process(tmp_path) as second:
        await second.recover()
        kept = [(await second.journal.nodes(run), await second.events(run)) for run in ("run", "ended")]
        assert kept[1][1] == [an_event(1), an_event(2, END)]
    async with process(tmp_path) as third:
        await third.recover()
        assert [(await third.journal.nodes(run), await third.events(run)) for run in ("run", "ended")] == kept


async def test_a_long_answer_that_was_not_told_is_told_with_its_size(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.end("run", "x" * (MAX_EVENT_TEXT + 1))
    async with process(tmp_path) as second:
        await second.recover()
        (*_, event) = await second.events("run")
        assert event.cut == (CutText("answer", MAX_EVENT_TEXT + 1),)


async def test_the_end_of_a_run_is_told_without_its_answer_where_contents_are_redacted(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await first.begin()
        await first.end("run")
    async with process(tmp_path) as second:
        await replace(second, redacts=("acme",)).recover()
        assert await second.last("run") == (1, RunFinished(RunState.SUCCEEDED, "", SPENT, ""))
        (*_, event) = await second.events("run")
        assert [(one.field, one.size_bytes, len(one.digest)) for one in event.cut] == [("answer", 2, 64)]
        (root,) = await second.journal.nodes("run")
        assert root.answer == "42"
