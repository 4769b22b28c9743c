"""A tenant is told of its soft limits: by a list, and by a signed webhook at a host that the operator allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import budget_pb2, types_pb2

from tests.servers import Served
from tests.system.accountant import TALK, Accountant
from tests.system.books import rows
from tests.system.operator import operating, until
from tests.system.stage import Caller, refusal
from tests.system.test_customers import DAY, INVALID, MINUTE, NOT_FOUND, Keeper, dollars, window
from tests.webhooks.receiver import receiving

DELIVERED, NONE = budget_pb2.DELIVERY_STATE_DELIVERED, budget_pb2.DELIVERY_STATE_NONE


def soft(percent: int = 0, amount: types_pb2.Budget | None = None, **on: Any) -> budget_pb2.SoftLimit:
    return budget_pb2.SoftLimit(amount=amount, **on) if amount else budget_pb2.SoftLimit(percent=percent, **on)


def calls(number: int) -> types_pb2.Budget:
    return types_pb2.Budget(call_count=number)


class Hearer:
    """Makes the calls on events and webhooks."""

    def __init__(self, caller: Caller) -> None:
        self.caller, self.stub = caller, Accountant(caller).stub

    async def set(self, url: str, **asked: Any) -> budget_pb2.SetWebhookResponse:
        request = budget_pb2.SetWebhookRequest(url=url, **asked)
        made: budget_pb2.SetWebhookResponse = await self.stub.SetWebhook(request, metadata=self.caller.metadata)
        return made

    async def call(self, name: str) -> Any:
        request = getattr(budget_pb2, f"{name}Request")()
        return await getattr(self.stub, name)(request, metadata=self.caller.metadata)

    async def events(self, **asked: Any) -> list[budget_pb2.BudgetEvent]:
        return list((await self.page(**asked)).events)

    async def page(self, **asked: Any) -> budget_pb2.ListBudgetEventsResponse:
        request = budget_pb2.ListBudgetEventsRequest(**asked)
        found: budget_pb2.ListBudgetEventsResponse = await self.stub.ListBudgetEvents(
            request, metadata=self.caller.metadata
        )
        return found

    async def delivered(self, number: int) -> list[budget_pb2.BudgetEvent]:
        async def so() -> bool:
            return sum(one.delivery_state == DELIVERED for one in await self.events()) == number

        await until(so)
        return await self.events()


pytestmark = pytest.mark.usefixtures("unbilled")


async def test_a_run_that_crosses_soft_limits_is_told_of_by_list_and_signed_webhook(server: Served) -> None:
    async with receiving() as receiver, server(TALK, webhook_hosts=[receiver.host]) as served:
        keeper, hearer = Keeper(served.caller), Hearer(served.caller)
        made = await hearer.set(receiver.url)
        assert (made.webhook.url, made.webhook.enabled, made.secret[:6]) == (receiver.url, True, "whsec_")
        limits = [soft(30, span=DAY), soft(amount=calls(2)), soft(amount=calls(1), model="play")]
        account = await keeper.create("ann", window_limits=[window(DAY, calls(10))], soft_limits=limits)
        assert sorted(map(str, account.soft_limits)) == sorted(map(str, limits))
        await served.caller.ask(account_id="ann")
        events = await hearer.delivered(3)
        assert {(one.account_id, one.model, one.span, one.threshold, one.percent) for one in events} == {
            ("ann", "", DAY, 3, 30), ("ann", "", 0, 2, 0), ("ann", "play", 0, 1, 0),
        }  # fmt: skip
        assert all(one.unit == types_pb2.BUDGET_UNIT_CALLS for one in events)
        assert {id for id, _ in receiver.events(made.secret)} == {one.event_id for one in events}
        by_id = {id: told["data"] for id, told in receiver.events(made.secret)}
        assert all(by_id[one.event_id]["used"] == one.used >= one.threshold for one in events)
        taken = await hearer.call("TestWebhook")
        assert (taken.taken, taken.failure) == (True, "")
        assert not (await hearer.call("DisableWebhook")).webhook.enabled
        assert (await refusal(hearer.call("TestWebhook"))).code is NOT_FOUND
        await keeper.update("ann", "soft_limits", soft_limits=[soft(amount=calls(6))])
        await served.caller.ask(account_id="ann")
        assert (await hearer.events())[-1].delivery_state == NONE


async def test_events_are_listed_in_pages_by_account_and_time_and_are_their_tenants_alone(server: Served) -> None:
    async with server(TALK) as served, operating(served) as operator:
        keeper, hearer = Keeper(served.caller), Hearer(served.caller)
        await operator.update("development", soft_limits=[soft(amount=calls(1))])
        await keeper.create("top", soft_limits=[soft(amount=calls(2))])
        await keeper.create("ann", parent_id="top", soft_limits=[soft(amount=calls(3))])
        await served.caller.ask(account_id="ann")
        everything = await hearer.events()
        assert [one.account_id for one in everything] == ["development", "top", "ann"]
        first = await hearer.page(page_size=2)
        rest = await hearer.page(page_size=2, page_token=first.next_page_token)
        assert ([*first.events, *rest.events], rest.next_page_token) == (everything, "")
        assert [one.account_id for one in await hearer.events(account_id="top")] == ["top", "ann"]
        assert [one.account_id for one in await hearer.events(account_id="development")] == ["development"]
        assert await hearer.events(since=everything[0].time, until=everything[0].time) == []
        assert (await refusal(hearer.events(account_id="nobody"))).code is NOT_FOUND
        assert (await refusal(hearer.events(page_token="x"))).fields == ["page_token"]
        assert await Hearer(await served.tenant("other")).events() == []
        key = await operator.key("development", account_id="ann")
        bound = Hearer(served.another(key.secret))
        assert [one.account_id for one in await bound.events()] == ["ann"]
        assert (await refusal(bound.events(account_id="top"))).reason == "KEY_BOUND"
        for name in ("GetWebhook", "TestWebhook", "DisableWebhook"):
            assert (await refusal(bound.call(name))).reason == "KEY_BOUND"
        assert (await refusal(bound.set("https://hooks.example.com/"))).reason == "KEY_BOUND"


async def test_a_webhook_is_set_where_the_operator_allows_it_with_a_secret_that_is_told_once(
    server: Served, tmp_path: Path
) -> None:
    kept: dict[str, Any] = {"data_dir": tmp_path / "kept", "webhook_hosts": ["hooks.example.com"]}
    async with server(TALK, **kept) as served, operating(served) as operator:
        caller = await served.tenant("acme")
        hearer = Hearer(caller)
        for name in ("GetWebhook", "TestWebhook", "DisableWebhook"):
            assert (await refusal(hearer.call(name))).code is NOT_FOUND
        for url in ("", "http://hooks.example.com/", "https://10.0.0.1/", "https://elsewhere.example.com/"):
            said = await refusal(hearer.set(url))
            assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["url"])
        first = await hearer.set("https://hooks.example.com/a", request_id="one")
        again = await hearer.set("https://hooks.example.com/a", request_id="one")
        assert (first.secret != "", again.secret, again.webhook) == (True, "", first.webhook)
        assert (await hearer.set("https://hooks.example.com/b")).secret == ""
        rotated = await hearer.set("https://hooks.example.com/b", rotate_secret=True)
        assert rotated.secret not in ("", first.secret)
        assert (await hearer.call("GetWebhook")).webhook.url == "https://hooks.example.com/b"
        assert (await refusal(Hearer(served.caller).call("GetWebhook"))).code is NOT_FOUND
        await operator.delete("acme", force=True)
        assert rows(kept["data_dir"], "SELECT 1 FROM webhook") == []


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ([soft(0)], "soft_limits[0].percent"),
        ([soft(101)], "soft_limits[0].percent"),
        ([soft(5, span=MINUTE)], "soft_limits[0].span"),
        ([soft(5, span=77)], "soft_limits[0].span"),
        ([soft(5), soft(5)], "soft_limits[1]"),
        ([soft(5, model="nobody")], "soft_limits[0].model"),
        ([budget_pb2.SoftLimit()], "soft_limits[0].amount"),
        ([soft(amount=calls(-1))], "soft_limits[0].amount.call_count"),
        ([soft(amount=dollars(number + 1)) for number in range(65)], "soft_limits"),
    ],
)
async def test_a_soft_limit_that_cannot_be_is_refused_by_the_name_of_its_field(
    server: Served, limits: list[budget_pb2.SoftLimit], field: str
) -> None:
    async with server(TALK) as served, operating(served) as operator:
        said = await refusal(Keeper(served.caller).create("ann", soft_limits=limits))
        assert (said.code, said.fields) == (INVALID, [f"account.{field}"])
        said = await refusal(operator.update("development", soft_limits=limits))
        assert (said.code, said.fields) == (INVALID, [f"tenant.{field}"])
