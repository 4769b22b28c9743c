"""A request that is wrong in several fields is refused once, with all of them named.

The requests are made from the protocol: of each call, every field whose kind says how it can be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from rlm.v1 import context_pb2

from tests.servers import Served
from tests.system import every_call
from tests.system.operator import operating
from tests.system.stage import Play, refusal

LONG = "x" * 300
TEXTS = {"request_id": LONG, "page_token": "nonsense", "model": LONG, "sub_model": LONG, "image": LONG, "name": LONG}
"""Texts that are wrong, by the names of their fields."""
NUMBERS = ("page_size", "from_sequence", "offset", "start", "document", "after_number", "nano_usd", "token_count",
           "call_count", "max_turn_count", "max_depth", "size_bytes", "document_count", "weight")  # fmt: skip
"""Numbers that must not be negative, by the names of their fields."""
CHOICES = ("kinds", "states", "by", "format", "kind", "reset_windows")
TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")
MADE_BY_THE_SERVER = ("closed", "spent", "posted", "pending", "carved", "overrun", "left", "create_time", "update_time",
                      "delete_time")  # fmt: skip
MADE, OF_THINGS = ("context.", "account."), ("size_bytes", "document_count", "kind")
"""Fields of contexts and accounts that no request sets."""
REQUIRED = {"question": "", "pattern": ""}
"""Texts that must not be empty."""


def methods() -> list[Any]:
    """The calls that answer a request with more than one field that can be wrong."""
    return [
        method
        for method in every_call.methods()
        if method.containing_service.name != "SessionService"
        and not method.client_streaming
        and len(list(spoilt(method)[1])) > 1
    ]


def spoilt(method: Any) -> tuple[Message, list[str]]:
    """A request that is wrong wherever it can be, and the paths of the fields that are."""
    request = GetMessageClass(method.input_type)()
    return request, list(_spoil(request, ""))


def _spoil(message: Any, above: str) -> Iterator[str]:
    for field in message.DESCRIPTOR.fields:
        name, path = field.name, f"{above}{field.name}"
        if name in MADE_BY_THE_SERVER or (above in MADE and name in OF_THINGS):
            continue
        if name in REQUIRED:
            yield path
        elif name == "labels":
            message.labels.update({str(number): "" for number in range(17)})
            yield path
        elif name in TEXTS and field.type == field.TYPE_STRING:
            setattr(message, name, TEXTS[name])
            yield path
        elif name in NUMBERS:
            setattr(message, name, -1)
            yield path
        elif name in CHOICES and field.is_repeated:
            getattr(message, name).append(99)
            yield f"{path}[0]"
        elif name in CHOICES:
            setattr(message, name, 99)
            yield path
        elif field.message_type is not None and field.message_type.full_name in TIMES:
            getattr(message, name).seconds = -5
            yield path
        elif name == "update_mask":
            message.update_mask.paths.append("nothing")
            yield path
        elif field.message_type is not None and not field.is_repeated:
            inner = getattr(message, name)
            inner.SetInParent()
            yield from _spoil(inner, f"{path}.")


def test_most_calls_can_be_wrong_in_several_ways() -> None:
    assert {"CreateRun", "ListRuns", "ListContexts", "SearchContext", "UpdateContext", "CreateAccount", "ListUsage",
            "CreateTenant", "CreateApiKey", "ListRunEvents"} <= {method.name for method in methods()}  # fmt: skip


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
async def test_all_wrong_fields_of_a_request_are_named(server: Served, method: Any) -> None:
    request, paths = spoilt(method)
    async with server(Play("")) as served, operating(served) as operator:
        caller = operator.caller if method.containing_service.name == "TenantService" else served.caller
        said = await refusal(every_call.make(caller, method, request))
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    missing = set(paths) - set(said.fields)
    assert not missing, said.fields
    assert int(said.said["violation_count"]) == len(said.fields), "all of them fit"
    assert len(said.fields) == len(set(said.fields)), "each is named once"


async def test_all_wrong_fields_of_an_upload_are_named(server: Served) -> None:
    header = context_pb2.UploadHeader()
    paths = list(_spoil(header, "header."))
    async with server(Play("")) as served:
        said = await refusal(served.caller.send_parts([context_pb2.UploadContextRequest(header=header)]))
    assert set(said.fields) == {*paths, "header.sha256"}
