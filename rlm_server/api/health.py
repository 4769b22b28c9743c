"""Health, as `grpc.health.v1` tells it: whether calls are worth making, by what stands in their way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlm_server.database.engine import DatabaseError
from sandbox.cancellation import cancel_and_wait

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the database."""
ANSWER_SECONDS = 2.0
"""A database that has not answered by then is taken for away, until it answers."""

HEEDED_SECONDS = 60.0
"""Who asked no longer ago is taken to ask again."""

_Response = health_pb2.HealthCheckResponse


class Obstacle(StrEnum):
    """Why the server is not serving."""

    STARTING = "it starts"
    DATABASE = "its database is away"
    STOPPING = "it stops"


class Health(health_pb2_grpc.HealthServicer):
    """Tells `SERVING` of the server and each of its services while nothing is in the way, else `NOT_SERVING`.

    It starts with `Obstacle.STARTING`. Watchers are told of each change, and one that reads slowly keeps nobody
    waiting.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset({"", *services})
        self._obstacles = {Obstacle.STARTING}
        self._changed = asyncio.Event()
        self._closed = False
        self._watchers = 0
        self._asked_at = float("-inf")

    @property
    def heeded(self) -> bool:
        """Whether anybody watches, or has asked lately and so may ask again."""
        return self._watchers > 0 or time.monotonic() - self._asked_at < HEEDED_SECONDS

    @property
    def obstacles(self) -> frozenset[Obstacle]:
        """What is in the way."""
        return frozenset(self._obstacles)

    def obstruct(self, obstacle: Obstacle) -> None:
        """Say that something is in the way."""
        if obstacle not in self._obstacles:
            log.warning("health: not serving, because %s", obstacle)
        self._obstacles.add(obstacle)
        self._tell()

    def clear(self, obstacle: Obstacle) -> None:
        """Say that something is no longer in the way."""
        if obstacle in self._obstacles:
            self._obstacles.remove(obstacle)
            log.info("health: %s no longer", obstacle)
        self._tell()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._tell()

    async def watch_database(self, check: Callable[[], Awaitable[None]]) -> None:
        """Look after the database for ever: `check` raises `DatabaseError` where it cannot be used."""
        asking: asyncio.Future[None] | None = None
        try:
            while True:
                if asking is None:
                    asking = asyncio.ensure_future(check())
                await asyncio.wait((asking,), timeout=ANSWER_SECONDS)
                if not asking.done():
                    self.obstruct(Obstacle.DATABASE)
                    continue
                asked, asking = asking, None
                try:
                    asked.result()
                except DatabaseError:
                    self.obstruct(Obstacle.DATABASE)
                else:
                    self.clear(Obstacle.DATABASE)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            if asking is not None:
                await cancel_and_wait(asking)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> _Response:
        """Tell how things are."""
        self._asked_at = time.monotonic()
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Response(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell how things are, and again whenever that changes."""
        told: int | None = None
        self._watchers += 1
        try:
            while True:
                changed = self._changed
                if (status := self._status(request.service)) != told:
                    told = status
                    await context.write(_Response(status=status))
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return _Response.SERVICE_UNKNOWN
        return _Response.NOT_SERVING if self._obstacles else _Response.SERVING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
