"""An operator of a server in this process, with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import tenant_pb2, tenant_pb2_grpc

from tests.servers import Server
from tests.system.stage import Caller


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so, as far as it can be asked."""
    async with asyncio.timeout(30):
        so = await condition()
        while not so:
            await asyncio.sleep(0.05)
            so = await condition()


class Operator:
    """Makes the calls of `TenantService`."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._stub: Any = tenant_pb2_grpc.TenantServiceStub(caller.channel)

    async def call(self, request: Any) -> Any:
        """Make the call that a request is of."""
        name = type(request).__name__.removesuffix("Request")
        return await getattr(self._stub, name)(request, metadata=self.caller.metadata)

    async def create(self, tenant_id: str, request_id: str = "", **terms: Any) -> tenant_pb2.Tenant:
        tenant = tenant_pb2.Tenant(tenant_id=tenant_id, **terms)
        made: tenant_pb2.Tenant = (
            await self.call(tenant_pb2.CreateTenantRequest(tenant=tenant, request_id=request_id))
        ).tenant
        return made

    async def get(self, tenant_id: str) -> tenant_pb2.GetTenantResponse:
        found: tenant_pb2.GetTenantResponse = await self.call(tenant_pb2.GetTenantRequest(tenant_id=tenant_id))
        return found

    async def limits(self, tenant_id: str) -> dict[str, float]:
        return {limit.name: limit.value for limit in (await self.get(tenant_id)).limits}

    async def update(self, tenant_id: str, *paths: str, request_id: str = "", **terms: Any) -> tenant_pb2.Tenant:
        request = tenant_pb2.UpdateTenantRequest(
            tenant=tenant_pb2.Tenant(tenant_id=tenant_id, **terms),
            update_mask=FieldMask(paths=paths),
            request_id=request_id,
        )
        changed: tenant_pb2.Tenant = (await self.call(request)).tenant
        return changed

    async def delete(self, tenant_id: str, *, force: bool = False, request_id: str = "") -> tenant_pb2.Tenant:
        request = tenant_pb2.DeleteTenantRequest(tenant_id=tenant_id, force=force, request_id=request_id)
        deleted: tenant_pb2.Tenant = (await self.call(request)).tenant
        return deleted

    async def key(self, tenant_id: str, **asked: Any) -> tenant_pb2.CreateApiKeyResponse:
        made: tenant_pb2.CreateApiKeyResponse = await self.call(
            tenant_pb2.CreateApiKeyRequest(tenant_id=tenant_id, **asked)
        )
        return made

    async def keys(self, tenant_id: str, **asked: Any) -> list[tenant_pb2.ApiKey]:
        return list((await self.call(tenant_pb2.ListApiKeysRequest(tenant_id=tenant_id, **asked))).keys)

    async def revoke(self, key_id: str, request_id: str = "") -> tenant_pb2.ApiKey:
        request = tenant_pb2.RevokeApiKeyRequest(key_id=key_id, request_id=request_id)
        revoked: tenant_pb2.ApiKey = (await self.call(request)).key
        return revoked


@asynccontextmanager
async def operating(served: Server) -> AsyncIterator[Operator]:
    """An operator with a new key."""
    _, secret = await served.running.keys.create(None)
    yield Operator(served.another(secret))
