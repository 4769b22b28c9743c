"""What is wrong with a request is said by name, and nothing of it stays."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from rlm.v1 import context_pb2, run_pb2, types_pb2
from rlm_client.durations import milliseconds, seconds

from tests.servers import Served, Server
from tests.system.every_call import make, methods, namings, tenants_methods
from tests.system.stage import CHUNK, Caller, Play, code, eventually, header, part, parts, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TEXT = "Ein Text mit Umlauten: äöü, und mehr.\n" * 100
SHA = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
async def test_a_call_without_a_valid_key_is_refused(server: Served, method: Any) -> None:
    async with server(Play("")) as served:
        for key in (None, "", "rlm_wrong", served.running.key + "x", served.running.key[:-1]):
            stranger = served.another(key) if key != "" else Caller(served.running.address, "")
            said = await refusal(make(stranger, method))
            assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "key" in said.message
            await stranger.channel.close()


@pytest.mark.parametrize("scheme", ["Basic", "Bearer:", ""])
async def test_a_key_is_taken_as_a_bearer_key_alone(server: Served, scheme: str) -> None:
    async with server(Play("")) as served:
        served.caller.metadata = (("authorization", f"{scheme} {served.running.key}".strip()),)
        assert (await refusal(served.caller.get("run_x"))).code is grpc.StatusCode.UNAUTHENTICATED


NAMING_NOTHING = {
    "ListContexts", "UploadContext", "ImportSnapshot", "GetQuota", "GetServerInfo", "ListModels", "ListImages",
    "CreateAccount", "SetWebhook", "GetWebhook", "TestWebhook", "DisableWebhook",
}  # fmt: skip
"""Calls whose requests name nothing that is there."""


def test_every_call_names_something_that_is_there_or_is_known_not_to() -> None:
    assert {naming.method.name for naming in namings()} == {
        method.name for method in tenants_methods()
    } - NAMING_NOTHING


async def test_what_is_not_there_and_what_is_anothers_are_not_found_alike(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served:
        mine, other = served.caller, await served.tenant("other")
        context = (await mine.upload(TEXT)).context_id
        run = (await mine.ask(context_id=context)).run.run_id
        session = await mine.open_session()
        owned = {"run_id": run, "node_id": run, "account_id": run, "context_id": context, "session_id": session}
        for naming in namings():
            thing = owned.get(naming.path[-1], "an upload")
            long = "x" * (128 if naming.path == ("request_id",) else 10_000)
            for caller, asked in ((other, thing), (mine, thing + "0"), (mine, long)):
                said = await refusal(make(caller, naming.method, naming.request(asked)))
                assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), naming
                assert "google.rpc.ResourceInfo" in said.details
        assert (await mine.turn(session, "1")).printed == "1\n"
        assert (await mine.get(run)).run_id == run


@pytest.mark.parametrize(
    ("asked", "field", "reason"),
    [
        ({"model": "nobody"}, "model", "UNKNOWN_MODEL"),
        ({"sub_model": "nobody"}, "sub_model", "UNKNOWN_MODEL"),
        ({"question": " \n"}, "question", "INVALID_FIELD"),
        ({"question": "x" * 100_001}, "question", "INVALID_FIELD"),
        ({"model": "m" * 201}, "model", "INVALID_FIELD"),
        ({"sub_model": "m" * 1_000_000}, "sub_model", "INVALID_FIELD"),
        ({"image": "nothing"}, "image", "INVALID_FIELD"),
        ({"image": "i" * 1_000_000}, "image", "INVALID_FIELD"),
        ({"request_id": "x" * 129}, "request_id", "INVALID_FIELD"),
        ({"limits": run_pb2.RunLimits(max_turn_count=31)}, "limits.max_turn_count", "INVALID_FIELD"),
        ({"limits": run_pb2.RunLimits(max_turn_count=-1)}, "limits.max_turn_count", "INVALID_FIELD"),
        ({"limits": run_pb2.RunLimits(max_depth=5)}, "limits.max_depth", "INVALID_FIELD"),
        ({"limits": run_pb2.RunLimits(wall_time=seconds(3601))}, "limits.wall_time", "INVALID_FIELD"),
        (
            {"limits": run_pb2.RunLimits(sandbox=types_pb2.SandboxLimits(turn_time=milliseconds(60_001)))},
            "limits.sandbox.turn_time",
            "INVALID_FIELD",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_wrong_field_of_a_run_is_named(server: Served, asked: dict[str, Any], field: str, reason: str) -> None:
    play = Play("")
    async with server(play) as served:
        said = await refusal(served.caller.create(**asked))
        assert (said.code, said.reason, said.fields) == (INVALID, reason, [field])
        assert said.said["field"] == field
        assert play.asked == []


# ---- uploads -----------------------------------------------------------------------------------------------------


async def check_refused(
    served: Server, sent: Iterable[context_pb2.UploadContextRequest], field: str, words: str
) -> None:
    said = await refusal(served.caller.send_parts(sent))
    assert (said.code, said.fields) == (INVALID, [field])
    assert words in said.message
    assert list((served.data_dir / "contexts").iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        pytest.param([], "header", "first", id="nothing"),
        pytest.param([part(0, b"text")], "header", "first", id="no header"),
        pytest.param([*parts(TEXT), header(4, SHA)], "chunk", "header", id="a second header"),
        pytest.param([header(4, SHA), context_pb2.UploadContextRequest()], "chunk", "header", id="an empty message"),
        pytest.param([header(0, hashlib.sha256().hexdigest())], "header.size_bytes", "from 1", id="an empty text"),
        pytest.param([header(-1, SHA)], "header.size_bytes", "from 1", id="a negative size"),
        pytest.param([header(1 << 40, SHA)], "header.size_bytes", "to 2147483648", id="a size beyond all"),
        pytest.param([header(4, "no hash")], "header.sha256", "64", id="no hash"),
        pytest.param([header(4, SHA.upper())], "header.sha256", "64", id="a hash in capitals"),
        pytest.param([header(4, SHA, name="n" * 201)], "header.name", "200", id="a long name"),
        pytest.param(list(parts(TEXT, size=len(TEXT.encode()) + 1)), "header.size_bytes", "arrived", id="truncated"),
        pytest.param([header(10, SHA)], "header.size_bytes", "0 arrived", id="a header alone"),
        pytest.param(list(parts(TEXT, size=5)), "header.size_bytes", "5 bytes announced", id="too much"),
        pytest.param(list(parts(TEXT, sha256="0" * 64)), "header.sha256", SHA, id="another hash"),
        pytest.param([header(8, SHA), part(0, b"ab"), part(4, b"cd")], "chunk.offset", "at 2, not 4", id="a gap"),
        pytest.param(
            [header(8, SHA), part(0, b"ab"), part(0, b"ab")], "chunk.offset", "at 2, not 0", id="a repetition"
        ),
        pytest.param([header(8, SHA), part(-1, b"ab")], "chunk.offset", "at 0, not -1", id="a negative offset"),
        pytest.param([header(2 * CHUNK, SHA), part(0, bytes(CHUNK + 1))], "chunk.data", str(CHUNK), id="a long chunk"),
    ],
)
async def test_an_upload_that_is_not_what_it_says_leaves_nothing(
    server: Served, sent: list[context_pb2.UploadContextRequest], field: str, words: str
) -> None:
    async with server(Play("")) as served:
        await check_refused(served, sent, field, words)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000], ids=lambda size: f"chunks of {size}")
@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"plain text, then \xff and more", 17),
        ("äöü".encode() + b"\xe2\x82", 6),
        ("äöü".encode() + b"\xe2\x82 x", 6),
        (b"\xed\xa0\x80", 0),
        (b"ab\xc0\xaf", 2),
    ],
    ids=["a stray byte", "cut at the end", "cut inside", "half a surrogate pair", "overlong"],
)
async def test_a_text_that_is_not_utf8_is_refused_with_the_byte_named(
    server: Served, data: bytes, at: int, chunk: int
) -> None:
    async with server(Play("")) as served:
        await check_refused(served, list(parts(data, chunk=chunk)), "chunk.data", f"at byte {at}:")


async def test_an_upload_whose_sender_goes_away_leaves_nothing(server: Served) -> None:
    async with server(Play("")) as served:
        folder = served.data_dir / "uploads"
        lost = served.another()
        call = lost.contexts.UploadContext(metadata=lost.metadata)
        await call.write(header(CHUNK, SHA))
        await call.write(part(0, b"a part"))
        await eventually(lambda: list(folder.iterdir()))
        call.cancel()
        await eventually(lambda: not list(folder.iterdir()))


async def test_the_same_text_is_stored_once_for_its_tenant_alone(server: Served) -> None:
    async with server(Play("")) as served:
        together = await asyncio.gather(*[served.caller.upload(TEXT) for _ in range(5)])
        together.append(await served.caller.send_parts(parts(TEXT, chunk=7)))
        assert len({context.context_id for context in together}) == 6
        assert {(one.character_count, one.size_bytes) for one in together} == {(len(TEXT), len(TEXT.encode()))}
        folder = served.data_dir / "contexts"
        await eventually(lambda: len(list(folder.iterdir())) == 1)
        other = await served.tenant("other")
        theirs = await other.upload(TEXT)
        assert {path.name for path in folder.iterdir()} > {theirs.context_id}


@pytest.mark.parametrize("text", ["plain", "Umlaute äöü", "日本語のテキスト", "emoji 🎉 and more"], ids=len)
async def test_a_text_arrives_in_the_guest_character_by_character(server: Served, text: str) -> None:
    text = text * 1000 + "\x00\r\n"
    async with server(Play(code("import hashlib\nFINAL(hashlib.sha256(context.encode()).hexdigest())"))) as served:
        context = await served.caller.send_parts(parts(text, chunk=4099))
        ended = await served.caller.ask(context_id=context.context_id)
        assert ended.run.answer == hashlib.sha256(text.encode()).hexdigest()
