"""What every call passes on its way in and out: who calls, what it asks, and what an error becomes.

Tenants' keys are for every service but one, and operators' keys for that one alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from rlm_server.api import key_account
from rlm_server.api.admission import REFUSAL_SECONDS, Admission, RequestNotReceived, TooManyRequests, TooManyStreams
from rlm_server.api.certificates import names_of
from rlm_server.api.errors import MalformedRequest, Unauthenticated, WrongKindOfKey, refusal
from rlm_server.api.transport import LOOKAHEAD
from rlm_server.shares.host_time import HostTime, Unclaimed, charged, measured
from rlm_server.tenants.identities import Identities
from rlm_server.tenants.keys import Holder, Keys
from rlm_server.tenants.open_calls import NOT_VALID, OpenCalls

OPERATORS = "/rlm.v1.TenantService/"
"""What the methods begin with that are for operators alone."""
OPERATOR = ":operator"
"""Whom an operator's calls are counted for. No tenant can have this name."""

_tenant: ContextVar[str] = ContextVar("tenant")


def tenant() -> str:
    """Return the tenant whose call is being served."""
    return _tenant.get()


def known_tenant() -> str:
    """Return it, or nothing where it is not known whose call is being served."""
    return _tenant.get("")


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Resolves the bearer key of every `rlm` call once, or its certificate, counts the call, and maps every error.

    A call ends when its key does: `calls` has those that are under way.

    A request is received after its key was checked and the call was counted, and decoded after its bytes were counted:
    a stranger learns nothing of what it sends, and has the server keep nothing of it. Health and reflection are open.
    """

    def __init__(
        self, keys: Keys, identities: Identities, admission: Admission, calls: OpenCalls | None = None
    ) -> None:
        self._keys, self._identities, self._admission = keys, identities, admission
        self._calls = calls or OpenCalls()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, of whichever of the four kinds it is.

        To gRPC every method takes a stream: the message of any other would be received before the handler is called.
        """
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        if not handler_call_details.method.startswith("/rlm."):
            return self._open(handler)
        metadata = handler_call_details.invocation_metadata or ()
        authorizations = [value for name, value in metadata if name == "authorization"]
        method = _Method(handler_call_details.method, handler)
        make, answer = (
            (grpc.stream_stream_rpc_method_handler, self._write_answers)
            if handler.response_streaming
            else (grpc.stream_unary_rpc_method_handler, self._answer)
        )
        return make(
            self._served(method, authorizations, answer),
            request_deserializer=None,  # the handler gets bytes, and decodes them itself
            response_serializer=partial(self._serialized, handler.response_serializer),
        )

    def _serialized(self, serialize: Callable[[Any], bytes], answer: Any) -> bytes:
        message = serialize(answer)
        self._admission.message(tenant(), len(message))
        return message

    def _open(self, handler: Any) -> Any:
        """Have the calls of a method that needs no key begin in their turn, and count its streams."""
        method = _Method("", handler)

        async def one(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                async with self._admission.without_key(context.peer()):
                    answered = method.inner(sent, context)
                    return await answered if isawaitable(answered) else answered
            except TooManyRequests as error:
                await context.abort_with_status(refusal(error))

        async def stream(sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                async with self._admission.without_key(context.peer()):
                    pass
                with self._admission.open_stream():
                    answered = method.inner(sent, context)
                    if isawaitable(answered):  # it writes by itself
                        await answered
                        return
                    async with aclosing(answered):
                        async for response in answered:
                            await context.write(response)
            except (TooManyRequests, TooManyStreams) as error:
                await context.abort_with_status(refusal(error))

        make, call = {
            (False, False): (grpc.unary_unary_rpc_method_handler, one),
            (False, True): (grpc.unary_stream_rpc_method_handler, stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, one),
            (True, True): (grpc.stream_stream_rpc_method_handler, stream),
        }[method.takes_stream, bool(handler.response_streaming)]
        return make(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    async def _admit(
        self, method: _Method, authorizations: list[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Holder:
        """Return whose call this is: its key's, or where it has none its certificate's.

        Raises:
            Unauthenticated: it carries no key, more than one, or one that is not valid.
            WrongKindOfKey: the key is not for this service.
        """
        if len(authorizations) > 1:
            raise Unauthenticated(f"{len(authorizations)} keys are sent: send one `authorization` alone")
        names = names_of(context.auth_context()) if not authorizations else ()
        holder = await self._identities.holder_of(names) if names else None
        if holder is None:
            holder = await self._keyholder(authorizations)
        if method.is_operators != (holder.tenant is None):
            raise WrongKindOfKey(operators=method.is_operators)
        return holder

    async def _keyholder(self, authorizations: list[Any]) -> Holder:
        scheme, _, key = str(authorizations[0]).partition(" ") if authorizations else ("", "", "")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("a key is missing: send `authorization: Bearer <key>`")
        holder = await self._keys.holder_of(key)
        if holder is None:
            raise Unauthenticated(NOT_VALID)
        return holder

    def _served(self, method: _Method, authorizations: list[Any], answer: Callable[..., Awaitable[Any]]) -> Any:
        """Return what serves a method as `answer` does, and ends the call where that returns a refusal.

        All steps of a call are measured, from its beginning, and charged to whoever claims them.
        """

        async def serve(
            sent: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any], work: Unclaimed
        ) -> Any:
            answered = await answer(method, authorizations, sent, context, work)
            if isinstance(answered, Refused):
                self._note_unread(method)
                await context.abort_with_status(answered.status)
            return answered

        async def call(sent: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            work = Unclaimed()
            return await measured(serve(sent, context, work), work)

        return call

    async def _answer(
        self,
        method: _Method,
        authorizations: list[Any],
        sent: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
        work: Unclaimed,
    ) -> Any:
        """Return a method's answer, or what it becomes where that fails.

        gRPC keeps what aborts a call until the garbage is collected, with the frames it came through. So it is raised
        where nothing of the request is left.
        """
        try:
            holder = await self._admit(method, authorizations, context)
            async with self._calls.call(holder):
                with ExitStack() as counted:
                    request, host_time = await self._enter(method, holder, sent, counted, work)
                    with charged(host_time):
                        return await method.inner(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return Refused(refusal(error))

    def _note_unread(self, method: _Method) -> None:
        """Count what has come of a stream that is refused, and was not read: gRPC has taken it all the same."""
        if method.takes_stream and known_tenant():
            self._admission.message(known_tenant(), LOOKAHEAD)

    async def _write_answers(
        self,
        method: _Method,
        authorizations: list[Any],
        sent: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
        work: Unclaimed,
    ) -> Refused | None:
        """Write a method's answers, and where one fails, return what that becomes: see `_answer`.

        They are written here and not yielded, because whoever yields cannot be told meanwhile that the key has ended.
        """
        try:
            holder = await self._admit(method, authorizations, context)
            async with self._calls.call(holder):
                with ExitStack() as counted:
                    request, host_time = await self._enter(method, holder, sent, counted, work)
                    paced = _Paced(context, tenant(), self._admission)
                    async with aclosing(method.inner(request, paced)) as responses:
                        while True:
                            await self._admission.pace(tenant(), method.name)
                            with charged(host_time):
                                response = await anext(responses, None)
                            if response is None:
                                return None
                            await context.write(response)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return Refused(refusal(error))

    async def _enter(
        self, method: _Method, holder: Holder, sent: AsyncIterator[bytes], counted: ExitStack, work: Unclaimed
    ) -> tuple[Any, HostTime]:
        """Count the call until `counted` is closed, and return its request, or the stream of them.

        With it comes what the call's work is charged to, as is all of it so far.
        """
        owner = OPERATOR if holder.tenant is None else holder.tenant
        _tenant.set(owner)
        self._admission.begun(owner)  # that is work for refused calls as well
        host_time = self._admission.host_time(owner)
        work.claim(host_time)
        key_account.bind(holder.customer)
        return await self._entered(owner, method, sent, counted), host_time

    async def _entered(self, owner: str, method: _Method, sent: AsyncIterator[bytes], counted: ExitStack) -> Any:
        """Count a tenant's call, and return its request, or the stream of them: see `_enter`."""
        self._admission.check_paid(owner, method.name)
        try:
            counted.enter_context(self._admission.call(owner))
        except TooManyRequests:
            await asyncio.sleep(REFUSAL_SECONDS)
            await self._admission.pace(owner, method.name)  # as many may be told at once
            raise
        await self._admission.pace(owner, method.name)
        if method.is_stream:
            counted.enter_context(self._admission.stream(owner))
        if method.takes_stream:
            self._admission.message(owner)
            return _Messages(sent, method.decode, owner, self._admission)
        try:
            receiving: Any = aiter(sent)  # a generator of gRPC's
            message = await self._admission.received(owner, method.name, receiving)
        except RequestNotReceived:
            raise MalformedRequest from None
        self._admission.message(owner, len(message))
        try:
            counted.enter_context(self._admission.request(owner, len(message)))
        except BaseException:
            del message  # else it stays for as long as anything refers to the refusal
            raise
        return _decoded(message, method.decode)


@dataclass(frozen=True, slots=True)
class Refused:
    """What a call that failed is answered."""

    status: Any


@dataclass(frozen=True, slots=True)
class _Method:
    """A method's handler, of whichever kind."""

    name: str
    handler: Any

    @property
    def takes_stream(self) -> bool:
        return bool(self.handler.request_streaming)

    @property
    def is_operators(self) -> bool:
        """Whether it is for operators alone."""
        return self.name.startswith(OPERATORS)

    @property
    def is_stream(self) -> bool:
        """Whether requests or responses are a stream."""
        return bool(self.handler.request_streaming or self.handler.response_streaming)

    @property
    def inner(self) -> Any:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        return getattr(self.handler, kinds[2 * self.handler.request_streaming + self.handler.response_streaming])

    @property
    def decode(self) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = self.handler.request_deserializer
        return decode


class _Paced:
    """A call's context. What a handler writes by itself goes at its tenant's pace."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], owner: str, admission: Admission) -> None:
        self._context, self._owner, self._admission = context, owner, admission

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Write a message."""
        await self._admission.pace(self._owner, "")
        await self._context.write(message)


class _Messages:
    """The messages of a stream, each taken at its tenant's pace and decoded when it is asked for."""

    def __init__(
        self, sent: AsyncIterator[bytes], decode: Callable[[bytes], Any], owner: str, admission: Admission
    ) -> None:
        self._sent, self._decode, self._owner, self._admission = sent, decode, owner, admission

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await self._admission.pace(self._owner, "")
        message = await anext(self._sent)
        self._admission.message(self._owner, len(message))
        return _decoded(message, self._decode)


def _decoded(sent: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(sent)
    except DecodeError:
        raise MalformedRequest from None
