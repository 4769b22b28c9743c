"""JSON from outside: its values, its nesting and its numbers are counted before any value is built."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

Json = None | bool | int | float | str | list[Any] | dict[str, Any]

MAX_NESTING = 32
"""Levels of lists and objects, the outermost included."""
MAX_KEYS = 100
"""Of one object."""
MAX_DIGITS = 64
"""Characters of one number."""

NODE_BYTES = 128
"""What a value or key takes in memory at most, its characters not counted."""
WIDEST = 4
"""Bytes of memory that a byte of JSON can become: a text's characters are all as wide as its widest."""

# Also takes a string that does not end, so that what is behind a quote is never looked at twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))

Pairs = list[tuple[str, Any]]


class Decoder(json.JSONDecoder):
    """Decodes JSON strictly. `made` makes the value of an object; by default a dictionary."""

    def __init__(self, made: Callable[[Pairs], Any] | None = None) -> None:
        super().__init__(
            object_pairs_hook=made if made is not None else an_object,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )


def an_object(pairs: Pairs) -> dict[str, Any]:
    """Make an object of its keys and values. Raises `ValueError` where a key stands twice, or there are too many."""
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has {len(pairs)} keys, the limit is {MAX_KEYS}")
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} characters, the limit is {MAX_DIGITS}")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} characters, the limit is {MAX_DIGITS}")
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


_DECODER = Decoder()


def nodes_of(text: bytes, most: int) -> int:
    """Return an upper bound of how many values and keys a JSON text has. Nothing is built, and no byte is read twice.

    Raises:
        ValueError: it has more than `most`, is nested deeper than `MAX_NESTING`, or its brackets do not match.
    """
    if len(text) <= 2 * MAX_NESTING:  # of each level and of each value there are at least two characters
        return len(text)
    nodes, opened = _counted(text)
    if nodes <= most and opened <= MAX_NESTING:  # that may be too many: strings were counted as if they were none
        return nodes
    text, strings = _STRING.subn(b"", text, most + 1)
    nodes, _ = _counted(text)
    if strings > most or nodes > most:
        raise ValueError(f"it has more than {most} values and keys (frame_nodes)")
    _check_nesting(text)
    return nodes


def _counted(text: bytes) -> tuple[int, int]:
    opened = text.count(b"[") + text.count(b"{")
    return 1 + opened + text.count(b",") + text.count(b":"), opened


def _check_nesting(text: bytes) -> None:
    """Peel the innermost brackets off, a level at a time, until none are left."""
    brackets = text.translate(_BRACKETS, _NO_BRACKETS)
    if 2 * brackets.count(b"[") != len(brackets):
        raise ValueError("its brackets do not match")
    for _ in range(MAX_NESTING):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ValueError(f"nested deeper than {MAX_NESTING}")


def decoded(text: bytes, decoder: Decoder = _DECODER) -> Json:
    """Decode JSON that was counted.

    Raises:
        ValueError: it is no JSON in UTF-8, or holds a key twice, not-a-number or a lone surrogate.
    """
    value: Json
    characters = text.decode()
    if characters.startswith("{"):
        value, end = decoder.raw_decode(characters)
    else:
        value, end = None, -1
    if end != len(characters):  # there is space around it, or more
        value = decoder.decode(characters)
    if b"\\u" in text and (b"\\ud" in text or b"\\uD" in text):
        json.dumps(value, ensure_ascii=False).encode()
    return value
