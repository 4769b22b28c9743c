"""Tools of the deployment: an entry point or an HTTP endpoint answers, under a hold for what a call costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rlm.v1 import run_pb2, types_pb2

from rlm_server.config.settings import ConfigError
from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.stage import Play, code, refusal

MODULE = '''\
"""Tools of a deployment."""

import asyncio

begun = asyncio.Event()


async def add(arguments, caller):
    return {"sum": arguments["a"] + arguments["b"], "tenant": caller["tenant_id"]}


async def fail(arguments, caller):
    raise LookupError("no such thing")


async def hang(arguments, caller):
    begun.set()
    await asyncio.Event().wait()


async def odd(arguments, caller):
    return {1, 2}


async def long(arguments, caller):
    return "x" * 2_000


def blocking(arguments, caller):
    return None
'''
NAMES = ("add", "fail", "hang", "odd", "long", "blocking")
NUMBERS = json.dumps(
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with entry points, as an operator installs it beside the server."""
    site = tmp_path / "site"
    about = site / "toy_tools-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "toy_tools.py").write_text(MODULE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-tools\nVersion: 1.0\n")
    points = "".join(f"{name} = toy_tools:{name}\n" for name in NAMES)
    (about / "entry_points.txt").write_text(f"[rlm_server.tools]\n{points}")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(__import__("sys").modules, "toy_tools", raising=False)


def stated(**tools: dict[str, Any]) -> dict[str, Any]:
    return {"deployment_tools": tools}


ADD = {"entry_point": "add", "description": "Adds.", "arguments_schema": NUMBERS, "cost_usd": "0.001"}


@pytest.mark.usefixtures("installed")
async def test_an_entry_point_answers_and_is_paid_like_a_model(server: Served) -> None:
    play = Play(code("x = add(2, b=3)", "FINAL(f\"{x['sum']} {x['tenant']}\")"))
    async with server(play, **stated(add=ADD)) as served:
        ended = await served.caller.ask(deployment_tools=["add"])
        check_story(ended)
        check_settled(served.data_dir)
    assert ended.run.answer == "5 development"
    (started,), (finished,) = ended.bodies("call_started"), ended.bodies("call_finished")
    assert (started.model, finished.call.model, finished.call.error) == ("tool:add", "tool:add", "")
    assert (finished.call.spent.nano_usd, finished.call.spent.call_count) == (1_000_000, 1)
    assert ended.bodies("tool_call_requested") == [], "no client is asked"
    assert "- add(a: int, b: int): Adds." in play.asked[0].system


@pytest.mark.usefixtures("installed")
async def test_a_call_that_the_budget_does_not_cover_is_not_made(server: Served) -> None:
    block = "try: add(1, 2)\nexcept LimitExceeded as error: FINAL(str(error))"
    async with server(Play(code(block)), **stated(add={**ADD, "cost_usd": "0.5"})) as served:
        budget = types_pb2.Budget(nano_usd=400_000_000)
        ended = await served.caller.ask(deployment_tools=["add"], budget=budget)
        check_settled(served.data_dir)
    assert "$0.50" in ended.run.answer
    assert ended.bodies("call_started") == []


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fail", "fail failed: LookupError: no such thing"),
        ("hang", "hang gave no answer within 0.1 s"),
        ("odd", "odd failed: TypeError: "),
        ("long", "long returned 2002 bytes, and may return 1024"),
    ],
)
async def test_a_tool_that_fails_raises_in_the_code_and_costs_as_said(server: Served, name: str, words: str) -> None:
    tool = {"entry_point": name, "timeout_seconds": 0.1, "result_bytes": 1_024, "cost_usd": "0.002"}
    block = f"try: {name}()\nexcept ToolError as error: FINAL(str(error))"
    async with server(Play(code(block)), **stated(**{name: tool})) as served:
        ended = await served.caller.ask(deployment_tools=[name])
        check_settled(served.data_dir)
    assert ended.run.answer.startswith(words)
    (finished,) = ended.bodies("call_finished")
    assert (finished.call.spent.nano_usd, finished.call.error) == (2_000_000, ended.run.answer)


@pytest.mark.usefixtures("installed")
async def test_a_cancelled_call_is_settled_and_costs_as_said(server: Served) -> None:
    tool = {"entry_point": "hang", "cost_usd": "0.002"}
    async with server(Play(code("hang()")), **stated(hang=tool)) as served:
        run = await served.caller.create(deployment_tools=["hang"])
        await served.caller.until(run.run_id, "call_started")
        cancelled = await served.caller.cancel(run.run_id)
        ended = await served.caller.ended(run.run_id)
        check_settled(served.data_dir)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    (finished,) = ended.bodies("call_finished")
    assert (finished.call.error, finished.call.spent.nano_usd) == ("cancelled", 2_000_000)


@pytest.mark.usefixtures("installed")
async def test_only_tools_that_a_tenant_may_use_can_be_named_and_each_once(server: Served) -> None:
    other = {**ADD, "tenants": ["acme-*"]}
    async with server(Play(code("FINAL(1)")), **stated(add=ADD, plus=other)) as served:
        theirs = await served.tenant("acme-1")
        for caller, names, field in (
            (served.caller, ["plus"], "deployment_tools[0]"),
            (theirs, ["add", "add"], "deployment_tools[1]"),
            (theirs, ["plus", "nothing"], "deployment_tools[1]"),
            (served.caller, ["add", "plus"], "deployment_tools"),
        ):
            assert (await refusal(caller.create(deployment_tools=names))).fields == [field]
        own = run_pb2.Tool(name="add")
        said = await refusal(served.caller.create(deployment_tools=["add"], tools=[own]))
        assert said.fields == ["tools[0].name"]
        assert (await theirs.ask(deployment_tools=["plus", "add"])).run.answer == "1"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({}, "one of url and entry_point must be given"),
        ({"entry_point": "add", "url": "https://tools.example.com/"}, "is none of the hosts"),
        ({"entry_point": "nothing"}, "there are 0 called 'nothing' in the group rlm_server.tools, not 1"),
        ({"entry_point": "blocking"}, "must be an async function, not function"),
        ({"entry_point": "add", "arguments_schema": "[]"}, "arguments_schema: must be an object or a boolean"),
        ({"url": "https://elsewhere.example.com/"}, "is none of the hosts that this server sends to (tool_hosts)"),
    ],
)
async def test_a_wrong_statement_names_itself_at_the_start(server: Served, tool: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        async with server(Play(""), **stated(mine=tool)):
            pass
    if "url" in tool and "entry_point" in tool:
        words = "one of url and entry_point must be given"
    assert "deployment_tools.mine" in str(refused.value)
    assert words in str(refused.value)


# ---- endpoints -------------------------------------------------------------------------------------------------------


@dataclass
class Endpoint:
    """What came to an endpoint, and how it answers."""

    answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
    url: str = ""
    came: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.came.append((headers, json.loads(await request.text() or "null")))
        return await self.answer(request)


@asynccontextmanager
async def endpoint(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Endpoint]:
    served = Endpoint(answer)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", served.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield served
    finally:
        await runner.cleanup()


async def double(request: web.Request) -> web.Response:
    asked = json.loads(await request.text())
    return web.json_response({"twice": 2 * asked["arguments"]["a"]})


async def test_an_endpoint_is_sent_the_arguments_and_who_calls_and_its_json_comes_back(server: Served) -> None:
    async with endpoint(double) as at:
        schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
        tool = {"url": f"{at.url}/double", "arguments_schema": schema, "authorization": "Bearer secret-of-the-tool"}
        play = Play(code("FINAL(double(a=21)['twice'])"))
        async with server(play, tool_hosts=[at.url], **stated(double=tool)) as served:
            ended = await served.caller.ask(deployment_tools=["double"])
    assert ended.run.answer == "42"
    ((headers, body),) = at.came
    (started,) = ended.bodies("call_started")
    assert headers["authorization"] == "Bearer secret-of-the-tool"
    assert body == {
        "tool": "double",
        "arguments": {"a": 21},
        "tenant_id": "development",
        "run_id": ended.run.run_id,
        "call_id": started.call_id,
    }
    assert "secret-of-the-tool" not in str(ended.events)


async def _moved(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def _broken(_: web.Request) -> web.StreamResponse:
    return web.Response(text="{")


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def _silent(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_moved, "ask answered 302, not 200"),
        (_broken, "ask returned what cannot be read: "),
        (_endless, "ask returned more than 100000 bytes"),
        (_silent, "ask gave no answer within 0.3 s"),
    ],
)
async def test_what_is_no_answer_of_an_endpoint_fails_the_call(server: Served, answer: Any, words: str) -> None:
    async with endpoint(answer) as at:
        tool = {"url": f"{at.url}/", "timeout_seconds": 0.3 if answer is _silent else 30, "result_bytes": 100_000}
        play = Play(code("try: ask()\nexcept ToolError as error: FINAL(str(error))"))
        async with server(play, tool_hosts=[at.url], **stated(ask=tool)) as served:
            ended = await served.caller.ask(deployment_tools=["ask"])
            check_settled(served.data_dir)
    assert ended.run.answer.startswith(words)
    assert len(at.came) == 1, "no redirect is followed, and nothing is sent again"


async def test_an_endpoint_at_an_address_that_is_not_public_is_not_asked(server: Served) -> None:
    async with endpoint(double) as at:
        url = at.url.replace("127.0.0.1", "localhost")
        play = Play(code("try: ask()\nexcept ToolError as error: FINAL(str(error))"))
        async with server(play, tool_hosts=[url], **stated(ask={"url": url})) as served:
            ended = await served.caller.ask(deployment_tools=["ask"])
    assert "its address is not public" in ended.run.answer
    assert at.came == []


async def test_a_tool_is_paid_on_postgres(server: Served, postgres_url: str) -> None:
    async with endpoint(double) as at:
        schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
        tool = {"url": at.url, "arguments_schema": schema, "cost_usd": "0.25"}
        play = Play(code("FINAL(double(a=1)['twice'] + double(a=2)['twice'])"))
        async with server(play, database_url=postgres_url, tool_hosts=[at.url], **stated(double=tool)) as served:
            ended = await served.caller.ask(deployment_tools=["double"])
            assert await served.running.ledger.unresolved() == 0
    assert ended.run.answer == "6"
    assert [one.call.spent.nano_usd for one in ended.bodies("call_finished")] == [250_000_000] * 2
    assert ended.run.spent.nano_usd >= 500_000_000
