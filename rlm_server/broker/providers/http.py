"""HTTP to providers: a request goes out once, and its answer is read as JSON, or as a stream of it, up to a bound.

There are as many connections as there are calls: the broker decides how many go at once.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from rlm_server.broker.providers.event_stream import EventStream
from rlm_server.broker.rate_limit import hear

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection. How long an answer may take is for the caller to say."""

IDLE_SECONDS = 4.0
"""How long a connection is kept for another request. Common servers close one after 5 s; a request that meets the
closing is in doubt, and costs its whole hold."""

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

_FORM = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": "rlm-server",
}


class TooLarge(Exception):
    """An answer was longer than its bound, or was compressed against the request and so could unpack to any size."""


class ErrorStatus(Exception):
    """An answer with a status other than 2xx. `body` is the beginning of what it said."""

    def __init__(self, status: int, headers: Mapping[str, str], body: str) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


class Client:
    """Sends requests to one address, through the proxy that the environment names for that address.

    A request is sent once: none is repeated, and no redirect is followed, because the key is for this host. Made
    anywhere, it is used on one event loop.

    What `post` and `stream` raise, besides what is named there, is aiohttp's: see `faults`.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._proxy = url, _proxy(url)
        self._headers = {**_FORM, **headers}
        self._open: aiohttp.ClientSession | None = None

    async def post(self, body: Mapping[str, object], max_tokens: int) -> object:
        """Send a request for so many tokens, and return the JSON of its answer.

        Raises:
            ErrorStatus: the answer was an error.
            TooLarge: it was longer than it may be.
            ValueError: it was no JSON, or did not say that it was.
        """
        parts: list[bytes] = []
        async with self._answer(body, max_tokens) as answer:
            if not answer.kind.endswith("json"):
                raise ValueError(answer.kind)
            while part := await answer.part():
                parts.append(part)
        said: object = json.loads(b"".join(parts))
        return said

    async def stream(self, body: Mapping[str, object], max_tokens: int) -> AsyncGenerator[tuple[str, object], None]:
        """Send a request for so many tokens, and yield its answer's events: each one's name, and the JSON of its data.

        It ends with the answer, or with an event that says so, `[DONE]`.

        Raises:
            ErrorStatus: the answer was an error.
            TooLarge: it was longer than it may be.
            ValueError: the data of an event were no JSON.
        """
        stream = EventStream()
        async with self._answer(body, max_tokens) as answer:
            while part := await answer.part():
                for name, data in stream.read(part):
                    if data.startswith("[DONE]"):
                        return
                    if data:
                        yield name, json.loads(data)

    async def close(self) -> None:
        """Close all connections."""
        if self._open is not None:
            await self._open.close()

    @asynccontextmanager
    async def _answer(self, body: Mapping[str, object], max_tokens: int) -> AsyncIterator[_Answer]:
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        posting = self._session.post(
            self._url, data=data, headers=self._headers, proxy=self._proxy, allow_redirects=False
        )
        async with posting as response:
            hear(response.headers)
            if not 200 <= response.status < 300:
                raise ErrorStatus(response.status, response.headers, await _beginning(response))
            yield _Answer(response, max_tokens)

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open is None:  # which needs the loop, and this was made in a thread
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, socket_factory=opened)
            self._open = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._open


def opened(address: aiohttp.AddrInfoType) -> socket.socket:
    """Open the socket of a connection to an address, as `socket.getaddrinfo` tells of it."""
    family, kind, protocol, *_ = address
    connection = socket.socket(family, kind, protocol)
    for level, option, value in KEEPALIVE:
        connection.setsockopt(level, option, value)
    return connection


def _proxy(url: str) -> str | None:
    """Return the proxy of an address, by `HTTPS_PROXY` and its like. None without one or if `NO_PROXY` rules it out."""
    proxies, parts = getproxies(), urlsplit(url)
    proxy = proxies.get(parts.scheme, "") or proxies.get("all", "")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class _Answer:
    """The body of an answer to a request for so many tokens, in the parts in which it comes."""

    def __init__(self, response: aiohttp.ClientResponse, max_tokens: int) -> None:
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        self.kind = response.headers.get("content-type", "").partition(";")[0].strip()
        self._body = response.content
        self._left = 0 if encoded else ANSWER_BYTES + ANSWER_BYTES_PER_TOKEN * max_tokens

    async def part(self) -> bytes:
        """Wait for the next part; empty at the end.

        Raises:
            TooLarge: the answer is longer than it may be.
        """
        part = await self._body.readany()
        self._left -= len(part)
        if self._left < 0:
            raise TooLarge("the answer is larger than it may be")
        return part


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """Return the body of an error, as far as it comes. If it breaks off or drags on, the error is the same."""
    read = bytearray()
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(ERROR_SECONDS):
            while len(read) < ERROR_BYTES and (part := await response.content.readany()):
                read += part
    return read[:ERROR_BYTES].decode("utf-8", "replace")
