"""An empty text and no documents are contexts: for sessions, runs and children, for searches, coverage and lineage."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rlm.v1 import run_pb2, session_pb2

from tests.servers import Served
from tests.system.stage import Play, code, parts, refusal
from tests.system.test_reading import DOCUMENTS, of_documents, read, session_of

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
OK = session_pb2.TURN_STATUS_OK

LOOK = code("FINAL(repr([type(context).__name__, len(context), [*context], search('.*'), search('^$', context[0:0])]))")
"""What a child says of its context."""
NONE = "['Documents', 0, [], [], []]"

GIVEN = {
    "[]": NONE,
    "()": NONE,
    "context[0:0]": NONE,
    "context[3:1]": NONE,
    "context[99:]": NONE,
    "context[:0][:]": NONE,
    "['', '']": "['Documents', 2, ['', ''], [Match(document=0, start=0, end=0, text=''), "
    "Match(document=1, start=0, end=0, text='')], []]",
}
"""Contexts without a character as code gives them to a child, and what the child says of each."""
TEXTS = ["''", "context[1][0:0]", "context[3]", "context[1][len(context[1]):]"]


@pytest.mark.parametrize("given", GIVEN)
async def test_a_child_has_what_it_was_given_though_that_is_nothing(server: Served, given: str) -> None:
    script = Play(code(f"FINAL(rlm_query('child', {given}))"), child=LOOK)
    async with server(script) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, GIVEN[given])
        child = ended.nodes[1]
        assert (child.state, child.coverage_fraction) == (SUCCEEDED, 1.0)
        told = next(request for request in script.asked if "child" in request.messages[0].content)
        assert "with 0 characters. Your code has touched 100% of it" in told.messages[0].content


@pytest.mark.parametrize("given", TEXTS)
async def test_a_child_has_the_empty_text_it_was_given(server: Served, given: str) -> None:
    look = code("FINAL(repr([type(context).__name__, context, len(context), context == '', [*search('.*')]]))")
    async with server(Play(code(f"FINAL(rlm_query('child', {given}))"), child=look)) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        said = "['str', '', 0, True, [Match(document=0, start=0, end=0, text='')]]"
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, said)
        assert ended.nodes[1].coverage_fraction == 1.0


async def test_of_a_batch_some_may_be_given_nothing(server: Served) -> None:
    look = code("FINAL(f'{type(context).__name__} {len(context)}')")
    source = "FINAL(' '.join(rlm_query_batched(['child'] * 5, [[], 'abc', context[0:0], context[:2], ''])))"
    async with server(Play(code(source), child=look)) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        assert ended.run.answer == "Documents 0 str 3 Documents 0 Documents 2 str 0"
        assert [node.state for node in ended.nodes] == [SUCCEEDED] * 6


async def test_at_the_depth_cap_a_model_is_asked_about_nothing(server: Served) -> None:
    source = "FINAL(repr(rlm_query_batched(['one', 'two', 'three'], [[], '', ['', '']])))"
    script = Play(code(source), sub=lambda prompt: prompt.replace("\n", "|"))
    async with server(script) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_depth=0))
        assert ended.run.answer == "['one||Text:|', 'two||Text:|', 'three||Text:|||']"


async def test_a_child_of_nothing_leaves_the_turns_of_others_alone(server: Served) -> None:
    go_on, under_way = asyncio.Event(), asyncio.Event()

    async def sub(prompt: str) -> str:
        under_way.set()
        await go_on.wait()
        return "said"

    async with server(Play(code("FINAL(rlm_query('child', []))"), child=LOOK, sub=sub)) as served:
        session = await served.caller.open_session()
        turn = asyncio.create_task(served.caller.turn(session, "print('once', llm_query('x'))"))
        await under_way.wait()
        assert (await served.caller.ask()).run.answer == NONE
        go_on.set()
        seen = await turn
        assert (seen.result.status, seen.printed) == (OK, "once said\n")


async def test_a_context_of_empty_documents_is_one(server: Served) -> None:
    script = Play(code("llm_query('x' * 100)\nFINAL(repr((len(context), [*context], context.names, search('a'))))"))
    async with server(script) as served:
        caller = served.caller
        context = await caller.send_parts(of_documents({"one": "", "two": ""}))
        assert (context.document_count, context.character_count) == (2, 0)
        ended = await caller.ask(context_id=context.context_id)
        assert ended.run.answer == "(2, ['', ''], ['one', 'two'], [])"
        assert (ended.run.coverage.fraction, read(ended.run.coverage)) == (1.0, [])
        assert ended.nodes[0].coverage_fraction == 1.0
        assert [list(traced.passages) for traced in ended.bodies("call_traced")] == [[], []]
        session = await caller.open_session(context_id=context.context_id)
        assert (await session_of(caller, session)).coverage.fraction == 1.0
        assert (await caller.turn(session, "len(context), context[0:0].names")).printed == "(2, [])\n"


async def test_an_empty_text_cannot_be_uploaded_and_that_is_said(server: Served) -> None:
    async with server(Play("")) as served:
        said = await refusal(served.caller.send_parts(parts("")))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["header.size_bytes"])


async def test_a_search_in_no_documents_finds_nothing(server: Served) -> None:
    async with server(Play("")) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        session = await served.caller.open_session(context_id=context.context_id)
        seen = await served.caller.turn(session, "search('a', []), search('a', context[0:0]), context[0:0].search('a')")
        assert seen.printed == "([], [], [])\n"


@pytest.mark.parametrize("documents", ["[0, 10**30, 1]", "[10**30, 10**31, 1]", "[0, -10**30, -1]"])
async def test_documents_by_absurd_numbers_are_an_error_in_the_code(server: Served, documents: str) -> None:
    source = (
        "import _door\ntry: _door.call('rlm_query', prompts=['child'], contexts=[{'corpus': 0, 'documents': "
        f"{documents}}}], model=None, budget=None)\nexcept IndexError as error: FINAL(str(error))"
    )
    async with server(Play(code(source), child=LOOK)) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        assert ended.run.answer == f"there are {len(DOCUMENTS)} documents"
