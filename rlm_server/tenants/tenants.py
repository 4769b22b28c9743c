"""Tenants: whom everything belongs to."""

from __future__ import annotations

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection


class Tenants:
    """Who may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, tenant: str) -> None:
        """Create a tenant unless it exists."""

        def write(connection: Connection) -> None:
            connection.execute("INSERT INTO tenant VALUES (?, ?) ON CONFLICT DO NOTHING", (tenant, now()))

        await self._database.write(write)
