"""A run with a JSON Schema answers in JSON that the schema takes, or ends and says so."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.runs.typed import MAX_TYPED_BYTES
from rlm_server.schemas.schema import MAX_SCHEMA
from tests.servers import Served
from tests.system.stage import Caller, Ended, Play, code, refusal

SUPPLIERS = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"suppliers": {"type": "array", "items": {"type": "string"}}, "sure": {"type": "boolean"}},
    "required": ["suppliers", "sure"],
    "additionalProperties": False,
}
GOOD = {"suppliers": ["Müller", "Šmíd"], "sure": True}
DONE, EXHAUSTED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_EXHAUSTED


async def ask(caller: Caller, schema: Any, **asked: Any) -> Ended:
    return await caller.ask(answer_schema=schema if isinstance(schema, str) else json.dumps(schema), **asked)


def told(play: Play, call: int = -1) -> str:
    return play.asked[call].messages[-1].content


def refused(ended: Ended) -> list[str]:
    return [one.detail for one in ended.bodies("guard") if one.kind == run_pb2.GUARD_KIND_NO_ANSWER]


@pytest.mark.parametrize(
    "reply",
    [
        code(f"answer['content'] = {GOOD!r}; answer['ready'] = True"),
        code(f"FINAL({GOOD!r})"),
        code(f"SUBMIT(**{GOOD!r})"),
        code(f"FINAL({json.dumps(GOOD)!r})"),
        code(f"FINAL('''Here it is:\n```json\n{json.dumps(GOOD)}\n```\n''')"),
        f"FINAL({json.dumps(GOOD)})",
    ],
    ids=["a dict", "FINAL of a dict", "SUBMIT by names", "a str of JSON", "JSON in a fence", "FINAL in prose"],
)
async def test_what_the_schema_takes_is_the_answer_as_json(server: Served, reply: str) -> None:
    play = Play(reply)
    async with server(play) as served:
        ended = await ask(served.caller, SUPPLIERS)
    assert (ended.run.state, json.loads(ended.run.answer)) == (DONE, GOOD)
    assert refused(ended) == []
    assert json.loads(ended.run.answer_schema) == SUPPLIERS
    assert ended.bodies("answer")[0].text == ended.run.answer
    assert json.dumps(SUPPLIERS) in told(play, 0), "the model is told the schema"


@pytest.mark.parametrize(
    ("value", "schema", "answer"),
    [
        ("'yes'", {"enum": ["yes", "no"]}, '"yes"'),
        ("'42'", {"type": "string"}, '"42"'),
        ("'42'", {"type": "integer"}, "42"),
        ("True", {"type": "boolean"}, "true"),
        ("None", {"type": "null"}, "null"),
        ("2.0", {"type": "integer"}, "2.0"),
        ("[]", True, "[]"),
    ],
)
async def test_values_alone_are_json_as_the_schema_takes_them(
    server: Served, value: str, schema: Any, answer: str
) -> None:
    async with server(Play(code(f"FINAL({value})"))) as served:
        ended = await ask(served.caller, schema)
    assert (ended.run.state, ended.run.answer) == (DONE, answer)


async def test_an_answer_that_is_not_it_goes_back_with_every_violation_and_can_be_mended_in_place(
    server: Served,
) -> None:
    wrong = {"suppliers": ["a", 2, None], "sure": "very", "more/~": 1}
    play = Play(
        code(f"answer['content'] = {wrong!r}; answer['ready'] = True"),
        code("print('looking on')"),
        code("del answer['content']['more/~']; answer['content'].update(suppliers=['a'], sure=False)"),
        code("answer['ready'] = True"),
    )
    async with server(play) as served:
        ended = await ask(served.caller, SUPPLIERS)
    assert (ended.run.state, json.loads(ended.run.answer)) == (DONE, {"suppliers": ["a"], "sure": False})
    said = told(play, 1)
    for violation in (
        '- /suppliers/1: 2 is not of type "string"',
        '- /suppliers/2: None is not of type "string"',
        '- /sure: "very" is not of type "boolean"',
        "- it may have no key 'more/~'",
        "2 more answers may be given before the run ends (answer_attempts)",
    ):
        assert violation in said
    assert len(refused(ended)) == 1
    assert refused(ended)[0].startswith("answer_schema: ")
    assert ended.printed == "looking on\n", "the run went on, and nothing ended it turns later"


async def test_after_so_many_answers_the_run_ends_and_says_so(server: Served) -> None:
    play = Play(code("FINAL({'sure': 1})"))
    async with server(play) as served:
        ended = await ask(served.caller, SUPPLIERS)
        one = await ask(served.caller, SUPPLIERS, limits=run_pb2.RunLimits(answer_attempt_count=1))
        many = run_pb2.RunLimits(answer_attempt_count=4)
        assert (await refusal(ask(served.caller, SUPPLIERS, limits=many))).fields == ["limits.answer_attempt_count"]
    for run, times in ((ended, 3), (one, 1)):
        assert (run.run.state, run.run.end_reason, run.run.answer) == (
            EXHAUSTED, run_pb2.END_REASON_ANSWER_SCHEMA, "",
        )  # fmt: skip
        assert f"answer_schema: {times} answers were not what the schema takes" in run.run.end_message
        assert len(refused(run)) == times


@pytest.mark.parametrize("schema", [False, {"not": {}}, {"type": "string", "minLength": 3, "maxLength": 2}])
async def test_a_schema_that_nothing_satisfies_ends_its_run(server: Served, schema: Any) -> None:
    async with server(Play(code("FINAL('abc')"))) as served:
        ended = await ask(served.caller, schema)
    assert (ended.run.state, ended.run.end_reason) == (EXHAUSTED, run_pb2.END_REASON_ANSWER_SCHEMA)


async def test_the_last_word_is_held_to_the_schema(server: Served) -> None:
    good, bad = f"```json\n{json.dumps(GOOD)}\n```", "I think it was Müller."
    turn = run_pb2.RunLimits(max_turn_count=1)
    for said, answer in ((good, GOOD), (bad, None)):
        play = Play(code("print('looking')"), said)
        async with server(play) as served:
            ended = await ask(served.caller, SUPPLIERS, limits=turn)
        assert (ended.run.state, ended.run.end_reason) == (EXHAUSTED, run_pb2.END_REASON_TURNS)
        assert (json.loads(ended.run.answer) if ended.run.answer else None) == answer
        assert told(play).rstrip().endswith(json.dumps(SUPPLIERS)), "it is told what the reply must be"
        words = [one.detail for one in ended.bodies("guard") if one.kind == run_pb2.GUARD_KIND_LAST_WORD]
        assert bool(words) is (answer is None)


@pytest.mark.parametrize("draft", ["{'sure': True, 'suppliers': []}", "{'sure': 'half'}"])
async def test_of_a_draft_only_what_the_schema_takes_is_left(server: Served, draft: str) -> None:
    failure = ProviderError(Failure.AUTH, "the key is wrong", billed=False)
    async with server(Play(code(f"answer['content'] = {draft}"), failure)) as served:
        ended = await ask(served.caller, SUPPLIERS)
    assert ended.run.state == run_pb2.RUN_STATE_FAILED
    assert ended.run.answer == ('{"sure": true, "suppliers": []}' if "suppliers" in draft else "")


async def test_children_answer_in_any_text(server: Served) -> None:
    play = Play(code("print(rlm_query('part'))", f"FINAL({GOOD!r})"), part=code("FINAL('just words')"))
    async with server(play) as served:
        ended = await ask(served.caller, SUPPLIERS)
    assert ended.printed == "just words\n"
    child = next(request for request in play.asked if "part" in request.messages[0].content)
    assert "JSON Schema" not in child.messages[0].content


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("'{\"sure\": NaN}'", "NaN is not JSON"),
        ("{'sure': float('inf')}", "Infinity is not JSON"),
        ('\'{"sure": 1, "sure": 2}\'', 'an object has the key "sure" twice'),
        ("'[' * 100_000 + ']' * 100_000", "nested"),
        (f"'x' * {MAX_TYPED_BYTES + 1}", f"it may have {MAX_TYPED_BYTES} bytes of UTF-8"),
        ("'1' * 5_000", "a number has 5000 characters"),
        ("'not JSON'", "it is not JSON: Expecting value"),
    ],
)
async def test_what_is_no_json_is_refused_with_why(server: Served, value: str, why: str) -> None:
    play = Play(code(f"FINAL({value})"), code(f"FINAL({GOOD!r})"))
    async with server(play) as served:
        ended = await ask(served.caller, SUPPLIERS)
    assert why in told(play, 1)
    assert (ended.run.state, json.loads(ended.run.answer)) == (DONE, GOOD)


async def test_an_answer_that_would_take_for_ever_to_look_at_is_refused(server: Served) -> None:
    twice = {"allOf": [{"properties": {"a": {"$ref": "#"}}}] * 2}
    deep = code("value = {}", "for _ in range(60): value = {'a': value}", "FINAL(value)")
    play = Play(deep, code("FINAL({})"))
    async with server(play) as served:
        ended = await ask(served.caller, twice)
        assert "looking at it takes more than 1000000 steps" in told(play, 1)
        assert (ended.run.state, ended.run.answer) == (DONE, "{}")
        backtracks = {"type": "string", "pattern": "^(a+)+$"}
        play.lines = (code("FINAL('a' * 100_000 + 'b')"),)
        assert (await ask(served.caller, backtracks)).run.state == EXHAUSTED


NESTED: dict[str, Any] = {f"s{n}": {"allOf": [{"$ref": f"#/$defs/s{n + 1}"}] * 2} for n in range(12)}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{", "it is not JSON"),
        ("[]", "must be an object or a boolean, not an array of 0 items"),
        ("7", "must be an object or a boolean, not 7"),
        ("[" * 60_000, "nested deeper than 32 levels"),
        ('{"not":' * 100_000 + "{}" + "}" * 100_000, f"may have {MAX_SCHEMA} bytes of UTF-8, not 800002"),
        ('{"not":' * 5_000 + "{}" + "}" * 5_000, "nested deeper than 32 levels"),
        ({"enum": [0] * 5_000}, "more than 5000 values"),
        ({"type": "nothing"}, '/type: "nothing" is not valid'),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema: must be https://json-schema.org/draft/2020"),
        ({"$ref": "https://example.com/schema"}, "/$ref: must begin with #"),
        ({"$ref": "other.json#/a"}, "/$ref: must begin with #"),
        ({"$ref": "#/$defs/none"}, "/$ref: leads to no part of this schema"),
        ({"$ref": "#"}, "leads back to itself at the same value"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#"}}}}, "leads back to itself"),
        ({"properties": {"a": {"$id": "https://example.com/other"}}}, "/properties/a/$id: names another document"),
        ({"$dynamicRef": "#meta"}, "/$dynamicRef: is not followed here"),
        ({"pattern": "(?=a)b"}, "/pattern: RE2 cannot compile the pattern"),
        ({"patternProperties": {r"(a)\1": {}}}, "/patternProperties/(a)\\1: RE2 cannot compile the pattern"),
        ({"$ref": "#/$defs/s0", "$defs": {**NESTED, "s12": {}}}, "has more than 1000 parts look at one value"),
    ],
)  # fmt: skip
async def test_a_schema_that_cannot_be_one_is_refused_when_the_run_is_created(
    server: Served, schema: Any, why: str
) -> None:
    async with server(Play("")) as served:
        said = await refusal(ask(served.caller, schema))
    assert (said.code, set(said.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, {"answer_schema"})
    assert why in said.message


async def test_all_that_is_wrong_with_a_schema_is_told_at_once(server: Served) -> None:
    wrong = {"type": 7, "required": "a", "properties": {"b": {"minimum": "x"}}}
    async with server(Play("")) as served:
        said = await refusal(ask(served.caller, wrong, model="nobody"))
        assert sorted(said.fields) == ["answer_schema", "answer_schema", "answer_schema", "model"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(served.caller, "{" * 10_000_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "no message has as much"


async def test_complete_takes_a_schema_and_a_repeated_request_gives_the_same_answer(
    server: Served, postgres_url: str
) -> None:
    request = run_pb2.CompleteRequest(
        question="What?", text="a text", answer_schema=json.dumps(SUPPLIERS), request_id="once"
    )
    async with server(Play(code(f"FINAL({GOOD!r})")), database_url=postgres_url) as served:
        caller = served.caller
        run = (await caller.runs.Complete(request, metadata=caller.metadata)).run
        assert json.loads(run.answer) == GOOD
        assert (await caller.runs.Complete(request, metadata=caller.metadata)).run == run
        assert json.loads(run.answer_schema) == SUPPLIERS
        listed = await caller.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=caller.metadata)
        assert [one.answer_schema for one in listed.runs] == [""]
        request.answer_schema = "true"
        assert (await refusal(caller.runs.Complete(request, metadata=caller.metadata))).reason == "REQUEST_ID_REUSED"
