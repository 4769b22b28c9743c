"""Limits by the hour, day and month, and of the sandbox's own time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rlm.v1 import run_pb2, types_pb2
from rlm_client.durations import milliseconds

from rlm_server.database.engine import DatabaseBusyError, DatabaseLostError
from rlm_server.ledger import BUDGET_SPANS, Limit, Query, Span
from rlm_server.repl import metering
from tests.servers import Served
from tests.system.accountant import TALK, Accountant
from tests.system.books import check_settled, check_story
from tests.system.stage import USD, Play, Refusal, code, refusal

SPEND = code("for i in range(1000): llm_query(f'number {i}')")


@pytest.mark.parametrize("span", BUDGET_SPANS)
async def test_a_tenant_spends_no_more_in_a_window_than_that_allows_and_is_told_which(
    server: Served, span: Span
) -> None:
    async with server(Play(SPEND, sub=lambda prompt: "x" * 8_000), **{f"{span}_budget_usd": "0.2"}) as served:
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert f"for the {span} " in ended.run.end_message
        (window,) = await served.running.ledger.windows("development")
        assert USD // 10 < window.balance.posted.nano_usd <= USD // 5
        check_story(ended)
        again = await served.caller.ask()
        assert again.run.spent.nano_usd == 0
        await served.running.ledger.set_window("development", span, Limit(nano_usd=2 * USD))
        assert (await served.caller.ask()).run.spent.nano_usd > 0
        check_settled(served.data_dir)


async def test_the_time_that_code_runs_is_paid_for_and_limited(server: Served) -> None:
    busy = "import time\nend = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass"
    limits = types_pb2.SandboxLimits(turn_time=milliseconds(1000))
    async with server(Play("")) as served:
        asked = {"limits": limits, "budget": types_pb2.Budget(cpu_time=milliseconds(11_600))}
        session = await served.caller.open_session(**asked)
        for _ in range(2):
            await served.caller.turn(session, busy)
        said = await refusal(served.caller.turn(session, busy))
        assert (said.reason, said.said["unit"]) == ("BUDGET_EXCEEDED", "cpu_ms")
        spent = await served.caller.delete(session)
        assert 600 <= spent.cpu_time.ToMilliseconds() <= 11_600
        turns = await served.running.ledger.entries(Query("development", run=session))
        assert [turn.hold.model for turn in turns] == ["", ""]
        assert sum(turn.actual.cpu_ms for turn in turns) == spent.cpu_time.ToMilliseconds()
        check_settled(served.data_dir)


async def test_what_code_takes_that_nothing_limits_is_in_the_books_while_it_runs(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "ON_THE_WAY_SECONDS", 0.1)
    async with server(Play(code("while True: pass"))) as served:
        run = await served.caller.create()
        while (posted := (await served.caller.get(run.run_id)).spent.cpu_time.ToMilliseconds()) < 300:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await served.caller.cancel(run.run_id)
        assert (await served.caller.ended(run.run_id)).run.spent.cpu_time.ToMilliseconds() >= posted
        check_settled(served.data_dir)


@pytest.mark.parametrize(
    ("order", "budget"),
    [("post", types_pb2.Budget(cpu_time=milliseconds(100_000))), ("charge", None)],
    ids=["with a hold", "without"],
)
async def test_a_turn_ends_as_it_did_though_its_books_cannot_be_written_for_a_while(
    server: Served, monkeypatch: pytest.MonkeyPatch, order: str, budget: types_pb2.Budget | None
) -> None:
    async with server(Play("")) as served:
        ledger, failures = served.running.ledger, iter([DatabaseBusyError("locked"), DatabaseLostError("away")])
        write = getattr(ledger, order)

        async def failing(*what: Any, **how: Any) -> None:
            if (failure := next(failures, None)) is not None:
                raise failure
            await write(*what, **how)

        monkeypatch.setattr(ledger, order, failing)
        session = await served.caller.open_session(budget=budget)
        seen = await served.caller.turn(session, "print('ran')")
        assert seen.printed == "ran\n"
        spent = await served.caller.delete(session)
        assert next(failures, None) is None
        (turn,) = await ledger.entries(Query("development", run=session))
        assert spent.cpu_time.ToMilliseconds() == turn.actual.cpu_ms
        check_settled(served.data_dir)


async def test_a_run_ends_when_its_time_is_used_up(server: Served) -> None:
    async with server(Play(code("pass")), sandbox={"turn_seconds": 1}) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(cpu_time=milliseconds(10_999)))
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert "processor time" in ended.run.end_message
        check_settled(served.data_dir)


async def refused(call: Awaitable[object]) -> tuple[Refusal, timedelta | None]:
    """What a refusal says, and how long it asks to wait."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value

    async def again() -> None:
        raise error

    status, retry = rpc_status.from_call(error), error_details_pb2.RetryInfo()
    assert status is not None
    waits = [retry.retry_delay.ToTimedelta() for detail in status.details if detail.Unpack(retry)]
    return await refusal(again()), waits[0] if waits else None


@pytest.mark.parametrize("span", BUDGET_SPANS)
async def test_a_refusal_of_a_window_says_which_and_when_to_come_back(server: Served, span: Span) -> None:
    async with server(TALK) as served:
        await served.running.ledger.set_window("development", span, Limit(cpu_ms=1))
        session = await served.caller.open_session()
        said, wait = await refused(served.caller.turn(session, "1"))
        (window,) = (await Accountant(served.caller).budget()).windows
        ends = f"{window.end_time.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED")
        assert f"for the {span} {window.label} (UTC)" in said.message
        assert f"This {span} ends at {ends}" in said.message
        assert (said.said["window"], said.said["window_end"], said.said["unit"]) == (span, ends, "cpu_ms")
        left = window.end_time.ToDatetime(UTC) - datetime.now(UTC)
        assert wait is not None
        assert timedelta(0) <= wait - left < timedelta(seconds=60)


async def test_a_run_that_a_window_stops_names_it(server: Served) -> None:
    async with server(TALK, day_budget_usd="0.000001") as served:
        ended = await served.caller.ask()
        (window,) = (await Accountant(served.caller).budget()).windows
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert f"for the day {window.label} (UTC)" in ended.run.end_message
        assert ended.run.spent == types_pb2.Amounts()


async def test_a_refusal_of_an_account_gives_no_time_to_come_back(server: Served) -> None:
    async with server(TALK) as served:
        session = await served.caller.open_session(budget=types_pb2.Budget(cpu_time=milliseconds(1)))
        said, wait = await refused(served.caller.turn(session, "1"))
        assert said.reason == "BUDGET_EXCEEDED"
        assert wait is None
        assert "window" not in said.said
