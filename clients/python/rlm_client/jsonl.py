"""The lines of a .jsonl file, as documents."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator

from rlm_client.documents import Document, SourceRefused, in_memory, stamp_of

MAX_LINE_BYTES = 256 << 20
"""Of one line: it is held in memory while it is read."""

_DEFAULT_NAME_FIELDS = ("name", "id")
_BUFFER_BYTES = 1 << 20


def documents(path: str, prefix: str, text_field: str, name_field: str | None) -> Iterator[Document]:
    """Give each line as a document: a JSON string, or an object whose field `text_field` is one.

    Empty lines are skipped. An object's name is in its field `name_field`, a string or a whole number. Without that
    field it is in `name` or `id`. Otherwise the name is the line's number, from 1. The prefix precedes every name.

    Raises:
        OSError: the file cannot be read.
        SourceRefused: a line is something else (the line is named), or longer than `MAX_LINE_BYTES`.
    """
    stamp = stamp_of(path)
    below = f"{prefix}/" if prefix else ""
    with open(path, "rb", buffering=_BUFFER_BYTES) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            origin = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise SourceRefused(f"{origin}: a line may have {MAX_LINE_BYTES:,} bytes; this one has more")
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if not line.strip():
                continue
            value = _parsed(line, origin)
            text = _text(value, text_field, origin)
            name = _name(value, name_field, origin) or str(number)
            yield Document(below + name, origin, in_memory(name, text, origin).pieces, stamp)


def _parsed(line: bytes, origin: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SourceRefused(f"{origin}: not UTF-8 ({error.reason} at byte {error.start:,} of the line)") from None
    except RecursionError:
        raise SourceRefused(f"{origin}: JSON nested too deep") from None
    except ValueError as error:
        raise SourceRefused(f"{origin}: not JSON: {error}") from None


def _text(value: object, text_field: str, origin: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise SourceRefused(f"{origin}: must be a JSON string or an object, not {_kind(value)}")
    if text_field not in value:
        there = ", ".join(map(repr, list(value)[:8])) or "none"
        raise SourceRefused(f"{origin}: no field {text_field!r} (its fields: {there}); say which one is the text")
    text = value[text_field]
    if not isinstance(text, str):
        raise SourceRefused(f"{origin}: the field {text_field!r} must be a string, not {_kind(text)}")
    return text


def _name(value: object, name_field: str | None, origin: str) -> str:
    if not isinstance(value, dict):
        return ""
    if name_field is None:
        return next((str(value[field]) for field in _DEFAULT_NAME_FIELDS if _is_name(value.get(field))), "")
    if name_field not in value:
        raise SourceRefused(f"{origin}: no field {name_field!r} to name the document by")
    name = value[name_field]
    if not _is_name(name):
        raise SourceRefused(
            f"{origin}: the field {name_field!r}, which names the document, must be a string or a whole number, "
            f"not {_kind(name)}"
        )
    return str(name)


def _is_name(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case "":
            return "an empty string"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"
