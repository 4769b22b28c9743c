"""An upload that breaks off goes on from the byte that arrived last, in another stream or at another server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import context_pb2

from tests.servers import Served
from tests.system.books import rows
from tests.system.context_calls import (
    ContextCalls,
    announcement,
    chunks,
    header,
    nothing_of_uploads,
    of_documents,
    of_text,
    spooled,
    stored,
)
from tests.system.stage import Play, eventually, refusal

DOCUMENTS = [(f"document {number}", "Grüße aus 東京 🎉 " * (number % 5) + "x" * number) for number in range(20)]
DATA = "".join(text for _, text in DOCUMENTS).encode()


def part_of(documents: int, received: int) -> list[context_pb2.UploadContextRequest]:
    """The beginning of an upload of DOCUMENTS, in two streams' way: some of the documents, and some of their bytes."""
    return [
        header(DATA, len(DOCUMENTS), request_id="mine"),
        announcement(DOCUMENTS[:documents]),
        *chunks(DATA[:received], chunk=100),
    ]


def rest_of(documents: int, received: int) -> list[context_pb2.UploadContextRequest]:
    return [
        header(DATA, len(DOCUMENTS), request_id="mine"),
        announcement(DOCUMENTS[documents:], documents),
        *chunks(DATA, received, chunk=77),
    ]


@pytest.mark.parametrize("restarted", [False, True], ids=["in another stream", "at another server"])
async def test_documents_go_on_at_any_byte(server: Served, restarted: bool) -> None:
    async with server(Play("")) as served:
        whole = await ContextCalls(served.caller).send(of_documents(DOCUMENTS))
        await ContextCalls(served.caller).delete(whole.context_id)
    ends = [sum(len(text.encode()) for _, text in DOCUMENTS[:documents]) for documents in range(len(DOCUMENTS) + 1)]
    for received in (0, 1, 33, 34, 35, 36, 37, 38, ends[7], ends[7] + 9, len(DATA) - 1, len(DATA)):
        documents = next(number for number, end in enumerate(ends) if end >= received)
        async with server(Play("")) as served:
            calls = ContextCalls(served.caller)
            await calls.send_part(part_of(documents, received))
            if not restarted:
                made = await calls.go_on(rest_of(documents, received))
        if restarted:
            async with server(Play("")) as served:
                calls = ContextCalls(served.caller)
                status = await calls.status("mine")
                assert (status.received_bytes, status.received_document_count) == (received, documents)
                made = await calls.send(rest_of(documents, received))
        async with server(Play("")) as served:
            calls = ContextCalls(served.caller)
            assert (made.sha256, made.character_count, made.document_count) == (
                whole.sha256,
                whole.character_count,
                whole.document_count,
            )
            listed = (await calls.documents(made.context_id)).documents
            assert [(one.name, one.character_count) for one in listed] == [
                (name, len(text)) for name, text in DOCUMENTS
            ]
            for number, (_, text) in enumerate(DOCUMENTS):
                assert (await calls.read(made.context_id, number)).text == text
            assert nothing_of_uploads(served.data_dir)
            await calls.delete(made.context_id)


async def test_an_upload_may_break_off_again_and_again(server: Served) -> None:
    text = "Zeichen für Zeichen: 東京 🎉\n" * 30
    whole = of_text(text, chunk=111, request_id="mine")
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        received = 0
        for message in whole[1:-1]:
            received += len(message.chunk.data)
            sending = asyncio.create_task(calls.go_on_open([whole[0], message]))
            await calls.arrived("mine", received)
            sending.cancel()
            await asyncio.wait([sending])
        made = await calls.go_on([whole[0], whole[-1]])
        assert (await calls.read(made.context_id)).text == text


async def test_a_finished_upload_is_told_again_and_not_received_again(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        made = await calls.send(of_documents(DOCUMENTS, request_id="mine"))
        status = await calls.status("mine")
        assert status.context == made
        assert (status.received_bytes, status.received_document_count) == (len(DATA), len(DOCUMENTS))
        assert await calls.send(of_documents(DOCUMENTS, request_id="mine")[:1]) == made
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        assert (await calls.status("mine")).context == made
        assert await calls.send(of_documents(DOCUMENTS, request_id="mine")[:1]) == made
        await calls.delete(made.context_id)
        again = await calls.send(of_documents(DOCUMENTS, request_id="mine"))
        assert again.context_id != made.context_id
        assert (await calls.status("mine")).context == again


@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
@pytest.mark.parametrize(
    ("field", "other"),
    [("name", "other"), ("size_bytes", 17), ("sha256", "0" * 64), ("document_count", 3), ("labels", {"a": "b"})],
)
async def test_an_upload_goes_on_with_the_same_header_alone(
    server: Served, field: str, other: Any, finished: bool
) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        whole = of_documents(DOCUMENTS, request_id="mine", chunk=50)
        await (calls.send(whole) if finished else calls.send_part(whole[:4]))
        said = await refusal(calls.send([header(DATA, **{"document_count": 20, "request_id": "mine", field: other})]))
        assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert said.said == {"request_id": "mine"}
        assert (await calls.go_on([*whole[:1], *whole[4:]])).document_count == 20


async def test_a_second_writer_is_sent_away(server: Served) -> None:
    async with server(Play("")) as served:
        calls, whole = ContextCalls(served.caller), of_text("some text", chunk=4, request_id="mine")
        call = calls.stream()
        for message in whole[:2]:
            await call.write(message)
        await calls.arrived("mine", 4)
        said = await refusal(calls.send(whole))
        assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_BUSY")
        assert "'mine'" in said.message
        assert "google.rpc.RetryInfo" in said.details
        for message in whole[2:]:
            await call.write(message)
        await call.done_writing()
        assert (await call).context.character_count == 9


async def test_of_many_writers_at_once_one_writes(server: Served) -> None:
    async with server(Play("")) as served:
        calls, whole = ContextCalls(served.caller), of_text("some text" * 1_000, chunk=1_000, request_id="mine")
        ended = await asyncio.gather(*(calls.send(whole) for _ in range(8)), return_exceptions=True)
        made = [one for one in ended if isinstance(one, context_pb2.Context)]
        assert made
        assert len({context.context_id for context in made}) == 1
        for one in ended:
            if isinstance(one, grpc.RpcError):
                assert one.code() is grpc.StatusCode.ABORTED
        assert stored(served.data_dir) == {made[0].context_id}
        assert nothing_of_uploads(served.data_dir)


async def test_what_is_refused_when_it_goes_on_is_gone(server: Served) -> None:
    async with server(Play("")) as served:
        calls, whole = ContextCalls(served.caller), of_text("some text", chunk=4, request_id="mine")
        await calls.send_part(whole[:2])
        assert (await refusal(calls.go_on(whole))).fields == ["chunk.offset"]
        assert nothing_of_uploads(served.data_dir)
        assert (await refusal(calls.status("mine"))).code is grpc.StatusCode.NOT_FOUND
        assert await calls.send(whole)


async def test_a_stream_that_ends_too_early_is_refused_and_can_be_gone_on_with(server: Served) -> None:
    """Nothing tells such an end from one by a connection that was lost."""
    async with server(Play("")) as served:
        calls, whole = ContextCalls(served.caller), of_text("some text", chunk=4, request_id="mine")
        said = await refusal(calls.send(whole[:2]))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["header.size_bytes"])
        assert "9 bytes announced, 4 arrived" in said.message
        assert (await calls.status("mine")).received_bytes == 4
        said = await refusal(calls.send(of_documents(DOCUMENTS, request_id="docs")[:2]))
        assert said.fields == ["header.size_bytes"]
        assert (await calls.status("docs")).received_document_count == 20
        assert (await calls.send([whole[0], *whole[2:]])).character_count == 9


async def test_a_stream_of_which_nothing_comes_is_ended_and_can_be_gone_on_with(server: Served) -> None:
    async with server(Play(""), upload_idle_seconds=0.2) as served:
        calls, whole = ContextCalls(served.caller), of_text("some text", chunk=4, request_id="mine")
        for request_id in ("mine", ""):
            call = calls.stream()
            whole[0].header.request_id = request_id
            for message in whole[:2]:
                await call.write(message)
            said = await refusal(call)
            assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_STALLED")
        assert len(spooled(served.data_dir)) == 1
        whole[0].header.request_id = "mine"
        assert (await calls.send([whole[0], *whole[2:]])).character_count == 9
        assert nothing_of_uploads(served.data_dir)


async def test_a_stream_without_a_header_is_ended(server: Served) -> None:
    async with server(Play(""), upload_idle_seconds=0.1) as served:
        assert (await refusal(ContextCalls(served.caller).stream())).reason == "UPLOAD_STALLED"


async def test_an_upload_that_rests_too_long_is_removed(server: Served, tmp_path: Path) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        await calls.send_part(of_text("before the restart", chunk=4, request_id="old")[:2])
        await calls.send(of_text("finished", request_id="finished"))
    async with server(Play(""), upload_rest_seconds=0.3) as served:
        calls = ContextCalls(served.caller)
        await calls.send_part(of_text("after the restart", chunk=4, request_id="new")[:2])
        await eventually(lambda: not rows(served.data_dir, "SELECT 1 FROM upload WHERE context IS NULL"))
        await eventually(lambda: not spooled(served.data_dir))
        for request_id in ("old", "new"):
            assert (await refusal(calls.status(request_id))).code is grpc.StatusCode.NOT_FOUND
        (made,) = (await calls.list()).contexts
        assert (await calls.status("finished")).context == made, "it is known for as long as what it made"


async def test_an_upload_without_a_request_id_ends_with_its_server(server: Served) -> None:
    async with server(Play("")) as served:
        call = ContextCalls(served.caller).stream()
        await call.write(header(b"some text"))
        await call.write(chunks(b"some")[0])
        await eventually(lambda: spooled(served.data_dir))
    await eventually(lambda: nothing_of_uploads(served.data_dir))


async def test_what_a_process_that_died_left_is_removed_at_the_start(server: Served, tmp_path: Path) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        await calls.send_part(of_text("some text", chunk=4, request_id="mine")[:2])
        kept = await calls.send(of_text("kept"))
    data_dir = tmp_path / "data"
    (upload,) = (data_dir / "uploads").iterdir()
    with (upload / "documents").open("a") as file:
        file.write("12 half a li")
    (data_dir / "uploads" / "stray").mkdir()
    (data_dir / "contexts" / "ctx_stray").mkdir()
    (data_dir / "contexts" / "ctx_stray" / "texts").write_text("half")
    (data_dir / "contexts" / f"{kept.context_id}.making").mkdir()
    (data_dir / "contexts" / f"{kept.context_id}.gone-1").mkdir()
    (data_dir / "contexts" / "a file").write_text("of an earlier version")
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        assert stored(data_dir) == {kept.context_id}
        assert len(spooled(data_dir)) == 1
        whole = of_text("some text", chunk=4, request_id="mine")
        assert (await calls.send([whole[0], *whole[2:]])).character_count == 9
        assert (await calls.read(kept.context_id)).text == "kept"
