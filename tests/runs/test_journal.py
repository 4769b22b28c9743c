"""What is kept of runs: as they were asked for, their trees, and every event in its order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlm_server.broker.provider import Message
from rlm_server.contexts.passages import Passage
from rlm_server.database.requests import RequestIdReused
from rlm_server.ledger import Amounts, Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import (
    CallFinished,
    CallStarted,
    CallTraced,
    CodeFinished,
    Ending,
    FinishedCall,
    ModelCallRequested,
    Printed,
    ToolCallAnswered,
    ToolCallRequested,
    TurnRestarted,
)
from rlm_server.runs import events
from rlm_server.runs.events import Body, Event, EventOrigin, NodeResumed, RunFinished, from_json, to_json
from rlm_server.runs.journal import Journal
from rlm_server.runs.state import RunState
from sandbox.corpora.coverage import Range
from sandbox.turn import Status, Stop, Turn, TurnError, Variable
from tests.runs.stage import END, a_node, a_run, an_event, asked, in_rows

# ---- runs ------------------------------------------------------------------------------------------------------------


async def test_a_run_is_kept_as_it_was_asked_for(journal: Journal) -> None:
    run = a_run(request_id="first", context="ctx", budget=Limit(nano_usd=7, tokens=8, calls=9, cpu_ms=10))
    assert await journal.create(run, "What?") == run
    assert await journal.get("acme", "run") == run
    (root,) = await journal.nodes("run")
    assert (root.id, root.run, root.parent, root.depth) == ("run", "run", None, 0)
    assert (root.state, root.question) == (RunState.PENDING, "What?")


async def test_another_tenants_run_does_not_exist(journal: Journal) -> None:
    await journal.create(a_run(request_id="first"), "What?")
    assert await journal.get("other", "run") is None
    assert await journal.by_request(asked("first", tenant="other")) is None
    assert await journal.get("acme", "none") is None


async def test_a_repeated_request_returns_the_run_it_made_first(journal: Journal) -> None:
    first = await journal.create(a_run(request_id="again"), "What?", asked("again"))
    assert await journal.create(a_run("second", request_id="again"), "What?", asked("again")) == first
    assert await journal.by_request(asked("again")) == first
    assert await journal.get("acme", "second") is None
    others = a_run("third", tenant="other", request_id="again")
    kept = await journal.create(others, "What?", asked("again", tenant="other"))
    assert kept == others, "the ids of requests are each tenant's own"


async def test_a_request_id_that_comes_with_another_content_is_refused(journal: Journal) -> None:
    await journal.create(a_run(request_id="again"), "What?", asked("again"))
    other = replace(asked("again"), content_sha256="other")
    with pytest.raises(RequestIdReused):
        await journal.by_request(other)
    with pytest.raises(RequestIdReused):
        await journal.create(a_run("second", request_id="again"), "Else?", other)
    assert await journal.get("acme", "second") is None


async def test_runs_without_a_request_id_are_never_the_same(journal: Journal) -> None:
    assert (await journal.create(a_run("first"), "What?")).id == "first"
    assert (await journal.create(a_run("second"), "What?")).id == "second"


async def test_what_a_run_has_looked_at_is_kept(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    assert await journal.coverage("run") == Coverage()
    found = Coverage(0.25, 2, (Range(0, 5, 10), Range(3, 0, 7)), more=True)
    await journal.cover("run", found)
    assert await journal.coverage("run") == found
    assert await journal.coverage("none") == Coverage()


# ---- nodes -----------------------------------------------------------------------------------------------------------


async def test_nodes_are_listed_as_they_started_the_root_first(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    names = ["zebra", "ant", "bee"]
    for name in names:
        await journal.add_node(a_node(name, question=name.upper()))
    await journal.create(a_run("elsewhere"), "What?")
    assert [node.id for node in await journal.nodes("run")] == ["run", *names]
    assert [node.question for node in await journal.nodes("run")] == ["What?", "ZEBRA", "ANT", "BEE"]


async def test_a_node_moves_as_its_states_allow_and_keeps_how_it_ended(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.move("run", RunState.RUNNING)
    await journal.move("run", RunState.EXHAUSTED, answer="4", reason="max_turns", turns=3, coverage_fraction=0.5)
    (root,) = await journal.nodes("run")
    assert (root.state, root.answer, root.reason) == (RunState.EXHAUSTED, "4", "max_turns")
    assert (root.turns, root.coverage_fraction) == (3, 0.5)
    with pytest.raises(ValueError, match="exhausted cannot become succeeded"):
        await journal.move("run", RunState.SUCCEEDED, answer="5")
    assert await journal.nodes("run") == [root]


async def test_a_run_has_ended_when_its_root_has_and_not_when_a_child_has(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.add_node(a_node("child"))
    for node in ("run", "child"):
        await journal.move(node, RunState.RUNNING)
    await journal.move("child", RunState.SUCCEEDED)
    run = await journal.get("acme", "run")
    assert run is not None
    assert run.ended_at is None
    await journal.move("run", RunState.SUCCEEDED)
    run = await journal.get("acme", "run")
    assert run is not None
    assert run.ended_at is not None


async def test_what_is_unfinished_is_listed_with_children_before_their_parents(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.add_node(a_node("child"))
    await journal.add_node(a_node("grandchild", parent="child", depth=2))
    await journal.add_node(a_node("ended", parent="child", depth=2))
    await journal.move("run", RunState.RUNNING)
    await journal.move("ended", RunState.FAILED)
    assert [node.id for node in await journal.unfinished()] == ["grandchild", "child", "run"]


# ---- events ----------------------------------------------------------------------------------------------------------


async def test_events_are_returned_in_their_order_from_a_number_on(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.create(a_run("elsewhere"), "What?")
    kept = [an_event(number) for number in range(1, 8)]
    await journal.append("run", in_rows(*kept[:3]))
    await journal.append("run", in_rows(*kept[3:]))
    await journal.append("elsewhere", in_rows(an_event(1)))
    assert await journal.events("run", 1, 100) == kept
    assert await journal.events("run", 3, 2) == kept[2:4]
    assert await journal.events("run", 8, 100) == []
    assert await journal.last_sequence("run") == 7
    assert await journal.last_sequence("none") == 0


async def test_events_with_a_number_that_is_taken_are_refused_all_of_them(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    await journal.append("run", in_rows(an_event(1), an_event(2)))
    with pytest.raises(Exception, match=r"event\.sequence"):
        await journal.append("run", in_rows(an_event(3), an_event(2)))
    assert await journal.events("run", 1, 100) == [an_event(1), an_event(2)]


async def test_runs_whose_root_ended_without_their_last_event_are_found(journal: Journal) -> None:
    for name in ("told", "untold", "going on", "silent"):
        await journal.create(a_run(name), "What?")
        await journal.move(name, RunState.RUNNING)
    for name in ("told", "untold", "silent"):
        await journal.move(name, RunState.SUCCEEDED, answer="42")
    await journal.append("told", in_rows(an_event(1), an_event(2, END)))
    await journal.append("untold", in_rows(an_event(1)))
    await journal.append("going on", in_rows(an_event(1)))
    assert set(await journal.unannounced()) == {"untold", "silent"}


SPENT = Amounts(1, 2, 3, 4)
LIMIT = Limit(nano_usd=5, calls=0)
COVERAGE = Coverage(0.5, 1, (Range(0, 1, 2),), more=True)
ERROR = TurnError("ZeroDivisionError", "division by zero", "Traceback …")
TURN = Turn(Status.ERROR, "out \U0001f600", "err", 7, True, 0.125, 3, ERROR, (Variable("x", "list", 3),))
STOPPED = Turn(Status.ROLLED_BACK, "", "", 0, False, 1.5, 0, TurnError(Stop.TURN_TIME, "60 s"))
BODIES: list[Body] = [
    events.RunStarted("What?", "model", "sub-model", 1 << 40, LIMIT),
    events.StrategyChosen("direct", "the text has 7 bytes"),
    events.TurnStarted(30),
    events.ModelReplied("model", "```repl\nx\n```", SPENT, "call_1", "length"),
    events.CodeStarted("x = '\x00'", 2),
    Printed("stdout", "a\nb"),
    Printed("stderr", "\U0001f600"),
    TurnRestarted("the process died"),
    NodeResumed("the server was started anew"),
    CallStarted("call_2", "sub-model", 100),
    CallFinished(FinishedCall("call_2", "sub-model", SPENT), 20),
    CallFinished(FinishedCall("call_2", "sub-model", Amounts(), memo=True), 20),
    CallFinished(FinishedCall("call_2", "sub-model", SPENT, error="timed out"), 0),
    CallTraced("call_2", (Passage(1, 2, 3, 4), Passage(5, 6, 7, 8)), more=True),
    ToolCallRequested("tool_1", "weather", '{"city": "Oslo"}', 1 << 41),
    ModelCallRequested("tool_2", "client", "You are…", (Message("user", "What?"), Message("assistant", "x")), 9, 1),
    ToolCallAnswered("tool_1", Ending.RESULT, '"sunny"'),
    ToolCallAnswered("tool_1", Ending.ERROR, error="no sky"),
    events.ChildStarted("node_1", "Which?", 100, LIMIT),
    events.ChildFinished("node_1", RunState.EXHAUSTED, "max_turns", SPENT),
    CodeFinished(TURN),
    CodeFinished(STOPPED),
    events.TurnCheckpointed(1 << 20, COVERAGE),
    events.BudgetWarning("nano_usd", 80, 81, 100),
    events.Guard("no_code", "the reply held no code"),
    events.Answer("42"),
    RunFinished(RunState.CANCELLED, "cancelled", SPENT, "4"),
]


def test_these_are_all_kinds_of_events() -> None:
    kinds: Any = Body
    assert {type(body) for body in BODIES} == set(kinds.__args__)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.kind)
def test_a_body_is_read_as_it_was_written(body: Body) -> None:
    assert from_json(to_json(body)) == body


async def test_every_kind_of_event_is_kept_with_where_and_when_it_happened(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    origin = EventOrigin("node_1", "run", 2, 7)
    kept = [Event(number, 1_700_000_000_000 + number, origin, body) for number, body in enumerate(BODIES, 1)]
    await journal.append("run", in_rows(*kept))
    assert await journal.events("run", 1, 100) == kept
