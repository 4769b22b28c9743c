"""`docs/errors.md`, made from the comments of the protocol's `ErrorReason`: every reason and its gRPC code.

`python -m tests.repository.errors_page` writes it, and `scripts/generate` does so too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from rlm.v1 import errors_pb2

ROOT = Path(__file__).parents[2]
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
    command = ["grpc_tools.protoc", "-Iproto", "--include_source_info", "--descriptor_set_out=/dev/stdout", PROTO]
    made = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True).stdout
    (file,) = FileDescriptorSet.FromString(made).file
    (enum,) = file.enum_type
    comments = _comments(file)
    at = (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, 0)
    reasons = [
        Reason(
            value.name.removeprefix(PREFIX),
            value.options.Extensions[errors_pb2.status_code],
            comments.get((*at, EnumDescriptorProto.VALUE_FIELD_NUMBER, place), ""),
        )
        for place, value in enumerate(enum.value)
        if value.number
    ]
    return comments[at], reasons


def _comments(file: FileDescriptorProto) -> Mapping[tuple[int, ...], str]:
    """Return every comment by the path of what it stands before."""
    return {
        tuple(one.path): "\n".join(line.strip() for line in one.leading_comments.strip().splitlines())
        for one in file.source_code_info.location
    }


def page() -> str:
    """Return the page."""
    about, reasons = read()
    rows = [f"| [`{one.name}`](#{one.name.lower()}) | `{one.code}` |" for one in reasons]
    sections = [f"## {one.name}\n\ngRPC code: `{one.code}`\n\n{one.comment}" for one in reasons]
    return _HEAD.format(about=about, rows="\n".join(rows), sections="\n\n".join(sections))


if __name__ == "__main__":
    PAGE.write_text(page())
