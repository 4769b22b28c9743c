"""JSON Schemas from outside: all that is wrong with one is said, and checking a value takes a bounded time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlm_server.tools import schemas
from rlm_server.tools.schemas import MAX_STEPS, MAX_TOLD, MAX_VIOLATION, Schema, SchemaRefused


def schema(root: object) -> Schema:
    return Schema.read(json.dumps(root))


def wrong(root: object) -> tuple[str, ...]:
    with pytest.raises(SchemaRefused) as refused:
        schema(root)
    return refused.value.violations


def told(root: object, value: Any) -> list[str]:
    return [str(one) for one in schema(root).violations(value)]


TREE = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "additionalProperties": False}
EASY: dict[str, Any] = {"$defs": {"last": {"type": "null"}}, "$ref": "#/$defs/n0"}
EASY["$defs"] |= {f"n{n}": {"anyOf": [{"$ref": f"#/$defs/n{n + 1}"}] * 2} for n in range(60)}
EASY["$defs"]["n60"] = {"type": "null"}
"""Sixty forks, each of which is looked at twice."""


def test_a_value_that_fits_has_no_violations() -> None:
    assert told(TREE, {"left": {"right": {}}}) == []
    assert told({"type": "array", "items": {"enum": [1, "a", None]}, "uniqueItems": True}, [1, "a", None]) == []
    assert told({"type": "string", "pattern": r"^\d{4}-\d\d$"}, "2026-11") == []


def test_every_violation_says_where_it_is() -> None:
    assert told(TREE, {"left": {"right": 1, "up": {}}}) == [
        "$.left.right: 1 is not of type 'object'",
        "$.left: Additional properties are not allowed ('up' was unexpected)",
    ]
    assert told({"pattern": "^a+$"}, "b") == ["$: 'b' does not match '^a+$'"]
    assert told({"uniqueItems": True}, [1, {"a": 1}, {"a": 1.0}]) == ["$: its items are not all different"]


def test_all_that_is_wrong_with_a_schema_is_said() -> None:
    said = wrong(
        {
            "type": "text",
            "properties": [],
            "items": 3,
            "enum": [],
            "required": "a",
            "minLength": -1,
            "pattern": "(",
            "not": False,
            "$id": "https://example.com",
            "patternProperties": {},
            "allOf": [{"$ref": "https://example.com/schema"}, {"$ref": "#/$defs/none"}],
            "$schema": "http://json-schema.org/draft-07/schema#",
        }
    )
    places = ["type", "properties", "items", "enum", "required", "minLength", "pattern", "not", "$id",
              "patternProperties", "allOf/0/$ref", "$schema", "allOf/1/$ref"]  # fmt: skip
    assert [one.partition(" ")[0].rstrip(":") for one in said] == [f"#/{place}" for place in places]


@pytest.mark.parametrize(
    "text",
    ["[" * 10_000, '{"a":' * 3_000 + "1" + "}" * 3_000, "nonsense", '{"a": 1, "a": 2}', "[]", '{"a": NaN}',
     "x" * 20_000, '{"a": "\\ud800"}', '{"enum": [' + "0," * 5_000 + "0]}"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_bounded_json_object_is_refused(text: str) -> None:
    with pytest.raises(SchemaRefused):
        Schema.read(text)


@pytest.mark.parametrize(
    "root",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}},
    ],
)
def test_a_schema_that_comes_back_to_itself_for_the_same_value_is_refused(root: object) -> None:
    assert wrong(root)[0].endswith("refers to itself without end")


@pytest.mark.parametrize(
    ("root", "value"),
    [
        (EASY, 1),
        ({"allOf": [{"contains": {}}] * 400}, [0] * 10_000),
        ({"allOf": [{"uniqueItems": True}] * 400}, list(range(10_000))),
        ({"allOf": [{"pattern": "(a|b)*c{50}"}] * 400}, "ab" * 30_000),
        ({"anyOf": [{"type": "integer"}] * 400}, ["long"] * 10_000),
        ({"items": {"enum": [list(range(100))] * 15}}, [list(range(100))] * 600),
    ],
)
def test_checking_takes_a_bounded_number_of_steps(root: object, value: Any) -> None:
    assert f"$: checking it takes more than {MAX_STEPS} steps" in told(root, value)


def test_a_value_nested_too_deep_to_be_checked_is_said_to_be_so() -> None:
    value: dict[str, Any] = {}
    for _ in range(900):
        value = {"left": value}
    assert told(TREE, value) == [f"$: checking it takes more than {MAX_STEPS} steps"]


def test_what_is_told_is_bounded() -> None:
    said = told({"items": {"type": "integer"}}, ["x" * 1_000] * 50)
    assert len(said) == MAX_TOLD + 1
    assert said[-1] == "$: and 40 more"
    assert max(len(one.encode()) for one in said) < MAX_VIOLATION + 50


def test_what_is_told_of_one_value_says_nothing_of_the_next() -> None:
    checked = schema(TREE)
    values: list[Any] = [1, {}, 1, {}]
    assert [len(checked.violations(value)) for value in values] == [1, 0, 1, 0]


def test_nothing_is_fetched() -> None:
    assert len(list(schemas._registry())) == 0
