"""Every call of the protocol, from its descriptors, so that a new one is tested as the others are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.system.stage import Caller

ROOT = Path(__file__).parents[2]

FILLED: dict[str, Any] = {"question": "What?", "code": "1", "pattern": "x", "turn_id": "turn_none", "result_json": "1"}
"""What a request must say besides the name of a thing, by field."""
NAMES_AN_UPLOAD = "rlm.v1.ContextService.GetUploadStatus"
"""The call whose request id names something that is there already."""

MAKES_WHAT_IT_NAMES = "rlm.v1.BudgetService.CreateAccount"
"""The call whose request names what it makes."""


def services() -> list[Any]:
    """Every service of the protocol."""
    paths = sorted((ROOT / "proto/rlm/v1").glob("*.proto"))
    modules = [import_module(f"rlm.v1.{path.stem}_pb2") for path in paths]
    return [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]


def methods() -> list[Any]:
    """Every method of every service."""
    return [method for service in services() for method in service.methods]


def tenants_methods() -> list[Any]:
    """Every method that tenants may call: all but operators'."""
    return [method for method in methods() if method.containing_service.name != "TenantService"]


@dataclass(frozen=True)
class Naming:
    """A method, and the path of the field of its request that names a thing."""

    method: Any
    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method.name}.{'.'.join(self.path)}"

    def request(self, name: str) -> Message:
        """A request that names this thing, and says whatever else there must be."""
        request = GetMessageClass(self.method.input_type)()
        for field, value in FILLED.items():
            if field in self.method.input_type.fields_by_name:
                setattr(request, field, value)
        *into, last = self.path
        inner = request
        for part in into:
            inner = getattr(inner, part)
        setattr(inner, last, name)
        return request


def namings() -> list[Naming]:
    """Every way to name a thing in a request that must be there."""
    naming = [method for method in tenants_methods() if method.full_name != MAKES_WHAT_IT_NAMES]
    found = [Naming(method, path) for method in naming for path in _ids(method.input_type)]
    return found + [Naming(method, ("request_id",)) for method in methods() if method.full_name == NAMES_AN_UPLOAD]


def _ids(message: Any) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for field in message.fields:
        if field.message_type is not None:
            paths += [(field.name, *path) for path in _ids(field.message_type)]
        elif field.name.endswith("_id") and field.name != "request_id":
            paths.append((field.name,))
    return paths


def path(method: Any) -> str:
    """What a method is called by."""
    return f"/{method.containing_service.full_name}/{method.name}"


async def make(caller: Caller, method: Any, request: Message | None = None) -> None:
    """Make a call to its end, with an empty request, or stream, where none is given."""
    if method.client_streaming and request is not None:
        await caller.send(lambda channel: channel.stream_unary(path(method)), [request.SerializeToString()])
        return
    kind = "_".join("stream" if one else "unary" for one in (method.client_streaming, method.server_streaming))
    call: Any = getattr(caller.channel, kind)(path(method))
    data = request.SerializeToString() if request is not None else b""
    made = call(*([] if method.client_streaming else [data]), metadata=caller.metadata)
    if method.client_streaming:
        await made.done_writing()
    if not method.server_streaming:
        await made
        return
    async for _ in made:
        pass
