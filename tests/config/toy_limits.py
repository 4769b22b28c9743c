"""One more limit of a sandbox and one more of a run: each a field, and nothing else. To be imported before settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration

import sandbox.limits
from sandbox.limits import limit


@dataclass(frozen=True, slots=True)
class ToyLimits(sandbox.limits.Limits):
    toys: int = limit(7, least=2, most=9, unit="toys", doc="Toys of one turn.")


sandbox.limits.Limits = ToyLimits  # type: ignore[misc]

import rlm_server.repl.limits  # noqa: E402


@dataclass(frozen=True, slots=True)
class ToyRunLimits(rlm_server.repl.limits.RunLimits):
    game_seconds: float = limit(2.5, least=0.5, most=60, unit="seconds", doc="Games of a run.")


rlm_server.repl.limits.RunLimits = ToyRunLimits  # type: ignore[misc]


def message(**values: int | Duration) -> Any:
    """A request's message of limits, as the protocol would have one with these fields."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="toys.proto", syntax="proto3", package="toys")
    file.dependency.append("google/protobuf/duration.proto")
    described = file.message_type.add(name="Limits")
    for number, (name, value) in enumerate(values.items(), start=1):
        described.oneof_decl.add(name=f"_{name}")
        added = described.field.add(
            name=name, number=number, label=field.LABEL_OPTIONAL, oneof_index=number - 1, proto3_optional=True
        )
        if isinstance(value, int):
            added.type = field.TYPE_INT64
        else:
            added.type, added.type_name = field.TYPE_MESSAGE, ".google.protobuf.Duration"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(Duration.DESCRIPTOR.file.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("toys.Limits"))(
        **{
            name: value if isinstance(value, int) else {"seconds": value.seconds, "nanos": value.nanos}
            for name, value in values.items()
        }
    )
