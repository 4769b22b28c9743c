"""Tenants' keys. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection

KEY_PREFIX = "rlm_"
_SHOWN = 10


class Keys:
    """The keys by which tenants may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant: str) -> str:
        """Make a key for a tenant and return it: the only time it is seen."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)

        def write(connection: Connection) -> None:
            row = (_sha256(key), key[:_SHOWN], tenant, now())
            connection.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, NULL)", row)

        await self._database.write(write)
        return key

    async def tenant_of(self, key: str) -> str | None:
        """Return whose key this is, or None for an unknown or revoked one."""

        def read(connection: Connection) -> str | None:
            row = connection.execute(
                "SELECT tenant FROM api_key WHERE sha256 = ? AND revoked_at IS NULL", (_sha256(key),)
            ).fetchone()
            return None if row is None else str(row[0])

        return await self._database.read(read)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
