"""How much of the server a tenant's calls may take at once: calls under way, open streams, bytes of requests.

A call is counted once its key was checked, and before any of its messages is received.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

from rlm_server.shares.gate import Gate
from rlm_server.shares.held import Held
from rlm_server.shares.host_time import MESSAGE_BYTES, HostTime
from rlm_server.shares.shares import Shares

MAX_REQUEST = (1 << 20) + (64 << 10)
"""Bytes of a request: a turn's code, and room for what else there is. A message of a stream may have `MAX_MESSAGE`."""
REQUEST_COPIES = 3
"""How often a request's bytes are in memory while it is served: as they came, as a message, and as its texts."""
REQUESTS_PART = 0.125
"""Of what may be held for a tenant, the most that its requests may take."""
RECEIVED_AT_ONCE = 4
"""Requests of one tenant that are being received. Others wait, and nothing of them is in memory yet. As many more may
be that end things, or show why others wait: those wait for no other."""
REFUSAL_SECONDS = 1.0
"""How long a call waits to be told that its tenant has too many under way: else it would come again at once."""
CALL_MESSAGES = 2
"""As many messages more than one a call's beginning and end count as, whatever it says."""
RECEIVE_SECONDS = 60.0
"""How long a request may take to come, once it is waited for."""
STRANGERS_AT_ONCE, STRANGER_SECONDS = 4, 0.04
"""Calls without a key that begin at once, and how long each has its place: so a hundred a second do."""
MAX_WAITING_STRANGERS = 8_192
"""Calls that need no key and wait for their turn, of all callers together. Callers take turns by their addresses."""
MAX_OPEN_STREAMS = 64
"""Streams of those calls that need no key, such as a watch of the server's health, of all callers together."""

FREE_OF_DEBT = frozenset(
    {
        "CancelRun",
        "DeleteRun",
        "DeleteSession",
        "InterruptSession",
        "DeleteSnapshot",
        "DeleteContext",
        "GetBudget",
        "GetQuota",
        "ListUsage",
    }
)
"""Calls that are served to a tenant that owes too much: what ends things, and what shows it why."""


class TooManyCalls(Exception):
    """There are as many calls under way as may be, or as many open streams. `unit` is the name of that limit."""

    def __init__(self, unit: str, limit: int, used: int, what: str) -> None:
        super().__init__(f"{what}: {used} of them; the limit is {limit} ({unit})")
        self.unit, self.limit, self.used = unit, limit, used


class TooManyRequests(TooManyCalls):
    """A tenant has as many calls under way as it may."""


class TooManyStreams(TooManyCalls):
    """A tenant has as many open streams as it may."""


class RequestTooLarge(Exception):
    """A request has more bytes than any request needs."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a request may have {MAX_REQUEST} bytes, not {size}; a text belongs into a context")
        self.limit, self.asked = MAX_REQUEST, size


class RequestNotReceived(Exception):
    """A call has no request, or it does not come."""


def check_size(size: int) -> None:
    """Refuse a message that is longer than any needs to be.

    Raises:
        RequestTooLarge: it is.
    """
    if size > MAX_REQUEST:
        raise RequestTooLarge(size)


def _ends(method: str) -> bool:
    """Whether a method ends things, or shows why others wait."""
    return method.rpartition("/")[2] in FREE_OF_DEBT


@contextmanager
def _counted(count: Counter[str], tenant: str) -> Iterator[None]:
    count[tenant] += 1
    try:
        yield
    finally:
        count[tenant] -= 1
        if not count[tenant]:
            del count[tenant]


class Admission:
    """Counts each tenant's calls and what their requests take."""

    def __init__(self, shares: Shares) -> None:
        self._limits, self._held, self._host_times = shares.limits, shares.held, shares.host_times
        self._pace = shares.pace
        self._check_paid: Callable[[str], None] = lambda _: None
        self._request_bytes = Held(lambda tenant: int(shares.limits(tenant).tenant_held_bytes * REQUESTS_PART))
        self._strangers = Gate(calls=STRANGERS_AT_ONCE)
        self._receiving, self._receiving_ends = Gate(tenant_calls=RECEIVED_AT_ONCE), Gate(tenant_calls=RECEIVED_AT_ONCE)
        self._requests: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._open_streams = 0

    def requests(self, tenant: str) -> int:
        """Return how many calls of a tenant are under way, open streams included."""
        return self._requests.get(tenant, 0)

    def streams(self, tenant: str) -> int:
        """Return how many streams of a tenant are open."""
        return self._streams.get(tenant, 0)

    @contextmanager
    def call(self, tenant: str) -> Iterator[None]:
        """Count a call for as long as the context is open.

        Raises:
            TooManyRequests: the tenant has as many as it may. Nothing is counted.
        """
        most = self._limits(tenant).tenant_requests
        if (used := self.requests(tenant)) >= most:
            raise TooManyRequests("tenant_requests", most, used, "the tenant's calls under way")
        with _counted(self._requests, tenant):
            yield

    @contextmanager
    def stream(self, tenant: str) -> Iterator[None]:
        """Count a stream of a call that was counted, for as long as the context is open.

        Raises:
            TooManyStreams: the tenant has as many as it may. Nothing is counted.
        """
        most = self._limits(tenant).tenant_streams
        if (used := self.streams(tenant)) >= most:
            raise TooManyStreams("tenant_streams", most, used, "the tenant's open streams")
        with _counted(self._streams, tenant):
            yield

    def refuse_debtors(self, check: Callable[[str], None]) -> None:
        """From now on refuse tenants who owe too much: `check` raises for such a one."""
        self._check_paid = check

    def check_paid(self, tenant: str, method: str) -> None:
        """Refuse a tenant that owes more than it may for the work of this server, unless it ends or looks at things.

        Raises:
            BudgetError: its budget has no room for what it owes.
        """
        if not _ends(method):
            self._check_paid(tenant)

    async def pace(self, tenant: str, method: str) -> None:
        """Wait until a tenant's call may go on; not long where it ends things, or shows why others wait."""
        if _ends(method):
            await self._pace.wait_briefly(tenant)
        else:
            await self._pace.wait(tenant)

    @asynccontextmanager
    async def without_key(self, peer: str) -> AsyncIterator[None]:
        """Begin a call that needs no key. Addresses take turns: whoever floods this waits behind itself.

        `peer` is what gRPC calls the caller: its address and port.

        Raises:
            TooManyRequests: as many wait as may.
        """
        waiting = self._strangers.load.waiting
        if waiting >= MAX_WAITING_STRANGERS:
            raise TooManyRequests("waiting_strangers", MAX_WAITING_STRANGERS, waiting, "calls without a key that wait")
        address = peer.rpartition(":")[0]
        async with self._strangers.slot(address, address, deadline=None):
            yield
            await asyncio.sleep(STRANGER_SECONDS)

    def host_time(self, tenant: str) -> HostTime:
        """Return what the work for a tenant's calls is charged to."""
        return self._host_times.of(tenant)

    def begun(self, tenant: str) -> None:
        """Count a call's headers, and how it ends: that is as much work for gRPC as a few messages are."""
        self.message(tenant, CALL_MESSAGES * MESSAGE_BYTES)

    def message(self, tenant: str, size: int = 0) -> None:
        """Count a message of so many bytes that a tenant sent, or is sent."""
        self._host_times.message(tenant, size)

    @contextmanager
    def open_stream(self) -> Iterator[None]:
        """Count a stream that needs no key for as long as the context is open.

        Raises:
            TooManyStreams: there are as many as there may be. Nothing is counted.
        """
        if self._open_streams >= MAX_OPEN_STREAMS:
            used = self._open_streams
            raise TooManyStreams("open_streams", MAX_OPEN_STREAMS, used, "open streams of callers without a key")
        self._open_streams += 1
        try:
            yield
        finally:
            self._open_streams -= 1

    @contextmanager
    def request(self, tenant: str, size: int) -> Iterator[None]:
        """Count the bytes of a request that is being served.

        Raises:
            RequestTooLarge: no request is that large.
            TooMuchHeld: the tenant's requests and whatever else is held for it are as much as may be.
        """
        check_size(size)
        copies = size * REQUEST_COPIES
        with self._request_bytes.holding(tenant, copies, "a request"), self._held.holding(tenant, copies, "a request"):
            yield

    async def received(self, tenant: str, method: str, messages: AsyncGenerator[bytes, None]) -> bytes:
        """Receive a method's request, in the tenant's turn, and close the messages that it was to come in.

        Raises:
            RequestNotReceived: it does not come, or its caller sends none.
        """
        gate = self._receiving_ends if _ends(method) else self._receiving
        try:
            async with (
                aclosing(messages),
                gate.slot(tenant, tenant, deadline=None),
                asyncio.timeout(RECEIVE_SECONDS),
            ):
                return await anext(messages)
        except (StopAsyncIteration, TimeoutError):
            raise RequestNotReceived from None
