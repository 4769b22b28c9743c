"""The webhooks of tenants: one each, with a secret that is told once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from rlm_server.clock import DAY_MS, now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request, once
from rlm_server.ledger import events
from rlm_server.webhooks.hosts import Hosts
from rlm_server.webhooks.signature import new_secret

FORMER_MS = DAY_MS
"""For which a secret that was replaced signs beside the new one."""


class WebhookUnknown(Exception):
    """The tenant has no webhook."""

    def __init__(self) -> None:
        super().__init__("the tenant has no webhook")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a tenant's events are sent. Times are Unix milliseconds."""

    tenant: str
    url: str
    enabled: bool
    created_at: int
    changed_at: int


@dataclass(frozen=True, slots=True)
class Destination:
    """A webhook with the secrets that sign now."""

    url: str
    secrets: tuple[str, ...]


_webhooks = TypeAdapter(Webhook)


class Webhooks:
    """The webhooks in the database. `hosts` are those that may be sent to."""

    def __init__(self, database: Database, hosts: Hosts) -> None:
        self._database, self._hosts = database, hosts

    def check(self, url: str) -> None:
        """Refuse a URL that no event may be sent to.

        Raises:
            WrongUrl: nothing may be sent there.
        """
        self._hosts.check(url)

    async def set(
        self, tenant: str, url: str, *, rotate: bool = False, request: Request | None = None
    ) -> tuple[Webhook, str]:
        """Have a tenant's events sent to a URL from now on; return what is kept, and a secret that was made for it.

        A secret is made for a tenant's first webhook, and with `rotate`; the former one signs too for a day. Where the
        request was answered before, it is not told again.

        Raises:
            WrongUrl: nothing may be sent there.
            RequestIdReused: the request asked for something else before.
        """
        self.check(url)
        fresh = new_secret()

        def work(connection: Connection) -> Webhook:
            at, known = now(), _find(connection, tenant)
            made = Webhook(tenant, url, True, known.created_at if known is not None else at, at)
            if known is None:
                connection.execute(
                    "INSERT INTO webhook (tenant, url, secret, enabled, created_at, changed_at) "
                    "VALUES (?, ?, ?, 1, ?, ?)",
                    (tenant, url, fresh, at, at),
                )
                return made
            connection.execute(
                "UPDATE webhook SET url = ?, enabled = 1, changed_at = ? WHERE tenant = ?", (url, at, tenant)
            )
            if rotate:
                connection.execute(
                    "UPDATE webhook SET former = secret, former_until = ?, secret = ? WHERE tenant = ?",
                    (at + FORMER_MS, fresh, tenant),
                )
            return made

        def write(connection: Connection) -> tuple[Webhook, bool]:
            is_new = rotate or _find(connection, tenant) is None
            made, repeated = once(connection, request, _webhooks, lambda: work(connection), now())
            return made, is_new and not repeated

        made, told = await self._database.write(write)
        return made, fresh if told else ""

    async def get(self, tenant: str) -> Webhook:
        """Return a tenant's webhook.

        Raises:
            WebhookUnknown: it has none.
        """
        return await self._database.read(lambda connection: _get(connection, tenant))

    async def disable(self, tenant: str, request: Request | None = None) -> Webhook:
        """Have nothing more be sent: what is due is not, and later events are not either until `set` says so.

        Raises:
            WebhookUnknown: it has none.
            RequestIdReused: the request asked for something else before.
        """

        def work(connection: Connection) -> Webhook:
            known, at = _get(connection, tenant), now()
            connection.execute("UPDATE webhook SET enabled = 0, changed_at = ? WHERE tenant = ?", (at, tenant))
            connection.execute("UPDATE budget_event SET due_at = NULL WHERE tenant = ? AND due_at > 0", (tenant,))
            return replace(known, enabled=False, changed_at=at)

        disabled, _ = await self._database.write(
            lambda connection: once(connection, request, _webhooks, lambda: work(connection), now())
        )
        return disabled

    async def destination(self, tenant: str) -> Destination | None:
        """Return where a tenant's events are sent, and what signs them; None where they are not."""
        query = "SELECT url, secret, former, former_until FROM webhook WHERE tenant = ? AND enabled = 1"
        row = await self._database.read(lambda connection: connection.execute(query, (tenant,)).fetchone())
        if row is None:
            return None
        url, secret, former, until = row
        return Destination(url, (secret, former) if former and now() < until else (secret,))

    async def forget(self, tenant: str) -> None:
        """Forget a tenant's webhook and events, as it is deleted."""

        def write(connection: Connection) -> None:
            connection.execute("DELETE FROM webhook WHERE tenant = ?", (tenant,))
            events.forget(connection, tenant)

        await self._database.write(write)


def _get(connection: Connection, tenant: str) -> Webhook:
    found = _find(connection, tenant)
    if found is None:
        raise WebhookUnknown
    return found


def _find(connection: Connection, tenant: str) -> Webhook | None:
    query = "SELECT tenant, url, enabled, created_at, changed_at FROM webhook WHERE tenant = ?"
    row = connection.execute(query, (tenant,)).fetchone()
    return None if row is None else Webhook(row[0], row[1], bool(row[2]), row[3], row[4])
