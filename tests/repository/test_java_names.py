"""Java's stubs of the protocol compile: no two things in them have the same name.

Where a name is taken, protoc for Java says nothing of a message's fields, and javac fails. `make test-stubs` compiles
them; this tells the same of names without Java.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROTOCOL = sorted((Path(__file__).parents[2] / "proto" / "rlm" / "v1").glob("*.proto"))
FILES = [importlib.import_module(f"rlm.v1.{path.stem}_pb2").DESCRIPTOR for path in PROTOCOL]


def camel(name: str) -> str:
    """A name as Java's methods and classes have it."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def own_names(file: Any) -> set[str]:
    """The classes that a file is to have, each in a file of its own."""
    return {*file.message_types_by_name, *file.enum_types_by_name}


def outer(file: Any) -> str:
    """The class that has what belongs to no message."""
    if given := file.GetOptions().java_outer_classname:
        return str(given)
    usual = camel(file.name.rpartition("/")[2].removesuffix(".proto"))
    return f"{usual}OuterClass" if usual in own_names(file) else usual


def messages(found: Iterable[Any]) -> Iterator[Any]:
    for message in found:
        yield message
        yield from messages(message.nested_types)


def getters(field: Any) -> set[str]:
    """What a field's getters are called, without `get`."""
    name = camel(field.name)
    mapped = field.message_type is not None and field.message_type.GetOptions().map_entry
    names = {name}
    if mapped:
        names = {name, f"{name}Count", f"{name}Map", f"{name}OrDefault", f"{name}OrThrow"}
    elif field.is_repeated:
        names = {name, f"{name}Count", f"{name}List"}
    if field.type == field.TYPE_STRING:
        names.add(f"{name}Bytes")
    elif field.type == field.TYPE_ENUM:
        names |= {f"{name}Value", *([f"{name}ValueList"] if field.is_repeated else ())}
    elif field.message_type is not None and not mapped:
        names |= {f"{name}Builder", f"{name}OrBuilder"}
    return names


def test_no_files_outer_class_has_the_name_of_a_message() -> None:
    named = {name for file in FILES for name in own_names(file)}
    outers = [outer(file) for file in FILES]
    assert not [name for name in outers if name in named]
    assert len(set(outers)) == len(outers)


@pytest.mark.parametrize(
    "message",
    list(messages(message for file in FILES for message in file.message_types_by_name.values())),
    ids=lambda message: message.full_name,
)
def test_no_two_fields_of_a_message_have_getters_of_one_name(message: Any) -> None:
    times = Counter(name for field in message.fields for name in getters(field))
    assert not [name for name, number in times.items() if number > 1]
