"""The door: the one way a guest can ask for anything. Frames are JSON. Whatever a guest sends is a claim to check.

A request is an object whose `op` names what is wanted; the rest are its arguments. A reply is `{"ok": value}` or
`{"error": {"type": name, "message": text}}`, which the guest's side raises as an exception.

A request with `"later": true` is answered at once with a number. `sandbox.wait` later returns the replies that have
come, each with its number. So a guest can have many requests under way, although it has no threads.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

MAX_NESTING = 32

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class DoorRefusal(Exception):
    """The guest's request is refused; `type` and the message become an exception inside."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class Reply(bytes):
    """A reply that is written already, by `granted` or `refused` in another process."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """A checked request: well-formed JSON of strings that can be encoded; its arguments are still the guest's word."""

    op: str
    arguments: dict[str, Any]
    later: bool = False
    """The guest wants a number now, and the reply when it waits for it."""
    frame: bytes = field(default=b"", compare=False, repr=False)
    """The request as the guest wrote it."""

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string argument; refuses a missing one without a default, or another type."""
        value = self.arguments.get(name, default)
        if not isinstance(value, str):
            raise DoorRefusal("TypeError", f"{self.op}: {name} must be a str, not {type(value).__name__}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return an argument that is a list of strings."""
        value = self.arguments.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DoorRefusal("TypeError", f"{self.op}: {name} must be a list of str")
        return value

    def items(self, name: str) -> list[Json]:
        """Return an argument that is a list."""
        value = self.arguments.get(name)
        if not isinstance(value, list):
            raise DoorRefusal("TypeError", f"{self.op}: {name} must be a list")
        return value

    def seconds(self, name: str) -> float | None:
        """Return an argument that is a time from 0 on, or None where there is none."""
        value = self.arguments.get(name)
        if value is None or (type(value) in (int, float) and 0 <= value <= 1e9):
            return value
        raise DoorRefusal("ValueError", f"{self.op}: {name} must be a number of seconds from 0 to 1e9")

    def integer(self, name: str) -> int:
        """Return an unsigned 32-bit integer argument."""
        value = self.arguments.get(name)
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise DoorRefusal("TypeError", f"{self.op}: {name} must be an int of 32 bits")
        return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


def _no_constants(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


def _check_nesting(value: Json, depth: int = 0) -> None:
    if depth > MAX_NESTING:
        raise ValueError(f"nested deeper than {MAX_NESTING}")
    if isinstance(value, dict):
        for item in value.values():
            _check_nesting(item, depth + 1)
    elif isinstance(value, list) and not all(type(item) is str for item in value):
        for item in value:
            _check_nesting(item, depth + 1)


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants, parse_float=_finite)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse(frame: bytes) -> HostCall:
    """Read a request.

    Raises:
        DoorRefusal: it is not a JSON object with an `op`, is nested too deep, or holds a key twice, not-a-number or a
            lone surrogate.
    """
    try:
        request = _DECODER.decode(frame.decode("utf-8", "strict"))
        _check_nesting(request)
        if b"\\ud" in frame or b"\\uD" in frame:
            json.dumps(request, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DoorRefusal("ValueError", f"the request is malformed: {str(error)[:200]}") from None
    if not isinstance(request, dict) or not isinstance(request.get("op"), str):
        raise DoorRefusal("ValueError", "the request is not an object with an op")
    return HostCall(request.pop("op"), request, request.pop("later", False) is True, frame)


def granted(value: Json) -> bytes:
    """Write the reply to a request that was granted.

    Raises:
        ValueError: the value holds a lone surrogate or not-a-number.
        TypeError: it is not JSON.
    """
    return b'{"ok":' + _ENCODER.encode(value).encode() + b"}"


def refused(type: str, message: str) -> bytes:
    """Write the reply to a request that was refused."""
    return json.dumps({"error": {"type": type, "message": message}}).encode()
