"""Tenants' keys. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection

KEY_PREFIX = "rlm_"
MAX_WAITING_CHECKS = 256
"""Keys never seen before that wait to be looked up."""
_SHOWN = 10
_KEY = re.compile(KEY_PREFIX + "[A-Za-z0-9_-]{1,100}")


class TooManyChecks(Exception):
    """As many keys never seen before wait to be looked up as may. Those that were valid before wait for none."""


@dataclass(slots=True)
class _LookedUp:
    """How often a key's owner was asked for and told, and who it is."""

    asked: int = 0
    told: int = 0
    owner: str | None = None
    line: asyncio.Lock = field(default_factory=asyncio.Lock)


class Keys:
    """The keys by which tenants may call.

    A key that was valid before is looked up at once, and only once for all calls that wait for that: however many a
    tenant makes, it has one of the database's readers. Other keys are looked up one at a time, so that strangers who
    guess keys have one reader, too, and keep no tenant waiting.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, _LookedUp] = {}
        """By hash, the keys that were valid when they were looked up last."""
        self._one_stranger = asyncio.Lock()
        self._waiting = 0

    async def create(self, tenant: str) -> str:
        """Make a key for a tenant and return it: the only time it is seen."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)

        def write(connection: Connection) -> None:
            row = (_sha256(key), key[:_SHOWN], tenant, now())
            connection.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, NULL)", row)

        await self._database.write(write)
        return key

    async def tenant_of(self, key: str) -> str | None:
        """Return whose key this is, or None for an unknown or revoked one.

        Raises:
            TooManyChecks: too many unknown ones are being looked up.
        """
        if not _KEY.fullmatch(key):
            return None
        sha256 = _sha256(key)
        if sha256 in self._known:
            return await self._look_up_again(self._known[sha256], sha256)
        if self._waiting >= MAX_WAITING_CHECKS:
            raise TooManyChecks(f"{self._waiting} keys wait to be looked up; try again")
        self._waiting += 1
        try:
            async with self._one_stranger:
                return await self._look_up(sha256)
        finally:
            self._waiting -= 1

    async def _look_up_again(self, key: _LookedUp, sha256: str) -> str | None:
        """Look up a known key, together with others that ask meanwhile: none is told what was so before it asked."""
        wanted = key.asked + 1
        async with key.line:
            if key.told < wanted:
                key.asked += 1
                key.owner = await self._look_up(sha256)
                key.told = key.asked
            return key.owner

    async def _look_up(self, sha256: str) -> str | None:
        def read(connection: Connection) -> str | None:
            row = connection.execute(
                "SELECT tenant FROM api_key WHERE sha256 = ? AND revoked_at IS NULL", (sha256,)
            ).fetchone()
            return None if row is None else str(row[0])

        owner = await self._database.read(read)
        if owner is None:
            self._known.pop(sha256, None)
        else:
            self._known.setdefault(sha256, _LookedUp())
        return owner


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
