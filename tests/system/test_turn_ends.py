"""What a turn leaves under way ends with it: later turns, other sessions and the books know nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rlm.v1 import run_pb2, session_pb2, types_pb2
from rlm_client.durations import milliseconds

from rlm_server.ledger import Ledger
from tests.servers import Served
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Play, code

OK = session_pb2.TURN_STATUS_OK
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED

LEFT = {
    "a timeout that was caught": "import asyncio\ntry: await asyncio.wait_for(llm_query_async('slow'), 0.05)\n"
    "except TimeoutError: pass\n",
    "a task never awaited": "import asyncio\ntask = asyncio.create_task(llm_query_async('slow'))\n"
    "await asyncio.sleep(0.05)\n",
    "a future of a pool": "from concurrent.futures import ThreadPoolExecutor\n"
    "future = ThreadPoolExecutor().submit(llm_query, 'slow')\nllm_query('slow begun?')\n",
    "a race that was lost": "import asyncio\nawait asyncio.wait([asyncio.ensure_future(llm_query_async(q)) "
    "for q in ('slow', 'slow begun?')], return_when=asyncio.FIRST_COMPLETED)\n",
    "an error": "import asyncio\ntask = asyncio.create_task(llm_query_async('slow'))\nawait asyncio.sleep(0.05)\n1 / 0",
}
"""Turns that leave a call to `slow` under way."""


class Slow:
    """Answers `slow` never; `slow begun?` once that was asked; anything else at once."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self, prompt: str) -> str:
        if prompt == "slow":
            self.begun.set()
            await asyncio.Event().wait()
        if prompt == "slow begun?":
            await self.begun.wait()
        return "ok"


@pytest.mark.parametrize("source", LEFT.values(), ids=LEFT.keys())
async def test_a_session_goes_on_after_a_turn_that_left_a_call_under_way(server: Served, source: str) -> None:
    go_on = asyncio.Event()

    async def sub(prompt: str) -> str:
        if prompt == "neighbour":
            await go_on.wait()
        return await slow(prompt)

    slow = Slow()
    async with server(Play("", sub=sub)) as served:
        session, neighbour = [await served.caller.open_session() for _ in range(2)]
        other = asyncio.create_task(served.caller.turn(neighbour, "print('once')\nprint(llm_query('neighbour'))"))
        seen = await served.caller.turn(session, f"n = 1\n{source}")
        assert seen.result.status == (session_pb2.TURN_STATUS_ERROR if "1 / 0" in source else OK)
        left = [call for call in seen.calls if call.error]
        assert [call.error for call in left] == ["cancelled"]
        for number in range(3):
            after = await served.caller.turn(session, f"print(n, llm_query('after {number}'))")
            assert (after.result.status, after.printed) == (OK, "1 ok\n")
        go_on.set()
        assert (await other).printed == "once\nok\n"
        calls = len(seen.calls) + 3
        spent = await served.caller.delete(session)
        assert spent.call_count == calls
        holds = rows(served.data_dir, "SELECT * FROM hold WHERE account = ? AND calls = 1", session)
        assert (len(holds), {hold["state"] for hold in holds}) == (calls, {"posted"})
        await served.caller.delete(neighbour)
        check_settled(served.data_dir)


@pytest.mark.parametrize("source", LEFT.values(), ids=LEFT.keys())
async def test_a_run_goes_on_after_a_turn_that_left_a_call_under_way(server: Served, source: str) -> None:
    script = Play(code(f"n = 1\n{source}"), code("m = n + 1"), code("FINAL(llm_query(str(m)) + str(m))"), sub=Slow())
    async with server(script) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "ok2")
        assert [call.call.error for call in ended.bodies("call_finished") if call.call.error] == ["cancelled"]
        statuses = [one.result.status for one in ended.bodies("code_finished")]
        assert statuses[1:] == [OK, OK]
        check_story(ended)
        check_settled(served.data_dir)


async def test_children_left_under_way_end_with_the_turn_and_their_money_comes_back(server: Served) -> None:
    source = (
        "import asyncio\ntasks = [asyncio.create_task(rlm_query_async('child', 'text')) for _ in range(3)]\n"
        "await llm_query_async('slow begun?')\nn = 1"
    )
    script = Play(
        code(source), code("print(n)"), code("FINAL(n)"), sub=Slow(), child=code("llm_query('slow')\nFINAL(1)")
    )
    async with server(script) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "1")
        children = ended.nodes[1:]
        assert {child.state for child in children} <= {run_pb2.RUN_STATE_CANCELLED}
        assert len(ended.bodies("child_finished")) == len(ended.bodies("child_started")) == len(children) > 0
        check_story(ended)
        check_settled(served.data_dir)


async def test_a_search_left_under_way_ends_with_the_turn(server: Served) -> None:
    source = "import _door\nfor _ in range(20): _door.start('search', pattern='(a?){200}b', documents=None, limit=100)"
    async with server(Play("")) as served:
        context = await served.caller.upload("a" * 2_000_000)
        session = await served.caller.open_session(context_id=context.context_id)
        for _ in range(3):
            assert (await served.caller.turn(session, source)).result.status == OK
            assert (await served.caller.turn(session, "len(search('a', limit=5))")).printed == "5\n"
        await served.caller.delete(session)
        check_settled(served.data_dir)


async def test_a_turn_whose_caller_left_as_it_ended_is_not_run_again_by_the_same_request(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, go_on, post = asyncio.Event(), asyncio.Event(), Ledger.post

    async def slowly(*arguments: Any) -> None:
        ended.set()
        await go_on.wait()
        await post(*arguments)

    async with server(Play("")) as served:
        budget = types_pb2.Budget(cpu_time=milliseconds(1_000_000))  # so that a turn has a hold, which is posted
        session = await served.caller.open_session(budget=budget)
        await served.caller.turn(session, "n = 0")
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "post", slowly)
            lost = served.another()
            waiting = asyncio.create_task(lost.turn(session, "n += 1\nn", "the request"))
            await ended.wait()  # the turn has ended, and is being paid
            waiting.cancel()
            await lost.channel.close(None)
            go_on.set()
            again = await served.caller.turn(session, "n += 1\nn", "the request")
        assert again.result.status == OK
        assert (await served.caller.turn(session, "n")).printed == "1\n"
        await served.caller.delete(session)
        check_settled(served.data_dir)
