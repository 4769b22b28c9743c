"""Every upload is a context of its own, with its name and labels. Equal contents share their storage, never an id."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import context_pb2, server_pb2, server_pb2_grpc

from tests.databases import KINDS
from tests.servers import Served
from tests.system.context_calls import ContextCalls, in_order, of_documents, of_text, stored
from tests.system.operator import until
from tests.system.stage import Caller, Play, code, eventually, refusal

TEXT = "Grüße aus 東京\n" * 1_000
NOT_FOUND, EXISTS = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The setting of a database of each kind."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


async def used_bytes(caller: Caller) -> int:
    stub: Any = server_pb2_grpc.ServerServiceStub(caller.channel)
    told = await stub.GetQuota(server_pb2.GetQuotaRequest(), metadata=caller.metadata)
    return next(int(quota.used) for quota in told.quotas if quota.name == "context_bytes")


async def test_equal_uploads_are_contexts_of_their_own_and_one_outlives_the_other(
    server: Served, database: dict[str, Any]
) -> None:
    async with server(Play(code("FINAL(context[-3:-1])")), **database) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        first = await calls.send(of_text(TEXT, name="first", labels={"team": "red"}))
        second = await calls.send(of_text(TEXT, name="second", labels={"team": "blue"}))
        assert first.context_id != second.context_id
        assert (first.sha256, first.size_bytes) == (second.sha256, second.size_bytes)
        assert [(one.name, dict(one.labels)) for one in (first, second)] == [
            ("first", {"team": "red"}),
            ("second", {"team": "blue"}),
        ]
        assert stored(served.data_dir) == {first.context_id}
        assert await used_bytes(caller) == len(TEXT.encode()), "the bytes are charged once"
        await calls.delete(first.context_id)
        assert (await refusal(calls.get(first.context_id))).code is NOT_FOUND
        assert (await calls.read(second.context_id)).text == TEXT
        assert (await caller.ask(context_id=second.context_id)).run.answer == "東京"
    async with server(Play(code("FINAL(context[-3:-1])")), **database) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        assert await calls.get(second.context_id) == second
        assert (await calls.read(second.context_id)).text == TEXT
        assert await used_bytes(caller) == len(TEXT.encode())
        await calls.delete(second.context_id)
        await eventually(lambda: not stored(served.data_dir))
        assert await used_bytes(caller) == 0


async def test_what_is_read_by_one_context_stays_though_another_is_the_last_to_go(server: Served) -> None:
    async with server(Play("")) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        first, second = [(await calls.send(of_text(TEXT))).context_id for _ in range(2)]
        session = await caller.open_session(context_id=first)
        await calls.delete(first)
        await calls.delete(second)
        assert (await caller.turn(session, "print(len(context), context[-3:-1])")).printed == f"{len(TEXT)} 東京\n"
        assert stored(served.data_dir) == {first}
        third = (await calls.send(of_text(TEXT))).context_id
        assert stored(served.data_dir) == {first, third}, "what goes is given to nobody"
        await caller.delete(session)
        await eventually(lambda: stored(served.data_dir) == {third} and in_order(served.data_dir))
        assert (await calls.read(third)).text == TEXT


async def test_equal_uploads_at_the_same_time_share_their_files(server: Served, database: dict[str, Any]) -> None:
    async with server(Play(""), **database) as served:
        calls = ContextCalls(served.caller)
        made = await asyncio.gather(*(calls.send(of_documents([("a", TEXT), ("b", "x")])) for _ in range(6)))
        assert len({one.context_id for one in made}) == 6
        await eventually(lambda: len(stored(served.data_dir)) == 1)
        for one in made:
            assert (await calls.read(one.context_id)).text == TEXT
        for one in made:
            await calls.delete(one.context_id)
        await eventually(lambda: not stored(served.data_dir))


async def test_one_context_that_is_unused_goes_and_an_equal_one_in_use_stays(server: Served) -> None:
    async with server(Play(""), context_retention_days=2 / 86_400) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        unused, used = [(await calls.send(of_text(TEXT))).context_id for _ in range(2)]
        session = await caller.open_session(context_id=used)

        async def is_gone() -> bool:
            return [one.context_id for one in (await calls.list()).contexts] == [used]

        await until(is_gone)
        assert stored(served.data_dir) == {unused}, "the files are those of both"
        assert (await caller.turn(session, "print(context[-3:-1])")).printed == "東京\n"


async def test_no_tenant_can_tell_what_another_has_stored(server: Served) -> None:
    async with server(Play("")) as served:
        mine = ContextCalls(served.caller)
        other = await served.tenant("other")
        await mine.send(of_text(TEXT))
        theirs = await ContextCalls(other).send(of_text(TEXT))
        assert len(stored(served.data_dir)) == 2, "nothing is shared between tenants"
        assert await used_bytes(other) == len(TEXT.encode())
        await ContextCalls(other).delete(theirs.context_id)
        await eventually(lambda: len(stored(served.data_dir)) == 1)


async def test_a_context_is_renamed_and_labelled_anew(server: Served, database: dict[str, Any]) -> None:
    async with server(Play(""), **database) as served:
        calls = ContextCalls(served.caller)
        made = await calls.send(of_text(TEXT, name="old", labels={"a": "1"}, request_id="mine"))
        context_id = made.context_id
        assert (await calls.update(context_id, name="new")).name == "new"
        changed = await calls.update(context_id, "labels", name="not this", labels={"b": "2"})
        assert (changed.name, dict(changed.labels)) == ("new", {"b": "2"})
        assert await calls.get(context_id) == changed
        changed = await calls.update(context_id, "*", name="both")
        assert (changed.name, dict(changed.labels)) == ("both", {})
        assert (await calls.update(context_id)) == changed, "nothing is set, and nothing changes"
        said = await refusal(calls.update(context_id, "sha256", sha256="0" * 64))
        assert said.fields == ["update_mask"]
        said = await refusal(calls.update(context_id, name="n" * 201))
        assert said.fields == ["context.name"]
        assert (await refusal(calls.update("ctx_none", name="x"))).code is NOT_FOUND
        whole = of_text(TEXT, name="old", labels={"a": "1"}, request_id="mine")
        assert await calls.send(whole[:1]) == changed, "the upload is known by what it said then"


async def test_contexts_are_listed_by_label_name_and_time(server: Served, database: dict[str, Any]) -> None:
    async with server(Play(""), **database) as served:
        calls = ContextCalls(served.caller)
        made = [
            await calls.send(of_text(TEXT, name=f"name {number % 2}", labels={"team": "red", "number": str(number)}))
            for number in range(5)
        ]
        await calls.send(of_text(TEXT, name="name 0"))

        async def named(**asked: Any) -> list[str]:
            seen, token = list[str](), ""
            while True:
                page = await calls.list(page_size=2, page_token=token, **asked)
                seen += [one.labels["number"] for one in page.contexts]
                token = page.next_page_token
                if not token:
                    return seen

        assert await named(labels={"team": "red"}) == ["4", "3", "2", "1", "0"]
        assert await named(labels={"team": "red", "number": "3"}) == ["3"]
        assert await named(labels={"team": "blue"}) == []
        assert await named(labels={"team": "red"}, name="name 1") == ["3", "1"]
        assert await named(labels={"team": "red"}, since=made[2].create_time) == ["4", "3", "2"]
        assert await named(labels={"team": "red"}, until=made[2].create_time) == ["1", "0"]
        await calls.delete(made[1].context_id)
        assert await named(labels={"team": "red"}) == ["4", "3", "2", "0"]
        token = (await calls.list(page_size=1, labels={"team": "red"})).next_page_token
        assert (await refusal(calls.list(page_token=token))).fields == ["page_token"]
        wrong = Timestamp(seconds=-5)
        assert (await refusal(calls.list(since=wrong))).fields == ["since"]


async def test_a_request_that_comes_again_changes_nothing(server: Served, database: dict[str, Any]) -> None:
    async with server(Play(""), **database) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        await calls.update(context_id, request_id="rename", name="first")
        await calls.update(context_id, name="second")
        assert (await calls.update(context_id, request_id="rename", name="first")).name == "second"
        said = await refusal(calls.update(context_id, request_id="rename", name="other"))
        assert (said.code, said.reason) == (EXISTS, "REQUEST_ID_REUSED")
    async with server(Play(""), **database) as served:
        calls = ContextCalls(served.caller)
        other = (await calls.send(of_text(TEXT))).context_id
        assert (await calls.update(context_id, request_id="rename", name="first")).name == "second"
        await calls.delete(context_id, request_id="gone")
        await calls.delete(context_id, request_id="gone")
        assert (await refusal(calls.delete(context_id, request_id="another"))).code is NOT_FOUND
        assert (await refusal(calls.delete(other, request_id="gone"))).reason == "REQUEST_ID_REUSED"
        assert (await calls.get(other)).context_id == other
        # A request about a context is forgotten with it.
        assert (await refusal(calls.update(context_id, request_id="rename", name="first"))).code is NOT_FOUND
    async with server(Play(""), **database) as served:
        await ContextCalls(served.caller).delete(context_id, request_id="gone")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({str(number): "" for number in range(17)}, "16 labels, not 17"),
        ({"": "x"}, "a key must not be empty"),
        ({"k" * 64: "x"}, "63 characters, not 64"),
        ({"k": "v" * 64}, "63 characters, not 64"),
    ],
)
async def test_labels_are_bounded(server: Served, labels: dict[str, str], words: str) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        for call, field in (
            (calls.send(of_text(TEXT, labels=labels)), "header.labels"),
            (calls.update(context_id, labels=labels), "context.labels"),
            (calls.list(labels=labels), "labels"),
        ):
            said = await refusal(call)
            assert said.fields == [field]
            assert words in said.message


async def test_a_tenant_has_a_limit_of_contexts(server: Served) -> None:
    async with server(Play(""), tenant_contexts=2) as served:
        calls = ContextCalls(served.caller)
        first = await calls.send(of_text("x", request_id="mine"))
        await calls.send(of_text("x"))
        said = await refusal(calls.send(of_text("x")))
        assert (said.reason, said.said["unit"], said.said["limit"]) == (
            "CONTEXT_QUOTA_EXCEEDED",
            "tenant_contexts",
            "2",
        )
        assert await calls.send(of_text("x", request_id="mine")) == first
        await calls.delete(first.context_id)
        assert isinstance(await calls.send(of_text("x")), context_pb2.Context)


async def test_lineage_and_coverage_are_those_of_the_content(server: Served) -> None:
    async with server(Play(code("FINAL(llm_query(context[:200]))"))) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        text = "".join(f"line {number} says nothing\n" for number in range(2_000))
        first, second = [(await calls.send(of_text(text))).context_id for _ in range(2)]
        await calls.delete(first)
        ended = await caller.ask(context_id=second)
        assert ended.run.coverage.fraction > 0
        passages = [
            (one.range.start, one.range.end) for traced in ended.bodies("call_traced") for one in traced.passages
        ]
        assert (0, 200) in passages
