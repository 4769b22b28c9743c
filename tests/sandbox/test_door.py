"""Whatever comes through the door is an attacker's claim; whatever goes in is a plain answer or a plain exception."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.door import DoorRefusal, HostCall, Json, granted, parse
from sandbox.turn import Status
from tests.sandbox.repl import Repl, answering

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
