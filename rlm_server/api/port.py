"""The server's port: opened while the server still starts, and closed in order when it stops."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlm_server.api.availability import Availability, Phase
from rlm_server.api.certificates import Certificate, Certificates
from rlm_server.api.health import Health, Obstacle
from rlm_server.api.reflection import reflect
from rlm_server.api.transport import OPTIONS
from rlm_server.config.settings import Settings
from sandbox.cancellation import cancel_and_wait, run_to_completion

LAST_SECONDS = 0.75
"""What calls get to end that were told to: a turn is rolled back before its stream ends. Callers may go on coming."""
QUIET_SECONDS = 0.25
"""No call has come or ended for so long when the port is closed, unless calls come all the time."""
CLOSING_SECONDS = 0.5
"""What the last answers get to be sent."""
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Handlers(grpc.GenericRpcHandler):
    """The handlers of services that are added while gRPC serves already, which takes none itself by then.

    To the generated code that adds a servicer it is a server.
    """

    def __init__(self) -> None:
        self._added: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Take a service's handlers."""
        self._added += handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Take the same once more, as the generated code has it."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return a method's handler; None where there is none yet."""
        found = (handlers.service(handler_call_details) for handlers in self._added)
        return next((handler for handler in found if handler is not None), None)


@dataclass(frozen=True, slots=True)
class Port:
    """A port that is open. `health_address` is empty where health has no port of its own."""

    server: Any
    handlers: Handlers
    address: str
    health_address: str
    health: Health
    availability: Availability
    settings: Settings

    @property
    def ended(self) -> bool:
        """Whether calls that are cancelled are so because the server stops."""
        return self.availability.phase is Phase.ENDED

    @asynccontextmanager
    async def serving(self, hurry: asyncio.Event) -> AsyncIterator[None]:
        """Take calls until the context ends; then stop in order, and at once where `hurry` is set."""
        self.availability.move(Phase.SERVING)
        self.health.clear(Obstacle.STARTING)
        try:
            yield
        finally:
            await run_to_completion(self._drain(hurry))

    async def _drain(self, hurry: asyncio.Event) -> None:
        self.health.obstruct(Obstacle.STOPPING)
        self.availability.move(Phase.DRAINING)
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            if self.settings.drain_seconds and self.health.heeded:
                await asyncio.wait((hurried,), timeout=self.settings.drain_seconds)
            ended = asyncio.ensure_future(self.availability.idle())
            await asyncio.wait((hurried, ended), timeout=self.settings.grace_seconds, return_when="FIRST_COMPLETED")
            self.availability.move(Phase.ENDED)
            self.health.close()
            await asyncio.wait((ended,), timeout=LAST_SECONDS)
            await cancel_and_wait(ended)
            if self.settings.drain_seconds:
                await self._quiet()
        finally:
            await cancel_and_wait(hurried)
        # At once where the last answers were sent a while ago: who comes while gRPC waits is told CANCELLED, and who
        # finds the connection closed UNAVAILABLE.
        await self.server.stop(None if self.settings.drain_seconds else CLOSING_SECONDS)

    async def _quiet(self) -> None:
        """Wait until callers have stopped coming back: gRPC would only say CANCELLED to one who comes as it stops."""
        for _ in range(round(LAST_SECONDS / QUIET_SECONDS)):
            if time.monotonic() - self.availability.latest >= QUIET_SECONDS:
                return
            await asyncio.sleep(QUIET_SECONDS)


@asynccontextmanager
async def opened(
    settings: Settings,
    certificate: Certificate | None,
    services: Sequence[str],
    interceptors: Sequence[Any],
    check_database: Callable[[], Awaitable[None]],
) -> AsyncIterator[Port]:
    """Listen where the settings say, with health and reflection. No other call is taken before `Port.serving`.

    `services` are the full names of those that `Port.handlers` is to be given. `interceptors` come before all calls.

    Raises:
        OSError: an address cannot be listened on; the message names the setting and says why.
    """
    health, availability = Health(services), Availability()
    server = grpc.aio.server(interceptors=[*interceptors, availability], options=OPTIONS)
    handlers = Handlers()
    server.add_generic_rpc_handlers((handlers,))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflect(server, [*services, _HEALTH])
    credentials = None if certificate is None else Certificates(settings, certificate).credentials()
    address = _listen(server, "listen", settings.listen, credentials)
    alone, health_address = None, ""
    if settings.health_listen:
        alone = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(health, alone)
        health_address = _listen(alone, "health_listen", settings.health_listen, None)
    await server.start()
    if alone is not None:
        await alone.start()
    looking = asyncio.create_task(health.watch_database(check_database))
    try:
        yield Port(server, handlers, address, health_address, health, availability, settings)
    finally:
        await cancel_and_wait(looking)
        health.close()
        if alone is not None:
            await alone.stop(CLOSING_SECONDS)
        await server.stop(None)


def _listen(server: Any, setting: str, address: str, credentials: Any) -> str:
    host = address.rpartition(":")[0]
    try:
        if credentials is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, credentials)}"
    except RuntimeError as error:
        raise OSError(f"{setting}: {address} cannot be listened on: {_why(address)}") from error


def _why(address: str) -> str:
    """Find out why an address cannot be listened on, as gRPC does not tell."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return f"the host {host} is not known"
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.bind(place)
        except OSError as error:
            return _WHYS.get(error.errno or 0, os.strerror(error.errno or 0))
    return "the system does not say why"


_WHYS = {
    errno.EADDRINUSE: "something else listens there: is another server there?",
    errno.EADDRNOTAVAIL: "it is no address of this machine",
    errno.EACCES: "this user may not listen on that port",
}
