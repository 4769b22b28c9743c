"""What guest code asks for in great numbers stays small: its events and rows are counted, in runs and in sessions."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from rlm.v1 import run_pb2, session_pb2, types_pb2

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.sessions import results
from tests.servers import Served, Server
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Play, code, refusal
from tests.system.test_cancel import Hanging

RUN_CALLS = 64
"""Model calls of a run, or session, that go on at once."""

BATCH = "llm_query_batched([f'hang {i}' for i in range(2_000)])"
LATER = (
    "import asyncio\n"
    "async def all(): await asyncio.gather(*(llm_query_async(f'hang {i}') for i in range(999)))\n"
    "await all()"
)

REFUSED = (
    "import json\n"
    "outcomes = []\n"
    "for number in range({times}):\n"
    "    try: llm_query_batched([f'{{number}} {{i}}' for i in range(2_000)]{model})\n"
    "    except Exception as error: outcomes.append((type(error).__name__, len(str(error))))\n"
    "print(json.dumps(outcomes))"
)


def holds_of_calls(served: Server) -> list[dict[str, Any]]:
    return rows(served.data_dir, "SELECT * FROM hold WHERE model <> ''")


async def test_a_run_that_names_no_model_of_the_servers_has_no_event_and_no_row_for_its_prompts(
    server: Served,
) -> None:
    source = REFUSED.format(times=20, model=", model='n' * 1_000_000")
    async with server(Play(code(source, "FINAL(1)"))) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert ended.printed.count("ValueError") == 20
        assert "call_started" not in ended.kinds
        assert len(holds_of_calls(served)) == 1, "the root's own"
        (kept,) = rows(served.data_dir, "SELECT sum(length(body)) AS size FROM event")
        assert kept["size"] < 20_000
        check_story(ended)


async def test_batches_that_cannot_be_paid_leave_nothing_in_a_run_and_soon_are_not_even_looked_at(
    server: Served,
) -> None:
    source = REFUSED.format(times=12, model="")
    async with server(Play(code(source, "FINAL(1)")), failed_calls=10) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(call_count=1))
        assert ended.printed.count("LimitExceeded") == 12
        assert "call_started" not in ended.kinds
        assert len(holds_of_calls(served)) == 1
        check_story(ended)
        check_settled(served.data_dir)


async def test_what_a_session_says_of_calls_from_memory_is_bounded(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        source = "n = 0\nfor _ in range(5): n += len(llm_query_batched(['same'] * 2_000))\nn"
        kinds: Counter[str] = Counter()
        untold = session_pb2.UntoldCalls()
        async for response in served.caller.execute(session, source):
            kinds[str(response.WhichOneof("event"))] += 1
            untold.MergeFrom(response.untold_calls)
        assert kinds == {"call_finished": 101, "output": 1, "untold_calls": 1, "result": 1}
        assert (untold.from_memory_count, untold.failed_count) == (10_000 - 101, 0)


@pytest.mark.parametrize("source", [BATCH, LATER], ids=["a batch", "requests for later"])
@pytest.mark.parametrize("end", ["delete", "go away"])
async def test_a_session_ends_in_the_midst_of_many_calls_and_only_those_under_way_have_rows(
    server: Served, source: str, end: str
) -> None:
    hanging = Hanging(RUN_CALLS)
    async with server(Play("", sub=hanging), run_calls=RUN_CALLS) as served:
        session = await served.caller.open_session(budget=types_pb2.Budget(nano_usd=100_000_000_000))
        turn = served.caller.execute(session, source)
        reading = asyncio.create_task(_read(turn))
        await hanging.reached.wait()
        if end == "go away":
            turn.cancel()
        async with asyncio.timeout(30):
            await served.caller.delete(session)
            await asyncio.wait([reading])
        assert len(holds_of_calls(served)) == RUN_CALLS
        check_settled(served.data_dir)


async def _read(turn: Any) -> None:
    async for _ in turn:
        pass


@pytest.mark.parametrize("source", [BATCH, LATER], ids=["a batch", "requests for later"])
async def test_a_run_is_cancelled_in_the_midst_of_many_calls_and_only_those_under_way_are_told(
    server: Served, source: str
) -> None:
    hanging = Hanging(RUN_CALLS)
    async with server(Play(code(source), sub=hanging), run_calls=RUN_CALLS) as served:
        run = await served.caller.create(budget=types_pb2.Budget(nano_usd=100_000_000_000))
        await hanging.reached.wait()
        async with asyncio.timeout(30):
            cancelled = await served.caller.cancel(run.run_id)
        ended = await served.caller.ended(run.run_id)
        assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
        assert Counter(body.call.error for body in ended.bodies("call_finished")) == {"cancelled": RUN_CALLS}
        check_story(ended)
        check_settled(served.data_dir)


async def test_who_goes_away_while_waiting_for_a_turn_leaves_the_line(server: Served) -> None:
    hanging = Hanging()
    async with server(Play("", sub=hanging)) as served:
        session = await served.caller.open_session()
        first = served.caller.execute(session, "llm_query('hang')")
        reading = asyncio.create_task(_read(first))
        await hanging.reached.wait()
        waiting = [served.caller.execute(session, "ran = True") for _ in range(20)]
        readers = [asyncio.create_task(_read(turn)) for turn in waiting]
        await served.caller.turn(await served.caller.open_session(), "1")  # by then they are in line
        for turn in waiting:
            turn.cancel()
        await asyncio.wait(readers)
        first.cancel()
        await asyncio.wait([reading])
        seen = await served.caller.turn(session, "'ran' in globals()")
        assert seen.printed == "False\n"
        await served.caller.delete(session)
        turns = rows(served.data_dir, "SELECT * FROM hold WHERE model = '' AND run = ?", session)
        assert len(turns) == 2, "the first and the last"


async def test_a_request_whose_result_is_forgotten_does_not_run_again(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "REMEMBERED_RESULTS", 2)
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        await served.caller.turn(session, "n = 0")
        for number in range(3):
            await served.caller.turn(session, "n += 1", request_id=f"request {number}")
        refused = await refusal(served.caller.turn(session, "n += 1", request_id="request 0"))
        assert (refused.reason, refused.code.name) == ("RESULT_FORGOTTEN", "FAILED_PRECONDITION")
        await served.caller.turn(session, "n += 1", request_id="request 2")
        assert (await served.caller.turn(session, "n")).printed == "3\n"


async def test_a_model_that_gives_out_in_the_midst_of_a_batch_is_asked_no_more(server: Served) -> None:
    async def sub(prompt: str) -> str:
        if len(play.subcalls) > 100:
            raise ProviderError(Failure.AUTH, "the key is not valid", billed=False)
        return "ok"

    play = Play("", sub=sub)
    async with server(play, run_calls=RUN_CALLS) as served:
        session = await served.caller.open_session(budget=types_pb2.Budget(nano_usd=100_000_000_000))
        seen = await served.caller.turn(session, "from collections import Counter\nCounter(" + BATCH + ")")
        assert "'ok': 100" in seen.printed
        assert len(play.subcalls) <= 100 + RUN_CALLS
        await served.caller.delete(session)
        check_settled(served.data_dir)
