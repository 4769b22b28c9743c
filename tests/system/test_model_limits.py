"""A tenant and its customers have limits on some models, and what is refused names account, model and limit."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from rlm.v1 import budget_pb2, run_pb2, tenant_pb2, types_pb2

from tests.servers import Served
from tests.system.accountant import Accountant
from tests.system.books import check_customers, check_settled
from tests.system.operator import operating
from tests.system.stage import Play, code, refusal
from tests.system.test_customers import DAY, INVALID, MINUTE, Keeper, dollars

ROOT = Play(code("print(llm_query('x'))"), "FINAL('done')")


def limit(model: str, most: types_pb2.Budget, span: Any = None) -> budget_pb2.ModelLimit:
    return budget_pb2.ModelLimit(model=model, span=span, limit=most)


def calls(number: int) -> types_pb2.Budget:
    return types_pb2.Budget(call_count=number)


pytestmark = pytest.mark.usefixtures("unbilled")


async def test_a_customers_limit_on_a_model_ends_its_run_by_name_and_its_other_models_go_on(server: Served) -> None:
    async with server(ROOT, others={"other": Play(code("FINAL('other')"))}) as served:
        keeper = Keeper(served.caller)
        made = await keeper.create("ann", model_limits=[limit("pl*", calls(1), DAY)])
        assert list(made.model_limits) == [limit("pl*", calls(1), DAY)]
        ended = (await served.caller.ask(account_id="ann", model="play", sub_model="play")).run
        assert (ended.state, ended.end_reason) == (run_pb2.RUN_STATE_EXHAUSTED, run_pb2.END_REASON_BUDGET_CALLS)
        assert "account 'ann' for models 'pl*' for the day" in ended.end_message
        went_on = (await served.caller.ask(account_id="ann", model="other")).run
        assert went_on.state == run_pb2.RUN_STATE_SUCCEEDED
        assert (await served.caller.ask(model="play")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        (window,) = (await Accountant(served.caller).budget("ann")).windows
        assert (window.model, window.span, window.account_id, window.posted.call_count) == ("pl*", DAY, "ann", 1)
        changed = await keeper.update("ann", "model_limits", model_limits=[limit("play", calls(9))])
        assert list(changed.model_limits) == [limit("play", calls(9))]
        (whole,) = (await Accountant(served.caller).budget("ann")).windows
        assert (whole.span, whole.label, whole.HasField("end_time"), whole.posted.call_count) == (0, "", False, 1)
        assert (await served.caller.ask(account_id="ann", model="play")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        check_customers(served.data_dir)
        check_settled(served.data_dir)


async def test_a_tenants_limits_on_models_and_its_pace_are_set_shown_and_in_force(server: Served) -> None:
    async with server(ROOT) as served, operating(served) as operator:
        caller = await served.tenant("acme")
        made = await operator.update(
            "acme", model_limits=[limit("play", calls(1))], minute_budget=types_pb2.Budget(call_count=60)
        )
        assert (list(made.model_limits), made.minute_budget) == ([limit("play", calls(1))], calls(60))
        found = {(one.span, one.model): one.limit for one in (await operator.get("acme")).windows}
        assert found == {(MINUTE, ""): calls(60), (0, "play"): calls(1)}
        ended = (await caller.ask(model="play", sub_model="play")).run
        assert ended.state == run_pb2.RUN_STATE_EXHAUSTED
        assert "account 'acme' for models 'play'" in ended.end_message
        lifted = await operator.update("acme", "model_limits", "minute_budget")
        assert (list(lifted.model_limits), lifted.HasField("minute_budget")) == ([], False)
        assert (await caller.ask(model="play", sub_model="play")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert (await served.caller.ask()).run.state == run_pb2.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ([limit("", calls(1))], "model_limits[0].model"),
        ([limit("x" * 201, calls(1))], "model_limits[0].model"),
        ([limit("nobody", calls(1))], "model_limits[0].model"),
        ([limit("play", types_pb2.Budget())], "model_limits[0].limit"),
        ([limit("play", calls(-1))], "model_limits[0].limit.call_count"),
        ([limit("play", calls(1)), limit("play", calls(2))], "model_limits[1]"),
        ([limit("play", dollars(1), MINUTE)], "model_limits[0].limit"),
        ([limit("play", calls(1), 77)], "model_limits[0].span"),
        ([limit(f"x{number}*", calls(1)) for number in range(65)], "model_limits"),
    ],
)
async def test_a_limit_on_a_model_that_cannot_be_is_refused_by_the_name_of_its_field(
    server: Served, limits: list[budget_pb2.ModelLimit], field: str
) -> None:
    async with server(ROOT) as served, operating(served) as operator:
        said = await refusal(Keeper(served.caller).create("ann", model_limits=limits))
        assert (said.code, said.fields) == (INVALID, [f"account.{field}"])
        tenant = tenant_pb2.Tenant(tenant_id="acme", model_limits=limits)
        said = await refusal(operator.call(tenant_pb2.CreateTenantRequest(tenant=tenant)))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [f"tenant.{field}"])
