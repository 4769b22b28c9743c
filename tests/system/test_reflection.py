"""A client that knows nothing but the server's address and a key calls every method, by what reflection tells."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from rlm_server.api.reflection import NAMES
from tests.servers import Served
from tests.system.every_call import methods
from tests.system.stage import Play, code

TEXT = b"a text that was sent by reflection"


class Reflected:
    """A client without stubs. Its messages are made from what the server tells, and are given and taken as JSON."""

    def __init__(self, address: str, key: str, operators_key: str) -> None:
        self._channel: Any = grpc.insecure_channel(address)
        self._key, self._operators_key = key, operators_key
        database = ProtoReflectionDescriptorDatabase(self._channel)
        pool = DescriptorPool(database)
        services = [pool.FindServiceByName(name) for name in database.get_services()]
        self.methods = {method.full_name: method for service in services for method in service.methods}

    def close(self) -> None:
        self._channel.close()

    def stream(self, name: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Make a call of `rlm.v1` with these messages, and return all that it answers."""
        method = self.methods[f"rlm.v1.{name}"]
        kind = "_".join("stream" if one else "unary" for one in (method.client_streaming, method.server_streaming))
        call = getattr(self._channel, kind)(
            f"/{method.containing_service.full_name}/{method.name}",
            lambda message: message.SerializeToString(),
            GetMessageClass(method.output_type).FromString,
        )
        key = self._operators_key if name.startswith("TenantService") else self._key
        sent = [ParseDict(message, GetMessageClass(method.input_type)()) for message in messages]
        answer = call(
            iter(sent) if method.client_streaming else sent[0],
            metadata=[("authorization", f"Bearer {key}")],
            timeout=60,
        )
        return [
            MessageToDict(one, preserving_proto_field_name=True)
            for one in (answer if method.server_streaming else [answer])
        ]

    def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """Make a call with one message and one answer."""
        (answer,) = self.stream(name, fields)
        return answer


@pytest.fixture
async def play(server: Served) -> Any:
    """What plays a part of a client made by reflection, in a thread beside the server."""

    async def played(part: Callable[[Reflected], None]) -> None:
        async with server(Play(code("FINAL(context[:6])"))) as served:
            _, operators_key = await served.running.keys.create(None)

            def connected() -> None:
                with closing(Reflected(served.running.address, served.running.key, operators_key)) as client:
                    part(client)

            await asyncio.to_thread(connected)

    return played


def reason_of(error: Any) -> str:
    """Why a call was refused, as far as the server says so."""
    status: Any = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    told = status is not None and any(detail.Unpack(info) for detail in status.details)
    return info.reason if told else str(error)


async def test_every_method_is_found_and_takes_what_is_made_of_its_description(play: Any) -> None:
    def calls_each(client: Reflected) -> None:
        assert {method.full_name for method in methods()} <= client.methods.keys()
        refused = {}
        for name in (method.full_name.removeprefix("rlm.v1.") for method in methods()):
            try:
                client.stream(name, {})
            except grpc.RpcError as error:
                refused[name] = reason_of(error)
        assert set(refused.values()) == {"INVALID_FIELD", "NOT_FOUND"}, refused
        assert not {"ServerService.GetServerInfo", "RunService.ListRuns", "TenantService.ListTenants"} & refused.keys()

    await play(calls_each)


async def test_a_text_is_uploaded_asked_of_and_paid_for(play: Any) -> None:
    def asks(client: Reflected) -> None:
        header = {"size_bytes": len(TEXT), "sha256": hashlib.sha256(TEXT).hexdigest()}
        chunk = {"data": base64.b64encode(TEXT).decode()}
        (uploaded,) = client.stream("ContextService.UploadContext", {"header": header}, {"chunk": chunk})
        context_id = uploaded["context"]["context_id"]
        run_id = client.call("RunService.CreateRun", question="What?", context_id=context_id)["run"]["run_id"]
        events = client.stream("RunService.WatchRun", {"run_id": run_id})
        assert "run_finished" in [answer for answer in events if "event" in answer][-1]["event"]
        assert client.call("RunService.GetRun", run_id=run_id)["run"]["answer"] == "a text"
        assert [part["text"] for part in client.stream("RunService.ReadAnswer", {"run_id": run_id})] == ["a text"]
        session_id = client.call("SessionService.CreateSession", context_id=context_id)["session"]["session_id"]
        turn = client.stream("SessionService.Execute", {"session_id": session_id, "code": "print(len(context))"})
        assert "".join(answer["output"]["text"] for answer in turn if "output" in answer) == f"{len(TEXT)}\n"
        assert int(client.call("BudgetService.GetBudget")["account"]["posted"]["call_count"]) == 1

    await play(asks)


async def test_an_operator_makes_a_tenant(play: Any) -> None:
    def makes(client: Reflected) -> None:
        client.call("TenantService.CreateTenant", tenant={"tenant_id": "acme"})
        listed = client.call("TenantService.ListTenants")["tenants"]
        assert [tenant["tenant_id"] for tenant in listed] == ["acme", "development"]

    await play(makes)


@pytest.mark.parametrize("name", NAMES)
async def test_reflection_is_found_by_both_of_its_names(server: Served, name: str) -> None:
    async with server(Play("")) as served:
        call: Any = served.another(None).channel.stream_stream(
            f"/{name}/ServerReflectionInfo",
            lambda message: message.SerializeToString(),
            reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def asked() -> Any:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        (answer,) = [answer async for answer in call(asked())]
    assert {method.containing_service.full_name for method in methods()} <= {
        service.name for service in answer.list_services_response.service
    }
