"""Contexts, of one text or of many documents, are stored once, described, listed, read, searched and deleted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest
from rlm.v1 import context_pb2

from tests.servers import Served
from tests.system.context_calls import ContextCalls, in_order, of_documents, of_text, spooled, stored
from tests.system.stage import Play, code, eventually, refusal

TEXT = "Grüße aus 東京, \x00 mit BOM \ufeff und CR LF\r\n\rEnde 🎉"
DOCUMENTS = [
    ("plain.txt", "only ASCII\n"),
    ("empty.txt", ""),
    ("umlauts.txt", "\ufeffGrüße\r\n"),
    ("tokyo.txt", "東京\x00"),
    ("party.txt", "🎉" * 20_000),
    ("plain.txt", "the same name again"),
    ("", "no name at all"),
    ("ordner/größe 東京.txt", "x" * 70_000),
]
NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def _read_all(calls: ContextCalls, context_id: str, document: int) -> str:
    text, characters = "", 1
    while len(text) < characters:
        part = await calls.read(context_id, document, len(text), len(text) + (1 << 18))
        text, characters = text + part.text, part.character_count
        if not characters:
            break
    return text


async def test_a_text_is_described_and_read_as_it_was_sent(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context = await calls.send(of_text(TEXT * 100, name="my text", chunk=7))
        assert context == await calls.get(context.context_id)
        assert (context.name, context.kind, context.document_count) == ("my text", context_pb2.CONTEXT_KIND_TEXT, 1)
        assert (context.character_count, context.size_bytes) == (len(TEXT) * 100, len(TEXT.encode()) * 100)
        assert await _read_all(calls, context.context_id, 0) == TEXT * 100
        (document,) = (await calls.documents(context.context_id)).documents
        assert (document.number, document.name, document.character_count) == (0, "", len(TEXT) * 100)
        assert in_order(served.data_dir)


@pytest.mark.parametrize("chunk", [1_000_000, 4_099])
async def test_documents_are_described_and_read_as_they_were_sent(server: Served, chunk: int) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context = await calls.send(of_documents(DOCUMENTS, chunk=chunk))
        assert (context.kind, context.document_count) == (context_pb2.CONTEXT_KIND_DOCUMENTS, len(DOCUMENTS))
        assert context.character_count == sum(len(text) for _, text in DOCUMENTS)
        listed = (await calls.documents(context.context_id)).documents
        assert [(one.number, one.name, one.character_count) for one in listed] == [
            (number, name, len(text)) for number, (name, text) in enumerate(DOCUMENTS)
        ]
        for number, (_, text) in enumerate(DOCUMENTS):
            assert await _read_all(calls, context.context_id, number) == text
        assert (await calls.read(context.context_id, 4, 19_998, 30_000)).text == "🎉🎉"
        assert (await calls.read(context.context_id, 4, 50_000, 60_000)).text == ""


async def test_documents_may_be_announced_as_they_come(server: Served) -> None:
    async def messages() -> AsyncIterator[context_pb2.UploadContextRequest]:
        whole = of_documents(DOCUMENTS)
        yield whole[0]
        offset = 0
        for number, (name, text) in enumerate(DOCUMENTS):
            data = str(text).encode()
            told = context_pb2.UploadDocument(name=name, size_bytes=len(data))
            announced = context_pb2.UploadDocuments(first_document=number, documents=[told])
            yield context_pb2.UploadContextRequest(documents=announced)
            if data:
                yield context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(offset=offset, data=data))
            offset += len(data)

    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        reply = await served.caller.contexts.UploadContext(messages(), metadata=served.caller.metadata)
        for number, (_, text) in enumerate(DOCUMENTS):
            assert await _read_all(calls, reply.context.context_id, number) == text


async def test_documents_without_any_text_are_a_context(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context = await calls.send(of_documents([("a", ""), ("b", "")]))
        assert (context.size_bytes, context.character_count, context.document_count) == (0, 0, 2)
        assert (await calls.read(context.context_id, 1)).text == ""


async def test_the_same_text_in_other_documents_is_another_content(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        others = [
            of_text("ab"),
            of_documents([("n", "ab")]),
            of_documents([("m", "ab")]),
            of_documents([("n", "a"), ("m", "b")]),
            of_documents([("m", "a"), ("n", "b")]),
            of_documents([("n", "ab"), ("m", "")]),
        ]
        ids = [(await calls.send(other)).context_id for other in others]
        again = [(await calls.send(other)).context_id for other in others]
        assert len({*ids, *again}) == 2 * len(others)
        assert stored(served.data_dir) == set(ids), "equal ones are stored once"
        assert not spooled(served.data_dir)


async def test_contexts_are_listed_page_by_page_with_the_newest_first(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        assert (await calls.list()) == context_pb2.ListContextsResponse()
        made = [await calls.send(of_text(f"text {number}", name=str(number))) for number in range(7)]
        await ContextCalls(await served.tenant("other")).send(of_text("not mine"))
        seen: list[context_pb2.Context] = []
        token = ""
        while True:
            page = await calls.list(page_size=3, page_token=token)
            seen += page.contexts
            token = page.next_page_token
            if not token:
                break
            if len(seen) == 3:
                await calls.delete(made[2].context_id)
                await calls.send(of_text("newer than the first page"))
        assert [context.name for context in seen] == ["6", "5", "4", "3", "1", "0"]


async def test_documents_are_listed_page_by_page_however_long_their_names_are(server: Served) -> None:
    documents = [(chr(0x4E00 + number % 100) * (number % 501), f"{number}") for number in range(5_000)]
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_documents(documents))).context_id
        for size in (7, 1_000, 10_000):
            seen: list[context_pb2.Document] = []
            token, pages = "", 0
            while len(seen) < (50 if size == 7 else 5_000):
                page = await calls.documents(context_id, page_size=size, page_token=token)
                assert len(page.documents) <= size
                assert page.ByteSize() < 4 << 20
                seen += page.documents
                token, pages = page.next_page_token, pages + 1
            assert [one.name for one in seen] == [name for name, _ in documents[: len(seen)]]
            assert [one.number for one in seen] == list(range(len(seen)))
            assert (token == "") == (len(seen) == 5_000)
            assert pages > 1


async def test_a_search_finds_what_is_there_in_the_order_of_the_text(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_documents([("a", "one é two"), ("b", ""), ("c", "two two")]))).context_id
        found = await calls.search(context_id, r"tw(o)")
        assert [(one.document, one.start, one.end, one.text) for one in found.matches] == [
            (0, 6, 9, "two"),
            (2, 0, 3, "two"),
            (2, 4, 7, "two"),
        ]
        assert not found.next_page_token
        assert [one.start for one in (await calls.search(context_id, "two", documents=[2, 2])).matches] == [0, 4]
        limited = await calls.search(context_id, "two", page_size=2)
        assert (len(limited.matches), bool(limited.next_page_token)) == (2, True)
        rest = await calls.search(context_id, "two", page_size=2, page_token=limited.next_page_token)
        assert [*limited.matches, *rest.matches] == [*found.matches]
        assert not rest.next_page_token
        assert not (await calls.search(context_id, "three")).matches


async def test_the_answer_to_a_search_is_never_larger_than_a_client_takes(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_text(("🎉" * 1_000 + "\n") * 1_000))).context_id
        found = await calls.search(context_id, "🎉+", page_size=1_000)
        assert found.ByteSize() < 1 << 20
        assert 200 < len(found.matches) < 1_000
        starts = [one.start for one in found.matches]
        while found.next_page_token:
            found = await calls.search(context_id, "🎉+", page_size=1_000, page_token=found.next_page_token)
            assert found.ByteSize() < 1 << 20
            starts += [one.start for one in found.matches]
        assert starts == list(range(0, 1_000 * 1_001, 1_001))


async def test_a_search_ends_with_its_caller(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        rng = random.Random(1)
        text = "".join(rng.choices("ab", k=16 << 20))
        context_id = (await calls.send(of_text(text))).context_id
        searches = [asyncio.create_task(calls.search(context_id, "(a|b)*c" + str(n))) for n in range(8)]
        await asyncio.sleep(0.2)
        for search in searches:
            search.cancel()
        await asyncio.wait(searches)
        async with asyncio.timeout(20):
            assert (await calls.search(context_id, "^.")).matches[0].text == text[0]


async def test_a_deleted_context_is_not_found_by_anybody(server: Served) -> None:
    async with server(Play(code("FINAL(len(context))"))) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT, request_id="mine"))).context_id
        other = await served.tenant("other")
        assert (await refusal(ContextCalls(other).delete(context_id))).code is NOT_FOUND
        run = (await caller.ask(context_id=context_id)).run
        await calls.delete(context_id)
        for call in (
            calls.get(context_id),
            calls.documents(context_id),
            calls.read(context_id),
            calls.search(context_id, "x"),
            calls.delete(context_id),
            caller.create(context_id=context_id),
            caller.open_session(context_id=context_id),
            calls.status("mine"),
        ):
            assert (await refusal(call)).code is NOT_FOUND
        assert not (await calls.list()).contexts
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))
        assert (await caller.get(run.run_id)).context_id == context_id
