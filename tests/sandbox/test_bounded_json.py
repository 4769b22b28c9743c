"""JSON from outside is counted before a value is built: what is refused costs no memory, however it is written."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bounded_json import MAX_DIGITS, MAX_KEYS, MAX_NESTING, decoded, nodes_of

MOST = 1000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(['"', "\\", '\\"', "[[{,:", "]"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=40,
)


def nodes(value: Any) -> int:
    """Count values and keys."""
    if isinstance(value, dict):
        return 1 + sum(1 + nodes(inner) for inner in value.values())
    return 1 + sum(map(nodes, value)) if isinstance(value, list) else 1


def empty(value: Any) -> int:
    """Count lists and objects without anything in them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(empty, inner)) + (isinstance(value, dict | list) and not value)


def deep(levels: int) -> bytes:
    return b'{"text":"' + b"x" * 100 + b'","in":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def read(text: bytes) -> None:
    nodes_of(text, MOST)
    decoded(text)


@given(VALUES, st.booleans())
def test_no_value_is_overlooked(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii).encode()
    assert nodes_of(text, 10**6) >= nodes(value)


@given(st.lists(VALUES, min_size=1))
def test_what_stands_in_a_text_is_not_counted_where_it_matters(value: list[Any]) -> None:
    text = json.dumps(["[{,:" * 100, *value]).encode()
    most = nodes(value) + empty(value) + 1
    assert nodes_of(text, most) <= most


MANY: dict[str, bytes] = {
    "lists": b"[" + b"[]," * 200_000,
    "open lists": b"[" * 600_000,
    "open objects": b'{"":' * 200_000,
    "commas": b"," * 600_000,
    "colons": b":" * 600_000,
    "texts": b'["",' + b'"",' * 200_000,
    "texts with quotes": b'["",' + b'"\\"",' * 200_000,
    "numbers": b"[" + b"1," * 300_000,
    "keys": b"{" + b'"a":1,' * 100_000,
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY.keys())
def test_too_many_values_are_refused_without_building_any(text: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"more than {MOST} values and keys"):
            nodes_of(text, MOST)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert decoded(deep(MAX_NESTING)) is not None
    nodes_of(deep(MAX_NESTING), MOST)
    with pytest.raises(ValueError, match=f"deeper than {MAX_NESTING}"):
        nodes_of(deep(MAX_NESTING + 1), MOST)


@pytest.mark.parametrize("text", [b"]" * 100, b"[" * 100, b"]" * 50 + b"[" * 50, b"[" + b"]" * 99, b"[}" * 40])
def test_brackets_that_do_not_match_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"match|deeper|Expecting|Extra"):
        read(text)


@pytest.mark.parametrize("text", [b'"' * 101, b'"' + b'\\"' * 100, b'"' + b"\\" * 101, b'"' + b"[" * 200])
def test_a_text_without_an_end_hides_nothing(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"Unterminated|Extra|escape|match|deeper"):
        read(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * (MAX_DIGITS + 1) + b"]", f"the limit is {MAX_DIGITS}"),
        (b"[0." + b"1" * MAX_DIGITS + b"]", f"the limit is {MAX_DIGITS}"),
        (b'["\\ud800"]', "surrogates"),
        (b'["\\x"]', "escape"),
        (json.dumps({str(n): n for n in range(MAX_KEYS + 1)}).encode(), f"the limit is {MAX_KEYS}"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decoded(text)
