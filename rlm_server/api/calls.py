"""What every call leaves behind: a line of the log, counts for the metrics, and an id that its caller is told."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2, status_pb2

from rlm_server.api.auth import known_tenant
from rlm_server.clock import Durations
from rlm_server.tracing import spans

log = logging.getLogger("rlm_server.calls")

REQUEST_ID = "x-request-id"
"""The metadata that names a call: its caller's, where that is well-formed, else one of the server's."""
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
_READ = frozenset({REQUEST_ID, "traceparent", "tracestate"})
_DETAILS = "grpc-status-details-bin"

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds that calls are sorted by."""


@dataclass(slots=True)
class MethodCounts:
    """How many calls of a method began and ended, by status, and how long they took."""

    started: int = 0
    handled: Counter[str] = field(default_factory=Counter)
    seconds: Durations = field(default_factory=lambda: Durations(BOUNDS))


@dataclass(frozen=True, slots=True)
class Method:
    """A method that exists, as the metrics of gRPC servers name it."""

    type: str
    service: str
    name: str


class Calls(grpc.aio.ServerInterceptor):
    """Stands before everything else, and sees each call begin and end. Methods that do not exist are not counted."""

    def __init__(self) -> None:
        self.counts: dict[Method, MethodCounts] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        sent = {name: value for name, value in handler_call_details.invocation_metadata or () if name in _READ}
        kind = _KINDS[2 * bool(handler.request_streaming) + bool(handler.response_streaming)]
        method = _method(handler_call_details.method)

        def began(context: Any) -> _Seen:
            return _Seen(context, method, _request_id(sent), sent, self.counts.setdefault(method, MethodCounts()))

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            (_stream if handler.response_streaming else _one)(getattr(handler, kind), began),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def _one(inner: Any, began: Callable[[Any], _Seen]) -> Any:
    async def one(request: Any, context: Any) -> Any:
        with began(context) as seen:
            answered = inner(request, seen)
            return await answered if isinstance(answered, Awaitable) else answered

    return one


def _stream(inner: Any, began: Callable[[Any], _Seen]) -> Any:
    async def stream(request: Any, context: Any) -> None:
        with began(context) as seen:
            answered = inner(request, seen)
            if isinstance(answered, Awaitable):  # it writes by itself
                await answered
                return
            async with aclosing(answered) as responses:
                async for response in responses:
                    await context.write(response)

    return stream


class _Seen:
    """A call's context, which notes how the call ends, and has its id among what its caller is told."""

    def __init__(
        self, context: Any, method: Method, request_id: str, sent: dict[str, Any], counts: MethodCounts
    ) -> None:
        self._context, self._method, self._id, self._counts = context, method, request_id, counts
        self._opened = spans.of_call(
            f"{method.service}/{method.name}",
            sent,
            rpc__system="grpc",
            rpc__service=method.service,
            rpc__method=method.name,
            rlm__request_id=request_id,
        )
        self._began = time.monotonic()
        self._code, self._reason = grpc.StatusCode.OK, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def abort_with_status(self, status: Any) -> None:
        """End the call with a status."""
        self._code, self._reason = status.code, _reason(status.trailing_metadata or ())
        await self._context.abort(
            status.code, status.details, (*(status.trailing_metadata or ()), (REQUEST_ID, self._id))
        )

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a code."""
        self._code = code
        await self._context.abort(code, details, (*trailing_metadata, (REQUEST_ID, self._id)))

    def __enter__(self) -> _Seen:
        self._counts.started += 1
        self._context.set_trailing_metadata(((REQUEST_ID, self._id),))
        self._span = self._opened.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = grpc.StatusCode.CANCELLED
        elif error is not None and self._code is grpc.StatusCode.OK:
            self._code = grpc.StatusCode.UNKNOWN
        seconds, code = time.monotonic() - self._began, _name(self._code)
        self._span.note(rpc__grpc__status_code=self._code.value[0], rlm__tenant=known_tenant())
        if self._code is not grpc.StatusCode.OK:
            self._span.fail(self._reason or code)
        self._opened.__exit__(None, None, None)
        self._counts.handled[code] += 1
        self._counts.seconds.add(seconds)
        level = logging.INFO if self._method.service.startswith("rlm.") else logging.DEBUG
        if log.isEnabledFor(level):
            told = {
                "method": f"{self._method.service}/{self._method.name}",
                "tenant": known_tenant(),
                "request_id": self._id,
                "code": code,
                "reason": self._reason,
                "seconds": f"{seconds:.3f}",
            }
            log.log(level, "call", extra={"told": {name: value for name, value in told.items() if value}})


@lru_cache(1_024)
def _method(path: str) -> Method:
    """Return the method at a path, of the type that its protocol says: others see some as another."""
    _, service, name = path.split("/", 2)
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return Method(_TYPES[found.client_streaming, found.server_streaming], service, name)


_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def _name(code: grpc.StatusCode) -> str:
    """A code as gRPC's metrics write it: `NotFound`, `DeadlineExceeded`, `OK`."""
    return "OK" if code is grpc.StatusCode.OK else "".join(part.capitalize() for part in code.name.split("_"))


def _request_id(sent: dict[str, Any]) -> str:
    said = sent.get(REQUEST_ID)
    return said if isinstance(said, str) and _WELL_FORMED.fullmatch(said) else secrets.token_hex(8)


def _reason(trailing: Any) -> str:
    """The reason that a status has in its details."""
    for name, value in trailing:
        if name == _DETAILS:
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
