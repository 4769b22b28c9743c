"""`Complete` asks a question over a text in one call: it ends with the run, and the run ends with it."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.api.completion import MAX_INLINE_TEXT
from tests.databases import KINDS
from tests.servers import Served
from tests.system.books import rows
from tests.system.context_calls import ContextCalls, of_text, stored
from tests.system.stage import Caller, Play, code, eventually, refusal

TEXT = "Grüße aus 東京\n" * 1_000
FIND = code("print(llm_query(context[:10]))", "FINAL(context[-3:-1])")
SUCCEEDED, CANCELLED, EXHAUSTED = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXHAUSTED,
)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The setting of a database of each kind."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


def completing(caller: Caller, question: str = "What?", timeout: float | None = None, **asked: Any) -> Any:
    request = run_pb2.CompleteRequest(question=question, **asked)
    return caller.runs.Complete(request, metadata=caller.metadata, timeout=timeout)


async def complete(caller: Caller, **asked: Any) -> run_pb2.Run:
    run: run_pb2.Run = (await completing(caller, **asked)).run
    return run


async def test_a_question_over_a_text_is_answered_in_one_call(server: Served, database: dict[str, Any]) -> None:
    async with server(Play(FIND), **database) as served:
        caller = served.caller
        run = await complete(
            caller, text=TEXT, labels={"team": "red"}, budget=types_pb2.Budget(call_count=5), request_id="mine"
        )
        assert (run.state, run.answer, run.answer_size_bytes) == (SUCCEEDED, "東京", 6)
        assert run.spent.call_count == 2
        assert (dict(run.labels), run.budget.call_count) == ({"team": "red"}, 5)
        assert run == await caller.get(run.run_id)
        assert [event async for event in caller.watch(run.run_id)]
        assert (
            await complete(
                caller, text=TEXT, labels={"team": "red"}, budget=types_pb2.Budget(call_count=5), request_id="mine"
            )
            == run
        )
        await eventually(lambda: not stored(served.data_dir))
        said = await refusal(ContextCalls(caller).get(run.context_id))
        assert said.code is grpc.StatusCode.NOT_FOUND, "the text went with the run"
        said = await refusal(complete(caller, text="other", request_id="mine"))
        assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    async with server(Play(FIND), **database) as served:
        assert (
            await complete(
                served.caller,
                text=TEXT,
                labels={"team": "red"},
                budget=types_pb2.Budget(call_count=5),
                request_id="mine",
            )
            == run
        )


async def test_a_question_over_a_context_leaves_the_context_and_one_over_nothing_needs_none(server: Served) -> None:
    async with server(Play(code("FINAL(context[-3:-1] if 'context' in dir() else 'nothing')"))) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        kept = await calls.send(of_text(TEXT))
        assert (await complete(caller, context_id=kept.context_id)).answer == "東京"
        assert (await complete(caller, text=TEXT)).answer == "東京", "an equal text shares the files"
        assert await calls.get(kept.context_id) == kept
        assert (await calls.read(kept.context_id)).text == TEXT
        assert [one.context_id for one in (await calls.list()).contexts] == [kept.context_id]


async def test_a_long_answer_is_cut_and_can_be_read(server: Served) -> None:
    async with server(Play(code("FINAL('ä' * 100_000)"))) as served:
        run = await complete(served.caller, text="x")
        assert run.answer_size_bytes == 200_000
        assert len(run.answer.encode()) <= 64 << 10
        assert [cut.field for cut in run.cut] == ["answer"]
        assert await served.caller.read_answer(run.run_id) == "ä" * 100_000


async def test_who_gives_the_call_up_stops_the_run(server: Served) -> None:
    waiting = asyncio.Event()

    async def sub(prompt: str) -> str:
        waiting.set()
        await asyncio.Event().wait()
        return ""

    async with server(Play(code("llm_query('wait')"), sub=sub)) as served:
        caller = served.caller
        call = completing(caller, text=TEXT, request_id="mine")
        asked = asyncio.ensure_future(_answer(call))
        await waiting.wait()
        (row,) = rows(served.data_dir, "SELECT id FROM run")
        assert (await caller.get(str(row["id"]))).state == run_pb2.RUN_STATE_RUNNING
        call.cancel()
        await asyncio.wait([asked])
        assert (await caller.ended(str(row["id"]))).run.state == CANCELLED
        await eventually(lambda: not stored(served.data_dir))
        again = await complete(caller, text=TEXT, request_id="mine")
        assert (again.run_id, again.state) == (str(row["id"]), CANCELLED)


async def _answer(call: Any) -> Any:
    return await call


async def test_a_request_that_comes_again_meanwhile_waits_for_the_same_run(server: Served) -> None:
    going, waiting = asyncio.Event(), asyncio.Event()

    async def sub(prompt: str) -> str:
        waiting.set()
        await going.wait()
        return "ok"

    async with server(Play(code("llm_query('wait')", "FINAL(1)"), sub=sub)) as served:
        caller = served.caller
        first = asyncio.ensure_future(complete(caller, text=TEXT, request_id="mine"))
        await waiting.wait()
        second = asyncio.ensure_future(complete(caller, text=TEXT, request_id="mine"))
        same_time = [asyncio.ensure_future(complete(caller, text="x", request_id="two")) for _ in range(3)]
        going.set()
        assert (await first).run_id == (await second).run_id
        assert len({(await one).run_id for one in same_time}) == 1
        await eventually(lambda: not stored(served.data_dir))


async def test_a_run_ends_before_its_call_would(server: Served) -> None:
    async with server(Play(code("import time\nwhile True: time.sleep(0.05)"))) as served:
        run = (await completing(served.caller, text="x", timeout=8, limits=run_pb2.RunLimits(max_turn_count=30))).run
        assert (run.state, run.end_reason) == (EXHAUSTED, run_pb2.END_REASON_WALL_TIME)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"text": "x" * (MAX_INLINE_TEXT + 1)}, ["text"]),
        ({"text": "x", "context_id": "ctx_1"}, ["text"]),
        (
            {"question": " ", "text": "x" * (MAX_INLINE_TEXT + 1), "model": "m" * 201},
            ["model", "question", "text"],
        ),
    ],
)
async def test_what_is_wrong_is_named(server: Served, asked: dict[str, Any], fields: list[str]) -> None:
    async with server(Play("")) as served:
        said = await refusal(complete(served.caller, **asked))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)
        assert not stored(served.data_dir)


async def test_the_longest_text_fits(server: Served) -> None:
    async with server(Play(code("FINAL(len(context))"))) as served:
        assert (await complete(served.caller, text="x" * MAX_INLINE_TEXT)).answer == str(MAX_INLINE_TEXT)


async def test_a_call_that_a_server_broke_off_as_it_stopped_is_answered_by_the_next(server: Served) -> None:
    reached = asyncio.Event()

    async def hang(_: str) -> str:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    asked: dict[str, Any] = {"text": TEXT, "request_id": "mine"}
    async with server(Play(FIND, sub=hang), grace_seconds=0, drain_seconds=0) as served:
        caller = Caller(served.running.address, served.running.key)
        call = asyncio.ensure_future(completing(caller, **asked))
        await reached.wait()
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await call
    await caller.channel.close(None)
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    async with server(Play(FIND)) as served:
        run = await complete(served.caller, **asked)
        assert (run.state, run.answer) == (SUCCEEDED, "東京")
        assert len((await served.caller.ended(run.run_id)).bodies("node_resumed")) == 1


async def test_a_text_that_a_stopped_server_left_goes_with_its_run(server: Served) -> None:
    async with server(Play(FIND)) as served:
        made = await served.caller.upload(TEXT)
        run = (await served.caller.ask(context_id=made.context_id)).run
    with sqlite3.connect(served.data_dir / "rlm.sqlite") as database:
        database.execute("UPDATE context SET run = ? WHERE id = ?", (run.run_id, made.context_id))
    async with server(Play(FIND)) as served:
        await eventually(lambda: not stored(served.data_dir))
        assert (await served.caller.get(run.run_id)).answer == "東京"
