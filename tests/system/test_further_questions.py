"""A run that continues another: its conversation, its variables and its context are there, the budget is new."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2

from tests.databases import KINDS
from tests.servers import Served
from tests.system.books import check_settled
from tests.system.operator import operating
from tests.system.stage import Play, code, eventually, refusal
from tests.system.test_redaction import redacted_tenant

TEXT = "Anna met Ben. Ben met Carl. Carl met nobody."
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
DIRECT = run_pb2.STRATEGY_DIRECT


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The setting of a database of each kind."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


def questions() -> Play:
    """Play three runs, each of which continues the one before: a line for each turn of the whole conversation."""
    return Play(
        code("import re\nnames = sorted(set(re.findall('[A-Z][a-z]+', context)))"),
        code("FINAL(len(names))"),
        code("FINAL(', '.join(names))"),
        code("FINAL(names[-1] + ' of ' + str(len(context)))"),
    )


async def test_a_further_question_has_the_conversation_the_variables_and_the_context(
    server: Served, database: dict[str, Any]
) -> None:
    play = questions()
    async with server(play, **database) as served:
        caller = served.caller
        context = (await caller.upload(TEXT)).context_id
        first = await caller.ask("How many names?", context_id=context, budget=types_pb2.Budget(call_count=5))
        assert first.run.answer == "3"
        second = await caller.ask("Which?", continue_run_id=first.run.run_id)
        assert (second.run.state, second.run.answer) == (SUCCEEDED, "Anna, Ben, Carl"), second.run.end_message
        assert (second.run.context_id, second.run.model) == (context, first.run.model)
        assert second.run.budget.call_count != 5
        assert second.events[0].run_started.continue_run_id == first.run.run_id
        third = await caller.ask("The last?", continue_run_id=second.run.run_id)
        assert third.run.answer == f"Carl of {len(TEXT)}"
        said = [message.content for message in play.asked[-1].messages]
        for at, part in ((0, "How many names?"), (4, "Which?"), (6, "The last?")):
            assert part in said[at]
        if not database:
            check_settled(served.data_dir)


async def test_several_runs_continue_the_same_and_none_changes_it(server: Served) -> None:
    add = code("names.append('Dora')\nFINAL(len(names))")
    async with server(Play(code("names = ['Anna']\nFINAL(1)"), add)) as served:
        first = await served.caller.ask()
        for _ in range(2):
            assert (await served.caller.ask(continue_run_id=first.run.run_id)).run.answer == "2"


async def test_a_run_can_be_continued_after_a_restart(server: Served) -> None:
    async with server(questions()) as served:
        context = (await served.caller.upload(TEXT)).context_id
        first = await served.caller.ask("How many names?", context_id=context)
        assert first.run.answer == "3"
    async with server(questions()) as served:
        second = await served.caller.ask("Which?", continue_run_id=first.run.run_id)
        assert second.run.answer == "Anna, Ben, Carl"
        check_settled(served.data_dir)


async def test_a_run_that_was_answered_directly_can_be_continued(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_server.config.model_catalog.SCRIPTED_WINDOW", 100_000)
    play = Play("Three.", code("FINAL(context[:4])"))
    async with server(play) as served:
        context = (await served.caller.upload(TEXT)).context_id
        first = await served.caller.ask("How many names?", context_id=context, strategy=DIRECT)
        assert first.run.answer == "Three."
        second = await served.caller.ask("Which is first?", continue_run_id=first.run.run_id)
        assert second.run.answer == "Anna"
        said = [message.content for message in play.asked[-1].messages]
        assert said[:2] == ["How many names?", "Three."]
        assert TEXT not in "".join(said)


async def test_a_run_that_cannot_be_continued_is_refused_with_why(server: Served) -> None:
    hanging = Play(code("llm_query('x')"), quick=code("FINAL(1)"), broken="no code")
    async with server(hanging, tenant_continuable_runs=1) as served, operating(served) as operator:
        caller = served.caller
        old, new = await caller.ask("quick"), await caller.ask("quick")
        said = await refusal(caller.create(continue_run_id=old.run.run_id))
        assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_CONTINUABLE")
        assert said.said == {"run_id": old.run.run_id}
        failed = await caller.ask("broken", limits=run_pb2.RunLimits(max_turn_count=1))
        assert (await refusal(caller.create(continue_run_id=failed.run.run_id))).reason == "RUN_NOT_CONTINUABLE"
        other = await served.tenant("other")
        assert (await refusal(other.create(continue_run_id=new.run.run_id))).code is grpc.StatusCode.NOT_FOUND
        assert (await refusal(caller.create(continue_run_id="run_none"))).code is grpc.StatusCode.NOT_FOUND
        wrong = await refusal(
            caller.create(continue_run_id=new.run.run_id, context_id="ctx", image="core", strategy=DIRECT)
        )
        assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT
        await caller.delete_run(new.run.run_id)
        assert (await refusal(caller.create(continue_run_id=new.run.run_id))).code is grpc.StatusCode.NOT_FOUND
        acme = await redacted_tenant(served, operator)
        private = await acme.ask("quick")
        assert (await refusal(acme.create(continue_run_id=private.run.run_id))).reason == "RUN_NOT_CONTINUABLE"
        assert [path for kind in ("runs", "sessions") for path in (served.data_dir / kind).iterdir()] == []


async def test_a_run_that_goes_on_cannot_be_continued_yet(server: Served) -> None:
    async with server(Play(code("while True: pass"))) as served:
        run = await served.caller.create()
        await served.caller.until(run.run_id, "code_started")
        assert (await refusal(served.caller.create(continue_run_id=run.run_id))).reason == "RUN_NOT_ENDED"
        await served.caller.cancel(run.run_id)
        await eventually(lambda: not [*(served.data_dir / "runs").iterdir()])


async def test_what_the_models_of_the_former_run_do_not_take_is_refused(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    async with server(Play(code("FINAL(1)"), code("FINAL(2)"))) as served:
        older = next(name for name in served.running.models.routes.models if name.startswith("claude-haiku-4-5"))
        former = await served.caller.ask("How many?", model="play", sub_model=older)
        hot: dict[str, Any] = {"continue_run_id": former.run.run_id, "sampling": run_pb2.Sampling(temperature=1.5)}
        assert (await refusal(served.caller.create(**hot))).fields == ["sampling.temperature"]
        ended = await served.caller.ask("And now?", model="play", **hot)
        assert (ended.run.answer, ended.run.sub_model) == ("2", "play")
