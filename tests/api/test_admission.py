"""A tenant's calls, streams and the bytes of its requests are bounded, and strangers have nothing received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from time import thread_time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlm_server.api import admission as module
from rlm_server.api import auth
from rlm_server.api.admission import (
    MAX_OPEN_STREAMS,
    MAX_REQUEST,
    RECEIVED_AT_ONCE,
    REQUEST_COPIES,
    STRANGERS_AT_ONCE,
    Admission,
    TooManyRequests,
    TooManyStreams,
)
from rlm_server.api.transport import LOOKAHEAD
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.shares import Shares
from rlm_server.tenants.keys import KEY_PREFIX, MAX_WAITING_CHECKS, Holder, Keys
from tests.api.toy import KINDS, Stage, serving, words
from tests.servers import Served
from tests.system.stage import Play, eventually, refusal

FEW = TenantLimits(tenant_requests=3, tenant_streams=2)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
async def few(tmp_path: Path) -> AsyncIterator[Stage]:
    """A toy whose callers may have few calls and streams at once."""
    async with serving(tmp_path, FEW) as made:
        yield made


class Callers:
    """Calls that wait in the toy for ever, until they are cancelled."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.channel = grpc.aio.insecure_channel(stage.address)
        self.calls: list[Any] = []

    async def wait(self, kind: str) -> None:
        """Make one more call that waits."""
        before = len(self.stage.toy.heard)
        (sent,) = words(kind, "wait")
        method: Any = getattr(self.channel, kind)(f"/rlm.test.Toy/{kind}")
        call = method(iter([sent]) if kind.startswith("stream") else sent, metadata=(self.stage.bearer,))
        self.calls.append((call, asyncio.ensure_future(call.read() if kind.endswith("stream") else call)))
        await eventually(lambda: len(self.stage.toy.heard) > before)

    async def end(self) -> None:
        """Cancel all of them, and wait until the toy has noticed."""
        for call, waiting in self.calls:
            call.cancel()
            await asyncio.wait([waiting])
            waiting.cancelled() or waiting.exception()
        self.calls.clear()
        await eventually(lambda: not self.stage.admission.requests("ann"))
        await self.channel.close()


async def test_a_tenant_has_no_more_calls_under_way_than_its_limit_and_more_once_one_has_ended(few: Stage) -> None:
    callers = Callers(few)
    for _ in range(3):
        await callers.wait("unary_unary")
    for kind in KINDS:
        said = await few.refused(kind, words(kind, "one"), few.bearer)
        assert (said.code, said.reason) == (EXHAUSTED, "TOO_MANY_REQUESTS")
        assert said.said == {"unit": "tenant_requests", "limit": "3", "used": "3"}
        assert {"google.rpc.QuotaFailure", "google.rpc.RetryInfo"} <= set(said.details)
    assert few.toy.heard == ["wait"] * 3
    await callers.end()
    await few.send("unary_unary", words("unary_unary", "one"), (few.bearer,))
    assert few.answers == ["ann one"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "stream" in kind])
async def test_a_tenant_has_no_more_open_streams_than_its_limit_and_other_calls_all_the_same(
    few: Stage, kind: str
) -> None:
    callers = Callers(few)
    for _ in range(2):
        await callers.wait(kind)
    said = await few.refused(kind, words(kind, "one"), few.bearer)
    assert (said.code, said.reason) == (EXHAUSTED, "TOO_MANY_STREAMS")
    assert said.said == {"unit": "tenant_streams", "limit": "2", "used": "2"}
    await few.send("unary_unary", words("unary_unary", "one"), (few.bearer,))
    assert few.answers == ["ann one"]
    await callers.end()
    assert few.admission.streams("ann") == 0


def test_what_one_tenant_has_open_is_nothing_to_another() -> None:
    admission = Admission(Shares.of(lambda _: FEW))
    call, stream = admission.call, admission.stream
    with call("ann"), stream("ann"), call("ann"), stream("ann"):
        with pytest.raises(TooManyStreams), call("ann"), stream("ann"):
            pass
        with call("ann"):
            with pytest.raises(TooManyRequests), call("ann"):
                pass
            with call("bob"), stream("bob"):
                assert (admission.requests("ann"), admission.streams("bob")) == (3, 1)
    assert (admission.requests("ann"), admission.streams("ann"), admission.streams("bob")) == (0, 0, 0)


# ---- bytes -------------------------------------------------------------------------------------------------------


async def test_the_bytes_of_requests_under_way_are_counted_for_their_tenant_and_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, TenantLimits(tenant_held_bytes=16 << 20)) as stage:
        (sent,) = words("unary_unary", "x" * 600_000 + " wait")
        waiting = asyncio.ensure_future(stage.send("unary_unary", [sent], (stage.bearer,)))
        await stage.toy.begun.wait()
        assert stage.held.of("ann") == REQUEST_COPIES * len(sent)
        said = await stage.refused("unary_unary", [sent], stage.bearer)
        assert said.code is EXHAUSTED
        assert "tenant_held_bytes" in said.message
        stage.toy.let_go.set()
        await waiting
        assert stage.held.of("ann") == 0


async def test_a_request_longer_than_any_needs_to_be_is_refused_and_not_decoded(few: Stage) -> None:
    for kind in ("unary_unary", "unary_stream"):
        said = await few.refused(kind, [b"\xff" * (MAX_REQUEST + 1)], few.bearer)
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
        assert said.said == {"limit": str(MAX_REQUEST), "asked": str(MAX_REQUEST + 1)}


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_a_call_without_its_one_message_is_malformed(few: Stage, kind: str) -> None:
    method: Any = few.channel.stream_unary(f"/rlm.test.Toy/{kind}")
    said = await refusal(asyncio.to_thread(method, iter([]), metadata=(few.bearer,)))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


# ---- strangers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000, 3 << 20])
async def test_a_stranger_is_told_so_whatever_it_sends(few: Stage, size: int) -> None:
    """Also a client that is told while it still sends."""
    async with grpc.aio.insecure_channel(few.address) as channel:
        for kind in ("unary_unary", "unary_stream"):
            for _ in range(10):
                call: Any = getattr(channel, kind)(f"/rlm.test.Toy/{kind}")(bytes(size))
                said = await refusal(call.read() if kind.endswith("stream") else call)
                assert said.code is grpc.StatusCode.UNAUTHENTICATED
    assert few.toy.heard == []


async def test_strangers_who_guess_keys_are_looked_up_one_at_a_time_and_keep_no_tenant_waiting(
    few: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await few.send("unary_unary", words("unary_unary", "known"), (few.bearer,))
    at_once, most, go_on = 0, 0, asyncio.Event()
    look_up = Keys._look_up

    async def slow(keys: Keys, sha256: str) -> Holder | None:
        nonlocal at_once, most
        if sha256 in keys._known:
            return await look_up(keys, sha256)
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        return None

    monkeypatch.setattr(Keys, "_look_up", slow)
    guesses = [asyncio.ensure_future(few.keys.holder_of(f"{KEY_PREFIX}{n:043}")) for n in range(MAX_WAITING_CHECKS)]
    await asyncio.sleep(0)
    said = await few.refused(
        "unary_unary", words("unary_unary", "one"), ("authorization", f"Bearer {KEY_PREFIX}{'x' * 43}")
    )
    assert (said.code, said.reason) == (EXHAUSTED, "SERVER_FULL")
    await few.send("unary_unary", words("unary_unary", "one"), (few.bearer,))
    assert few.answers == ["ann known", "ann one"]
    go_on.set()
    assert await asyncio.gather(*guesses) == [None] * MAX_WAITING_CHECKS
    assert most == 1


@pytest.mark.parametrize("key", ["x", "rlm_", "rlm_" + "x" * 101, "rlm_" + "ü" * 43, "rlm_x\n" * 9])
async def test_what_cannot_be_a_key_is_not_looked_up(few: Stage, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("it was looked up")

    monkeypatch.setattr(Keys, "_look_up", never)
    assert await few.keys.holder_of(key) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "Bearer " + "x" * 7_000),
        ("authorization", " "),
        ("authorization", "Bearer  "),
        ("authorization-bin", b"Bearer \xff\x00"),
    ],
    ids=["huge", "blank", "blanks", "binary"],
)
async def test_a_header_that_is_no_key_is_refused_for_every_kind(few: Stage, name: str, value: Any) -> None:
    for kind in KINDS:
        said = await few.refused(kind, words(kind, "one"), (name, value))
        assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_headers_beyond_their_bound_are_refused_before_the_service(few: Stage) -> None:
    method: Any = few.channel.unary_unary("/rlm.test.Toy/unary_unary")
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(method, b"", metadata=(("x", "y" * 20_000), few.bearer))
    failed: Any = caught.value
    assert failed.code() is EXHAUSTED
    assert few.toy.heard == []


async def test_streams_that_need_no_key_are_few_and_a_check_of_the_health_is_answered_all_the_same(
    server: Served,
) -> None:
    async with server(Play("")) as served:
        stub: Any = health_pb2_grpc.HealthStub(served.another(None).channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_OPEN_STREAMS)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        said = await refusal(stub.Watch(health_pb2.HealthCheckRequest()).read())
        assert (said.code, said.reason) == (EXHAUSTED, "TOO_MANY_STREAMS")
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_call_counts_as_work_for_its_tenant(
    kind: str, few: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def owes(tenant: str, method: str) -> None:
        raise TooManyRequests("tenant_requests", 1, 1, f"{tenant} owes too much for {method}")

    monkeypatch.setattr(few.admission, "message", lambda tenant, size=0: counted.append(tenant))
    monkeypatch.setattr(few.admission, "check_paid", owes)
    said = await few.refused(kind, words(kind, "one"), few.bearer)
    of_ann = ["ann"] * (2 if kind.startswith("stream") else 1)  # with what may have come of a stream
    assert (said.code, counted) == (EXHAUSTED, of_ann)
    assert (await few.refused(kind, words(kind, "one"))).code is grpc.StatusCode.UNAUTHENTICATED
    assert counted == of_ann, "who has no key is nobody's"


async def test_callers_without_a_key_take_turns_by_their_addresses(few: Stage) -> None:
    order: list[str] = []

    async def call(peer: str) -> None:
        async with few.admission.without_key(peer):
            order.append(peer)

    flood = [asyncio.create_task(call(f"ipv4:10.0.0.1:{port}")) for port in range(1, 200)]
    await asyncio.sleep(0)
    await call("ipv4:10.0.0.2:1")
    assert len(order) <= 2 * STRANGERS_AT_ONCE, "it came after those that had begun, and not after all that wait"
    for one in flood:
        one.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_no_more_callers_without_a_key_wait_than_may(few: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_STRANGERS", 3)

    async def call() -> None:
        async with few.admission.without_key("ipv4:10.0.0.1:1"):
            pass

    waiting = [asyncio.create_task(call()) for _ in range(STRANGERS_AT_ONCE + 3)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests, match="waiting_strangers"):
        await call()
    await asyncio.gather(*waiting)
    await call()


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_charged_from_its_beginning_also_where_it_is_refused(
    few: Stage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder_of = few.keys.holder_of

    async def busy(key: str) -> Holder | None:
        end = thread_time() + 0.02
        while thread_time() < end:
            pass
        return await holder_of(key)

    monkeypatch.setattr(few.keys, "holder_of", busy)
    stranger = ("authorization", f"Bearer {KEY_PREFIX}{'x' * 43}")
    assert (await few.refused(kind, words(kind, "1"), stranger)).code is grpc.StatusCode.UNAUTHENTICATED
    assert few.admission.host_time("ann").seconds == 0
    await few.refused(kind, words(kind, "wrong"), few.bearer)
    assert few.admission.host_time("ann").seconds >= 0.02


@pytest.mark.parametrize("kind", KINDS)
async def test_what_may_have_come_of_a_stream_that_is_refused_is_counted(
    few: Stage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, int]] = []
    monkeypatch.setattr(few.admission, "message", lambda owner, size=0: counted.append((owner, size)))
    await few.refused(kind, words(kind, "wrong"), few.bearer)
    assert (("ann", LOOKAHEAD) in counted) == kind.startswith("stream")
    counted.clear()
    await few.send(kind, words(kind, "1"), (few.bearer,))
    assert ("ann", LOOKAHEAD) not in counted


async def test_what_ends_things_is_told_soon_that_there_are_too_many_calls(
    few: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE_OF_DEBT", frozenset({"unary_unary"}))
    monkeypatch.setattr(auth, "REFUSAL_SECONDS", 0.0)
    callers, briefly = Callers(few), list[str]()
    for _ in range(FEW.tenant_requests):
        await callers.wait("unary_unary")

    async def wait_briefly(tenant: str) -> None:
        briefly.append(tenant)

    async def wait(_: str) -> None:
        raise AssertionError("it stood in line")

    monkeypatch.setattr(few.admission._pace, "wait_briefly", wait_briefly)
    monkeypatch.setattr(few.admission._pace, "wait", wait)
    assert (await few.refused("unary_unary", words("unary_unary", "1"), few.bearer)).code is EXHAUSTED
    assert briefly == ["ann"]
    await callers.end()


async def test_what_ends_things_is_received_though_as_many_requests_as_may_be_do_not_come() -> None:
    admission, sent = Admission(Shares.of(lambda _: FEW)), asyncio.Event()

    async def slow() -> AsyncGenerator[bytes, None]:
        await sent.wait()
        yield b"late"

    async def at_once() -> AsyncGenerator[bytes, None]:
        yield b"now"

    late = [
        asyncio.create_task(admission.received("ann", "/rlm.v1.SessionService/Execute", slow()))
        for _ in range(RECEIVED_AT_ONCE)
    ]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(admission.received("ann", "/rlm.v1.SessionService/GetSession", at_once()))
    assert await admission.received("ann", "/rlm.v1.SessionService/DeleteSession", at_once()) == b"now"
    assert not waiting.done()
    sent.set()
    assert await asyncio.gather(*late, waiting) == [b"late"] * RECEIVED_AT_ONCE + [b"now"]
