"""The texts of events: one that is longer than it may be is cut, and the event says what was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, TypeVar

from rlm_server.repl.bounds import MAX_EVENT_TEXT

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class CutText:
    """A text of which only the beginning is there: `field` is its path, `size_bytes` what the whole has of UTF-8."""

    field: str
    size_bytes: int


def size_of(text: str) -> int:
    """Return how many bytes of UTF-8 a text has."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def beginning_of(text: str, most: int) -> str:
    """Return the first characters of a text, in at most so many bytes of UTF-8."""
    if len(text) * 4 <= most or size_of(text) <= most:
        return text
    return text[:most].encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces, each as long as a text of an event may be."""
    while True:
        piece = beginning_of(text, MAX_EVENT_TEXT)
        yield piece
        text = text[len(piece) :]
        if not text:
            return


def cut(body: Value) -> tuple[Value, tuple[CutText, ...]]:
    """Cut the texts of an event's body, those within it included, and return what was cut."""
    found: list[CutText] = []
    return _cut(body, "", found), tuple(found)


def _cut(value: Any, path: str, found: list[CutText]) -> Any:
    if isinstance(value, str):
        return _cut_text(value, path, found)
    if isinstance(value, tuple):
        return _cut_items(value, path, found)
    changed = {}
    for name in _names(type(value)):
        before = getattr(value, name)
        if type(before) in _WITHOUT_TEXT:
            continue
        after = _cut(before, f"{path}.{name}" if path else name, found)
        if after is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value


_WITHOUT_TEXT = frozenset({int, float, bool, NoneType})


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields; none of what is no dataclass. Every event asks for them."""
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = tuple(one.name for one in fields(kind)) if is_dataclass(kind) else ()
    return names


def _cut_text(text: str, path: str, found: list[CutText]) -> str:
    beginning = beginning_of(text, MAX_EVENT_TEXT)
    if beginning is not text:
        found.append(CutText(path, size_of(text)))
    return beginning


def _cut_items(items: tuple[Any, ...], path: str, found: list[CutText]) -> tuple[Any, ...]:
    names = [name for name in _names(type(items[0])) if isinstance(getattr(items[0], name), str)] if items else []
    if not names:  # of numbers alone
        return items
    sizes = [sum(size_of(getattr(item, name)) for name in names) for item in items]
    if sum(sizes) <= MAX_EVENT_TEXT:
        return items
    found.append(CutText(path, sum(sizes)))
    room, number = MAX_EVENT_TEXT, 0
    while number < len(items) and sizes[number] <= room:
        room -= sizes[number]
        number += 1
    return items[:number]
