"""Whatever comes through the door is an attacker's claim; whatever goes in is a plain answer or a plain exception."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.door import (
    FLAG,
    INTEGER,
    ITEMS,
    MAX_HEAD,
    MAX_OP,
    NUMBER,
    PIECE,
    SECONDS,
    TEXT,
    TEXTS,
    Arguments,
    DoorRefusal,
    HostCall,
    Json,
    granted,
    granted_in_pieces,
    is_small,
    optional,
    parse,
    refused,
)
from sandbox.turn import Status
from tests.sandbox.repl import Repl, Repls, answering

DEEP = 100_000
MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "invalid UTF-8": b'{"op":"\xff"}',
    "overlong UTF-8": b'{"op":"\xc0\xaf"}',
    "encoded surrogate": b'{"op":"\xed\xa0\x80"}',
    "UTF-16": '{"op":"a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"op":"a"}',
    "a key twice": b'{"op":"a","op":"b"}',
    "a key twice, deeper": b'{"op":"a","x":{"k":1,"k":2}}',
    "NaN": b'{"op":"a","x":NaN}',
    "infinity": b'{"op":"a","x":-Infinity}',
    "a float too large": b'{"op":"a","x":1e999}',
    "a million digits": b'{"op":"a","x":' + b"9" * 1_000_000 + b"}",
    "lone surrogate": b'{"op":"a","x":"\\ud800"}',
    "lone surrogate, upper case": b'{"op":"a","x":"\\uDFFF"}',
    "lone surrogate in a key": b'{"op":"a","\\ud800":1}',
    "lone surrogate as op": b'{"op":"\\ud800"}',
    "deep lists": b'{"op":"a","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"op":"a","x":' + b'{"k":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deeper than allowed": b'{"op":"a","x":' + b"[" * 40 + b"]" * 40 + b"}",
    "unclosed": b"[" * DEEP,
    "a list": b"[]",
    "a string": b'"op"',
    "null": b"null",
    "no op": b'{"x":1}',
    "op is a number": b'{"op":1}',
    "two values": b'{"op":"a"}{"op":"b"}',
    "a control character": b'{"op":"a\x00b"}',
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused_and_reaches_no_handler(repl: Repl, frame: bytes) -> None:
    with pytest.raises(DoorRefusal) as refusal:
        parse(frame)
    assert refusal.value.type == "ValueError"
    reached: list[HostCall] = []
    unit, times = (frame, 1) if len(frame) < 5000 else (b"", 0)
    if times:
        turn = repl.run(
            f"import _host, json\njson.loads(_host.call({unit!r}))['error']['type']", answering(reached.append)
        )
        assert turn.stdout == "'ValueError'\n"
    assert reached == []


def test_a_request_with_a_million_levels_does_not_hurt_the_host(repl: Repl) -> None:
    code = "import _host, json\njson.loads(_host.call(b'{\"op\":\"a\",\"x\":' + b'[' * 1_000_000))['error']['type']"
    assert repl.show(code) == "'ValueError'"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_refusal(frame: bytes) -> None:
    try:
        call = parse(frame)
    except DoorRefusal:
        return
    assert isinstance(call.op, str)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_arrive_as_they_were_sent(value: Json) -> None:
    frame = granted(value).replace(b'{"ok":', b'{"op":"a","x":', 1)
    assert parse(frame).arguments == {"x": value}


def test_values_go_both_ways(repl: Repl) -> None:
    seen: list[HostCall] = []

    def answer(call: HostCall) -> Json:
        seen.append(call)
        return {"list": [1, 2.5, None, True], "text": "héé中\U0001f600\0", "": {}}

    value = repl.show("import _door\n_door.call('ask', q='é\U0001f600', n=[1, {'a': None}])", answering(answer))
    assert seen == [HostCall("ask", {"q": "é\U0001f600", "n": [1, {"a": None}]})]
    assert value == repr(answer(seen[0]))


@pytest.mark.parametrize(
    ("type_", "inside"),
    [
        ("ValueError", "ValueError"),
        ("PermissionError", "PermissionError"),
        ("LimitExceeded", "LimitExceeded"),
        ("NoSuchType", "RuntimeError"),
        ("SystemExit", "RuntimeError"),  # not an Exception: must not end anything
        ("print", "RuntimeError"),
    ],
)
def test_a_refusal_is_an_exception_inside_that_code_can_catch(repl: Repl, type_: str, inside: str) -> None:
    def answer(_: HostCall) -> Json:
        raise DoorRefusal(type_, "because of this")

    code = "import _door\ntry: _door.call('a')\nexcept Exception as error: print(type(error).__name__, error)"
    name, _, message = repl.show(code, answering(answer)).partition(" ")
    assert name == inside
    assert message.endswith("because of this")


SECRET = "/srv/host/secret-path"


@pytest.mark.parametrize("fault", [KeyError(SECRET), TimeoutError(SECRET), OSError(2, SECRET), UnicodeError(SECRET)])
def test_a_fault_of_the_hosts_says_nothing_of_the_host(repl: Repl, fault: Exception) -> None:
    def later(_: HostCall) -> Json:
        raise fault

    def at_once(_: HostCall) -> Future[Json]:
        raise fault

    for handler in (answering(later), at_once):
        turn = repl.run("import _door\n_door.call('a')", handler)
        assert turn.status is Status.ERROR
        assert turn.error is not None
        assert turn.error.type == "RuntimeError"
        assert "fault of the server's" in turn.error.message
        assert SECRET not in repr(turn)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), {"a": object()}, {1, 2}])
def test_an_answer_that_is_not_json_is_a_fault_of_the_hosts(repl: Repl, value: Json) -> None:
    turn = repl.run("import _door\n_door.call('a')", answering(lambda _: value))
    assert turn.error is not None
    assert turn.error.type == "RuntimeError"


def test_without_a_handler_every_request_is_refused(repl: Repl) -> None:
    turn = repl.run("import _door\n_door.call('llm_query', prompt='x')")
    assert turn.error is not None
    assert "nothing answers llm_query here" in turn.error.message


def test_code_cannot_ask_for_a_text_to_be_mapped(repl: Repl) -> None:
    for addresses in ("template=0, box=0", "template=-1, box=0", "template=4294967295, box=4294967295", "template='a'"):
        turn = repl.run(f"import _door\n_door.call('sandbox.map', {addresses})")
        assert turn.error is not None
        assert turn.error.type == "RuntimeError"


def test_arguments_are_checked_for_their_type() -> None:
    call = parse(b'{"op":"a","s":"x","l":["x"],"m":["x",1],"n":5,"big":4294967296,"neg":-1,"t":true}')
    assert (call.text("s"), call.texts("l"), call.integer("n"), call.seconds("n")) == ("x", ["x"], 5, 5)
    for wrong in (
        lambda: call.text("n"),
        lambda: call.text("none"),
        lambda: call.texts("m"),
        lambda: call.texts("s"),
        lambda: call.integer("big"),
        lambda: call.integer("neg"),
        lambda: call.integer("t"),
    ):
        with pytest.raises(DoorRefusal):
            wrong()


# ---- texts behind the head -------------------------------------------------------------------------------------------

TEXT_PARTS = st.lists(st.text(max_size=30), max_size=6)


def apart(*texts: str) -> bytes:
    parts = [text.encode() for text in texts]
    head = {"op": "a", "x": [{"": len(part)} for part in parts]}
    return b"\0".join([granted(head)[6:-1], b"".join(parts)])


@given(TEXT_PARTS)
def test_texts_behind_the_head_stand_where_it_names_them(texts: list[str]) -> None:
    assert parse(apart(*texts)).arguments == {"x": texts}


@pytest.mark.parametrize("letter", ["a", "é", "中", "\U0001f600", "a" * 1000 + "中"])
def test_a_long_text_is_put_together_from_its_pieces(letter: str) -> None:
    text = letter * (3 * PIECE // len(letter.encode()))
    held, most = 0, 0

    def step(change: int) -> None:
        nonlocal held, most
        held += change
        most = max(most, held)

    (found,) = parse(apart(text), step=step).arguments["x"]
    assert found == text
    assert sys.getsizeof(text) - 100 <= held <= sys.getsizeof(text) + 10_000, "what is held in the end is counted"
    assert most <= 3 * sys.getsizeof(text) + 5 * PIECE


WRONG_TEXTS = {
    "a text beyond the end": b'{"op":"a","x":{"":5}}\0abcd',
    "a text that is left over": b'{"op":"a","x":{"":3}}\0abcd',
    "the same text twice": b'{"op":"a","x":{"":4},"y":{"":4}}\0abcd',
    "a text of less than nothing": b'{"op":"a","x":{"":-1},"y":{"":5}}\0abcd',
    "a text of half a byte": b'{"op":"a","x":{"":3.5}}\0abcd',
    "a text of true bytes": b'{"op":"a","x":{"":true}}\0a',
    "a text of endless bytes": b'{"op":"a","x":{"":1000000000000000000000000000000}}\0a',
    "texts and no head": b"\0abcd",
    "nothing but a zero byte": b"\0",
    "a text that is no UTF-8": b'{"op":"a","x":{"":1}}\0\xff',
    "a text that ends within a character": b'{"op":"a","x":{"":1},"y":{"":1}}\0\xc3\xa9',
    "a text with a surrogate": b'{"op":"a","x":{"":3}}\0\xed\xa0\x80',
    "a head that is a text": b'{"":4}\0{"op',
    "texts nobody names": b'{"op":"a"}\0abcd',
}


@pytest.mark.parametrize("frame", WRONG_TEXTS.values(), ids=WRONG_TEXTS.keys())
def test_texts_that_are_not_as_the_head_says_are_refused(frame: bytes) -> None:
    with pytest.raises(DoorRefusal, match=r"malformed|not an object"):
        parse(frame)


def test_without_texts_behind_it_a_head_is_plain_json() -> None:
    assert parse(b'{"op":"a","x":{"":5}}').arguments == {"x": {"": 5}}


def test_what_looks_like_the_place_of_a_text_arrives_as_it_was_sent(repl: Repl) -> None:
    seen: list[HostCall] = []
    repl.show("import _door\n_door.call('a', x={'': 3}, y='z' * 1000)", answering(seen.append))
    assert seen == [HostCall("a", {"x": {"": 3}, "y": "z" * 1000})]


def test_long_texts_arrive_as_they_were_sent(repl: Repl) -> None:
    seen: list[HostCall] = []
    texts = "['é' * 5000, 'b', ['c' * 5000, '\\0' * 300]]"
    repl.show(f"import _door\n_door.call('a', x={texts}, y='中' * (1 << 21))", answering(seen.append))
    assert seen == [HostCall("a", {"x": ["é" * 5000, "b", ["c" * 5000, "\0" * 300]], "y": "中" * (1 << 21)})]


def test_many_short_texts_fit_into_a_request(repl: Repl) -> None:
    seen: list[HostCall] = []
    repl.show("import _door\n_door.call('a', x=['é' * 200] * 10_000)", answering(seen.append))
    assert seen == [HostCall("a", {"x": ["é" * 200] * 10_000})]


def test_a_long_text_with_a_surrogate_is_refused(repl: Repl) -> None:
    turn = repl.run("import _door\n_door.call('a', x='\\ud800' * 1000)", answering(lambda _: None))
    assert turn.error is not None
    assert turn.error.type == "ValueError"
    assert "malformed" in turn.error.message


# ---- what a request may make the host build --------------------------------------------------------------------------


def test_a_head_is_limited_however_large_a_frame_may_be() -> None:
    with pytest.raises(DoorRefusal, match=f"more than {MAX_HEAD} bytes, which is the limit"):
        parse(b'{"op":"a","x":"' + b"x" * MAX_HEAD + b'"}')


def test_the_values_of_a_request_are_limited(start: Repls) -> None:
    repl = start(frame_nodes=100)
    assert repl.show("import _door\n_door.call('a', x=[1] * 90)", answering(lambda _: 1)) == "1"
    turn = repl.run("_door.call('a', x=[1] * 110)", answering(lambda _: 1))
    assert turn.error is not None
    assert "more than 100 values and keys (frame_nodes)" in turn.error.message


def test_what_is_refused_is_not_built() -> None:
    frame = b'{"op":"a","x":[' + b"[]," * (10 << 20) + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(DoorRefusal):
            parse(frame)
        with pytest.raises(DoorRefusal):
            parse(frame[: MAX_HEAD - 1])
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_HEAD
    finally:
        tracemalloc.stop()


def test_what_a_step_raises_ends_the_reading() -> None:
    def full(change: int) -> None:
        if change > PIECE // 2:
            raise DoorRefusal("LimitExceeded", "full")

    with pytest.raises(DoorRefusal, match="full"):
        parse(apart("x" * PIECE), step=full)


def test_a_long_name_is_refused() -> None:
    assert parse(b'{"op":"' + b"x" * MAX_OP + b'"}').op == "x" * MAX_OP
    with pytest.raises(DoorRefusal, match=f"more than {MAX_OP} characters"):
        parse(b'{"op":"' + b"x" * (MAX_OP + 1) + b'"}')


def test_a_frame_is_kept_only_where_it_is_to_be() -> None:
    frame = b'{"op":"a"}'
    assert (parse(frame).frame, parse(frame, keep=True).frame) == (b"", frame)


TAKEN: Arguments = {
    "text": TEXT, "texts": TEXTS, "items": ITEMS, "flag": FLAG, "number": NUMBER, "whole": INTEGER,
    "seconds": optional(SECONDS),
}  # fmt: skip
GIVEN: dict[str, Json] = {"text": "", "texts": ["x"], "items": [1], "flag": False, "number": 1.5, "whole": 0}


def test_arguments_of_their_kinds_are_taken() -> None:
    for more in ({}, {"seconds": None}, {"seconds": 1e9}):
        HostCall("a", {**GIVEN, **more}).check(TAKEN)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[(name, value, "TypeError") for name in GIVEN for value in (None, {"a": 1})],
        ("text", 1, "TypeError"),
        ("texts", ["x", 1], "TypeError"),
        ("items", "x", "TypeError"),
        ("flag", 1, "TypeError"),
        ("number", True, "TypeError"),
        ("number", "1", "TypeError"),
        ("whole", 1.0, "TypeError"),
        ("whole", True, "TypeError"),
        ("whole", 1 << 32, "TypeError"),
        ("whole", -1, "TypeError"),
        ("seconds", -1, "ValueError"),
        ("seconds", 2e9, "ValueError"),
        ("seconds", True, "ValueError"),
        ("seconds", "1", "ValueError"),
        ("more", 1, "TypeError"),
    ],
)
def test_an_argument_that_is_not_taken_is_refused_by_its_name(name: str, value: Json, error: str) -> None:
    with pytest.raises(DoorRefusal, match=name) as refusal:
        HostCall("a", {**GIVEN, name: value}).check(TAKEN)
    assert refusal.value.type == error


@pytest.mark.parametrize("name", GIVEN)
def test_a_missing_argument_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(DoorRefusal, match=name):
        HostCall("a", {key: value for key, value in GIVEN.items() if key != name}).check(TAKEN)


def test_the_hosts_own_requests_take_their_arguments_and_no_others(repl: Repl) -> None:
    for asked in ("'sandbox.wait', seconds=1, more=2", "'sandbox.locate', at='x'", "'sandbox.document', corpus=0"):
        turn = repl.run(f"import _door\n_door.call({asked})")
        assert turn.error is not None
        assert turn.error.type == "TypeError"


# ---- replies ---------------------------------------------------------------------------------------------------------


@given(PLAIN)
def test_a_reply_in_pieces_is_the_same_reply(value: Json) -> None:
    assert granted_in_pieces(value, 1 << 20) == granted(value)


def test_a_large_reply_in_pieces_is_the_same_reply() -> None:
    value: dict[str, Any] = {
        "ok": ["é\n" * PIECE, {"a": ["x" * 100] * 50_000, "b": []}, "\U0001f600\"\\" * PIECE], "more": None,
    }  # fmt: skip
    steps: list[int] = []
    reply = granted_in_pieces(value, 1 << 30, steps.append)
    assert reply == granted(value)
    assert max(steps[:-2]) <= 8 * PIECE
    assert sum(steps) == pytest.approx(len(reply), abs=100)


def test_a_reply_that_is_too_large_is_refused_before_the_rest_is_written() -> None:
    steps: list[int] = []
    with pytest.raises(DoorRefusal, match="the limit is 5000000"):
        granted_in_pieces(["x" * PIECE] * 1000, 5_000_000, steps.append)
    assert sum(steps) <= 5_000_000


def test_no_more_of_a_value_is_looked_at_than_is_asked() -> None:
    circle: list[Json] = []
    circle.append(circle)
    assert not is_small(circle, 1 << 20)
    assert is_small(["x" * 90], 200)
    assert not is_small(["x" * 90] * 3, 200)


def test_why_a_request_is_refused_is_cut() -> None:
    assert len(refused("ValueError", "x" * 10_000_000)) < 10_000
