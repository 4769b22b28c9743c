"""What is kept of runs is counted exactly, for each tenant, on both databases; deleting a run gives all of it back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.runs.events import CodeStarted
from rlm_server.runs.journal import DELETED_AT_ONCE, Journal
from rlm_server.runs.state import RunState
from rlm_server.tenants.tenants import Tenants
from tests.runs.stage import a_node, a_run, an_event, asked, in_rows


@pytest.fixture
async def journal(database_at: str | Path) -> AsyncIterator[Journal]:
    async with await Database.open(database_at, MIGRATIONS) as opened:
        for tenant in ("acme", "other"):
            await Tenants(opened).ensure(tenant)
        yield Journal(opened)


async def test_events_questions_and_answers_count_and_a_restart_changes_nothing(database_at: str | Path) -> None:
    rows = in_rows(*[an_event(number) for number in range(1, 4)])
    async with await Database.open(database_at, MIGRATIONS) as opened:
        await Tenants(opened).ensure("acme")
        first = Journal(opened)
        assert await first.kept_bytes("acme") == 0
        await first.create(a_run(), "\xe9?")
        await first.add_node(a_node("child", question="12345"))
        assert await first.append("run", rows) == 3 + 5 + sum(row.size for row in rows)
        await first.move("child", RunState.RUNNING)
        await first.move("child", RunState.SUCCEEDED, answer="\U0001f600")
    async with await Database.open(database_at, MIGRATIONS) as opened:
        second = Journal(opened)
        assert await second.kept_bytes("acme") == 3 + 5 + 4 + sum(row.size for row in rows)
        assert await second.kept_bytes("other") == 0


async def test_what_could_not_be_kept_does_not_count(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.append("run", in_rows(an_event(1)))
    before = await journal.kept_bytes("acme")
    with pytest.raises(Exception, match="event"):
        await journal.append("run", in_rows(an_event(2), an_event(1)))
    assert await journal.kept_bytes("acme") == before


async def test_deleting_a_run_takes_its_events_in_portions_and_gives_back_what_it_had(journal: Journal) -> None:
    await journal.create(a_run("other's", tenant="other"), "What?")
    await journal.create(a_run("stays"), "What?")
    left = await journal.kept_bytes("acme")
    await journal.create(a_run(request_id="again"), "What?", asked("again"))
    for name, parent, depth in (("child", "run", 1), ("grandchild", "child", 2), ("another", "run", 1)):
        await journal.add_node(a_node(name, parent=parent, depth=depth))
    number = 2 * DELETED_AT_ONCE + 1
    await journal.append("run", in_rows(*[an_event(one) for one in range(1, number + 1)]))
    assert [await journal.delete_events("run") for _ in range(4)] == [True, True, False, False]
    assert await journal.last_sequence("run") == 0
    await journal.delete("run")
    await journal.delete("run")
    assert await journal.get("acme", "run") is None
    assert await journal.nodes("run") == []
    assert await journal.kept_bytes("acme") == left
    assert await journal.kept_bytes("other") == len("What?")
    assert (await journal.create(a_run("new", request_id="again"), "What?", asked("again"))).id == "new"


async def test_a_read_of_events_is_bounded_in_bytes_and_has_one_at_least(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    events = [an_event(number, CodeStarted("x" * 1_000, number)) for number in range(1, 8)]
    await journal.append("run", in_rows(*events))
    assert await journal.events("run", 1, 100, 1) == events[:1]
    assert await journal.events("run", 2, 100, 4_000) == events[1:4]
    assert await journal.events("run", 2, 2, 1 << 20) == events[1:3]
    assert await journal.events("run", 1, 100) == events


async def test_the_texts_of_a_tree_are_cut_and_say_how_long_they_are(journal: Journal) -> None:
    await journal.create(a_run(), "\xe9" * 100)
    await journal.add_node(a_node("child", question="short"))
    await journal.move("run", RunState.RUNNING)
    await journal.move("run", RunState.SUCCEEDED, answer="y" * 1_000)
    root, child = await journal.nodes("run", text_bytes=101)
    assert (root.question, root.answer) == ("\xe9" * 50, "y" * 101)
    assert {one.field: one.size_bytes for one in root.cut} == {"question": 200, "answer": 1_000}
    assert (child.question, child.cut) == ("short", ())
    whole = await journal.root("run")
    assert whole is not None
    assert (whole.question, whole.answer, whole.cut) == ("\xe9" * 100, "y" * 1_000, ())
    assert await journal.root("none") is None


async def test_what_is_under_way_is_counted_without_its_texts(journal: Journal) -> None:
    for name in ("waits", "works", "ended"):
        await journal.create(a_run(name), "What?")
    await journal.add_node(a_node("child", run="works", parent="works"))
    for name in ("works", "ended"):
        await journal.move(name, RunState.RUNNING)
    await journal.move("ended", RunState.SUCCEEDED)
    progress = await journal.progress()
    assert (progress.pending_runs, progress.running_runs, progress.nodes) == (1, 1, 3)
    assert {node.question for node in await journal.unfinished()} == {""}
