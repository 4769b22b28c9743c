"""One more limit of a sandbox and one more of a run: each a field, and nothing else. To be imported before settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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


def message(**values: int) -> Any:
    """A request's message of limits, as the protocol would have one with these fields."""
    file = descriptor_pb2.FileDescriptorProto(name="toys.proto", syntax="proto3", package="toys")
    described = file.message_type.add(name="Limits")
    for number, name in enumerate(values, start=1):
        described.field.add(
            name=name,
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("toys.Limits"))(**values)
