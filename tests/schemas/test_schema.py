"""Values are looked at as JSON Schema 2020-12 says, in bounded work, and what is wrong is told in a few words."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rlm_server.schemas.schema import MAX_VIOLATION, MAX_VIOLATIONS, Bounds, Schema, SchemaRefused, Violation
from rlm_server.schemas.values import NotJson, read, read_json
from rlm_server.schemas.work import MAX_STEPS, Work


def violations(schema: Any, value: Any, most: int = 1_000_000) -> list[str]:
    read_value = read(json.dumps(value), most_levels=64, most_values=500_000)
    return list(map(str, Schema.of(json.dumps(schema)).violations(read_value, Work(most=most))))


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.5]) | st.sampled_from("ab")
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
PATTERNS = st.sampled_from(["^a", "b$", "[ab]", "^$"])


def _more(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few, named = st.lists(inner, min_size=1, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    keywords = {
        "allOf": few, "anyOf": few, "oneOf": few, "not": inner, "if": inner, "then": inner, "else": inner,
        "items": inner, "prefixItems": few, "contains": inner, "properties": named, "propertyNames": inner,
        "additionalProperties": inner, "dependentSchemas": named,
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional=keywords)


ASSERTIONS = st.fixed_dictionaries(
    {},
    optional={
        "type": TYPES, "enum": st.lists(VALUES, min_size=1, max_size=3), "const": VALUES, "minimum": st.integers(-2, 2),
        "multipleOf": st.sampled_from([1, 2, 0.5]), "maxLength": st.integers(0, 1), "pattern": PATTERNS,
        "uniqueItems": st.booleans(), "minItems": st.integers(0, 2), "required": st.just(["a"]),
        "minProperties": st.integers(0, 2), "minContains": st.integers(0, 2),
        "dependentRequired": st.just({"a": ["b"]}),
    },
)  # fmt: skip
SCHEMAS = st.recursive(st.booleans() | ASSERTIONS, _more, max_leaves=6)


@given(SCHEMAS, VALUES)
def test_a_value_is_taken_where_the_library_takes_it(schema: Any, value: Any) -> None:
    assert (not violations(schema, value)) is Draft202012Validator(schema).is_valid(value)


def test_what_the_library_gets_wrong_is_right_here() -> None:
    assert violations({"multipleOf": 0.1}, 0.3) == []
    assert violations({"multipleOf": 0.5}, 10**63) == []
    assert violations({"multipleOf": 1e-300}, 1e300) == []
    assert violations({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}, {"a": True}]) == []
    assert violations({"uniqueItems": True}, [{"a": [1]}, 2, {"a": [1.0]}]) == ["items 0 and 2 are equal"]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": {"type": "string"}}, ["x" * 100_000] * 2),
        ({"type": "string"}, [["x" * 10_000] * 100]),
        ({"items": False}, ["x" * 100_000] * 10),
        ({"additionalProperties": False}, {"x" * 100_000: 1, "y" * 100_000: 2}),
        ({"anyOf": [{"type": "string"}, {"required": ["a"]}, False]}, {"b": "x" * 100_000}),
        ({"maxLength": 3, "pattern": "^y"}, "x" * 100_000),
        ({"enum": [{"a": "x" * 10_000}]}, {"a": "x"}),
        ({"not": {"type": "object"}}, {"a": "x" * 100_000}),
        ({"required": [f"key {n}" for n in range(1_000)]}, {}),
    ],
)
def test_whatever_is_wrong_is_told_in_few_words(schema: Any, value: Any) -> None:
    found = violations(schema, value)
    assert 0 < len(found) <= MAX_VIOLATIONS or schema == {"items": {"type": "string"}}
    assert all(len(one) <= 2 * MAX_VIOLATION + 2 for one in found)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": {"type": "integer"}}, [1] * 2_000),
        ({"items": {"anyOf": [{"const": n} for n in range(50)]}}, [99] * 50),
        ({"uniqueItems": True}, [[n] for n in range(1_000)]),
        ({"enum": [[n] for n in range(900)]}, [5_000]),
        ({"patternProperties": {"a": True, "b": True}}, {str(n): 1 for n in range(500)}),
        ({"additionalProperties": False}, {str(n): 1 for n in range(1_100)}),
        ({"pattern": "(x{1,30}){1,30}y"}, "x" * 2_000),
        ({"contains": {"const": 1}}, [2] * 1_001),
        ({"propertyNames": True}, {str(n): 1 for n in range(1_100)}),
        ({"allOf": [{"contains": {}}] * 40}, [0] * 30),
        ({"anyOf": [{"type": "integer"}] * 40}, ["long"] * 30),
        ({"allOf": [{"pattern": "(a|b)*c{50}" + "x" * n} for n in range(25)]}, "ab"),
    ],
)
def test_every_keyword_that_takes_long_counts_its_steps(schema: Any, value: Any) -> None:
    assert violations(schema, value, most=1_000)[-1] == "looking at it takes more than 1000 steps"


def test_looking_at_a_value_is_stopped_where_somebody_says_so() -> None:
    value = read(json.dumps([1] * 1_000), most_levels=2, most_values=2_000)
    found = Schema.of('{"items": {"type": "integer"}}').violations(value, Work(lambda: True))
    assert [str(one) for one in found] == ["looking at it was stopped"]


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.b/c", "type": "null"}, None, 1),
        ({"properties": {"$id": {"type": "null"}, "unevaluatedItems": {"type": "null"}}}, {"$id": None}, {"$id": 1}),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}}, None, 1),
        ({"$ref": "#word", "$defs": {"a": {"$anchor": "word", "type": "null"}}}, None, 1),
        ({"properties": {"kids": {"items": {"$ref": "#"}}, "a": {"type": "null"}}}, {"kids": [{"a": None}]},
         {"kids": [{"kids": [{"a": 1}]}]}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": {"$ref": "elsewhere"}}}}, {"$ref": "elsewhere"}, 1),
    ],
)  # fmt: skip
def test_what_only_looks_forbidden_is_taken(schema: Any, right: Any, wrong: Any) -> None:
    assert violations(schema, right) == []
    assert len(violations(schema, wrong)) == 1


def test_a_schema_that_names_its_own_dialect_still_has_its_patterns_found_in_linear_time() -> None:
    own = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"a": {"$ref": "#"}},
        "pattern": "^(a+)+$",
    }
    assert re.search("does not match", violations(own, {"a": "a" * 50_000 + "b"})[0])


def test_all_that_may_not_stand_in_a_schema_is_told_at_once() -> None:
    wrong = {"items": {"$ref": "x", "pattern": "(?=a)"}, "not": {"$dynamicAnchor": "a"}, "unevaluatedProperties": False}
    with pytest.raises(SchemaRefused) as refused:
        Schema.of(json.dumps(wrong))
    paths = sorted(one.path for one in refused.value.violations)
    assert paths == ["/items/$ref", "/items/pattern", "/not/$dynamicAnchor", "/unevaluatedProperties"]


@pytest.mark.parametrize(
    "text", ["", "nul", "[1,]", "{'a': 1}", "NaN", "-Infinity", "1e999", '{"a":1,"b":2,"a":1}', "[[[[1]]]]",
     '"\\ud800"', "\ud800"]
)  # fmt: skip
def test_what_is_not_json_as_it_is_read_here_says_so(text: str) -> None:
    with pytest.raises(NotJson):
        read(text, most_levels=3, most_values=10)


@pytest.mark.parametrize(
    "text", ["[" + "0," * 40 + "0]", json.dumps({f"a long key {n}": n for n in range(5)}), "[" * 33 + "]" * 33]
)
def test_values_and_keys_are_counted_before_they_are_built(text: str) -> None:
    assert read_json('{"a": [1, "b"], "c": null}', 10) == {"a": [1, "b"], "c": None}
    with pytest.raises(NotJson):
        read_json(text, 10)


def test_a_schema_has_the_bounds_that_its_place_has() -> None:
    bounds = Bounds(100, 8, with_keys=True)
    assert Schema.of('{"enum": [1, 2, 3, 4, 5]}', bounds=bounds).root == {"enum": [1, 2, 3, 4, 5]}
    for text, why in (
        ('{"enum": [1, 2, 3, 4, 5, 6]}', "it has more than 8 values and keys"),
        ('{"title": "a", "description": "b", "type": "null", "minimum": 1}', "it has more than 8 values and keys"),
        (f'{{"title": "{"x" * 100}"}}', "may have 100 bytes of UTF-8, not 113"),
    ):
        with pytest.raises(SchemaRefused, match=why):
            Schema.of(text, bounds=bounds)


def test_what_is_missing_too_much_or_of_another_type_is_told_apart() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "minLength": 1}, "b": {"enum": ["x", 1, None]}},
        "required": ["c"],
        "additionalProperties": False,
    }
    checked = Schema.of(json.dumps(schema))
    found = {one for value in ({"a": 1, "b": "y", "d": 1}, {"a": "", "c": 1}) for one in looked(checked, value)}
    assert found == {
        Violation("/a", '1 is not of type "string"', of_kind=True),
        Violation("/b", '"y" is not one of "x", 1, None'),
        Violation("", '"c" is a required property', of_kind=True),
        Violation("", "it may have no key 'd'", of_kind=True),
        Violation("/a", '"" should be non-empty'),
        Violation("", "it may have no key 'c'", of_kind=True),
    }


def looked(schema: Schema, value: Any, most: int = MAX_STEPS) -> tuple[Violation, ...]:
    return schema.violations(read_json(json.dumps(value), 100_000), Work(most=most))


def test_what_is_told_of_one_value_says_nothing_of_the_next() -> None:
    checked = Schema.of('{"items": {"type": "integer"}}')
    assert [len(looked(checked, value, 300)) for value in (["a"], [1], [1] * 1_000, [1], ["a"])] == [1, 0, 1, 0, 1]


def test_values_are_looked_at_in_several_threads_each_in_its_own_steps() -> None:
    checked, told = Schema.of('{"items": {"type": "integer"}}'), dict[int, int]()

    def look(most: int) -> None:
        told[most] = len(looked(checked, [1] * 2_000, most))

    threads = [threading.Thread(target=look, args=(most,)) for most in (100, 1_000, 100_000, 1_000_000)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert told == {100: 1, 1_000: 1, 100_000: 0, 1_000_000: 0}


def test_a_value_nested_too_deep_to_be_looked_at_is_said_to_be_so() -> None:
    value: dict[str, Any] = {}
    for _ in range(900):
        value = {"left": value}
    found = Schema.of('{"properties": {"left": {"$ref": "#"}}}').violations(value, Work())
    assert [str(one) for one in found] == ["it is nested too deep to be looked at"]


def test_patterns_take_little_memory_and_compiling_them_is_counted() -> None:
    with pytest.raises(SchemaRefused, match="too large"):
        Schema.of(r'{"pattern": "\\pL{100}"}')
    large = {f"(x{{1,30}}){{1,30}}{n}": True for n in range(1_000)}
    with pytest.raises(SchemaRefused, match=f"looking at it takes more than {MAX_STEPS} steps"):
        Schema.of(json.dumps({"patternProperties": large | {f"[^a]{{1,900}}{n}": True for n in range(1_500)}}))


def test_a_schema_that_was_checked_before_is_taken_as_it_is() -> None:
    text = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "pattern": "(?=a)"}'
    checked = Schema.checked(text)
    assert (checked.text, checked.root["type"]) == (text, "object")
    assert [str(one) for one in looked(checked, 1)] == ['1 is not of type "object"']
    assert "RE2 cannot compile" in str(looked(checked, "a")[1])
