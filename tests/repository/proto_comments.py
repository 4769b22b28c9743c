"""The .proto files with their comments, for the pages that are made from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[2]


def described(*protos: str) -> list[FileDescriptorProto]:
    """Return what the .proto files at these paths below proto/ declare, their comments included."""
    command = ["grpc_tools.protoc", "-Iproto", "--include_source_info", "--descriptor_set_out=/dev/stdout", *protos]
    made = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True).stdout
    return list(FileDescriptorSet.FromString(made).file)


def comments(file: FileDescriptorProto) -> Mapping[tuple[int, ...], str]:
    """Return every comment by the path of what it stands before; the file's own by the path of its syntax."""
    found = {}
    for one in file.source_code_info.location:
        parts = [*one.leading_detached_comments, one.leading_comments]
        text = "\n\n".join(part.strip() for part in parts if part.strip())
        found[tuple(one.path)] = "\n".join(line.strip() for line in text.splitlines())
    return found
