"""Python functions as tools of a run: what they are told as, and how their calls are answered."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Literal, Optional

import pytest
from rlm_client import Client, Tool, tool

from tests.servers import Served, Server
from tests.system.stage import Play, code

TEXT = "a text"


def find(query: str, limit: int = 10, *, kinds: list[str] | None = None, order: Literal["up", "down"] = "up") -> Any:
    """Search for something.

    It takes a while.
    """
    return {"query": query, "limit": limit, "kinds": kinds, "order": order}


async def slow(number: float) -> float:
    """Return the number, later."""
    await asyncio.sleep(0)
    return number


def fails(reason: str) -> None:
    """Fail."""
    raise LookupError(reason)


def odd() -> object:
    """Return what is no JSON."""
    return {1, 2}


def test_a_function_is_told_by_its_name_docstring_and_signature() -> None:
    made = tool(find)
    assert (made.name, made.description) == ("find", "Search for something.\n\nIt takes a while.")
    assert made.schema == {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer", "default": 10},
            "kinds": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None},
            "order": {"enum": ["up", "down"], "default": "up"},
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    named = tool(find, name="look", description="Find.", timeout=2.5)
    assert (named.name, named.description, named.message().timeout.ToMilliseconds()) == ("look", "Find.", 2_500)


def test_other_annotations_are_known_or_refused_by_name() -> None:
    def fine(a: dict[str, int], b: Optional[bool], c, d: Any, e: list[Any] = [], f: object = object(), **others: Any):  # type: ignore[no-untyped-def]  # noqa: B006, UP045
        pass

    schema = tool(fine).schema
    assert schema["properties"] == {
        "a": {"type": "object", "additionalProperties": {"type": "integer"}},
        "b": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "c": {},
        "d": {},
        "e": {"type": "array", "items": {}, "default": []},
        "f": {},
    }
    assert (schema["required"], schema["additionalProperties"]) == (["a", "b", "c", "d"], True)

    def taking(a: set[int]) -> None:
        pass

    def positional(*a: int) -> None:
        pass

    with pytest.raises(TypeError, match=r"taking: a: .* is no type that a tool's argument can have"):
        tool(taking)
    with pytest.raises(TypeError, match="positional: a cannot be given by its name"):
        tool(positional)


def client_of(served: Server) -> Client:
    return Client(served.running.address, served.running.key)


async def asked(served: Server, *tools: Any) -> str:
    def ask() -> str:
        with client_of(served) as client:
            return client.ask("What?", TEXT, tools=tools).text

    return await asyncio.to_thread(ask)


async def test_functions_are_called_and_what_they_return_or_raise_comes_back(server: Served) -> None:
    lines = (
        "found = find('x', kinds=['a'], order='down')",
        "later = await asyncio.gather(*[slow_async(n) for n in range(40)])",
        "try: fails('no luck')\nexcept ToolError as error: said = str(error)",
        "try: odd()\nexcept ToolError as error: strange = str(error)",
        "FINAL(f'{found} {sum(later)} {said} {strange}')",
    )
    async with server(Play(code("import asyncio", *lines))) as served:
        text = await asked(served, find, slow, fails, odd)
    found = {"query": "x", "limit": 10, "kinds": ["a"], "order": "down"}
    start, _, strange = text.partition(" LookupError: no luck ")
    assert start == f"{found} 780"
    assert strange.startswith("the tool returned what cannot be sent: ")


async def test_a_program_plays_the_model_of_its_run(server: Served) -> None:
    async with server(Play(""), client_model=True) as served:

        def play() -> str:
            with client_of(served) as client:
                run = client.create_run("What?", model="client")
                for event in client.watch_run(run.run_id):
                    if event.HasField("model_call_requested"):
                        call = event.model_call_requested
                        client.submit_reply(run.run_id, call.call_id, code("FINAL('played')"), output_tokens=5)
                ended = client.get_run(run.run_id)
                return f"{ended.answer} {ended.spent.token_count}"

        assert await asyncio.to_thread(play) == "played 5"


async def test_a_call_that_another_process_left_is_answered_by_who_takes_it_up_and_no_other(server: Served) -> None:
    called: list[str] = []

    def note(word: str) -> str:
        """Note a word."""
        called.append(word)
        return word.upper()

    async with server(Play(code("first = note('one')", "FINAL(first + note('two') + other())"))) as served:
        other = Tool("other", "", {"type": "object"}, lambda: "never called here")

        def left() -> str:
            with client_of(served) as client:
                run = client.create_run("What?", tools=[note, other])
                for event in client.watch_run(run.run_id):
                    if event.HasField("tool_call_requested"):
                        client.submit_result(run.run_id, event.tool_call_requested.call_id, "ONE")
                        break
                for event in client.watch_run(run.run_id):
                    if event.HasField("tool_call_requested") and "two" in event.tool_call_requested.arguments_json:
                        break
                return run.run_id

        def taken_up(run_id: str) -> str:
            with client_of(served) as client:
                others = threading.Thread(target=answer_other, args=(run_id,))
                others.start()
                client.answer_tools(run_id, [note])
                others.join()
                return client.get_run(run_id).answer

        def answer_other(run_id: str) -> None:
            with client_of(served) as client:
                for event in client.watch_run(run_id):
                    if event.HasField("tool_call_requested") and event.tool_call_requested.name == "other":
                        client.submit_result(run_id, event.tool_call_requested.call_id, "!")

        assert await asyncio.to_thread(taken_up, await asyncio.to_thread(left)) == "ONETWO!"
    assert called == ["two"]
