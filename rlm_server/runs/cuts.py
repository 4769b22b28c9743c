"""The texts of events: one that is longer than it may be is cut, and the event says what was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from rlm_server.repl.bounds import MAX_EVENT_TEXT

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class CutText:
    """A text that is not there as a whole: `field` is its path, `size_bytes` what the whole has of UTF-8.

    Of one that was cut, the beginning is there. Of one that was redacted nothing is, or a word of the server's own, and
    `digest` stands for the whole, as hexadecimal digits (`redaction`).
    """

    field: str
    size_bytes: int
    digest: str = ""


_cuts = TypeAdapter(tuple[CutText, ...])


def cuts_to_json(cuts: tuple[CutText, ...]) -> str:
    """Write for the store which texts are not whole; nothing where all are."""
    return _cuts.dump_json(cuts, exclude_defaults=True).decode() if cuts else ""


def cuts_from_json(text: str) -> tuple[CutText, ...]:
    """Read what `cuts_to_json` wrote."""
    return _cuts.validate_json(text) if text else ()


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


class Texts(Protocol):
    """What is to become of the texts of a body."""

    def text(self, owner: type, name: str, text: str, path: str, /) -> str:
        """Return what a text is to be: that of the field `name` of an `owner`."""
        ...

    def items(self, items: tuple[Any, ...], names: Sequence[str], path: str, /) -> tuple[Any, ...]:
        """Return what a list is to be, whose items have texts of these names."""
        ...


def with_texts(value: Value, texts: Texts, path: str = "") -> Value:
    """Return a dataclass whose texts are what they are to be, those within it included."""
    changed: dict[str, Any] = {}
    for name in _names(type(value)):
        before = getattr(value, name)
        if type(before) in _WITHOUT_TEXT:
            continue
        after = _with_texts(type(value), name, before, texts, f"{path}.{name}" if path else name)
        if after is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value  # type: ignore[type-var]


def _with_texts(owner: type, name: str, value: Any, texts: Texts, path: str) -> Any:
    if isinstance(value, str):
        return texts.text(owner, name, value, path)
    if isinstance(value, tuple):
        names = [one for one in _names(type(value[0])) if isinstance(getattr(value[0], one), str)] if value else []
        return texts.items(value, names, path) if names else value  # of numbers alone
    return with_texts(value, texts, path)


_WITHOUT_TEXT = frozenset({int, float, bool, NoneType})


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields; none of what is no dataclass. Every event asks for them."""
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = tuple(one.name for one in fields(kind)) if is_dataclass(kind) else ()
    return names


def cut(body: Value) -> tuple[Value, tuple[CutText, ...]]:
    """Cut the texts of an event's body, those within it included, and return what was cut."""
    cutting = _Cutting()
    return with_texts(body, cutting), tuple(cutting.found)


@dataclass(slots=True)
class _Cutting:
    found: list[CutText] = field(default_factory=list)

    def text(self, _owner: type, _name: str, text: str, path: str, /) -> str:
        beginning = beginning_of(text, MAX_EVENT_TEXT)
        if beginning is not text:
            self.found.append(CutText(path, size_of(text)))
        return beginning

    def items(self, items: tuple[Any, ...], names: Sequence[str], path: str) -> tuple[Any, ...]:
        sizes = [sum(size_of(getattr(item, name)) for name in names) for item in items]
        if sum(sizes) <= MAX_EVENT_TEXT:
            return items
        self.found.append(CutText(path, sum(sizes)))
        room, number = MAX_EVENT_TEXT, 0
        while number < len(items) and sizes[number] <= room:
            room -= sizes[number]
            number += 1
        return items[:number]
