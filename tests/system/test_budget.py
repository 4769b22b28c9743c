"""A budget is never passed: not by one call, not by many at once, not by children."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.api import responses
from rlm_server.broker.provider import ModelRequest
from rlm_server.ledger import Limit
from tests.servers import Served
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import USD, Play, code, refusal

FIELDS = {"nano_usd": "nano_usd", "tokens": "token_count", "calls": "call_count"}
"""What the protocol calls the units."""

TALK = code("for i in range(1000): llm_query(f'number {i}')", "FINAL('done')")


@pytest.mark.parametrize(
    ("unit", "budget"), [("nano_usd", types_pb2.Budget(nano_usd=1000)), ("tokens", types_pb2.Budget(token_count=100))]
)
async def test_a_budget_too_small_for_one_call_ends_the_run_before_it(
    server: Served, unit: str, budget: types_pb2.Budget
) -> None:
    play = Play(code("FINAL(1)"))
    async with server(play) as served:
        ended = await served.caller.ask(budget=budget)
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert unit in ended.run.end_message
        assert ended.run.spent == types_pb2.Amounts()
        assert play.asked == []
        check_story(ended)
        check_settled(served.data_dir)


@pytest.mark.parametrize(("unit", "most"), [("nano_usd", USD // 5), ("tokens", 60_000), ("calls", 7)])
async def test_a_budget_too_small_for_the_whole_is_spent_up_to_its_limit_and_no_further(
    server: Served, unit: str, most: int
) -> None:
    loop = "\n".join(
        [
            "done = 0",
            "try:",
            "    while True:",
            "        llm_query(f'number {done}')",
            "        done += 1",
            "except Exception as error:",
            "    print(type(error).__name__, error)",
        ]
    )
    async with server(Play(code(loop, "raise RuntimeError(1)"), sub=lambda prompt: "x" * 8000)) as served:
        ended = await served.caller.ask(budget=responses.budget(Limit(**{unit: most})))
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert "LimitExceeded" in ended.printed
        assert unit in ended.run.end_message
        assert 0 < getattr(ended.run.spent, FIELDS[unit]) <= most
        warned = [(warning.unit, warning.percent) for warning in ended.bodies("budget_warning")]
        assert (types_pb2.BudgetUnit.Value(f"BUDGET_UNIT_{unit.upper()}"), 50) in warned
        assert run_pb2.EndReason.Name(ended.run.end_reason) == f"END_REASON_BUDGET_{unit.upper()}"
        check_story(ended)
        check_settled(served.data_dir)


async def test_a_hundred_calls_at_once_pass_a_budget_no_more_than_one(server: Served) -> None:
    ask = code("print(llm_query_batched([f'number {i}' for i in range(100)]))", "FINAL('done')")
    async with server(Play(ask), run_calls=64) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(call_count=20))
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert ended.run.spent.call_count == 19, "one is kept for a closing answer"
        failed = [body.call for body in ended.bodies("call_finished") if body.call.error]
        finished, _ = ended.bodies("code_finished")
        assert len(failed) + finished.untold.failed_count == 82
        assert finished.untold.failed_count >= 82 - 64, "those that were not sent yet have no events"
        check_story(ended)
        check_settled(served.data_dir)


async def test_twenty_children_cannot_each_spend_the_same_remainder(server: Served) -> None:
    spend = code("for i in range(1000): llm_query(f'{context} {i}')")
    play = Play(
        code("print(rlm_query_batched(['spend'] * 20, [str(i) for i in range(20)]))", "FINAL('done')"),
        sub=lambda prompt: "x" * 16_000,
        spend=spend,
    )
    async with server(play) as served:
        budget = 3 * USD
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=budget))
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
        children = [node for node in ended.nodes if node.depth]
        assert len(children) == 20
        assert {node.state for node in children} == {run_pb2.RUN_STATE_EXHAUSTED}
        promised = [child.budget.nano_usd for child in ended.bodies("child_started")]
        assert sum(promised) <= budget
        assert all(0 < node.spent.nano_usd <= promised[0] for node in children)
        assert ended.run.spent.nano_usd <= budget
        check_story(ended)
        check_settled(served.data_dir)


async def test_a_child_spends_no_more_than_the_code_allowed_it(server: Served) -> None:
    play = Play(
        code("try: rlm_query('spend', budget=0.10)\nexcept RuntimeError as error: print(error)", "FINAL('done')"),
        sub=lambda prompt: "x" * 16_000,
        spend=code("for i in range(1000): llm_query(str(i))"),
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        (child,) = ended.bodies("child_started")
        assert child.budget.nano_usd == USD // 10
        assert 0 < ended.nodes[1].spent.nano_usd <= USD // 10
        assert "exhausted" in ended.printed
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
        check_settled(served.data_dir)


@pytest.mark.parametrize(
    ("budget", "error"),
    [("1000.0", "LimitExceeded"), ("0", "ValueError"), ("-1", "ValueError"), ("'much'", "ValueError")],
)
async def test_a_child_gets_no_budget_that_is_not_there(server: Served, budget: str, error: str) -> None:
    ask = f"try: rlm_query('child', budget={budget})\nexcept Exception as error: print(type(error).__name__)"
    async with server(Play(code(ask, "FINAL('done')"), child=code("FINAL('never')"))) as served:
        ended = await served.caller.ask()
        assert error in ended.printed
        assert len(ended.nodes) == 1
        check_settled(served.data_dir)


@pytest.mark.parametrize("unit", ["nano_usd", "tokens", "calls"])
@pytest.mark.parametrize("amount", [0, -1, 1 << 62])
async def test_a_budget_that_makes_no_sense_is_refused_by_name(server: Served, unit: str, amount: int) -> None:
    async with server(Play("")) as served:
        asked = responses.budget(Limit(**{unit: amount}))
        for refused in (served.caller.create(budget=asked), served.caller.open_session(budget=asked)):
            said = await refusal(refused)
            assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
            assert said.fields == [f"budget.{FIELDS[unit]}"]


async def test_a_budget_beyond_the_tenants_is_refused(server: Served) -> None:
    async with server(Play(""), tenant_budget_usd=2) as served:
        asked = types_pb2.Budget(nano_usd=2 * USD + 1)
        for refused in (served.caller.create(budget=asked), served.caller.open_session(budget=asked)):
            said = await refusal(refused)
            assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED")
            limit = {"unit": "nano_usd", "limit": str(2 * USD), "used": "0", "asked": str(2 * USD + 1)}
            assert said.said == {"account": "development"} | limit
            assert "google.rpc.QuotaFailure" in said.details


async def test_runs_at_once_cannot_together_spend_more_than_their_tenant_has(server: Served) -> None:
    created = asyncio.Event()

    class Waiting(Play):
        async def reply(self, request: ModelRequest) -> str:
            await created.wait()
            return await super().reply(request)

    async with server(Waiting(TALK, sub=lambda prompt: "x" * 16_000), tenant_budget_usd="0.5") as served:
        budget = types_pb2.Budget(nano_usd=USD * 3 // 10)
        runs = [await served.caller.create(budget=budget) for _ in range(3)]
        created.set()
        for ended in await asyncio.gather(*[served.caller.ended(run.run_id) for run in runs]):
            assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
            check_story(ended)
        (tenant,) = rows(served.data_dir, "SELECT * FROM account WHERE parent IS NULL")
        assert USD * 3 // 10 < tenant["posted_nano_usd"] <= USD // 2
        check_settled(served.data_dir)


async def test_repeating_a_request_starts_no_second_run(server: Served) -> None:
    play = Play(code("FINAL(1)"))
    async with server(play) as served:
        runs = await asyncio.gather(*[served.caller.create(request_id="once") for _ in range(8)])
        assert len({run.run_id for run in runs}) == 1
        await served.caller.ended(runs[0].run_id)
        assert (await served.caller.create(request_id="once")).run_id == runs[0].run_id
        assert (await refusal(served.caller.create("Another?", request_id="once"))).reason == "REQUEST_ID_REUSED"
        assert len(play.asked) == 1
        other = await served.tenant("other")
        assert (await other.create(request_id="once")).run_id != runs[0].run_id
