"""`docs/errors.md`, made from the comments of the protocol's `ErrorReason`: every reason and its gRPC code.

`python -m tests.repository.errors_page` writes it, and `scripts/generate` does so too.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import EnumDescriptorProto, FileDescriptorProto
from rlm.v1 import errors_pb2

from tests.repository.proto_comments import ROOT, comments, described

PAGE = ROOT / "docs" / "errors.md"
PREFIX = "ERROR_REASON_"
PROTO = "rlm/v1/errors.proto"

_HEAD = f"""# Errors

<!-- Made by scripts/generate from proto/{PROTO}: change the comments there. -->

{{about}}

| reason | gRPC code |
|---|---|
{{rows}}

{{sections}}
"""


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason as it is sent, the name of its gRPC code, and its comment."""

    name: str
    code: str
    comment: str


def read() -> tuple[str, list[Reason]]:
    """Return the comment of the enum, and its values without the one that is never sent."""
    (file,) = described(PROTO)
    (enum,) = file.enum_type
    said = comments(file)
    at = (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, 0)
    reasons = [
        Reason(
            value.name.removeprefix(PREFIX),
            value.options.Extensions[errors_pb2.status_code],
            said.get((*at, EnumDescriptorProto.VALUE_FIELD_NUMBER, place), ""),
        )
        for place, value in enumerate(enum.value)
        if value.number
    ]
    return said[at], reasons


def page() -> str:
    """Return the page."""
    about, reasons = read()
    rows = [f"| [`{one.name}`](#{one.name.lower()}) | `{one.code}` |" for one in reasons]
    sections = [f"## {one.name}\n\ngRPC code: `{one.code}`\n\n{one.comment}" for one in reasons]
    return _HEAD.format(about=about, rows="\n".join(rows), sections="\n\n".join(sections))


if __name__ == "__main__":
    PAGE.write_text(page())
