"""Uploads are bounded in number, time, memory and disk, so that one tenant's are nothing to another."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from rlm_server.api.admission import MAX_REQUEST
from rlm_server.api.upload_stream import Pace, _Arrived, _Patience
from rlm_server.contexts.disk_room import DiskRoom
from rlm_server.shares.held import Held, TooMuchHeld
from tests.servers import Served
from tests.system.context_calls import ContextCalls, Message, chunks, header, nothing_of_uploads, of_text, spooled
from tests.system.stage import Play, eventually, refusal

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_uploads_at_once_cannot_together_exceed_the_tenants_quota(server: Served) -> None:
    async with server(Play(""), context_bytes=1_000) as served:
        calls = ContextCalls(served.caller)
        texts = [f"{number:02}" * 50 for number in range(50)]
        sent = await asyncio.gather(*(calls.send(of_text(text)) for text in texts), return_exceptions=True)
        refused = [one for one in sent if isinstance(one, grpc.RpcError)]
        assert len(sent) - len(refused) == 10
        assert {one.code() for one in refused} == {EXHAUSTED}
        assert sum(one.size_bytes for one in (await calls.list()).contexts) == 1_000
        await eventually(lambda: nothing_of_uploads(served.data_dir))


async def test_what_an_upload_announces_counts_before_it_has_come(server: Served) -> None:
    async with server(Play(""), context_bytes=1_000) as served:
        calls = ContextCalls(served.caller)
        call = calls.stream()
        await call.write(header(b"x" * 900))
        await eventually(lambda: spooled(served.data_dir))
        assert (await refusal(calls.send(of_text("y" * 101)))).said["used"] == "900"
        call.cancel()
        await eventually(lambda: nothing_of_uploads(served.data_dir))
        await calls.send(of_text("y" * 101))


# ---- time --------------------------------------------------------------------------------------------------------


def test_a_stream_slower_than_its_pace_runs_out_of_patience_however_often_something_comes() -> None:
    patience, seconds = _Patience(Pace(300, 1_024)), 0
    while patience.seconds > 1:
        patience.waited(1)
        patience.arrived(1)
        seconds += 1
    assert 299 <= seconds <= 301


def test_a_stream_at_its_pace_may_go_on_for_ever_and_rest_for_a_while() -> None:
    patience = _Patience(Pace(300, 1_024))
    for _ in range(10_000):
        patience.waited(1)
        patience.arrived(1_024)
    patience.waited(299)
    assert patience.seconds > 0
    patience.arrived(1 << 30)
    assert patience.seconds == 300


def test_without_a_least_rate_anything_that_comes_will_do() -> None:
    patience = _Patience(Pace(300, 0))
    patience.waited(299)
    patience.arrived(1)
    assert patience.seconds == 300
    patience.waited(301)
    assert patience.seconds == 0


async def test_an_upload_that_trickles_is_ended_and_can_be_gone_on_with(server: Served) -> None:
    async with server(Play(""), upload_idle_seconds=0.5, upload_bytes_per_second=1_000_000) as served:
        calls, whole = ContextCalls(served.caller), of_text("x" * 10_000, chunk=1, request_id="mine")

        def trickle() -> Iterator[Message]:
            for message in whole:
                yield message
                time.sleep(0.01)

        said = await refusal(calls.send(trickle()))
        assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_STALLED")
        assert "1000000 bytes a second" in said.message
        received = (await calls.status("mine")).received_bytes
        assert 0 < received < 10_000
        rest = chunks(b"x" * 10_000, received)
        assert (await calls.send([whole[0], *rest])).character_count == 10_000


# ---- memory ------------------------------------------------------------------------------------------------------


def test_messages_that_wait_are_counted_until_they_are_taken() -> None:
    held = Held(lambda _: 20 << 20)
    arrived = _Arrived(held, "ann")
    message = chunks(b"x")[0]
    assert arrived.may_be_more
    arrived.add(message, 5 << 20)
    assert not arrived.may_be_more, "there is too little room for another while this one waits"
    assert arrived.take() == [message]
    assert (held.of("ann"), arrived.may_be_more) == (5 << 20, True)
    arrived.add(message, 1)
    with pytest.raises(TooMuchHeld):
        arrived.add(message, 20 << 20)
    arrived.taken()
    assert held.of("ann") == 1
    arrived.clear()
    assert held.of("ann") == 0


async def test_the_list_of_an_uploads_documents_is_counted_for_its_tenant(server: Served) -> None:
    async with server(Play(""), tenant_held_bytes=1 << 20) as served:
        calls = ContextCalls(served.caller)
        said = await refusal(calls.send([header(b"x", 1_000_000)]))
        assert (said.code, said.reason) == (EXHAUSTED, "TOO_MUCH_HELD")
        assert said.said["unit"] == "tenant_held_bytes"
        await eventually(lambda: nothing_of_uploads(served.data_dir))
        await calls.send(of_text("a text"))


async def test_a_chunk_of_an_upload_longer_than_any_needs_to_be_is_refused(server: Served) -> None:
    sent = chunks(bytes(MAX_REQUEST), chunk=MAX_REQUEST)
    async with server(Play("")) as served:
        said = await refusal(ContextCalls(served.caller).send([header(bytes(MAX_REQUEST)), *sent]))
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        await eventually(lambda: nothing_of_uploads(served.data_dir))


# ---- disk --------------------------------------------------------------------------------------------------------


def test_the_reserve_of_a_disk_is_left_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    DiskRoom(tmp_path, 0).check(0)
    for size, reserve in ((2 * free, 0), (0, 2 * free)):
        with pytest.raises(OSError, match="disk_reserve_bytes"):
            DiskRoom(tmp_path, reserve).check(size)


async def test_where_the_reserve_would_be_touched_uploads_are_refused_and_all_else_is_served(server: Served) -> None:
    async with server(Play("")) as served:
        kept = await ContextCalls(served.caller).send(of_text("kept"))
    async with server(Play(""), disk_reserve_bytes=1 << 60) as served:
        calls = ContextCalls(served.caller)
        said = await refusal(calls.send(of_text("another")))
        assert (said.code, said.reason) == (EXHAUSTED, "DISK_FULL")
        assert nothing_of_uploads(served.data_dir)
        assert (await calls.read(kept.context_id)).text == "kept"
        session = await served.caller.open_session(context_id=kept.context_id)
        assert (await served.caller.turn(session, "context")).printed == "'kept'\n"
