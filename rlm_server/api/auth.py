"""What every call passes on its way in and out: who calls, what it asks, and what an error becomes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from rlm_server.api.errors import MalformedRequest, Unauthenticated, mapped
from rlm_server.tenants.keys import Keys

_tenant: ContextVar[str] = ContextVar("tenant")


def tenant() -> str:
    """Return the tenant whose call is being served."""
    return _tenant.get()


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Resolves the bearer key of every `rlm` call once, and maps every error. Health and reflection are open.

    A request is decoded after its key was checked, so that a stranger learns nothing of what it sends.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, of whichever of the four kinds it is."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/rlm."):
            return handler
        make, inner = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[handler.request_streaming, handler.response_streaming]
        metadata = handler_call_details.invocation_metadata or ()
        authorizations = [value for name, value in metadata if name == "authorization"]
        received = _Messages if handler.request_streaming else _decoded
        wrap = self._streaming if handler.response_streaming else self._single
        return make(
            wrap(inner, authorizations, lambda sent: received(sent, handler.request_deserializer)),
            request_deserializer=None,  # the handler gets bytes, and decodes them itself
            response_serializer=handler.response_serializer,
        )

    async def _admit(self, authorizations: list[Any]) -> None:
        """Find out whose call this is.

        Raises:
            Unauthenticated: it carries no key, more than one, or one that is not valid.
        """
        if len(authorizations) > 1:
            raise Unauthenticated(f"{len(authorizations)} keys are sent: send one `authorization` alone")
        scheme, _, key = str(authorizations[0]).partition(" ") if authorizations else ("", "", "")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("a key is missing: send `authorization: Bearer <key>`")
        owner = await self._keys.tenant_of(key)
        if owner is None:
            raise Unauthenticated("the key is not valid")
        _tenant.set(owner)

    def _single(self, inner: Any, authorizations: list[Any], read: Callable[[Any], Any]) -> Any:
        async def call(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with mapped(context):
                await self._admit(authorizations)
                return await inner(read(sent), context)

        return call

    def _streaming(self, inner: Any, authorizations: list[Any], read: Callable[[Any], Any]) -> Any:
        async def call(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with mapped(context):
                await self._admit(authorizations)
                async with aclosing(inner(read(sent), context)) as responses:
                    async for response in responses:
                        yield response

        return call


class _Messages:
    """The messages of a stream, each decoded when it is asked for."""

    def __init__(self, sent: AsyncIterator[bytes], decode: Callable[[bytes], Any]) -> None:
        self._sent, self._decode = sent, decode

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return _decoded(await anext(self._sent), self._decode)


def _decoded(sent: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(sent)
    except DecodeError:
        raise MalformedRequest from None
