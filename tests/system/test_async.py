"""However a program asks for many answers at once, its sub-calls and children are in flight together."""

from __future__ import annotations

import asyncio

import pytest
from rlm.v1 import run_pb2, session_pb2

from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.stage import Play, code

TOGETHER = 20

PROMPTS = f"prompts = ['p%d' % n for n in range({TOGETHER})]\n"
IN_PARALLEL = {
    "gather": "import asyncio\nfound = await asyncio.gather(*[llm_query_async(p) for p in prompts])",
    "asyncio.run": "import asyncio\nasync def main():\n"
    "    return await asyncio.gather(*[llm_query_async(p) for p in prompts])\nfound = asyncio.run(main())",
    "to_thread": "import asyncio\nfound = await asyncio.gather(*[asyncio.to_thread(llm_query, p) for p in prompts])",
    "map": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor() as pool: found = list(pool.map(llm_query, prompts))",
    "submit": "from concurrent.futures import ThreadPoolExecutor, as_completed\npool = ThreadPoolExecutor(99)\n"
    "futures = {pool.submit(llm_query, p): p for p in prompts}\n"
    "answers = {futures[future]: future.result() for future in as_completed(futures)}\n"
    "found = [answers[p] for p in prompts]",
    "some of each": "import asyncio\n"
    "found = sum(await asyncio.gather(llm_query_batched_async(prompts[:9]), *[asyncio.gather(llm_query_async(p)) "
    "for p in prompts[9:]]), [])",
}


class Together:
    """Answers no sub-call before so many are in flight."""

    def __init__(self) -> None:
        self.here = asyncio.Barrier(TOGETHER)

    async def __call__(self, prompt: str) -> str:
        async with asyncio.timeout(60):
            await self.here.wait()
        return prompt.upper()


@pytest.mark.parametrize("ask", IN_PARALLEL.values(), ids=IN_PARALLEL.keys())
async def test_sub_calls_are_in_flight_together(server: Served, ask: str) -> None:
    async with server(Play(code(f"{PROMPTS}{ask}\nFINAL(' '.join(found))"), sub=Together())) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
        assert ended.run.answer == " ".join(f"P{n}" for n in range(TOGETHER))
        assert len(ended.bodies("call_finished")) == TOGETHER
        check_story(ended)
        check_settled(served.data_dir)


async def test_children_are_in_flight_together(server: Served) -> None:
    ask = (
        "import asyncio\nfound = await asyncio.gather(*[rlm_query_async(q, t) "
        "for q, t in [('first', 'one'), ('second', 'two')]])\nFINAL(' '.join(found))"
    )
    both = asyncio.Barrier(2)

    async def meet(prompt: str) -> str:
        async with asyncio.timeout(60):
            await both.wait()
        return prompt

    child = code("FINAL(llm_query(context))")
    async with server(Play(code(ask), sub=meet, first=child, second=child)) as served:
        ended = await served.caller.ask()
        assert ended.run.answer == "one two", ended.run.end_message
        assert len(ended.nodes) == 3
        check_story(ended)
        check_settled(served.data_dir)


async def test_a_sub_call_that_fails_raises_where_it_was_awaited(server: Served) -> None:
    ask = (
        "import asyncio\nfound = await asyncio.gather(llm_query_async('a'), llm_query_async('b', model='nobody'), "
        "return_exceptions=True)\nFINAL(repr(found))"
    )
    async with server(Play(code(ask))) as served:
        ended = await served.caller.ask()
        assert ended.run.answer.startswith("['ok', ValueError(")
        check_settled(served.data_dir)


async def test_calls_under_way_when_the_code_ends_are_cancelled_and_settled(server: Served) -> None:
    ask = "import asyncio\ntask = asyncio.create_task(llm_query_async('slow'))\nprint(await llm_query_async('quick'))"

    async def sub(prompt: str) -> str:
        if prompt == "slow":
            await asyncio.Event().wait()
        return prompt

    async with server(Play("", sub=sub)) as served:
        session = await served.caller.open_session()
        seen = await served.caller.turn(session, ask)
        assert seen.result.status == session_pb2.TURN_STATUS_OK
        assert seen.printed == "quick\n"
        after = await served.caller.turn(session, "await task")
        assert after.result.error.type == "RuntimeError"
        assert "ended before the answer came" in after.result.error.message
        await served.caller.delete(session)
        check_settled(served.data_dir)
