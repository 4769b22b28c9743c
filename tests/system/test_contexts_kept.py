"""A context stays for those who read it, and goes when it is nobody's; what happened to its files is said."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import grpc
import pytest
from rlm.v1 import run_pb2

from sandbox.pool.worker_session import WorkerSession
from tests.servers import Served
from tests.system.books import rows
from tests.system.context_calls import ContextCalls, in_order, of_documents, of_text, stored
from tests.system.stage import Play, code, eventually, refusal

TEXT = "Grüße aus 東京\n" * 1_000


async def test_a_session_keeps_the_context_it_reads_until_it_ends(server: Served) -> None:
    async with server(Play("")) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        one, two = await caller.open_session(context_id=context_id), await caller.open_session(context_id=context_id)
        await calls.delete(context_id)
        again = (await calls.send(of_text(TEXT))).context_id
        assert again != context_id
        for session in (one, two):
            assert (await caller.turn(session, "print(len(context), context[-3:-1])")).printed == f"{len(TEXT)} 東京\n"
            assert stored(served.data_dir) == {context_id, again}
            await caller.delete(session)
        await eventually(lambda: stored(served.data_dir) == {again} and in_order(served.data_dir))


async def test_a_session_that_hibernates_keeps_its_context_and_wakes_well(server: Served) -> None:
    async with server(Play(""), rest_seconds=0.1) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        session = await caller.open_session(context_id=context_id)
        await caller.turn(session, "kept = context[:5]")
        await eventually(lambda: any(path.is_file() for path in (served.data_dir / "sessions").rglob("*")))
        await calls.delete(context_id)
        assert stored(served.data_dir) == {context_id}
        assert (await caller.turn(session, "print(kept, context[-3:-1])")).printed == "Grüße 東京\n"
        await caller.delete(session)
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))


async def test_a_run_keeps_the_context_it_reads_until_it_ends(server: Served) -> None:
    going = asyncio.Event()

    async def sub(prompt: str) -> str:
        await going.wait()
        return "ok"

    play = Play(code("llm_query('wait')\nFINAL(context[-3:-1])"), sub=sub)
    async with server(play) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        run = await caller.create(context_id=context_id)
        await eventually(lambda: play.subcalls)
        await calls.delete(context_id)
        assert stored(served.data_dir) == {context_id}
        going.set()
        assert (await caller.ended(run.run_id)).run.answer == "東京"
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))


async def test_a_session_that_could_not_begin_keeps_nothing(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def attach(*_: object) -> None:
        raise MemoryError("it does not fit")

    async with server(Play("")) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        monkeypatch.setattr(WorkerSession, "attach", attach)
        assert (await refusal(caller.open_session(context_id=context_id))).reason == "CONTEXT_TOO_LARGE"
        await calls.delete(context_id)
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))


async def test_a_server_that_stops_lets_go_of_everything(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        await served.caller.open_session(context_id=context_id)
        await calls.delete(context_id)
        assert stored(served.data_dir) == {context_id}
    assert not stored(served.data_dir)
    assert not rows(served.data_dir, "SELECT 1 FROM context")


async def test_a_context_that_nobody_uses_is_removed_where_that_is_configured(server: Served) -> None:
    async with server(Play(""), context_retention_days=3 / 86_400) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        unused = (await calls.send(of_text("unused"))).context_id
        used = (await calls.send(of_text("used"))).context_id
        session = await caller.open_session(context_id=used)
        await eventually(lambda: stored(served.data_dir) == {used} and in_order(served.data_dir))
        assert (await refusal(calls.get(unused))).code is grpc.StatusCode.NOT_FOUND
        assert (await caller.turn(session, "print(context)")).printed == "used\n"
        await caller.delete(session)
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))


# ---- damage ------------------------------------------------------------------------------------------------------


def _cut(folder: Path, file: str) -> None:
    (folder / file).chmod(0o600)
    os.truncate(folder / file, (folder / file).stat().st_size - 1)


def _alter(folder: Path, file: str) -> None:
    (folder / file).chmod(0o600)
    with (folder / file).open("r+b") as opened:
        opened.write(b"x")


def _remove(folder: Path, file: str) -> None:
    (folder / file).unlink()


def _remove_all(folder: Path, file: str) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["texts", "index"])
@pytest.mark.parametrize("harm", [_cut, _alter, _remove, _remove_all])
async def test_a_context_whose_files_are_damaged_says_so(server: Served, harm: object, file: str) -> None:
    assert callable(harm)
    async with server(Play("")) as served:
        caller, calls = served.caller, ContextCalls(served.caller)
        sent = of_documents([("a", TEXT), ("b", "x" * 100_000)])
        context_id = (await calls.send(sent)).context_id
        harm(served.data_dir / "contexts" / context_id, file)
        for call in (
            calls.documents(context_id),
            calls.read(context_id),
            calls.search(context_id, "x"),
            caller.open_session(context_id=context_id),
            caller.create(context_id=context_id),
        ):
            said = await refusal(call)
            assert (said.code, said.reason) == (grpc.StatusCode.DATA_LOSS, "CONTEXT_DAMAGED")
            assert said.said == {"context_id": context_id}
            assert context_id in said.message
            assert str(served.data_dir) not in said.message
        assert (await calls.get(context_id)).context_id == context_id
        again = await calls.send(sent)
        for mended in (context_id, again.context_id):
            assert (await calls.read(mended)).text == TEXT
        await calls.delete(context_id)
        await eventually(lambda: stored(served.data_dir) == {again.context_id})
    async with server(Play(code("FINAL(1)"))) as served:
        assert (await served.caller.ask()).run.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_an_index_that_says_nonsense_without_having_changed_is_damage(server: Served) -> None:
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        context_id = (await calls.send(of_text(TEXT))).context_id
        index = served.data_dir / "contexts" / context_id / "index"
        written, data = index.stat(), bytearray(index.read_bytes())
        data[-2:] = b"\xfe\xfe"  # the forms of the text and of its names
        index.chmod(0o600)
        index.write_bytes(data)
        os.utime(index, ns=(written.st_atime_ns, written.st_mtime_ns))
        for call in (calls.documents(context_id), calls.read(context_id), calls.search(context_id, "x")):
            said = await refusal(call)
            assert (said.code, said.reason) == (grpc.StatusCode.DATA_LOSS, "CONTEXT_DAMAGED")
            assert said.said == {"context_id": context_id}
            assert str(served.data_dir) not in said.message
        await calls.delete(context_id)
        await eventually(lambda: in_order(served.data_dir) and not stored(served.data_dir))


async def test_a_context_whose_folder_is_missing_at_the_start_is_not_lost_silently(
    server: Served, tmp_path: Path
) -> None:
    async with server(Play("")) as served:
        context_id = (await ContextCalls(served.caller).send(of_text(TEXT))).context_id
    shutil.rmtree(tmp_path / "data" / "contexts" / context_id)
    async with server(Play("")) as served:
        calls = ContextCalls(served.caller)
        assert [context.context_id for context in (await calls.list()).contexts] == [context_id]
        said = await refusal(calls.read(context_id))
        assert (said.code, said.reason) == (grpc.StatusCode.DATA_LOSS, "CONTEXT_DAMAGED")
