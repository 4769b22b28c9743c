"""Reflection: what the server tells of its services, for clients that were made without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
"""The name that reflection has now, and the one that older clients ask for. What passes is the same."""


def reflect(server: Any, services: Sequence[str]) -> None:
    """Have a server tell of these services, and of reflection itself, under both of its names."""
    _describe_the_newer()
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer([*services, *NAMES]).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods) for name in NAMES])


def _describe_the_newer() -> None:
    """Add the newer's description, which differs from the older's in its package alone: gRPC for Python has none."""
    older = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(older)
    newer = text_format.Parse(text_format.MessageToString(older).replace("v1alpha", "v1"), FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(newer.SerializeToString())
