"""JSON of strangers: read strictly, and written in a few words where a message names a part of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from sandbox.bounded_json import MAX_NESTING, Decoder, decoded, nodes_of

MAX_SHOWN = 60
"""Characters of a text that a message repeats."""

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class NotJson(ValueError):
    """A text is no JSON, or none that is read here. The message says why, and repeats nothing of it but a key."""


class _Text(str):
    """A text that messages repeat the beginning of."""

    __slots__ = ()

    def __repr__(self) -> str:
        return json.dumps(self if len(self) <= MAX_SHOWN else f"{self[:MAX_SHOWN]}…", ensure_ascii=False)


class _Array(list[Any]):
    """An array that messages do not repeat."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"an array of {len(self)} items" if len(self) != 1 else "an array of 1 item"


class _Object(dict[str, Any]):
    """An object that messages do not repeat."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"an object with {len(self)} keys" if len(self) != 1 else "an object with 1 key"


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {_Text(twice)!r} twice")
    return made


_DECODER = Decoder(_object)


def read(text: str, *, most_levels: int, most_values: int, with_keys: bool = False) -> Json:
    """Read JSON, of which a part is written in a few words by `repr`.

    Keys that stand twice, NaN, halves of characters, numbers of more than 64 characters and such as are no finite float
    are refused.

    Raises:
        NotJson: it is none, has more than `most_values` values (and keys, `with_keys`), or is nested deeper than
            `most_levels`.
    """
    try:
        value = decoded(text.encode(), _DECODER)
    except RecursionError:
        raise NotJson(f"it is nested deeper than {most_levels} levels") from None
    except ValueError as error:
        raise NotJson(f"it is not JSON: {error}") from None
    shown: Json = _Count(most_values, with_keys).shown(value, most_levels)
    return shown


def read_json(text: str, most_nodes: int) -> Json:
    """Read JSON as `read` does, 32 levels deep, whose values and keys are counted before any of them is built.

    Raises:
        NotJson: it is none, has more than `most_nodes` (frame_nodes) values and keys, or is nested deeper.
    """
    try:
        nodes_of(text.encode(), most_nodes)
    except ValueError as error:
        raise NotJson(str(error)) from None
    return read(text, most_levels=MAX_NESTING, most_values=most_nodes)


class _Count:
    """Goes through a value once, and puts what is short in messages in the place of what is not."""

    def __init__(self, most: int, with_keys: bool) -> None:
        self._most = self._left = most
        self._with_keys = with_keys

    def shown(self, value: Any, levels: int) -> Any:
        self._left -= 1 + (len(value) if self._with_keys and isinstance(value, dict) else 0)
        if self._left < 0:
            raise NotJson(f"it has more than {self._most} values{' and keys' if self._with_keys else ''}")
        if isinstance(value, str):
            return _Text(value)
        if not isinstance(value, list | dict):
            return value
        if not levels:
            raise NotJson("it is nested too deep")
        if isinstance(value, list):
            return _Array([self.shown(one, levels - 1) for one in value])
        for key, one in value.items():
            value[key] = self.shown(one, levels - 1)
        return value


def counted(value: Any) -> int:
    """Return how many values there are in one, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(counted, value.values()))
    return 1 + sum(map(counted, value)) if isinstance(value, list) else 1
