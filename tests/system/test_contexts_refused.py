"""An upload that is not what it says, or not allowed, is refused by name, and nothing of it stays."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import logging
from collections.abc import Sequence

import grpc
import pytest
from rlm.v1 import context_pb2

from rlm_server.contexts import spool
from tests.servers import Served, Server
from tests.system.context_calls import (
    ContextCalls,
    Documents,
    Message,
    announcement,
    chunks,
    header,
    nothing_of_uploads,
    of_documents,
    of_text,
    spooled,
    stored,
)
from tests.system.stage import CHUNK, Play, eventually, refusal

HUGE = (1 << 63) - 1
INVALID = grpc.StatusCode.INVALID_ARGUMENT
DOCUMENTS: Documents = [("one", "äöü"), ("two", "abc"), ("three", "12345")]
DATA = "äöüabc12345".encode()


def raw(name: str, size: int) -> context_pb2.UploadDocument:
    return context_pb2.UploadDocument(name=name, size_bytes=size)


def announcing(*documents: context_pb2.UploadDocument, first: int = 0) -> Message:
    return Message(documents=context_pb2.UploadDocuments(first_document=first, documents=documents))


async def check_refused(served: Server, sent: Sequence[Message], field: str, words: str) -> None:
    said = await refusal(ContextCalls(served.caller).send(sent))
    assert (said.code, said.reason, said.fields) == (INVALID, "INVALID_FIELD", [field])
    assert words in said.message
    assert not stored(served.data_dir)
    assert nothing_of_uploads(served.data_dir)


@pytest.mark.parametrize("request_id", ["", "with an id"], ids=["without an id", "with an id"])
@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        pytest.param([announcement(DOCUMENTS)], "header", "first", id="no header"),
        pytest.param([header(DATA, -1)], "header.document_count", "from 0 to 1000000", id="fewer than no documents"),
        pytest.param([header(DATA, 1_000_001)], "header.document_count", "from 0 to 1000000", id="too many documents"),
        pytest.param([header(DATA, 3, size_bytes=-1)], "header.size_bytes", "from 0", id="a negative size"),
        pytest.param(
            [header(DATA, 3, size_bytes=(64 << 30) + 1)],
            "header.size_bytes",
            f"to {64 << 30}",
            id="a context too large",
        ),
        pytest.param([header(DATA), announcement(DOCUMENTS)], "documents", "one text", id="documents of a text"),
        pytest.param(
            [header(DATA, 3), announcement(DOCUMENTS, 1)],
            "documents.first_document",
            "is 0, not 1",
            id="a gap of documents",
        ),
        pytest.param(
            [header(DATA, 3), announcement(DOCUMENTS[:2]), announcement(DOCUMENTS[1:], 1)],
            "documents.first_document",
            "is 2, not 1",
            id="a document again",
        ),
        pytest.param(
            [header(DATA, 3), announcement(DOCUMENTS, -1)], "documents.first_document", "not -1", id="before the first"
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("n" * 501, 1))],
            "documents.documents[0].name",
            "500 characters, not 501",
            id="a long name",
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("one", 6), raw("two\nlines", 3))],
            "documents.documents[1].name",
            "U+000A at 3",
            id="a name of two lines",
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("\x85", 1))], "documents.documents[0].name", "U+0085", id="a control"
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("a\u2028b", 1))],
            "documents.documents[0].name",
            "U+2028 at 1",
            id="a line separator",
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("a", -1))],
            "documents.documents[0].size_bytes",
            "from 0",
            id="a document of less than nothing",
        ),
        pytest.param(
            [header(DATA, 3, size_bytes=3 << 30), announcing(raw("a", (2 << 30) + 1))],
            "documents.documents[0].size_bytes",
            f"to {2 << 30}",
            id="a document too large",
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("a", len(DATA)), raw("b", 1))],
            "documents.documents[1].size_bytes",
            f"{len(DATA)} bytes together, not {len(DATA) + 1}",
            id="documents larger than the whole",
        ),
        pytest.param(
            [header(DATA, 3), announcing(raw("a", 1), raw("b", 1), raw("c", 1))],
            "header.size_bytes",
            f"{len(DATA)} bytes announced, but the documents have 3",
            id="documents smaller than the whole",
        ),
        pytest.param(
            [header(DATA, 2), announcement([*DOCUMENTS[:2], ("three", "12345"), ("four", "")])],
            "header.size_bytes",
            "the documents have 9",
            id="more documents, the sizes wrong as well",
        ),
        pytest.param(
            [header(DATA, 3), announcement([*DOCUMENTS, ("four", "")])],
            "header.document_count",
            "more than the 3 announced",
            id="more documents",
        ),
        pytest.param(
            [header(DATA, 3), *chunks(DATA)], "chunk.data", "byte 0 belongs to no document", id="no announcement"
        ),
        pytest.param(
            [header(DATA, 3), announcement(DOCUMENTS[:2]), *chunks(DATA)],
            "chunk.data",
            "byte 9 belongs to no document",
            id="before its announcement",
        ),
        pytest.param([*of_documents(DOCUMENTS), header(DATA)], "chunk", "header", id="a second header"),
        pytest.param([*of_documents(DOCUMENTS), *chunks(b"x")], "chunk.offset", "at 14, not 0", id="an overlap"),
        pytest.param(of_documents(DOCUMENTS, sha256="0" * 64), "header.sha256", "not 0000", id="another hash"),
    ],
)
async def test_documents_that_are_not_what_they_say_leave_nothing(
    server: Served, sent: list[Message], field: str, words: str, request_id: str
) -> None:
    async with server(Play("")) as served:
        for message in sent:
            if message.WhichOneof("part") == "header":
                message.header.request_id = request_id
        await check_refused(served, sent, field, words)


async def test_a_long_request_id_is_refused(server: Served) -> None:
    async with server(Play("")) as served:
        await check_refused(served, of_text("x", request_id="i" * 129), "header.request_id", "128")


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize(
    ("documents", "number", "at", "inside"),
    [
        ([("a", "äöü"), ("bad.txt", b"x\xff")], 1, 7, 1),
        ([("a", b"x"), ("bad.txt", b"ab\xc3"), ("c", b"\xa4yz")], 1, 3, 2),
        ([("a", b""), ("bad.txt", b"\xed\xa0\x80"), ("b", b"")], 1, 0, 0),
        ([("a", b"plain ASCII"), ("b", b""), ("bad.txt", b"\xe2\x82"), ("d", b"plain")], 2, 11, 0),
    ],
    ids=["a stray byte", "a character cut by the document's end", "half a surrogate pair", "cut before ASCII"],
)
async def test_a_document_that_is_not_utf8_is_named_with_its_byte(
    server: Served, documents: Documents, number: int, at: int, inside: int, chunk: int
) -> None:
    async with server(Play("")) as served:
        words = f"document {number} ('bad.txt') is not UTF-8 at byte {at}, its byte {inside}: "
        await check_refused(served, of_documents(documents, chunk=chunk), "chunk.data", words)


async def test_a_bad_chunk_is_refused_at_once_though_the_stream_goes_on(server: Served) -> None:
    async with server(Play("")) as served:
        call = ContextCalls(served.caller).stream()
        await call.write(header(bytes(3 * CHUNK)))
        await call.write(chunks(b"\xff")[0])
        async with asyncio.timeout(30):
            said = await refusal(call)
        assert (said.code, said.fields) == (INVALID, ["chunk.data"])
        assert nothing_of_uploads(served.data_dir)


async def test_the_names_of_all_documents_have_a_limit(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MAX_NAMES", 1_000)
    documents = [("n" * 500, "x")] * 10
    async with server(Play("")) as served:
        sent = [header(b"x" * 10, 10), *(announcement([one], number) for number, one in enumerate(documents))]
        await check_refused(served, sent, "documents.documents[0].name", "1000 bytes together")


# ---- what a tenant may have --------------------------------------------------------------------------------------


async def test_contexts_and_uploads_together_stay_within_the_quota(server: Served) -> None:
    async with server(Play(""), context_bytes=1_000, tenants={"rich": {"context_bytes": 2_000}}) as served:
        calls = ContextCalls(served.caller)
        kept = await calls.send(of_text("x" * 500))
        await calls.send_part(of_text("y" * 300, chunk=100, request_id="idle")[:2])
        said = await refusal(calls.send(of_text("z" * 201)))
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONTEXT_QUOTA_EXCEEDED")
        assert said.said == {"unit": "context_bytes", "limit": "1000", "used": "800", "asked": "201"}
        assert "google.rpc.QuotaFailure" in said.details
        assert "1000" in said.message
        await calls.send(of_text("z" * 200))
        assert (await refusal(calls.send(of_text("a")))).reason == "CONTEXT_QUOTA_EXCEEDED"
        await calls.delete(kept.context_id)
        await calls.send(of_text("a" * 500))
        assert len(spooled(served.data_dir)) == 1

        rich = ContextCalls(await served.tenant("rich"))
        await rich.send(of_text("x" * 2_000))
        assert (await refusal(rich.send(of_text("y")))).said["limit"] == "2000"


async def test_a_context_may_be_as_large_as_the_server_says(server: Served) -> None:
    async with server(Play(""), max_context_bytes=10) as served:
        calls = ContextCalls(served.caller)
        await calls.send(of_text("x" * 10))
        for sent in (of_text("x" * 11), of_documents([("a", "x" * 10), ("b", "y")])):
            said = await refusal(calls.send(sent))
            assert (said.code, said.fields) == (INVALID, ["header.size_bytes"])
            assert "to 10, not 11" in said.message


async def test_a_tenant_has_a_limit_of_unfinished_uploads(server: Served) -> None:
    async with server(Play(""), tenant_uploads=2) as served:
        calls = ContextCalls(served.caller)
        for name in ("a", "b"):
            await calls.send_part([header(b"xy", request_id=name), *chunks(b"x")])
        assert (await refusal(calls.send(of_text("z")))).said["unit"] == "uploads"
        await calls.go_on([header(b"xy", request_id="a", sha256=header(b"xy").header.sha256), *chunks(b"xy", 1)])
        await calls.send(of_text("z"))


async def test_a_full_disk_is_said_and_the_upload_can_be_gone_on_with(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        whole = of_text("abcdef", chunk=3, request_id="mine")
        await calls.send_part(whole[:2])
        with monkeypatch.context() as patched:
            patched.setattr(spool, "_write", full)
            for sent in ([whole[0], whole[2]], of_text("another")):
                said = await refusal(calls.go_on(sent))
                assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
        assert len(spooled(served.data_dir)) == 1
        assert (await calls.go_on([whole[0], whole[2]])).character_count == 6
        await eventually(lambda: nothing_of_uploads(served.data_dir))


# ---- other calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "asked", "field"),
    [
        ("list", {"page_size": -1}, "page_size"),
        ("list", {"page_token": "nonsense"}, "page_token"),
        ("list", {"page_token": "WyJjb250ZXh0cyIsLTFd"}, "page_token"),
        ("list", {"page_token": "W" * 100_000}, "page_token"),
        ("documents", {"page_token": "WyJjb250ZXh0cyIsMV0="}, "page_token"),
        ("read", {"document": 3}, "document"),
        ("read", {"document": -1}, "document"),
        ("read", {"start": -1}, "start"),
        ("read", {"start": 5, "end": 4}, "end"),
        ("read", {"start": 1, "end": (1 << 18) + 2}, "end"),
        ("search", {"pattern": ""}, "pattern"),
        ("search", {"pattern": "x" * 1_001}, "pattern"),
        ("search", {"pattern": "(open"}, "pattern"),
        ("search", {"pattern": "x", "page_size": -1}, "page_size"),
        ("search", {"pattern": "x", "page_token": "nonsense"}, "page_token"),
        ("search", {"pattern": "x", "documents": [0, 3]}, "documents[1]"),
        ("search", {"pattern": "x", "documents": [-1]}, "documents[0]"),
        ("search", {"pattern": "x", "documents": [HUGE]}, "documents[0]"),
        ("search", {"pattern": "x", "documents": [0] * 10_001}, "documents"),
        ("read", {"document": HUGE}, "document"),
        ("read", {"document": -HUGE}, "document"),
        ("read", {"start": 0, "end": HUGE}, "end"),
        ("read", {"start": HUGE, "end": 0}, "end"),
        ("read", {"start": -HUGE, "end": HUGE}, "start"),
        ("documents", {"page_size": -1}, "page_size"),
        ("documents", {"page_token": "W" * 100_000}, "page_token"),
        ("status", {"request_id": ""}, "request_id"),
        ("status", {"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_a_wrong_field_of_a_question_is_named(
    server: Served, call: str, asked: dict[str, object], field: str
) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_documents(DOCUMENTS))).context_id
        about = {} if call in ("list", "status") else {"context_id": context_id}
        said = await refusal(getattr(calls, call)(**about, **asked))
        assert (said.code, said.fields) == (INVALID, [field])


async def test_a_page_token_that_nobody_gave_is_refused_whatever_it_says(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_documents(DOCUMENTS))).context_id
        said: list[object] = [
            *([context_id, first, at] for first in (-1, 3, HUGE, 1 << 80, 0.5, None, "0") for at in (0, HUGE)),
            *([context_id, 0, at] for at in (-1, HUGE, 1 << 80, 0.5, None, "0", [0])),
            [context_id], [context_id, 0], [context_id, 0, 0, 0], [["x"], 0, 0], {}, None, 1, "x", context_id,
        ]  # fmt: skip
        tokens = [base64.urlsafe_b64encode(json.dumps(one).encode()).decode() for one in said]
        tokens += ["W10", "!", "\ud7ff", base64.urlsafe_b64encode(b"[" * 1_400).decode()]
        for token in tokens:
            refused = await refusal(calls.documents(context_id, page_token=token))
            assert (refused.code, refused.fields) == (INVALID, ["page_token"]), token
        assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_range_beyond_a_documents_end_is_empty(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_documents(DOCUMENTS))).context_id
        for start in (1 << 20, 1 << 40, HUGE - 5):
            assert (await calls.read(context_id, start=start, end=start + 5)).text == ""


async def test_a_page_token_is_good_for_its_own_list_alone(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        one = (await calls.send(of_documents(DOCUMENTS))).context_id
        other = (await calls.send(of_documents(DOCUMENTS[:2]))).context_id
        token = (await calls.documents(one, page_size=1)).next_page_token
        assert (await calls.documents(one, page_token=token)).documents[0].number == 1
        for call in (calls.documents(other, page_token=token), calls.list(page_token=token)):
            assert (await refusal(call)).fields == ["page_token"]


async def test_what_is_anothers_is_not_found(server: Served) -> None:
    async with server(Play("")) as served:
        mine, other = ContextCalls(served.caller), ContextCalls(await served.tenant("other"))
        context_id = (await mine.send(of_text("mine", request_id="mine"))).context_id
        for call in (
            other.get(context_id),
            other.documents(context_id),
            other.read(context_id),
            other.search(context_id, "m"),
            other.delete(context_id),
            other.status("mine"),
        ):
            said = await refusal(call)
            assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
            assert "google.rpc.ResourceInfo" in said.details
        assert not (await other.list()).contexts
        assert (await other.send(of_text("mine", request_id="mine"))).context_id != context_id
        assert await mine.get(context_id)
