"""`docs/api.md`, made from the .proto files and their comments: every service, call, message, field and enum.

`python -m tests.repository.api_page` writes it, and `scripts/generate` does so too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import google.api.field_behavior_pb2 as field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from tests.repository.proto_comments import ROOT, comments, described

PAGE = ROOT / "docs" / "api.md"
FILES = ("types", "context", "session", "run", "budget", "server")
"""The files on the page, in order. The errors have a page of their own."""
OTHERS = tuple(
    path.stem for path in sorted((ROOT / "proto/rlm/v1").glob("*.proto")) if path.stem not in (*FILES, "errors")
)

HEAD = """\
# The API

<!-- Made by scripts/generate from proto/rlm/v1: change the comments there. -->

The protocol is the package `rlm.v1`. The files are in `proto/`; stubs for any language are made from them with its
usual tools. What a call can fail with is on a page of its own: [errors](errors.md).
"""

_SYNTAX = (FileDescriptorProto.SYNTAX_FIELD_NUMBER,)
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
Path = tuple[int, ...]


def page() -> str:
    """Return the page."""
    names = [*FILES, *OTHERS]
    files = described(*(f"rlm/v1/{name}.proto" for name in names))
    by_name = {file.name.removeprefix("rlm/v1/").removesuffix(".proto"): file for file in files}
    return "\n".join([HEAD, *(line for name in names for line in _file(by_name[name]))]) + "\n"


def _file(file: FileDescriptorProto) -> Iterator[str]:
    said = comments(file)
    title, _, about = said[_SYNTAX].partition("\n\n")
    yield from (f"## {file.name.removeprefix('rlm/v1/')}", "", title, "")
    if about:
        yield from (re.sub("^#+ ", "### ", about, flags=re.MULTILINE), "")
    for place, service in enumerate(file.service):
        yield from _service(service, (FileDescriptorProto.SERVICE_FIELD_NUMBER, place), said)
    for place, message in enumerate(file.message_type):
        yield from _message(message, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, place), said)
    for place, enum in enumerate(file.enum_type):
        yield from _enum(enum, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, place), said)


def _service(service: ServiceDescriptorProto, at: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from (f"### {service.name}", "", said[at], "", "| call | request | response | |", "|---|---|---|---|")
    for place, method in enumerate(service.method):
        asked, told = _type(method.input_type), _type(method.output_type)
        asked = f"stream of {asked}" if method.client_streaming else asked
        told = f"stream of {told}" if method.server_streaming else told
        about = said[(*at, ServiceDescriptorProto.METHOD_FIELD_NUMBER, place)]
        yield f"| `{method.name}` | {asked} | {told} | {_cell(about)} |"
    yield ""


def _message(message: DescriptorProto, at: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from (f"### {message.name}", "", said[at], "")
    if not message.field:
        return
    entries = {one.name: one for one in message.nested_type if one.options.map_entry}
    yield from ("| field | type | |", "|---|---|---|")
    for place, field in enumerate(message.field):
        about = _cell(said[(*at, DescriptorProto.FIELD_FIELD_NUMBER, place)])
        marks = [
            field_behavior_pb2.FieldBehavior.Name(one).lower().replace("_", " ")
            for one in field.options.Extensions[field_behavior_pb2.field_behavior]
        ]
        if field.proto3_optional:
            marks.append("optional")
        elif field.HasField("oneof_index"):
            marks.append(f"one of `{message.oneof_decl[field.oneof_index].name}`")
        marked = f" *({', '.join(marks)})*" if marks else ""
        yield f"| `{field.name}` | {_field_type(field, entries)} | {about}{marked} |"
    yield ""


def _enum(enum: EnumDescriptorProto, at: Path, said: Mapping[Path, str]) -> Iterator[str]:
    yield from (f"### {enum.name}", "", said[at], "", "| value | |", "|---|---|")
    for place, value in enumerate(enum.value):
        yield f"| `{value.name}` | {_cell(said[(*at, EnumDescriptorProto.VALUE_FIELD_NUMBER, place)])} |"
    yield ""


def _field_type(field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
    kind = field.type_name.rpartition(".")[2]
    if kind in entries:
        key, value = (_field_type(one, {}) for one in entries[kind].field)
        return f"map of {key} to {value}"
    name = _type(field.type_name) if field.type_name else _SCALARS[field.type]
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _type(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})" if name.startswith(".rlm.v1.") else f"`{name.removeprefix('.')}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
