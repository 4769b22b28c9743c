"""Where an operator has contents redacted, nothing of them is kept or told but what a tenant asked its run for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from rlm.v1 import run_pb2, server_pb2, server_pb2_grpc

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.ledger import Query
from tests.servers import Served, Server
from tests.system.operator import Operator, operating
from tests.system.stage import Caller, Ended, Play, code, eventually, refusal

SECRET = "marzipan"
"""Stands in everything that a run says, but its answer."""
ANSWER = "nougat"

ASK = "llm_query('marzipan prompt')"
FAIL = "try:\n    llm_query('marzipan fails')\nexcept Exception as error:\n    pass"
SPEAK = "marzipan_name = 'marzipan value'\nprint('marzipan output')\nprint(context[:20])"
CHILD = "rlm_query('marzipan child', context='marzipan text')"
RAISE = "raise ValueError('marzipan error')"
LINES = (
    "marzipan reply\n" + code(ASK, FAIL),
    code(SPEAK),
    code(CHILD),
    code(RAISE),
    "FINAL_VAR(no marzipan name)",
    code(f"FINAL('{ANSWER}')"),
)


def sub(prompt: str) -> str:
    if "fails" in prompt:
        raise ProviderError(Failure.REFUSED, "marzipan failure", billed=True)
    return "marzipan answer"


def play() -> Play:
    child = code("print('marzipan child output')\nFINAL('marzipan of child')")
    return Play(*LINES, sub=sub, **{"marzipan child": child})


@dataclass
class Seen:
    """All that a tenant can see of its run."""

    ended: Ended
    listed_events: list[run_pb2.RunEvent]
    listed_runs: list[run_pb2.Run]

    @property
    def messages(self) -> Iterator[Any]:
        yield from (self.ended.run, *self.ended.nodes, *self.ended.events, *self.listed_events, *self.listed_runs)

    def having(self, word: str) -> list[str]:
        return [str(message) for message in self.messages if word in str(MessageToDict(message))]


async def seen(caller: Caller, **asked: Any) -> Seen:
    """Run the play, watching it from its start, and list everything."""
    context = await caller.upload("marzipan context " * 100)
    ended = await caller.ask("What is marzipan?", context_id=context.context_id, request_id="once", **asked)
    events = await caller.runs.ListRunEvents(
        run_pb2.ListRunEventsRequest(run_id=ended.run.run_id, page_size=1_000), metadata=caller.metadata
    )
    runs = await caller.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=caller.metadata)
    assert not events.next_page_token
    return Seen(ended, list(events.events), list(runs.runs))


async def redacted_tenant(served: Server, operator: Operator, name: str = "acme") -> Caller:
    caller = await served.tenant(name)
    await operator.update(name, redact_contents=True)
    return caller


def check_told(all_of_it: Seen) -> None:
    """Nothing of the run's contents is told; the run's answer is, by what is asked for it, and by no event."""
    assert all_of_it.having(SECRET) == []
    run = all_of_it.ended.run
    assert (run.state, run.answer, run.question) == (run_pb2.RUN_STATE_SUCCEEDED, ANSWER, "")
    assert [node.answer for node in all_of_it.ended.nodes] == [ANSWER, ""]
    assert not [event for event in (*all_of_it.ended.events, *all_of_it.listed_events) if ANSWER in str(event)]
    assert all_of_it.ended.events == all_of_it.listed_events


def texts(event: run_pb2.RunEvent) -> dict[str, int]:
    """The bytes of every text of an event that is there, and of every one that is redacted, by its path."""
    found = {cut.field: cut.size_bytes for cut in event.cut}

    def look(message: Any, path: str) -> None:
        for field, value in message.ListFields():
            where = f"{path}.{field.name}" if path else field.name
            if field.name == "variables":
                found[where] = sum(len(one.name.encode()) + len(one.type.encode()) for one in value) or found[where]
            elif field.type == field.TYPE_STRING and where not in found:
                found[where] = len(value.encode())
            elif field.type == field.TYPE_MESSAGE and not field.is_repeated:
                look(value, where)

    look(getattr(event, str(event.WhichOneof("body"))), "")
    return found


def shape(ended: Ended) -> list[tuple[str, dict[str, int]]]:
    """What happened, and of what size the texts were, but for what comes in pieces, or at its own time."""
    kinds = [(str(event.WhichOneof("body")), event) for event in ended.events]
    return [(kind, texts(event)) for kind, event in kinds if kind not in ("output", "call_traced")]


def output_bytes(ended: Ended) -> int:
    """Bytes of all that was printed, whether or not it is told."""
    return sum(texts(event)["text"] for event in ended.events if event.WhichOneof("body") == "output")


async def test_nothing_that_a_redacted_run_says_is_told_kept_or_logged_but_its_answer(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server(play()) as served, operating(served) as operator:
        told = await seen(await redacted_tenant(served, operator))
        check_told(told)
        kept_now = [path for path in files(served.data_dir) if SECRET.encode() in path.read_bytes()]
    assert kept_now == []
    assert [path for path in files(served.data_dir) if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in caplog.text
    assert ANSWER not in caplog.text
    kinds = {event.WhichOneof("body") for event in told.ended.events}
    assert {"guard", "child_finished", "call_finished", "call_traced", "output", "answer"} <= kinds


def files(folder: Path) -> list[Path]:
    """Every file of a server but the texts that its tenants uploaded."""
    return [path for path in folder.rglob("*") if path.is_file() and folder / "contexts" not in path.parents]


async def test_sizes_and_costs_are_those_of_a_run_that_is_not_redacted(server: Served) -> None:
    async with server(play()) as served, operating(served) as operator:
        hidden = (await seen(await redacted_tenant(served, operator))).ended
        open_ = (await seen(await served.tenant("globex"))).ended
        assert SECRET in str(open_.events)
        assert shape(hidden) == shape(open_)
        assert output_bytes(hidden) == output_bytes(open_)
        costs = [[body.call.spent for body in ended.bodies("call_finished")] for ended in (hidden, open_)]
        assert costs[0] == costs[1]
        assert sum(cost.nano_usd for cost in costs[0]) > 0
        for kind in ("call_traced", "call_finished", "model_replied"):
            assert len(hidden.bodies(kind)) == len(open_.bodies(kind)), kind
        for mine, others in zip(hidden.nodes, open_.nodes, strict=True):
            sizes = [{cut.field: cut.size_bytes for cut in node.cut} for node in (mine, others)]
            assert sizes[1] == {}
            assert sizes[0]["question"] == len(others.question.encode())
            assert mine.answer_size_bytes == others.answer_size_bytes
            assert (mine.state, mine.turn_count) == (others.state, others.turn_count)
        assert hidden.run.spent.call_count == open_.run.spent.call_count
        assert hidden.run.spent == hidden.bodies("run_finished")[0].spent
        entries = await served.running.ledger.entries(Query("acme"))
        of_run = [entry.actual.nano_usd for entry in entries if entry.hold.run == hidden.run.run_id]
        assert sum(of_run) == hidden.run.spent.nano_usd


async def test_every_redacted_text_says_so_and_equal_ones_have_equal_digests(server: Served) -> None:
    async with server(play()) as served, operating(served) as operator:
        ended = (await seen(await redacted_tenant(served, operator))).ended
    cuts = [cut for event in ended.events for cut in event.cut]
    assert all(cut.redacted and len(cut.digest) == 64 and cut.size_bytes for cut in cuts)
    by_path = {f"{event.WhichOneof('body')}.{cut.field}": cut for event in ended.events for cut in event.cut}
    (of_run,) = ended.run.cut
    assert (of_run.field, of_run.digest) == ("question", by_path["run_started.question"].digest)
    assert by_path["answer.text"].digest == by_path["run_finished.answer"].digest
    errors = [body.result.error for body in ended.bodies("code_finished") if body.result.HasField("error")]
    assert [(error.type, error.message, error.traceback) for error in errors] == [("ValueError", "", "")]
    assert {call.call.error for call in ended.bodies("call_finished")} == {"", "failed"}
    assert [guard.kind for guard in ended.bodies("guard")] == [run_pb2.GUARD_KIND_NO_ANSWER]


async def test_the_runs_answer_is_read_and_a_childs_is_refused_as_redacted(server: Served) -> None:
    async with server(play()) as served, operating(served) as operator:
        acme = await redacted_tenant(served, operator)
        ended = (await seen(acme)).ended
        assert await acme.read_answer(ended.run.run_id) == ANSWER
        child = ended.nodes[1]
        assert (child.answer, child.answer_size_bytes) == ("", len("marzipan of child"))
        for offset in (0, 3):
            said = await refusal(acme.read_answer(ended.run.run_id, node_id=child.node_id, offset=offset))
            assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTENTS_REDACTED")
            assert said.said == {"node": child.node_id}
        request = run_pb2.CompleteRequest(question="What is marzipan?", text="marzipan in line")
        answered = (await acme.runs.Complete(request, metadata=acme.metadata)).run
        assert (answered.answer, answered.question) == (ANSWER, "")


async def test_nothing_is_kept_on_postgres_either(server: Served, postgres_url: str) -> None:
    async with server(play(), database_url=postgres_url) as served, operating(served) as operator:
        check_told(await seen(await redacted_tenant(served, operator)))
    rows = list(all_rows(postgres_url))
    assert [row for row in rows if SECRET in row] == []
    assert len([row for row in rows if ANSWER in row]) == 1


def all_rows(url: str) -> Iterator[str]:
    """Every row of every table."""
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            yield from (f"{table}: {row}" for row in connection.execute(f'SELECT * FROM "{table}"').fetchall())


# ---- when --------------------------------------------------------------------------------------------------------


@dataclass
class Doors:
    """Sub-model calls that wait until they are let."""

    let: asyncio.Event

    async def sub(self, prompt: str) -> str:
        await self.let.wait()
        return "ok"


@pytest.fixture
def doors() -> Doors:
    return Doors(asyncio.Event())


async def test_the_policy_holds_at_once_for_what_happens_then_in_runs_under_way(server: Served, doors: Doors) -> None:
    talk = code("print('before')\nllm_query('x')\nprint('after')", "FINAL('done')")
    waiting = Play(talk, sub=doors.sub)
    async with server(waiting) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        run = await acme.create("Why?")
        await acme.until(run.run_id, "call_started")
        await operator.update("acme", redact_contents=True)
        doors.let.set()
        ended = await acme.ended(run.run_id)
        assert ended.bodies("run_started")[0].question == "Why?"
        assert "before" in ended.bodies("code_started")[0].code
        assert ended.printed == "before\n"
        assert ended.bodies("answer")[0].text == ""
        assert (ended.run.question, ended.run.answer) == ("Why?", "done")
        await operator.update("acme", "redact_contents")
        assert (await acme.ask("Why not?")).bodies("run_started")[0].question == "Why not?"


async def test_a_run_that_waits_in_line_is_asked_its_question_which_no_database_has(
    server: Served, doors: Doors
) -> None:
    waiting = Play(code("llm_query('x')", "FINAL('done')"), sub=doors.sub)
    async with server(waiting, runs=1) as served, operating(served) as operator:
        acme = await redacted_tenant(served, operator)
        first, second = await acme.create("first"), await acme.create("Where is marzipan?")
        await eventually(lambda: waiting.subcalls)
        assert (await acme.get(second.run_id)).state == run_pb2.RUN_STATE_PENDING
        assert [path for path in files(served.data_dir) if SECRET.encode() in path.read_bytes()] == []
        doors.let.set()
        for run in (first, second):
            assert (await acme.ended(run.run_id)).run.answer == "done"
        assert any("Where is marzipan?" in request.messages[0].content for request in waiting.asked)


async def test_questions_that_wait_in_line_are_bounded_in_bytes(server: Served, doors: Doors) -> None:
    waiting = Play(code("llm_query('x')", "FINAL('done')"), sub=doors.sub)
    async with server(waiting, runs=1, tenant_held_bytes=1 << 20) as served, operating(served) as operator:
        acme = await redacted_tenant(served, operator)
        await acme.create("first")
        await eventually(lambda: waiting.subcalls)
        said = None
        for _ in range(20):
            try:
                await acme.create("x" * 100_000)
            except grpc.aio.AioRpcError:
                said = await refusal(acme.create("x" * 100_000))
                break
        assert said is not None
        assert (said.reason, said.said["unit"]) == ("TOO_MUCH_HELD", "tenant_held_bytes")
        doors.let.set()


# ---- who says so -------------------------------------------------------------------------------------------------


async def quota(caller: Caller) -> bool:
    stub: Any = server_pb2_grpc.ServerServiceStub(caller.channel)
    found: server_pb2.GetQuotaResponse = await stub.GetQuota(server_pb2.GetQuotaRequest(), metadata=caller.metadata)
    return found.redact_contents


async def test_what_is_said_of_a_tenant_goes_before_what_is_configured(server: Served) -> None:
    own = {"acme": {"redact_contents": False}, "globex": {"weight": 2}}
    async with server(play(), tenants=own, redact_contents=True) as served, operating(served) as operator:
        for name, configured in (("acme", False), ("globex", True), ("initech", True)):
            caller = await served.tenant(name)
            for said in (None, not configured, configured):
                if said is not None:
                    assert (await operator.update(name, redact_contents=said)).redact_contents is said
                wanted = configured if said is None else said
                got = await operator.get(name)
                assert (got.redact_contents, await quota(caller)) == (wanted, wanted)
                assert got.tenant.HasField("redact_contents") is (said is not None)
            assert not (await operator.update(name, "redact_contents")).HasField("redact_contents")
        assert (await operator.create("hooli", redact_contents=True)).redact_contents is True
