"""What is kept of runs has bounds: each text, each run, each tenant's together; and what is deleted makes room."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rlm.v1 import run_pb2

from rlm_server.api import run as run_api
from rlm_server.api.errors import WatcherTooSlow
from rlm_server.api.responses import MOST_TEXT
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from tests.servers import Served
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Play, code, refusal

MIB = 1 << 20


async def test_a_long_text_of_an_event_is_cut_and_the_event_says_how_long_it_was(server: Served) -> None:
    long = "'" + "\u00e9" * MAX_EVENT_TEXT + "'"
    async with server(Play(code(f"FINAL({long})")), root_tokens=100_000) as served:
        ended = await served.caller.ask()
        sizes = {event.WhichOneof("body"): {one.field: one.size_bytes for one in event.cut} for event in ended.events}
        answer = 2 * MAX_EVENT_TEXT
        assert sizes["code_started"] == {"code": answer + len("FINAL('')\n")}
        assert sizes["answer"] == {"text": answer}
        assert sizes["run_finished"] == {"answer": answer}
        assert ended.run.answer == "\u00e9" * (MOST_TEXT // 2)
        assert {one.field: one.size_bytes for one in ended.run.cut} == {"answer": answer}
        assert await served.caller.read_answer(ended.run.run_id) == "\u00e9" * MAX_EVENT_TEXT
        for event in ended.events:
            assert event.ByteSize() < 2 * MAX_EVENT_TEXT


async def test_long_output_comes_as_several_events_and_none_of_it_is_kept_twice(server: Served) -> None:
    size = 3 * MAX_EVENT_TEXT + 7
    async with server(Play(code(f"print('x' * {size}, end='')\nFINAL(1)")), sandbox={"output_bytes": MIB}) as served:
        ended = await served.caller.ask()
        assert ended.printed == "x" * size
        assert max(len(output.text) for output in ended.bodies("output")) <= MAX_EVENT_TEXT
        (kept,) = rows(served.data_dir, "SELECT sum(size) AS size FROM event")
        assert kept["size"] < size + MAX_EVENT_TEXT


async def test_an_answer_above_the_limit_is_refused_by_its_name_and_the_loop_goes_on(server: Served) -> None:
    long = "x" * 1_025
    play = Play(f"FINAL({long})", code("FINAL('x' * 1025)"), code("FINAL('short')"))
    async with server(play, answer_bytes=1_024) as served:
        ended = await served.caller.ask()
        assert ended.run.answer == "short"
        refused = ended.bodies("code_finished")[0].result.error
        assert refused.type == "LimitExceeded"
        for told in (play.asked[1].messages[-1].content, refused.message):
            assert "answer_bytes: an answer may have 1024 bytes" in told


async def test_the_largest_answer_can_be_read_in_messages_that_every_client_takes(server: Served) -> None:
    async with server(Play(code(f"FINAL('x' * {8 * MIB})"))) as served:
        created = await served.caller.create("\U0001f600" * 100_000)
        await served.caller.until(created.run_id, "run_finished")
        plain = served.another(plain=True)
        run = await plain.get(created.run_id)
        assert (len(run.answer), run.answer_size_bytes) == (MOST_TEXT, 8 * MIB)
        assert run.ByteSize() <= MIB
        assert await plain.read_answer(created.run_id) == "x" * (8 * MIB)


async def test_a_run_whose_events_are_too_many_ends_and_names_the_limit(server: Served) -> None:
    play = Play(code("for i in range(100): print('x' * 60_000, end='')"))
    async with server(play, sandbox={"output_bytes": MIB}, event_bytes=256 << 10) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert ended.run.end_message == "event_bytes: a run's events may have 262144 bytes"
        check_story(ended)
        check_settled(served.data_dir)


async def test_a_tenant_whose_runs_keep_too_much_starts_none_until_it_deletes_some(server: Served) -> None:
    fill = code("for i in range(100): print('x' * 60_000, end='')")
    async with server(Play(fill, small=code("FINAL(1)")), sandbox={"output_bytes": 2 * MIB},
                      tenant_kept_bytes=MIB) as served:  # fmt: skip
        full = await served.caller.ask()
        assert full.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert full.run.end_message.startswith("tenant_kept_bytes: ")
        check_story(full)
        said = await refusal(served.caller.create("small"))
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RUN_QUOTA_EXCEEDED")
        assert (said.said["unit"], said.said["limit"]) == ("tenant_kept_bytes", str(MIB))
        other = await served.tenant("other")
        assert (await other.ask("small")).run.state == run_pb2.RUN_STATE_SUCCEEDED, "another tenant's do not count"
        await served.caller.delete_run(full.run.run_id)
        assert (await served.caller.ask("small")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        check_settled(served.data_dir)


async def test_a_deleted_run_is_gone_and_what_it_spent_stays(server: Served) -> None:
    async with server(Play(code("rlm_query('child')"), code("FINAL(1)"), child=code("FINAL(2)"))) as served:
        run = (await served.caller.ask()).run
        spent = rows(served.data_dir, "SELECT count(*) AS n FROM hold")
        await served.caller.delete_run(run.run_id)
        assert (await refusal(served.caller.get(run.run_id))).reason == "NOT_FOUND"
        assert (await refusal(served.caller.delete_run(run.run_id))).reason == "NOT_FOUND"
        for table in ("run", "node", "event"):
            assert rows(served.data_dir, f"SELECT * FROM {table}") == []
        assert rows(served.data_dir, "SELECT count(*) AS n FROM hold") == spent
        assert [row["kept_bytes"] for row in rows(served.data_dir, "SELECT * FROM tenant_usage")] == [0]


async def test_a_run_that_goes_on_cannot_be_deleted(server: Served) -> None:
    async with server(Play(code("while True: pass"))) as served:
        run = await served.caller.create()
        await served.caller.until(run.run_id, "code_started")
        said = await refusal(served.caller.delete_run(run.run_id))
        assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_ENDED")
        await served.caller.cancel(run.run_id)
        await served.caller.delete_run(run.run_id)


async def test_a_watcher_that_takes_nothing_is_told_where_to_resume(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()

    class Told(WatcherTooSlow):
        def __init__(self, seconds: float, from_sequence: int) -> None:
            super().__init__(seconds, from_sequence)
            told.set()

    play = Play(code("print('x' * 2_000_000)\nFINAL(1)"))
    async with server(play, sandbox={"output_bytes": 16 * MIB}) as served:
        whole = await served.caller.ask()
        monkeypatch.setattr(run_api, "WatcherTooSlow", Told)
        monkeypatch.setattr(run_api, "TAKEN_SECONDS", 0.2)
        slow = served.another(plain=True)
        call = slow.runs.WatchRun(run_pb2.WatchRunRequest(run_id=whole.run.run_id), metadata=slow.metadata)
        async with asyncio.timeout(60):
            await told.wait()
        monkeypatch.undo()
        seen = []

        async def read() -> None:
            async for response in call:
                seen.append(response.event)

        said = await refusal(read())
        assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "WATCHER_TOO_SLOW")
        resume = int(said.said["from_sequence"])
        assert 1 < resume <= len(seen) + 1 <= len(whole.events)
        seen += [event async for event in served.caller.watch(whole.run.run_id, len(seen) + 1)]
        assert seen == whole.events
