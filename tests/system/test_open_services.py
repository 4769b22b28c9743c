"""What answers without a key."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.servers import Served
from tests.system.every_call import services
from tests.system.stage import Play

SERVICES = {service.full_name for service in services()}


async def test_health_is_told_without_a_key(server: Served) -> None:
    async with server(Play("")) as served:
        stub: Any = health_pb2_grpc.HealthStub(served.another(None).channel)
        for service in ("", *SERVICES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_protocol_is_told_without_a_key(server: Served) -> None:
    async with server(Play("")) as served:
        channel: Any = served.another(None).channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([asked])):
            assert {service.name for service in answer.list_services_response.service} >= SERVICES
            break


async def test_a_method_that_is_not_there_is_unimplemented(server: Served) -> None:
    async with server(Play("")) as served:
        call: Any = served.caller.channel.unary_unary("/rlm.v1.RunService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
