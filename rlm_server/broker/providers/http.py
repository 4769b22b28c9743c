"""The HTTP client under the SDKs. It has as many connections as there are calls, and bounds the size of an answer.

The bound is needed because an SDK reads an answer, an error's body or an event of a stream to its end, however long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2

from rlm_server.broker.rate_limit import hear

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection. How long an answer may take is for the caller to say."""

IDLE_SECONDS = 4.0
"""How long a connection is kept for another request. Common servers close one after 5 s; a request that meets the
closing is in doubt, and costs its whole hold."""

POOLS = 16
IDLE_CONNECTIONS = 16
"""Connections are in so many pools, each of which keeps so many idle ones: httpx2 looks at all of a pool's connections
for each request, which at 500 in flight would take it as long as everything else."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
)
"""Silent connections are asked after every 60 s: what is between would forget one on which an answer is waited for."""

ANSWER_BYTES = 1_048_576
ANSWER_BYTES_PER_TOKEN = 1_024
"""How many bytes an answer may have: these, and these for each token of `max_tokens`. An event for one token has some
350 bytes; a token of the longest, escaped, stays below 300."""

ERROR_BYTES = 65_536
"""How much of an error's body is read. Its first words tell what kind it is."""

ERROR_SECONDS = 5.0
"""How long an error's body is waited for; its status is known before."""

_MOST = "x-rlm-most-bytes"


class TooLarge(httpx2.RequestError):
    """An answer was longer than its bound, or was compressed against the request and so could unpack to any size."""


def bounded(max_tokens: int) -> dict[str, str]:
    """Return headers that bound the answer to a request. `Client` takes them off before it sends the request."""
    return {_MOST: str(ANSWER_BYTES + ANSWER_BYTES_PER_TOKEN * max_tokens)}


class Client(httpx2.AsyncClient):
    """Sends an SDK's requests to one address, through the proxy that the environment names for that address."""

    def __init__(self, base_url: str) -> None:
        options: dict[str, Any] = {
            "timeout": httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            "follow_redirects": False,  # the key is for this host
            "headers": {"accept-encoding": "identity"},
        }
        proxy = _proxy(httpx2.URL(base_url))
        super().__init__(**options, transport=_transport(proxy))
        self._pools = [_Pool(httpx2.AsyncClient(**options, transport=_transport(proxy))) for _ in range(POOLS)]

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request. Reading its answer, here or later, may also raise TooLarge."""
        most = int(request.headers.pop(_MOST, ANSWER_BYTES))
        pool = min(self._pools, key=lambda pool: pool.busy)
        response = await pool.send(request, options)
        hear(response.headers)
        encoded = response.headers.pop("content-encoding", "identity") != "identity"
        if response.is_success:
            response.stream = _Answer(response.stream, pool, 0 if encoded else most)
        else:
            response.stream = _Error(response.stream, pool)
        if not stream:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await super().aclose()
        for pool in self._pools:
            await pool.client.aclose()


@dataclass(slots=True)
class _Pool:
    """Some of the connections, and how many requests are under way on them."""

    client: httpx2.AsyncClient
    busy: int = 0

    async def send(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        """Send a request, which is under way until its answer is closed."""
        self.busy += 1
        try:
            return await self.client.send(request, stream=True, **options)
        except BaseException:
            self.busy -= 1
            raise


def _proxy(url: httpx2.URL) -> str | None:
    """Return the proxy of an address, by `HTTPS_PROXY` and its like. None without one or if `NO_PROXY` rules it out."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme, "") or proxies.get("all", "")
    if not proxy or proxy_bypass(url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _transport(proxy: str | None) -> httpx2.AsyncHTTPTransport:
    # The broker decides how many calls go at once. A call that waited here would count as sent.
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=IDLE_CONNECTIONS, keepalive_expiry=IDLE_SECONDS
    )
    return httpx2.AsyncHTTPTransport(verify=_authorities(), limits=limits, proxy=proxy, socket_options=KEEPALIVE)


@cache
def _authorities() -> ssl.SSLContext:
    """Return the trusted authorities, read once for all providers."""
    return httpx2.create_ssl_context()


class _Body(httpx2.AsyncByteStream):
    """Wraps a body that httpx2 made. Its request is under way until it is closed."""

    def __init__(self, body: object, pool: _Pool) -> None:
        assert isinstance(body, httpx2.AsyncByteStream)  # noqa: S101 (httpx2's type allows a synchronous one)
        self._body = body
        self._pool = pool

    def _parts(self) -> AbstractAsyncContextManager[AsyncGenerator[bytes, None]]:
        parts = self._body.__aiter__()
        assert isinstance(parts, AsyncGenerator)  # noqa: S101 (which it is, and has to be closed like one)
        return aclosing(parts)

    async def aclose(self) -> None:
        self._pool.busy -= 1
        await self._body.aclose()


class _Answer(_Body):
    """A body that must not be longer than `most` bytes."""

    def __init__(self, body: object, pool: _Pool, most: int) -> None:
        super().__init__(body, pool)
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._parts() as parts:
            async for part in parts:
                self._left -= len(part)
                if self._left < 0:
                    raise TooLarge("the answer is larger than it may be")
                yield part


class _Error(_Body):
    """The body of an error, as far as it comes. If it breaks off or drags on, the error is the same."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = bytearray()
        with suppress(httpx2.TransportError, TimeoutError):
            async with asyncio.timeout(ERROR_SECONDS), self._parts() as parts:
                async for part in parts:
                    read += part
                    if len(read) > ERROR_BYTES:
                        break
        yield bytes(read[:ERROR_BYTES])
