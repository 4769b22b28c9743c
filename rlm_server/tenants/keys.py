"""The keys by which tenants and operators call. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError
from rlm_server.database.requests import Request, once
from rlm_server.ledger import AccountUnknown
from rlm_server.ledger.customers import known_payer
from rlm_server.tenants.changes import next_version
from rlm_server.tenants.checks import WrongTerm
from rlm_server.tenants.tenants import TenantUnknown

KEY_PREFIX = "rlm_"
MAX_WAITING_CHECKS = 256
"""Keys never seen before that wait to be looked up."""
_SHOWN = 10
_KEY = re.compile(KEY_PREFIX + "[A-Za-z0-9_-]{1,100}")


class TooManyChecks(Exception):
    """As many keys never seen before wait to be looked up as may. Those that were valid before wait for none."""


class KeyUnknown(Exception):
    """There is no key of this id."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no key {key[:200]!r}")
        self.key = key


@dataclass(frozen=True, slots=True)
class Holder:
    """Who calls: a tenant, or an operator, whose `tenant` is None.

    `key` is the id of the key, empty where the caller was known by something else. `expires_at` is when that ends to be
    good, in Unix milliseconds.
    """

    tenant: str | None
    key: str = ""
    expires_at: int | None = None
    customer: str = ""
    """The path of the customer that the key is bound to; empty where it is the tenant's as a whole."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. `tenant` is None for an operator's. Times are Unix milliseconds."""

    number: int
    id: str
    prefix: str
    tenant: str | None
    labels: Mapping[str, str]
    created_at: int
    expires_at: int | None = None
    used_at: int | None = None
    revoked_at: int | None = None
    customer: str = ""
    """As a `Holder` has it."""


@dataclass(slots=True)
class _LookedUp:
    """How often it was asked and told who a caller is, and who it is."""

    asked: int = 0
    told: int = 0
    owner: Holder | None = None
    line: asyncio.Lock = field(default_factory=asyncio.Lock)


_keys = TypeAdapter(Key)
_SELECT = (
    "SELECT number, id, prefix, tenant, labels, created_at, expires_at, used_at, revoked_at, customer FROM api_key "
    "WHERE "
)
_GOOD = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
_HOLDER = (
    "SELECT tenant, id, expires_at, customer, (SELECT number FROM tenant_version) FROM api_key "  # noqa: S608
    f"WHERE sha256 = ? AND {_GOOD}"
)


class Keys:
    """The keys by which tenants and operators may call.

    A key that was valid before is looked up at once, and only once for all calls that wait for that: however many a
    tenant makes, it has one of the database's readers. So is a tenant that is known by a name. Other keys are looked up
    one at a time, so that strangers who guess keys have one reader, too, and keep no tenant waiting.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seen: Callable[[int], Awaitable[None]] | None = None
        """Is awaited with the number of the last change to tenants and keys that a look-up has read, before its caller
        is told."""
        self._known: dict[str, _LookedUp] = {}
        """By hash, the keys that were valid when they were looked up last."""
        self._named: dict[str, _LookedUp] = {}
        """By name, the tenants that are looked up by it."""
        self._used: dict[str, int] = {}
        """By id, when keys were used that is not written down yet."""
        self._one_stranger = asyncio.Lock()
        self._waiting = 0

    # ---- making and revoking -------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str | None,
        *,
        account: str = "",
        labels: Mapping[str, str] | None = None,
        expires_at: int | None = None,
        request: Request | None = None,
    ) -> tuple[Key, str]:
        """Make a key for a tenant, or with None for an operator; return it and its secret, which is told this once.

        With an `account` it is for that customer of the tenant alone, and those under it. Where the request was
        answered before, the secret is empty.

        Raises:
            TenantUnknown: there is no such tenant.
            AccountUnknown, AccountClosed, AccountConflict: it has no such customer, or none that can pay.
            WrongTerm: it would have expired already.
            RequestIdReused: the request asked for something else before.
        """
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        key_id = "key_" + secrets.token_hex(16)

        def work(connection: Connection) -> Key:
            if expires_at is not None and expires_at <= now():
                raise WrongTerm("expire_time", "must be in the future")
            if tenant is not None:
                known = "SELECT 1 FROM tenant WHERE id = ? AND deleted_at IS NULL"
                if connection.execute(known, (tenant,)).fetchone() is None:
                    raise TenantUnknown(tenant)
            bound_to = _customer(connection, tenant, account)
            row = (
                key_id, _sha256(secret), secret[:_SHOWN], tenant, json.dumps(dict(labels or {})), now(), expires_at,
                next_version(connection), bound_to,
            )  # fmt: skip
            connection.execute(
                "INSERT INTO api_key (id, sha256, prefix, tenant, labels, created_at, expires_at, version, customer) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return _get(connection, key_id)

        key, repeated = await self._database.write(
            lambda connection: once(connection, request, _keys, lambda: work(connection), now())
        )
        return key, "" if repeated else secret

    async def revoke(self, key: str, request: Request | None = None) -> Key:
        """Revoke a key, by its id; once it is revoked, nothing changes.

        Raises:
            KeyUnknown: there is none.
            RequestIdReused: the request asked for something else before.
        """

        def work(connection: Connection) -> Key:
            _get(connection, key)
            connection.execute(
                "UPDATE api_key SET revoked_at = ?, version = ? WHERE id = ? AND revoked_at IS NULL",
                (now(), next_version(connection), key),
            )
            return _get(connection, key)

        revoked, _ = await self._database.write(
            lambda connection: once(connection, request, _keys, lambda: work(connection), now())
        )
        return revoked

    async def page(self, tenant: str | None, after: int, most: int, *, inactive: bool = False) -> list[Key]:
        """Return a tenant's keys, or with None operators', in the order they were made, after the one of a number.

        Those that work no more are among them where they are asked for.
        """
        whose = "tenant IS NULL" if tenant is None else "tenant = ?"
        where = f"{whose} AND number > ? AND ({_GOOD} OR ? = 1) ORDER BY number LIMIT ?"
        values = (*(() if tenant is None else (tenant,)), after, now(), int(inactive), most)
        return await self._database.read(
            lambda connection: [_key(row) for row in connection.execute(_SELECT + where, values).fetchall()]
        )

    async def revoked_since(self, seen: int) -> list[str]:
        """Return the ids of the keys that were revoked after a version of tenants and keys."""
        query = "SELECT id FROM api_key WHERE revoked_at IS NOT NULL AND version > ?"
        return await self._database.read(
            lambda connection: [id for (id,) in connection.execute(query, (seen,)).fetchall()]
        )

    async def record_use(self) -> None:
        """Write down when keys were used since this was done last.

        Raises:
            DatabaseError: the database failed; it is still to be written down.
        """
        used, self._used = self._used, {}
        if not used:
            return
        rows = [(at, id) for id, at in used.items()]
        try:
            await self._database.write(
                lambda connection: connection.executemany("UPDATE api_key SET used_at = ? WHERE id = ?", rows)
            )
        except DatabaseError:
            self._used = used | self._used
            raise

    # ---- looking up ----------------------------------------------------------------------------------------------

    async def holder_of(self, key: str) -> Holder | None:
        """Return who calls with this key, or None for one that is unknown, revoked or expired.

        Raises:
            TooManyChecks: too many unknown ones are being looked up.
        """
        if not _KEY.fullmatch(key):
            return None
        sha256 = _sha256(key)
        if sha256 in self._known:
            return await _together(self._known[sha256], partial(self._look_up, sha256))
        if self._waiting >= MAX_WAITING_CHECKS:
            raise TooManyChecks(f"{self._waiting} keys wait to be looked up; try again")
        self._waiting += 1
        try:
            async with self._one_stranger:
                return await self._look_up(sha256)
        finally:
            self._waiting -= 1

    async def holder_named(self, tenant: str) -> Holder | None:
        """Return the tenant of this name as a caller, or None where there is none.

        This is for callers who are known by something else than a key, such as the name in a certificate. Only names
        that the configuration holds are asked for.
        """
        return await _together(self._named.setdefault(tenant, _LookedUp()), partial(self._look_up_name, tenant))

    async def _look_up_name(self, tenant: str) -> Holder | None:
        query = "SELECT id, (SELECT number FROM tenant_version) FROM tenant WHERE id = ? AND deleted_at IS NULL"
        row = await self._database.read(lambda connection: connection.execute(query, (tenant,)).fetchone())
        if row is None:
            return None
        if self.seen is not None:
            await self.seen(int(row[1]))
        return Holder(str(row[0]))

    async def _look_up(self, sha256: str) -> Holder | None:
        def read(connection: Connection) -> tuple[Any, ...] | None:
            row: tuple[Any, ...] | None = connection.execute(_HOLDER, (sha256, now())).fetchone()
            return row

        row = await self._database.read(read)
        if row is None:
            self._known.pop(sha256, None)
            return None
        self._known.setdefault(sha256, _LookedUp())
        tenant, key_id, expires_at, customer, version = row
        self._used[key_id] = now()
        if self.seen is not None:
            await self.seen(version)
        return Holder(tenant, key_id, expires_at, customer)


async def _together(one: _LookedUp, look_up: Callable[[], Awaitable[Holder | None]]) -> Holder | None:
    """Look a caller up together with others that ask meanwhile: none is told what was so before it asked."""
    wanted = one.asked + 1
    async with one.line:
        if one.told < wanted:
            one.asked += 1
            one.owner = await look_up()
            one.told = one.asked
        return one.owner


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _customer(connection: Connection, tenant: str | None, account: str) -> str:
    """Return the path of a customer by its id; empty where none is named."""
    if not account:
        return ""
    if tenant is None:
        raise WrongTerm("account_id", "must be empty, as an operator's key is of no tenant")
    known = known_payer(connection, tenant, account)
    if known is None:
        raise AccountUnknown(account)
    return known.path


def _get(connection: Connection, key: str) -> Key:
    row = connection.execute(f"{_SELECT} id = ?", (key,)).fetchone()
    if row is None:
        raise KeyUnknown(key)
    return _key(row)


def _key(row: tuple[Any, ...]) -> Key:
    number, id, prefix, tenant, labels, *times = row
    return Key(number, id, prefix, tenant, json.loads(labels), *times)
