"""The servicer of `ServerService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.api.auth import tenant

Used = Callable[[str], int | Awaitable[int]]
"""Returns what a tenant has, at once or after a look into the database."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One thing that a tenant may have so much of. `limit` and `used` return how much, in `unit`, of a tenant's."""

    name: str
    unit: str
    limit: Callable[[str], int]
    used: Used


class ServerServicer(server_pb2_grpc.ServerServiceServicer):
    """Tells tenants what they may have of the server."""

    def __init__(self, gauges: Sequence[Gauge]) -> None:
        self._gauges = gauges

    async def GetQuota(self, request: server_pb2.GetQuotaRequest, context: Any) -> server_pb2.GetQuotaResponse:
        """Tell what the caller's tenant may have, and has."""
        response = server_pb2.GetQuotaResponse()
        for one in self._gauges:
            used = one.used(tenant())
            response.quotas.add(
                name=one.name,
                unit=one.unit,
                limit=one.limit(tenant()),
                used=used if isinstance(used, int) else await used,
            )
        return response
