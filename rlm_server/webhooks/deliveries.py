"""Sends events to the webhooks of their tenants: each until it is taken, for a day at most."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from contextvars import Context
from datetime import UTC, datetime
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlm_server.clock import DAY_MS, now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError
from rlm_server.ledger import BudgetEvent, names
from rlm_server.ledger.events import SELECT, event_of
from rlm_server.shares.gate import Gate
from rlm_server.webhooks.hosts import AddressRefused, Hosts, WrongUrl
from rlm_server.webhooks.signature import headers
from rlm_server.webhooks.webhooks import Destination, Webhooks, WebhookUnknown
from sandbox.cancellation import cancel_and_wait

if TYPE_CHECKING:
    import aiohttp

    from rlm_server.webhooks.resolver import PublicResolver

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 10.0
"""Seconds of one attempt, from the look-up of the host to the status of the answer."""
AT_ONCE = 16
"""Attempts to send events that are under way, of all tenants; of one tenant there is one."""
FIRST_RETRY_MS, MAX_RETRY_MS = 5_000, 2 * 60 * 60_000
"""After the first failure, and at most: each wait is twice the one before, and up to a quarter longer by chance."""
GIVEN_UP_MS = DAY_MS
"""Milliseconds after an event in which it is sent for the last time."""
LOOK_SECONDS = 5.0
"""Between two looks for what is due, where nothing tells of it."""
TENANTS_AT_ONCE = 100
"""Tenants that are read to have something due."""
MAX_FAILURE = 200
"""Characters that are kept of why an attempt failed."""


class DeliveryFailed(Exception):
    """An attempt failed; the message says how, in words that tell nothing of what the receiver answered."""


class Deliveries:
    """Sends what is due. An async context manager: what is not sent when it ends is sent by the next server.

    `weights` are tenants' shares of what goes at once. A tenant whose receiver hangs keeps no other waiting: it has one
    attempt under way.
    """

    def __init__(
        self,
        database: Database,
        webhooks: Webhooks,
        hosts: Hosts,
        *,
        weights: Mapping[str, float] | None = None,
        clock: Callable[[], int] = now,
        resolver: PublicResolver | None = None,
    ) -> None:
        self._database, self._webhooks, self._hosts, self._clock = database, webhooks, hosts, clock
        self._resolver = resolver
        self._gate = Gate(calls=AT_ONCE, tenant_calls=1, weights=weights)
        self._client: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()
        self._wake = asyncio.Event()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look(), context=Context())  # nobody's call pays for it
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._looking, *self._sending.values()):
            if task is not None:
                await cancel_and_wait(task)
        if self._client is not None:
            await self._client.close()

    async def _opened(self) -> aiohttp.ClientSession:
        """Return the client, which is imported and made for the first event: most servers send none."""
        async with self._opening:
            if self._client is None:
                await asyncio.to_thread(import_module, "rlm_server.webhooks.resolver")
                import aiohttp

                from rlm_server.webhooks.resolver import PublicResolver

                resolver = self._resolver or PublicResolver(self._hosts)
                self._client = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True, limit=0),
                    timeout=aiohttp.ClientTimeout(total=ATTEMPT_SECONDS),
                    trust_env=False,
                    auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._client

    def wake(self) -> None:
        """Hear that something may be due."""
        self._wake.set()

    async def _look(self) -> None:
        while True:
            self._wake.clear()
            try:
                for tenant in await self._database.read(lambda connection: _tenants_due(connection, self._clock())):
                    if tenant not in self._sending:
                        self._sending[tenant] = asyncio.create_task(self._send_all(tenant))
            except DatabaseError as error:
                log.warning("what is due to be sent is looked for later, as the database failed: %s", error)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _send_all(self, tenant: str) -> None:
        """Send all that is due of a tenant, one after another."""
        try:
            while event := await self._database.read(lambda connection: _due(connection, tenant, self._clock())):
                destination = await self._webhooks.destination(tenant)
                await self._attempt(event, destination)
            self.wake()  # for one that came since
        except DatabaseError as error:
            log.warning("the events of a tenant are sent later, as the database failed: %s", error)
        finally:
            del self._sending[tenant]

    async def _attempt(self, event: BudgetEvent, destination: Destination | None) -> None:
        failure = ""
        if destination is not None:
            try:
                await self._post(event.tenant, destination, event.id, _body_of(event))
            except DeliveryFailed as error:
                failure = str(error)
        outcome = _outcome(event, failure, self._clock(), nowhere=destination is None)
        await self._database.write(lambda connection: connection.execute(_KEEP, (*outcome, event.number)))

    async def test(self, tenant: str) -> str:
        """Send a tenant an event that says nothing, once, and return why that failed; empty where it was taken.

        Raises:
            WebhookUnknown: it has no webhook, or it is disabled.
        """
        destination = await self._webhooks.destination(tenant)
        if destination is None:
            raise WebhookUnknown
        id = f"evt_test_{secrets.token_hex(12)}"
        try:
            await self._post(tenant, destination, id, _body("webhook.test", self._clock(), {"tenant_id": tenant}))
        except DeliveryFailed as error:
            return str(error)
        return ""

    async def _post(self, tenant: str, destination: Destination, id: str, body: bytes) -> None:
        """Make one attempt, in the tenant's turn.

        Raises:
            DeliveryFailed: it was not taken.
        """
        async with self._gate.slot(tenant, tenant, deadline=None):
            sent = {
                **headers(destination.secrets, id, self._clock(), body),
                "content-type": "application/json",
                "user-agent": "rlm-server",
            }
            client = await self._opened()
            import aiohttp  # which is there by now

            try:
                self._hosts.check(destination.url)  # which the operator may have taken off the list since
                async with client.post(
                    destination.url, data=body, headers=sent, allow_redirects=False
                ) as answer:  # whose body is not read
                    status = answer.status
            except WrongUrl as error:
                raise DeliveryFailed(str(error)) from None
            except TimeoutError:
                raise DeliveryFailed(f"there was no answer within {ATTEMPT_SECONDS:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise DeliveryFailed(_words(error)) from None
        if not 200 <= status < 300:
            raise DeliveryFailed(f"the answer was {status}, not one of 200 to 299")


def _words(error: Exception) -> str:
    below = getattr(error, "os_error", None)  # what aiohttp has wrapped
    error = below if isinstance(below, AddressRefused) else error
    return f"it could not be sent: {error or type(error).__name__}"[:MAX_FAILURE]


def _body_of(event: BudgetEvent) -> bytes:
    data: dict[str, Any] = {
        "number": event.number,
        "account_id": names.public(event.account),
        "model": event.scope.model,
        "window": "" if event.scope.span is None else event.scope.span,
        "window_label": event.label,
        "unit": event.unit,
        "percent": event.percent,
        "threshold": event.threshold,
        "limit": event.limited,
        "used": event.used,
    }
    return _body("budget.soft_limit_crossed", event.at, data)


def _body(kind: str, at: int, data: Mapping[str, Any]) -> bytes:
    time = f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at % 1000:03}Z"
    return json.dumps({"type": kind, "timestamp": time, "data": data}, separators=(",", ":")).encode()


_KEEP = (
    "UPDATE budget_event SET attempts = ?, due_at = ?, delivered_at = ?, given_up_at = ?, failure = ? WHERE number = ?"
)


def _outcome(
    event: BudgetEvent, failure: str, at: int, *, nowhere: bool
) -> tuple[int, int | None, int | None, int | None, str]:
    """What is kept of an event after an attempt: how many there were, when the next is due, and how it ended."""
    if nowhere:
        return event.attempts, None, None, None, event.failure
    attempts = event.attempts + 1
    if not failure:
        return attempts, None, at, None, ""
    wait = min(FIRST_RETRY_MS << min(event.attempts, 20), MAX_RETRY_MS)
    due = at + wait + random.randrange(wait // 4)  # noqa: S311 - it spreads attempts, and guards nothing
    if due > event.at + GIVEN_UP_MS:
        log.warning("event %s was given up after %d attempts: %s", event.id, attempts, failure)
        return attempts, None, None, at, failure
    return attempts, due, None, None, failure


def _tenants_due(connection: Connection, at: int) -> list[str]:
    query = "SELECT tenant FROM budget_event WHERE due_at <= ? GROUP BY tenant ORDER BY min(due_at) LIMIT ?"
    return [str(tenant) for (tenant,) in connection.execute(query, (at, TENANTS_AT_ONCE)).fetchall()]


def _due(connection: Connection, tenant: str, at: int) -> BudgetEvent | None:
    where = "tenant = ? AND due_at <= ? ORDER BY due_at, number LIMIT 1"
    row = connection.execute(SELECT + where, (tenant, at)).fetchone()
    return None if row is None else event_of(row)
