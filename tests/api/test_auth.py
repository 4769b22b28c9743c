"""Every call of whichever kind passes authentication, decoding and the mapping of errors, in this order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from rlm_server.database.engine import DatabaseLostError
from rlm_server.tenants.keys import Keys
from tests.api.toy import CUT, KINDS, NOT_UTF8, Stage, serving, words
from tests.system.stage import eventually

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with serving(tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_with_a_key_is_served_for_its_tenant(kind: str, stage: Stage) -> None:
    await stage.send(kind, words(kind, "one", "two"), (stage.bearer,))
    assert stage.answers == (["ann one", "ann two"] if kind.endswith("stream") else ["ann two"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_one_valid_key_reaches_no_handler(kind: str, stage: Stage) -> None:
    name, bearer = stage.bearer
    refused = {
        (): "is missing",
        ((name, ""),): "is missing",
        ((name, "Bearer"),): "is missing",
        ((name, stage.key),): "is missing",
        ((name, f"Basic {stage.key}"),): "is missing",
        ((name, "Bearer rlm_wrong"),): "is not valid",
        ((name, f"{bearer}x"),): "is not valid",
        ((name, f"{bearer} {stage.key}"),): "is not valid",
    }
    for metadata, why in refused.items():
        for sent in (words(kind, "one"), [NOT_UTF8]):
            said = await stage.refused(kind, sent, *metadata)
            assert (said.code, said.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
            assert why in said.message
    assert stage.toy.heard == []


@pytest.mark.parametrize("kind", KINDS)
async def test_two_keys_are_refused_even_where_both_are_valid(kind: str, stage: Stage) -> None:
    for second in (stage.bearer, ("authorization", "Bearer rlm_wrong")):
        for metadata in ((stage.bearer, second), (second, stage.bearer)):
            said = await stage.refused(kind, words(kind, "one"), *metadata)
            assert (said.code, said.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "2 keys are sent" in said.message
    assert stage.toy.heard == []


@pytest.mark.parametrize("kind", KINDS)
async def test_where_the_database_is_away_nobody_is_told_that_the_key_is_wrong(
    kind: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseLostError("away")

    monkeypatch.setattr(Keys, "holder_of", away)
    said = await stage.refused(kind, words(kind, "one"), stage.bearer)
    assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert "google.rpc.RetryInfo" in said.details


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
async def test_the_name_of_the_scheme_is_taken_in_any_case(scheme: str, stage: Stage) -> None:
    await stage.send("unary_unary", words("unary_unary", "one"), (("authorization", f"{scheme} {stage.key}"),))
    assert stage.answers == ["ann one"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_is_mapped_wherever_it_is_raised(kind: str, stage: Stage) -> None:
    for said_before in ((), ("one", "two")):
        stage.answers.clear()
        said = await stage.refused(kind, words(kind, *said_before, "wrong"), stage.bearer)
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert said.fields == ["word"]
        assert stage.answers == ([f"ann {word}" for word in said_before] if kind.endswith("stream") else [])


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_that_nobody_knows_is_logged_and_says_nothing(
    kind: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    said = await stage.refused(kind, words(kind, "one", "broken"), stage.bearer)
    assert (said.code, said.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in said.message
    (logged,) = caplog.records
    assert logged.exc_info
    assert "a secret of the server" in str(logged.exc_info[1])


@pytest.mark.parametrize("sent", [NOT_UTF8, CUT, b"\xff"], ids=["not UTF-8", "cut", "no field"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_be_decoded_is_an_invalid_argument(
    kind: str, sent: bytes, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    before = words(kind, "one", "two") if kind.startswith("stream") else []
    said = await stage.refused(kind, [*before, sent], stage.bearer)
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert stage.toy.heard == (["one", "two"] if before else [])
    assert caplog.records == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_is_cancelled_is_cancelled_down_to_its_handler(
    kind: str, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (sent,) = words(kind, "wait")
    async with grpc.aio.insecure_channel(stage.address) as channel:
        method: Any = getattr(channel, kind)(f"/rlm.test.Toy/{kind}")
        call = method(iter([sent]) if kind.startswith("stream") else sent, metadata=(stage.bearer,))
        waiting = asyncio.ensure_future(call.read() if kind.endswith("stream") else call)
        await stage.toy.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await eventually(lambda: stage.toy.cancelled == 1)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_handler_aborts_with_itself_is_left_as_it_is(kind: str, stage: Stage) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await stage.send(kind, words(kind, "one", "abort"), (stage.bearer,))
    said: Any = caught.value
    assert (said.code(), said.details()) == (grpc.StatusCode.DATA_LOSS, "the handler's own words")
