"""Tools as callers name them: no name that the code has, and signatures as Python would write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlm_server.runs.past.entries import ToolAsked
from rlm_server.schemas.values import read_json
from rlm_server.schemas.work import Work
from rlm_server.tools.tool import MAX_ARGUMENTS_SCHEMA, RESERVED, AskedTool, Tool, read_tools
from sandbox.limits import Limits
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session


def one(properties: dict[str, Any], **more: Any) -> Tool:
    schema = {"type": "object", "properties": properties, **more}
    (tool,), wrong = read_tools([AskedTool("f", "", json.dumps(schema))], 10)
    assert wrong == []
    return tool


def signature(properties: dict[str, Any], **more: Any) -> str:
    return one(properties, **more).prompt.partition("\n")[0]


def test_every_name_that_the_code_has_is_taken(images: Loaded) -> None:
    session = Session(images.program, images.images["core"], Limits())
    try:
        turn = session.execute("import _runner, builtins; print(*_runner.reserved, *dir(builtins), 'answer', 'kept')")
    finally:
        session.close()
    names = [name for name in turn.stdout.split() if not name.startswith("_")]
    assert {"llm_query_batched_async", "printed", "print", "FINAL"} <= set(names)
    free = [name for name in names if not read_tools([AskedTool(name, "", "")], 10)[1]]
    assert free == []
    assert "ToolError" in RESERVED


@pytest.mark.parametrize("name", ["None", "match", "x" * 65, "", "1a", "a-b", "a\n", "é", "_a", "a b", "exec", "type"])
def test_what_is_no_free_identifier_is_no_name(name: str) -> None:
    assert [wrong.field for wrong in read_tools([AskedTool(name, "", "")], 10)[1]] == ["tools[0].name"]


@pytest.mark.parametrize(
    ("properties", "more", "written"),
    [
        ({}, {}, "- f()"),
        ({"a": {"type": "string"}}, {"required": ["a"]}, "- f(a: str)"),
        ({"a": {"type": "integer", "default": 3}, "b": {}}, {"required": ["b"]}, "- f(b, a: int = 3)"),
        ({"a": {"type": "array", "items": {"type": "number"}}}, {}, "- f(a: list[float] = None)"),
        ({"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, {}, "- f(a: str | None = None)"),
        ({"a": {"enum": ["x", 1]}}, {}, "- f(a: Literal['x', 1] = None)"),
        ({"class": {}, "a-b": {}, "c": {}}, {}, "- f(c = None, **others)"),
        ({}, {"additionalProperties": True}, "- f(**others)"),
        ({"a": {"$ref": "#/$defs/a"}}, {"$defs": {"a": {"type": "string"}}}, "- f(a = None)"),
    ],
)
def test_a_signature_is_as_python_would_write_it(properties: Any, more: Any, written: str) -> None:
    assert signature(properties, **more) == written


def test_a_model_is_told_what_arguments_are() -> None:
    point = {"type": "object", "properties": {"x": {"type": "number"}}, "description": "Where\nto."}
    lines = one({"a": {"type": "string", "description": "Its name."}, "b": {"type": "integer"}, "p": point}).prompt
    assert lines.split("\n")[1:] == [
        "  a: Its name.",
        '  p: Where to. {"type":"object","properties":{"x":{"type":"number"}}}',
    ]


def test_a_tools_time_is_its_own_or_what_there_is() -> None:
    tools, wrong = read_tools([AskedTool("a", "", ""), AskedTool("b", "", "", 2.0), AskedTool("c", "", "", 11.0)], 10)
    assert [tool.seconds for tool in tools] == [10, 2]
    assert [one.field for one in wrong] == ["tools[2].timeout"]


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("[" * 9_000, "nested deeper than 32 levels"),
        ("nonsense", "it is not JSON"),
        ("[]", "must be an object or a boolean"),
        ("true", '/type: must be "object"'),
        ('{"type": "array"}', '/type: must be "object"'),
        ('{"a": 1, "a": 2}', 'an object has the key "a" twice'),
        (f'{{"title": "{"x" * MAX_ARGUMENTS_SCHEMA}"}}', f"may have {MAX_ARGUMENTS_SCHEMA} bytes of UTF-8, not 16397"),
        ('{"enum": [' + "0," * 2_000 + "0]}", "more than 2000 values and keys"),
        ('{"$defs": {' + ",".join(f'"{n}": true' for n in range(1_000)) + "}}", "more than 2000 values and keys"),
        ('{"allOf": [{"$ref": "https://example.com/schema"}]}', "/allOf/0/$ref: must begin with #"),
        ('{"allOf": [{"$ref": "#"}]}', "leads back to itself at the same value"),
        ('{"pattern": "("}', "/pattern: RE2 cannot compile the pattern"),
        ('{"required": "a"}', '/required: "a" is not of type'),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_bounded_schema_of_an_object_is_refused(schema: str, why: str) -> None:
    tools, wrong = read_tools([AskedTool("f", "", schema)], 10)
    assert tools == ()
    assert {one.field for one in wrong} == {"tools[0].arguments_schema"}
    assert why in wrong[0].message


def test_a_tool_that_was_written_down_is_the_same_again() -> None:
    tool = one({"a": {"enum": ["x" * 70, "y"], "default": "y"}, "b": {"type": "integer"}}, additionalProperties=False)
    again = ToolAsked.of(tool).tool()
    assert (again.prompt, again.for_guest) == (tool.prompt, tool.for_guest)
    assert "x" * 70 in tool.prompt
    value = read_json('{"a": "z", "b": "1", "c": 2}', 100)
    assert again.schema.violations(value, Work()) == tool.schema.violations(value, Work()) != ()
