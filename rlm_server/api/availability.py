"""Whether the server takes calls: not yet, all of them, no new work, or none any more.

A server that stops has its calls end by themselves for a while. Then it ends them, and tells each where to resume.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import grpc

PLACES = frozenset({"CreateRun", "Complete", "CreateSession", "ForkSession", "Execute", "ExecuteOnce"})
"""Calls that begin work: a server that stops takes no more of them."""


class ServerStarting(Exception):
    """The server is not ready yet."""

    def __init__(self) -> None:
        super().__init__("the server starts, and is not ready yet; try again soon")


class ServerStopping(Exception):
    """The server stops. A stream of numbered events is to be resumed from `from_sequence`."""

    def __init__(self, from_sequence: int | None = None) -> None:
        where = "" if from_sequence is None else f"; resume from {from_sequence}"
        super().__init__(f"the server stops; try again when it is back{where}")
        self.from_sequence = from_sequence


class Phase(StrEnum):
    """How far the server is. A phase leads to those below it only."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"


_FOLLOWS: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.SERVING, Phase.DRAINING, Phase.ENDED}),
    Phase.SERVING: frozenset({Phase.DRAINING, Phase.ENDED}),
    Phase.DRAINING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class _Call:
    """A call under way. `next` is the number of the first event that its caller may not have, where they have one."""

    next: int | None = None
    ended: bool = False

    def sending(self, message: Any) -> int | None:
        """Note that an event is being sent, and return its number."""
        event = getattr(message, "event", message)
        sequence = getattr(event, "sequence", None)
        if isinstance(sequence, int) and sequence > 0:
            self.next = sequence
            return sequence
        return None

    def sent(self, sequence: int | None) -> None:
        """Note that it was."""
        if sequence is not None:
            self.next = sequence + 1


class Availability(grpc.aio.ServerInterceptor):
    """Refuses what may not begin now, and ends what may not go on.

    It stands behind the check of keys, which maps its errors as it does those of any handler.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.latest = 0.0
        """When a call came or ended last, on `time.monotonic()`."""
        self._calls: set[_Call] = set()
        self._working: dict[_Call, asyncio.Task[Any]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def move(self, phase: Phase) -> None:
        """Go on to a phase. With `Phase.ENDED` every call ends that is under way."""
        if phase not in _FOLLOWS[self.phase]:
            raise ValueError(f"{phase} does not follow {self.phase}")
        self.phase = phase
        if phase is Phase.ENDED:
            for call, task in self._working.items():
                call.ended = True
                task.cancel()

    async def idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler. Of other services than ours nothing is refused."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if not method.startswith("/rlm."):
            return handler
        if self.phase is Phase.STARTING:
            return grpc.unary_unary_rpc_method_handler(_not_yet, request_deserializer=bytes, response_serializer=bytes)
        return handler if handler is None else self._kept(handler, places=method.rpartition("/")[2] in PLACES)

    def _kept(self, handler: Any, *, places: bool) -> Any:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = kinds[2 * handler.request_streaming + handler.response_streaming]
        inner = getattr(handler, kind)

        async def one(request: Any, context: Any) -> Any:
            with self._call(request, places=places) as call, self._step(call):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._call(request, places=places) as call:
                async with aclosing(inner(request, _Noting(context, call))) as responses:
                    while True:
                        with self._step(call):
                            response = await anext(responses, None)
                        if response is None:
                            return
                        sequence = call.sending(response)
                        yield response
                        call.sent(sequence)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            stream if handler.response_streaming else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def _call(self, request: Any, *, places: bool) -> Iterator[_Call]:
        """Count a call while it is under way.

        Raises:
            ServerStopping: it may not begin.
        """
        asked = getattr(request, "from_sequence", None)
        call = _Call(asked if isinstance(asked, int) else None)
        self.latest = time.monotonic()
        if places and self.phase is Phase.DRAINING:
            raise ServerStopping(call.next)
        self._calls.add(call)
        self._idle.clear()
        try:
            yield call
        finally:
            self.latest = time.monotonic()
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()

    @contextmanager
    def _step(self, call: _Call) -> Iterator[None]:
        """Let a call work, and end it where the server ends.

        Raises:
            ServerStopping: the server has ended.
        """
        if self.phase is Phase.ENDED:
            raise ServerStopping(call.next)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is not a task")
        self._working[call] = task
        try:
            yield
        except asyncio.CancelledError:
            if call.ended and not task.uncancel():
                raise ServerStopping(call.next) from None
            raise
        finally:
            del self._working[call]


class _Noting:
    """A call's context, which notes the events that a handler writes by itself."""

    def __init__(self, context: Any, call: _Call) -> None:
        self._context, self._call = context, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Write a message."""
        sequence = self._call.sending(message)
        await self._context.write(message)
        self._call.sent(sequence)


async def _not_yet(*_: Any) -> bytes:
    raise ServerStarting
