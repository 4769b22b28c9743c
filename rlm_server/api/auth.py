"""What every call passes on its way in and out: who calls, and what an error becomes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from rlm_server.api.errors import Unauthenticated, mapped
from rlm_server.tenants.keys import Keys

_tenant: ContextVar[str] = ContextVar("tenant")


def tenant() -> str:
    """Return the tenant whose call is being served."""
    return _tenant.get()


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Resolves the bearer key of every `rlm` call once, and maps every error. Health and reflection are open."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/rlm."):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        authorization = metadata.get("authorization", "")
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary
        wrap = self._streaming if handler.response_streaming else self._single
        return make(
            wrap(inner, authorization),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _admit(self, authorization: object) -> None:
        scheme, _, key = str(authorization).partition(" ")
        found = await self._keys.tenant_of(key) if scheme.lower() == "bearer" and key else None
        if found is None:
            wrong = "the key is not valid" if key else "a key is missing: send `authorization: Bearer <key>`"
            raise Unauthenticated(wrong)
        _tenant.set(found)

    def _single(self, inner: Any, authorization: object) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with mapped(context):
                await self._admit(authorization)
                return await inner(request, context)

        return call

    def _streaming(self, inner: Any, authorization: object) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with mapped(context):
                await self._admit(authorization)
                async for response in inner(request, context):
                    yield response

        return call
