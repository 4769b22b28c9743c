"""Connections to a provider: kept, gone stale, refused, many at once. However they end, no request is sent twice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import AddrInfoType

from rlm_server.broker.broker import CallFailed
from rlm_server.broker.prices.table import NoPrice, Prices
from rlm_server.broker.provider import Failure, Provider, ProviderError
from rlm_server.broker.providers import http
from rlm_server.broker.routes import UnknownModel
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts
from tests.broker.books import PAYER, Books
from tests.broker.conftest import APIS
from tests.broker.priced import PRICE, ask, billed, broker_of, soon
from tests.fake_provider.server import FakeProvider, Fault

HELD = worst_case(ask(), PRICE)


async def test_a_connection_is_kept_for_the_next_request(provider: Provider, fake: FakeProvider) -> None:
    for _ in range(5):
        await provider.complete(ask())
    assert (fake.requests, fake.connections) == (5, 1)


async def test_a_kept_connection_that_the_provider_closed_is_not_used_again(
    books: Books, provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    broker = broker_of(books, provider)
    fake.faults.append(Fault.CLOSES)
    await broker.complete(ask(max_tokens), PAYER, deadline=soon())
    await fake.idle()
    await broker.complete(ask(max_tokens), PAYER, deadline=soon())
    assert (fake.requests, fake.connections, len(fake.billed)) == (2, 2, 2)
    assert (await books.balance(PAYER.account)).posted == billed(fake)


@pytest.mark.parametrize("fault", [Fault.HANG_UP, Fault.RESET, Fault.CUT_HEAD])
async def test_a_request_that_met_the_end_of_a_kept_connection_is_in_doubt_and_not_sent_again(
    books: Books, provider: Provider, fake: FakeProvider, fault: Fault
) -> None:
    broker = broker_of(books, provider)
    fake.faults.extend([None, fault])
    first = await broker.complete(ask(), PAYER, deadline=soon())
    with pytest.raises(CallFailed) as caught:
        await broker.complete(ask(), PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent, caught.value.attempts) == (Failure.GONE, HELD, 1)
    assert (fake.requests, fake.connections) == (2, 1)
    assert (await books.balance(PAYER.account)).posted == first.spent + HELD


@pytest.mark.parametrize("api", APIS)
async def test_a_refused_connection_is_not_billed(books: Books, api: str) -> None:
    async with FakeProvider().serving() as gone:
        pass
    provider = APIS[api](gone.url)
    with pytest.raises(CallFailed, match="cannot be reached") as caught:
        await broker_of(books, provider).complete(ask(), PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.billed) == (Failure.GONE, False)
    assert books.ends == {f"{caught.value.call_id}.1": "void"}
    await provider.close()


@pytest.mark.parametrize("api", APIS)
async def test_an_address_that_is_none_is_not_billed(books: Books, api: str) -> None:
    provider = APIS[api]("gopher://127.0.0.1")
    with pytest.raises(CallFailed, match="cannot be reached") as caught:
        await broker_of(books, provider).complete(ask(), PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.billed) == (Failure.GONE, False)
    await provider.close()


async def test_hundreds_of_requests_are_in_flight_at_once(books: Books, fake: FakeProvider) -> None:
    provider = APIS["anthropic"](fake.url)
    broker = broker_of(books, provider, calls=400)
    fake.faults.extend([Fault.STALL] * 400)
    calls = [asyncio.create_task(broker.complete(ask(), PAYER, deadline=soon() + 20)) for _ in range(400)]
    async with asyncio.timeout(20):
        for _ in calls:
            await fake.received.get()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (fake.connections, fake.requests) == (400, 400)
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted) == (Amounts(), sum([HELD] * 400, Amounts()))
    await provider.close()


async def test_a_key_that_is_revoked_in_a_run_fails_the_calls_that_follow_at_no_cost(
    books: Books, provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    broker = broker_of(books, provider)
    fake.faults.extend([None, None, Fault.BAD_KEY, Fault.FORBIDDEN])
    for _ in range(2):
        await broker.complete(ask(max_tokens), PAYER, deadline=soon())
    for _ in range(2):
        with pytest.raises(CallFailed, match="does not accept this server's key") as caught:
            await broker.complete(ask(max_tokens), PAYER, deadline=soon())
        assert (caught.value.failure, caught.value.attempts, caught.value.spent) == (Failure.AUTH, 1, Amounts())
    assert list(books.ends.values()) == ["post", "post", "void", "void"]
    assert (await books.balance(PAYER.account)).posted == billed(fake)


async def test_a_model_without_a_route_or_a_price_is_refused_before_anything_is_sent_or_held(
    books: Books, provider: Provider, fake: FakeProvider
) -> None:
    with pytest.raises(NoPrice):
        Prices.load().price("openai", "gpt-of-tomorrow")
    unheard = ask()
    object.__setattr__(unheard, "model", "unheard-of")
    with pytest.raises(UnknownModel):
        await broker_of(books, provider).complete(unheard, PAYER, deadline=soon())
    assert (fake.connections, books.orders) == (0, [])


async def test_silent_connections_are_kept_alive(
    provider: Provider, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    opened = http.opened

    def noted(address: AddrInfoType) -> socket.socket:
        made.append(opened(address))
        return made[-1]

    monkeypatch.setattr(http, "opened", noted)
    await provider.complete(ask())
    (connection,) = made
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert fake.connections == 1


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """A proxy that passes nothing on, and what it is asked for."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    connections: set[asyncio.Task[None]] = set()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.put_nowait(head.decode().split("\r\n")[0])
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(refuse(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server, asyncio.timeout(30):
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", asked
        await asyncio.gather(*connections)  # each until the other side has closed it


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_requests_take_the_proxy_that_the_environment_names(
    proxy: tuple[str, asyncio.Queue[str]], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    address, asked = proxy
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, scheme + address)
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    for url, line in (
        ("http://models.invalid", "POST http://models.invalid/v1/messages HTTP/1.1"),
        ("https://models.invalid", "CONNECT models.invalid:443 HTTP/1.1"),
    ):
        provider = APIS["anthropic"](url)
        with pytest.raises(ProviderError):
            await provider.complete(ask())
        assert asked.get_nowait() == line
        await provider.close()


@pytest.mark.parametrize("excepted", ["127.0.0.1", "*"])
async def test_requests_to_an_address_that_is_excepted_take_no_proxy(
    fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", excepted)
    provider = APIS["anthropic"](fake.url)
    assert (await provider.complete(ask())).text == fake.answer
    await provider.close()
