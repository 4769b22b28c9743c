"""The scripted model that every server offers answers any question, over a text, over documents, and over nothing."""

from __future__ import annotations

import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.broker.providers.scripted_models.census import CHILD_QUESTION
from rlm_server.broker.providers.scripted_models.census import QUESTION as CENSUS
from tests.servers import Served
from tests.system.context_calls import of_documents, of_text
from tests.system.stage import Caller, Play, code

QUESTION = "Which supplier wants payment in 30 days?"
FILLER = "Nothing of interest stands here.\n" * 400
READ = code("import json\nFINAL(type(context).__name__ + ' ' + json.loads(context)['suppliers'][0]['name'])")
LETTER = "Acme is a supplier and wants payment in 30 days.\n"


async def context_of(caller: Caller, over: str) -> str:
    match over:
        case "a text":
            return (await caller.send_parts(of_text(FILLER + LETTER + FILLER))).context_id
        case "documents":
            letters = [("a.txt", FILLER), ("letters/acme.txt", LETTER), ("empty.txt", "")]
            return (await caller.send_parts(of_documents(letters))).context_id
        case _:
            return ""


@pytest.mark.parametrize(
    ("over", "found"), [("a text", LETTER), ("documents", f"letters/acme.txt: {LETTER}"), ("nothing", "None does.")]
)
async def test_it_answers_with_what_shares_words_with_the_question(server: Served, over: str, found: str) -> None:
    async with server(SCRIPTS["scripted"]) as served:
        ended = await served.caller.ask(QUESTION, context_id=await context_of(served.caller, over))
    assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.printed
    assert ended.run.answer.startswith("(No model answered this")
    assert ended.run.answer.endswith(found.strip())


TRICKY = (
    "Which supplier? {ask!r} {words!r} ``` \"quoted\" 'so' \\n\n\nEnvironment:\nnone\n```repl\n1 / 0\n```\nText:\nnone"
)


@pytest.mark.parametrize("over", ["a text", "documents", "nothing"])
@pytest.mark.parametrize("question", [TRICKY, "?", "\N{PARTY POPPER}", CENSUS, CHILD_QUESTION])
async def test_it_answers_any_question_over_anything_without_an_error(server: Served, question: str, over: str) -> None:
    async with server(SCRIPTS["scripted"]) as served:
        ended = await served.caller.ask(question, context_id=await context_of(served.caller, over))
    assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.printed
    assert ended.run.answer
    assert [body.result.error.type for body in ended.bodies("code_finished") if body.result.error.type] == []


async def test_it_counts_the_classes_of_a_folder_as_those_of_a_text(server: Served) -> None:
    files = [("one/a.py", "class A(ValueError): pass\nclass B(Exception):\n"), ("two/b.py", "class C(KeyError): pass")]
    async with server(SCRIPTS["scripted"]) as served:
        context_id = (await served.caller.send_parts(of_documents(files))).context_id
        assert (await served.caller.ask(CENSUS, context_id=context_id)).run.answer == "one: 2\ntwo: 1"


async def test_a_question_over_data_is_answered_over_its_json(server: Served) -> None:
    given = "{'suppliers': [{'name': 'Acme', 'payment': '30 days'}]}"
    async with server(Play(code(f"print(rlm_query('child', {given}))", "FINAL('done')"), child=READ)) as served:
        ended = await served.caller.ask()
    assert ended.printed == "str Acme\n"


async def test_calls_that_the_budget_refuses_are_told_and_left_out(server: Served) -> None:
    async with server(SCRIPTS["scripted"]) as served:
        context_id = (await served.caller.send_parts(of_text(LETTER * 1000))).context_id
        ended = await served.caller.ask(QUESTION, context_id=context_id, budget=types_pb2.Budget(call_count=4))
    assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
    assert "1 of 8 had something; 7 calls failed [LimitExceeded(" in ended.printed
