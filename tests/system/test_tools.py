"""Tools of a run: its code calls them, and a client of the tenant's answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from rlm.v1 import run_pb2, server_pb2, server_pb2_grpc

from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.operator import operating, until
from tests.system.stage import Caller, Ended, Play, code, refusal

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where.", "minLength": 1},
        "days": {"type": "integer", "default": 3},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = run_pb2.Tool(name="weather", description="Tells the weather.", arguments_schema=json.dumps(CITY))
NOTHING = run_pb2.Tool(name="nothing")

Answer = Callable[[run_pb2.ToolCallRequested], dict[str, str] | None]


async def submit(caller: Caller, run_id: str, call_id: str, **outcome: Any) -> None:
    request = run_pb2.SubmitResultRequest(run_id=run_id, call_id=call_id, **outcome)
    await caller.runs.SubmitResult(request, metadata=caller.metadata)


async def requested(caller: Caller, run_id: str) -> run_pb2.ToolCallRequested:
    """Wait for a run's first call of a tool."""
    event = await caller.until(run_id, "tool_call_requested")
    return event.tool_call_requested


async def answered(caller: Caller, run_id: str, answer: Answer) -> Ended:
    """Answer the calls of a run until it has ended."""
    async for event in caller.watch(run_id):
        if event.HasField("tool_call_requested"):
            outcome = answer(event.tool_call_requested)
            if outcome is not None:
                await submit(caller, run_id, event.tool_call_requested.call_id, **outcome)
    return await caller.ended(run_id)


def arguments(call: run_pb2.ToolCallRequested) -> Any:
    return json.loads(call.arguments_json)


def sunny(call: run_pb2.ToolCallRequested) -> dict[str, str]:
    return {"result_json": json.dumps({"sky": "sunny", **arguments(call)})}


async def played(
    server: Served, *blocks: str, answer: Answer = sunny, tools: tuple[run_pb2.Tool, ...] = (WEATHER,), **config: Any
) -> Ended:
    async with server(Play(*map(code, blocks), code("FINAL('done')")), **config) as served:
        run = await served.caller.create(tools=tools)
        ended = await answered(served.caller, run.run_id, answer)
        check_story(ended)
        check_settled(served.data_dir)
        return ended


async def test_code_calls_a_tool_and_gets_what_the_client_answers(server: Served) -> None:
    block = "print(weather('Oslo'), weather(days=2, city='Rome', unit=None))"
    ended = await played(server, block)
    assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
    assert ended.printed == "{'sky': 'sunny', 'city': 'Oslo'} {'sky': 'sunny', 'city': 'Rome', 'days': 2}\n"
    asked, told = ended.bodies("tool_call_requested"), ended.bodies("tool_call_answered")
    assert [(one.name, arguments(one)) for one in asked] == [
        ("weather", {"city": "Oslo"}),
        ("weather", {"city": "Rome", "days": 2}),
    ]
    assert [one.call_id for one in told] == [one.call_id for one in asked]
    assert {one.end for one in told} == {run_pb2.TOOL_CALL_END_RESULT}
    assert json.loads(told[0].result_json) == {"sky": "sunny", "city": "Oslo"}
    at = next(event for event in ended.events if event.HasField("tool_call_requested"))
    assert 290_000 < at.tool_call_requested.deadline.ToMilliseconds() - at.time.ToMilliseconds() <= 300_000


async def test_a_tool_has_a_signature_a_docstring_and_a_place_in_the_prompt(server: Served) -> None:
    play = Play(
        code(
            "import inspect\n"
            "print(inspect.signature(weather), weather.__doc__, weather.__name__, weather_async.__name__)"
        ),
        code("weather = 'mine'", "print(weather('Bonn'), SHOW_VARS())"),
        code("FINAL('done')"),
    )
    async with server(play) as served:
        run = await served.caller.create(tools=[WEATHER, NOTHING])
        ended = await answered(served.caller, run.run_id, sunny)
    signature = "(city: 'str', days: 'int' = 3, unit: \"Literal['c', 'f']\" = None)"
    assert f"{signature} Tells the weather. weather weather_async\n" in ended.printed
    assert "{'sky': 'sunny', 'city': 'Bonn'} inspect: " not in ended.printed
    assert "{'sky': 'sunny', 'city': 'Bonn'} no variables yet\n" in ended.printed, "the name is put back"
    system = play.asked[0].system
    line = "- weather(city: str, days: int = 3, unit: Literal['c', 'f'] = None): Tells the weather.\n  city: Where. "
    assert line in system
    assert "\n- nothing()\n" in system
    assert "Tools of this run" in system


async def test_a_run_without_tools_is_told_of_none(server: Served) -> None:
    play = Play(code("FINAL('tool' in dir() or 'ToolError' in dir())"))
    async with server(play) as served:
        ended = await served.caller.ask()
        assert (ended.run.answer, "ToolError" in play.asked[0].system) == ("False", False)


async def test_many_calls_wait_at_once_in_tasks_and_in_pools_and_no_more_than_may(server: Served) -> None:
    waves: list[list[run_pb2.ToolCallRequested]] = [[]]
    tasks = "print([r['city'] for r in await asyncio.gather(*[weather_async(str(i)) for i in range(4)])])"
    pool = "print([r['city'] for r in Pool().map(weather, map(str, range(4)))])"
    imports = "import asyncio\nfrom concurrent.futures import ThreadPoolExecutor as Pool\n"
    async with server(Play(code(imports + tasks, pool), code("FINAL(1)")), tool_calls_at_once=3) as served:
        run = await served.caller.create(tools=[WEATHER])
        async for event in served.caller.watch(run.run_id):
            if event.HasField("tool_call_requested"):
                waves[-1].append(event.tool_call_requested)
                if len(waves[-1]) == 3 or (len(waves[-1]) == 1 and len(waves) % 2 == 0):
                    for call in reversed(waves[-1]):
                        await submit(served.caller, run.run_id, call.call_id, **sunny(call))
                    waves.append([])
        ended = await served.caller.ended(run.run_id)
    assert [len(wave) for wave in waves] == [3, 1, 3, 1, 0]
    assert ended.printed == "['0', '1', '2', '3']\n" * 2


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        ("weather()", "TypeError", "missing a required argument: 'city'"),
        ("weather('Oslo', town=1)", "TypeError", "got an unexpected keyword argument 'town'"),
        ("weather(3)", "TypeError", 'weather: /city: 3 is not of type "string"'),
        ("weather(3, days='x')", "TypeError", '/days: "x" is not of type "integer"'),
        ("weather('', days='x')", "ValueError", '/city: "" should be non-empty; /days: "x" is not of type'),
        ("weather('Oslo', unit='k')", "ValueError", '/unit: "k" is not one of "c", "f"'),
        ("weather({1, 2})", "TypeError", "arguments must be JSON"),
        ("weather('Oslo', days=float('nan'))", "ValueError", "not JSON compliant"),
        ("weather('x' * 70_000)", "LimitExceeded", "tool_argument_bytes"),
        ("weather('x' * 100_000_000)", "LimitExceeded", "limit"),
        ("weather('\\ud800')", "ValueError", ""),
    ],
)
async def test_arguments_that_do_not_fit_never_leave(server: Served, call: str, kind: str, words: str) -> None:
    ended = await played(
        server, f"try: {call}\nexcept Exception as e: print(type(e).__name__, e)", answer=lambda _: None
    )
    assert ended.bodies("tool_call_requested") == []
    assert ended.printed.startswith(f"{kind} "), ended.printed
    assert words in ended.printed


async def test_a_failed_tool_raises_in_the_code(server: Served) -> None:
    block = "try: weather('Oslo')\nexcept ToolError as e: print('failed:', e)"
    ended = await played(server, block, "weather('Rome')", answer=lambda _: {"error": "no sky"})
    assert ended.printed == "failed: no sky\n"
    error = ended.bodies("code_finished")[1].result.error
    assert (error.type, error.message) == ("ToolError", "no sky")
    assert [(one.end, one.error) for one in ended.bodies("tool_call_answered")] == [
        (run_pb2.TOOL_CALL_END_ERROR, "no sky")
    ] * 2


async def test_a_call_that_nobody_answers_ends_at_its_deadline_and_its_answer_is_too_late(server: Served) -> None:
    hasty = run_pb2.Tool(name="hasty", timeout=Duration(nanos=50_000_000))
    block = "try: {}()\nexcept TimeoutError as e: print(e)"
    play = Play(code(block.format("hasty"), block.format("nothing")), code("FINAL(llm_query('wait'))"))
    late = asyncio.Event()

    async def sub(_: str) -> str:
        await late.wait()
        return "done"

    play.sub = sub
    async with server(play, tool_seconds=0.2) as served:
        run = await served.caller.create(tools=[hasty, NOTHING])
        await served.caller.until(run.run_id, "call_started")
        call = await requested(served.caller, run.run_id)
        said = await refusal(submit(served.caller, run.run_id, call.call_id, result_json="1"))
        late.set()
        ended = await served.caller.ended(run.run_id)
    assert said.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (said.reason, said.said["call_id"]) == ("TOOL_CALL_ENDED", call.call_id)
    assert ended.printed == "hasty was not answered within 0.05 s\nnothing was not answered within 0.2 s\n"
    assert {one.end for one in ended.bodies("tool_call_answered")} == {run_pb2.TOOL_CALL_END_TIMED_OUT}


async def test_a_waiting_run_is_cancelled_and_its_call_ends(server: Served) -> None:
    async with server(Play(code("nothing()"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        call = await requested(served.caller, run.run_id)
        await served.caller.cancel(run.run_id)
        ended = await served.caller.ended(run.run_id)
        check_story(ended)
        check_settled(served.data_dir)
        assert ended.run.state == run_pb2.RUN_STATE_CANCELLED
        assert [one.end for one in ended.bodies("tool_call_answered")] == [run_pb2.TOOL_CALL_END_CANCELLED]
        said = await refusal(submit(served.caller, run.run_id, call.call_id, result_json="1"))
        assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOOL_CALL_ENDED")
        assert "its run has ended" in said.message


async def test_a_call_has_one_answer(server: Served) -> None:
    async with server(Play(code("x = nothing()", "FINAL(f'{x} {nothing()}')"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        first = await requested(served.caller, run.run_id)
        unknown = await refusal(submit(served.caller, run.run_id, "tool_none", result_json="1"))
        await asyncio.gather(*[submit(served.caller, run.run_id, first.call_id, result_json="1") for _ in range(3)])
        other = await refusal(submit(served.caller, run.run_id, first.call_id, result_json="2"))
        ended = await answered(served.caller, run.run_id, lambda call: {"result_json": "1"})
        assert ended.run.answer == "1 1"
        assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        assert (other.code, other.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TOOL_CALL_ANSWERED")


async def test_an_answer_with_a_request_id_is_taken_once_also_after_the_runs_end(server: Served) -> None:
    async with server(Play(code("FINAL(nothing())"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        call = await requested(served.caller, run.run_id)
        once = {"result_json": '"first"', "request_id": "once"}
        await submit(served.caller, run.run_id, call.call_id, **once)
        assert (await served.caller.ended(run.run_id)).run.answer == "first"
        await submit(served.caller, run.run_id, call.call_id, **once)
        said = await refusal(submit(served.caller, run.run_id, call.call_id, result_json="2", request_id="once"))
        assert said.reason == "REQUEST_ID_REUSED"


async def test_another_tenant_can_neither_see_nor_answer_a_call(server: Served) -> None:
    async with server(Play(code("FINAL(nothing())"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        call = await requested(served.caller, run.run_id)
        other = await served.tenant("globex")
        said = await refusal(submit(other, run.run_id, call.call_id, result_json='"stolen"'))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        await submit(served.caller, run.run_id, call.call_id, result_json='"mine"')
        assert (await served.caller.ended(run.run_id)).run.answer == "mine"


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        ({"result_json": "{"}, "result_json"),
        ({"result_json": "NaN"}, "result_json"),
        ({"result_json": '{"a": 1, "a": 2}'}, "result_json"),
        ({"result_json": '"\\ud800"'}, "result_json"),
        ({"result_json": "[" * 40 + "]" * 40}, "result_json"),
        ({"result_json": "[" + "0," * 60_000 + "0]"}, "result_json"),
        ({"result_json": '"' + "x" * (1 << 20) + '"'}, "result_json"),
        ({"error": "x" * 2_001}, "error"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_is_no_result_is_refused_and_the_call_waits_on(
    server: Served, outcome: dict[str, str], field: str
) -> None:
    async with server(Play(code("FINAL(nothing())"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        call = await requested(served.caller, run.run_id)
        said = await refusal(submit(served.caller, run.run_id, call.call_id, **outcome))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
        await submit(served.caller, run.run_id, call.call_id, result_json='"good"')
        assert (await served.caller.ended(run.run_id)).run.answer == "good"


async def test_a_result_may_be_large_and_an_event_has_its_beginning(server: Served) -> None:
    text = json.dumps({f"key {number}": "ä" * 10 for number in range(20_000)}, ensure_ascii=False)
    block = "x = nothing()\nprint(len(x), x['key 19999'])"
    ended = await played(server, block, answer=lambda _: {"result_json": text}, tools=(NOTHING,))
    assert ended.printed == f"20000 {'ä' * 10}\n"
    (told,) = [event for event in ended.events if event.HasField("tool_call_answered")]
    assert len(told.tool_call_answered.result_json.encode()) == 64 << 10
    assert [(cut.field, cut.size_bytes) for cut in told.cut] == [("result_json", len(text.encode()))]


async def test_all_that_is_wrong_with_tools_is_said_at_once(server: Served) -> None:
    def tool(name: str = "fine", schema: object = None, **fields: Any) -> run_pb2.Tool:
        text = "" if schema is None else json.dumps(schema)
        return run_pb2.Tool(name=name, arguments_schema=text, **fields)

    wrong = [
        tool(""),
        tool("x" * 65),
        tool("class"),
        tool("llm_query"),
        tool("print"),
        tool("__class__"),
        tool("_hidden"),
        tool("naïve"),
        tool("a.b"),
        tool("f(x): import os\ndef g"),
        tool("twice"),
        tool("twice"),
        tool("twice_async"),
        tool("long", description="x" * 4_001),
        tool("slow", timeout=Duration(seconds=301)),
        tool("remote", {"type": "object", "properties": {"a": {"$ref": "https://example.com/a"}}}),
        tool("untyped", {"type": "array"}),
        tool("listed", ["object"]),
        tool("itself", {"type": "object", "allOf": [{"$ref": "#"}]}),
        run_pb2.Tool(name="deep", arguments_schema="[" * 9_000),
    ]
    async with server(Play("")) as served:
        request = run_pb2.CreateRunRequest(question="", tools=wrong)
        said = await refusal(served.caller.runs.CreateRun(request, metadata=served.caller.metadata))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    names = ("question", *(f"tools[{n}].name" for n in (*range(10), 11, 12)))
    expected = [
        *names,
        "tools[13].description",
        "tools[14].timeout",
        *(f"tools[{n}].arguments_schema" for n in range(15, 20)),
    ]
    assert int(said.said["violation_count"]) == len(expected)
    assert said.fields == expected[: len(said.fields)]
    assert len(said.fields) > 10


@pytest.mark.parametrize(
    "tools", [[NOTHING] * 65, [run_pb2.Tool(name=f"t{n}", description="ü" * 3_000) for n in range(40)]]
)
async def test_tools_are_bounded_together(server: Served, tools: list[run_pb2.Tool]) -> None:
    async with server(Play("")) as served:
        request = run_pb2.CreateRunRequest(question="What?", tools=tools)
        said = await refusal(served.caller.runs.CreateRun(request, metadata=served.caller.metadata))
        assert said.fields == ["tools"]


async def test_code_calls_tools_only_so_often_in_a_turn(server: Served) -> None:
    block = "for i in range(4):\n    try: print(weather(str(i))['city'])\n    except LimitExceeded as e: print(e)"
    ended = await played(server, block, "print(weather('next')['city'])", tool_calls=3)
    assert ended.printed == "0\n1\n2\ntool_calls: code may call tools 3 times in one turn\nnext\n"


CHILD: Any = {"Rome?": code("FINAL(weather('Rome')['sky'])")}


async def test_children_call_tools_too_and_their_calls_say_whose_they_are(server: Served) -> None:
    play = Play(code("FINAL(rlm_query('Rome?'))"), **CHILD)
    async with server(play) as served:
        run = await served.caller.create(tools=[WEATHER])
        ended = await answered(served.caller, run.run_id, sunny)
    assert ended.run.answer == "sunny"
    (event,) = [one for one in ended.events if one.HasField("tool_call_requested")]
    assert (event.depth, event.parent_id, event.node_id) == (1, run.run_id, ended.nodes[1].node_id)


async def test_where_contents_are_redacted_a_call_tells_them_only_while_it_waits(server: Served) -> None:
    async with server(Play(code("FINAL(weather('marzipan')['sky'])"))) as served, operating(served) as operator:
        await operator.create("acme", redact_contents=True)
        key = await served.running.keys.create("acme")
        caller = served.another(key[1])
        run = await caller.create(tools=[WEATHER])
        call = await requested(caller, run.run_id)
        assert arguments(call) == {"city": "marzipan"}
        listing = run_pb2.ListRunEventsRequest(run_id=run.run_id, page_size=1_000)
        assert "marzipan" in str(await caller.runs.ListRunEvents(listing, metadata=caller.metadata))
        await submit(caller, run.run_id, call.call_id, result_json='{"sky": "nougat"}', request_id="once")
        ended = await caller.ended(run.run_id)
        assert ended.run.answer == "nougat"
        assert "marzipan" not in str(ended.events)
        assert "nougat" not in str(ended.events)
        (told,) = [event for event in ended.events if event.HasField("tool_call_requested")]
        assert [(cut.field, cut.redacted) for cut in told.cut] == [("arguments_json", True)]
        assert told.tool_call_requested.name == "weather"


async def _is(held: Callable[[], Awaitable[float]], wanted: float) -> bool:
    return await held() <= wanted


async def test_nothing_is_held_of_calls_that_have_ended(server: Served) -> None:
    async with server(Play(code("weather('Oslo')", "FINAL(weather('Rome')['sky'])"))) as served:
        info: Any = server_pb2_grpc.ServerServiceStub(served.caller.channel)

        async def held() -> float:
            quota = await info.GetQuota(server_pb2.GetQuotaRequest(), metadata=served.caller.metadata)
            return next(float(one.used) for one in quota.quotas if one.name == "tenant_held_bytes")

        before = await held()
        run = await served.caller.create(tools=[WEATHER])
        await requested(served.caller, run.run_id)
        assert await held() > before
        await answered(served.caller, run.run_id, sunny)
        await until(lambda: _is(held, before))


async def test_a_client_that_comes_back_finds_the_call_that_waits(server: Served) -> None:
    async with server(Play(code("FINAL(nothing())"))) as served:
        gone = served.another()
        run = await gone.create(tools=[NOTHING])
        await requested(gone, run.run_id)
        await gone.channel.close(None)
        call = await requested(served.caller, run.run_id)
        await submit(served.caller, run.run_id, call.call_id, result_json='"back"')
        assert (await served.caller.ended(run.run_id)).run.answer == "back"


async def test_tools_are_called_on_postgres(server: Served, postgres_url: str) -> None:
    async with server(Play(code("FINAL(weather('Oslo')['sky'])")), database_url=postgres_url) as served:
        run = await served.caller.create(tools=[WEATHER], request_id="run")
        call = await requested(served.caller, run.run_id)
        for _ in range(2):
            await submit(served.caller, run.run_id, call.call_id, **sunny(call) | {"request_id": "once"})
        ended = await served.caller.ended(run.run_id)
        assert ended.run.answer == "sunny"
        await submit(served.caller, run.run_id, call.call_id, **sunny(call) | {"request_id": "once"})
        again = await served.caller.create(tools=[WEATHER], request_id="run")
        assert again.run_id == run.run_id


async def test_an_operator_lowers_what_a_tenants_tools_may(server: Served) -> None:
    slow = run_pb2.Tool(name="slow", timeout=Duration(seconds=6))
    async with server(Play(code("FINAL(nothing())"))) as served, operating(served) as operator:
        await operator.create("none", limits={"tools": 0})
        await operator.create("brief", limits={"tool_seconds": 5, "tool_result_bytes": 1_024})
        none, brief = [served.another((await served.running.keys.create(name))[1]) for name in ("none", "brief")]
        assert (await refusal(none.create(tools=[NOTHING]))).fields == ["tools"]
        assert (await refusal(brief.create(tools=[slow]))).fields == ["tools[0].timeout"]
        run = await brief.create(tools=[NOTHING])
        call = await requested(brief, run.run_id)
        said = await refusal(submit(brief, run.run_id, call.call_id, result_json=json.dumps("x" * 1_023)))
        assert said.fields == ["result_json"]
        assert "tool_result_bytes" in said.message
        await submit(brief, run.run_id, call.call_id, result_json=json.dumps("x" * 1_022))
        assert (await brief.ended(run.run_id)).run.answer == "x" * 1_022


@pytest.mark.parametrize("size", [1 << 21, 100 << 20])
async def test_a_result_that_no_request_may_have_is_refused_and_the_largest_is_taken(server: Served, size: int) -> None:
    async with server(Play(code("FINAL(len(nothing()))"))) as served:
        run = await served.caller.create(tools=[NOTHING])
        call = await requested(served.caller, run.run_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(served.caller, run.run_id, call.call_id, result_json=json.dumps("x" * size))
        too_large = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert caught.value.code() == too_large[size > 4 << 20], "ours, and gRPC's own"
        await submit(served.caller, run.run_id, call.call_id, result_json=json.dumps("x" * ((1 << 20) - 2)))
        assert (await served.caller.ended(run.run_id)).run.answer == str((1 << 20) - 2)
