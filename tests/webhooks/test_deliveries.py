"""Every event reaches its tenant's webhook, under one id, or is given up after a day and shown as such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm_server.clock import DAY_MS, now
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import BudgetEvent, Delivery, EventFilter, Ledger, Limit, Scope, SoftLimit, account_lifecycle
from rlm_server.webhooks.deliveries import MAX_RETRY_MS, Deliveries
from rlm_server.webhooks.hosts import Hosts, WrongUrl
from rlm_server.webhooks.webhooks import Webhooks, WebhookUnknown
from tests.ledger.accounting import a_hold, at_once, cents
from tests.system.operator import until
from tests.webhooks.receiver import receiving


@dataclass
class Stage:
    """A ledger and what sends its events; time goes on by `later` as well."""

    database: Database
    ledger: Ledger
    webhooks: Webhooks
    deliveries: Deliveries
    later: int = 0

    async def tenant(self, name: str, url: str) -> str:
        """A tenant that is told of each cent that it spends, and the secret that signs that."""
        await self.ledger.open_account(name, tenant=name, parent=None, limit=Limit())
        soft = [SoftLimit(Scope(None), amount=Limit(nano_usd=cents(number).nano_usd)) for number in (1, 2, 3)]
        await self.ledger.change(name, lambda db, at: account_lifecycle.set_limits(db, name, {}, at, soft))
        return (await self.webhooks.set(name, url))[1]

    async def spend(self, tenant: str, number: int = 1) -> None:
        for _ in range(number):
            hold = a_hold(tenant, cents(1), tenant=tenant)
            await self.ledger.reserve(hold, deadline=at_once(), dispatch=True)
            await self.ledger.post(hold.id, cents(1), None)

    async def events(self, tenant: str = "acme") -> list[BudgetEvent]:
        return await self.ledger.events(EventFilter(tenant), 0, 100)

    async def until(self, delivery: Delivery, tenant: str = "acme") -> list[BudgetEvent]:
        """Wait until all events of a tenant have come to this."""

        async def come() -> bool:
            return all(one.delivery is delivery for one in await self.events(tenant))

        await until(come)
        return await self.events(tenant)

    async def until_last_delivered(self) -> list[BudgetEvent]:
        """Wait until the last event has been taken."""

        async def taken() -> bool:
            return (await self.events())[-1].delivery is Delivery.DELIVERED

        await until(taken)
        return await self.events()

    async def tried(self, attempts: int) -> BudgetEvent:
        """Wait until the first event has been tried so often."""

        async def tried() -> bool:
            return (await self.events())[0].attempts >= attempts

        await until(tried)
        return (await self.events())[0]


@asynccontextmanager
async def sending(at: str | Path, *listed: str) -> AsyncIterator[Stage]:
    async with await Database.open(at, MIGRATIONS) as database:
        hosts = Hosts(listed)
        webhooks, ledger = Webhooks(database, hosts), Ledger(database)
        deliveries = Deliveries(database, webhooks, hosts, clock=lambda: now() + stage.later)
        stage = Stage(database, ledger, webhooks, deliveries)
        ledger.told = deliveries.wake
        async with deliveries:
            yield stage


async def test_an_event_is_posted_once_signed_and_says_what_was_spent(database_at: str | Path) -> None:
    async with receiving() as receiver, sending(database_at, receiver.host) as stage:
        secret = await stage.tenant("acme", receiver.url)
        await stage.spend("acme")
        (event,) = await stage.until(Delivery.DELIVERED)
        ((id, told),) = receiver.events(secret)
        headers, _ = receiver.requests[0]
        assert (id, headers["webhook-id"], headers["content-type"]) == (event.id, event.id, "application/json")
        assert (told["type"], told["data"]["account_id"]) == ("budget.soft_limit_crossed", "acme")
        assert told["data"] == {
            "number": event.number, "account_id": "acme", "model": "", "window": "", "window_label": "",
            "unit": "nano_usd", "percent": None, "threshold": 10_000_000, "limit": None, "used": 10_000_000,
        }  # fmt: skip
        await stage.spend("acme", 2)
        await receiver.count(3)
        assert {one for one, _ in receiver.events(secret)} == {one.id for one in await stage.events()}


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
async def test_what_is_not_taken_is_sent_again_later_under_the_same_id_and_no_redirect_is_followed(
    tmp_path: Path, status: int
) -> None:
    async with (
        receiving(lambda number: status if number < 3 else 200) as receiver,
        sending(tmp_path / "db", receiver.host) as stage,
    ):
        secret = await stage.tenant("acme", receiver.url)
        await stage.spend("acme")
        waits = []
        for attempt in (1, 2):
            event = await stage.tried(attempt)
            assert (event.delivery, event.failure) == (
                Delivery.PENDING, f"the answer was {status}, not one of 200 to 299",
            )  # fmt: skip
            assert event.due_at is not None
            waits.append(event.due_at - now() - stage.later)
            stage.later += waits[-1] + 1
            stage.deliveries.wake()
        assert 4_000 < waits[0] <= 6_250 < 9_000 < waits[1] <= 12_500
        (delivered,) = await stage.until(Delivery.DELIVERED)
        assert (delivered.attempts, delivered.failure) == (3, "")
        assert [id for id, _ in receiver.events(secret)] == [delivered.id] * 3


async def test_what_is_never_taken_is_given_up_after_a_day_and_a_bounded_number_of_attempts(tmp_path: Path) -> None:
    async with receiving(lambda _: 500) as receiver, sending(tmp_path / "db", receiver.host) as stage:
        await stage.tenant("acme", receiver.url)
        await stage.spend("acme")
        attempts = 0
        while (event := await stage.tried(attempts + 1)).delivery is Delivery.PENDING:
            attempts = event.attempts
            assert event.due_at is not None
            assert event.due_at - event.at <= DAY_MS
            assert event.due_at - now() - stage.later <= MAX_RETRY_MS * 5 // 4
            stage.later = event.due_at + 1 - now()
            stage.deliveries.wake()
        assert event.delivery is Delivery.GIVEN_UP
        assert 15 <= event.attempts <= 30
        stage.later += DAY_MS
        stage.deliveries.wake()
        await stage.spend("acme")
        await receiver.count(event.attempts + 1)
        assert (await stage.events())[0] == event


async def test_a_tenant_whose_receiver_hangs_has_one_attempt_under_way_and_keeps_no_other_waiting(
    tmp_path: Path,
) -> None:
    async with (
        receiving(lambda _: None) as hangs,
        receiving() as takes,
        sending(tmp_path / "db", hangs.host, takes.host) as stage,
    ):
        await stage.tenant("acme", hangs.url)
        await stage.tenant("globex", takes.url)
        await stage.spend("acme", 3)
        await hangs.count(1)
        await stage.spend("globex", 3)
        assert len(await stage.until(Delivery.DELIVERED, "globex")) == 3
        assert len(hangs.requests) == 1


async def test_what_was_not_sent_before_a_death_is_sent_by_the_next_server(database_at: str | Path) -> None:
    async with receiving() as receiver:
        async with await Database.open(database_at, MIGRATIONS) as database:
            webhooks, ledger = Webhooks(database, Hosts([receiver.host])), Ledger(database)
            dead = Stage(database, ledger, webhooks, Deliveries(database, webhooks, Hosts()))
            secret = await dead.tenant("acme", receiver.url)
            await dead.spend("acme")
            before = await dead.events()
        async with sending(database_at, receiver.host) as stage:
            (after,) = await stage.until(Delivery.DELIVERED)
            assert [id for id, _ in receiver.events(secret)] == [after.id] == [one.id for one in before]


async def test_a_secret_that_is_replaced_signs_beside_the_new_one(tmp_path: Path) -> None:
    async with receiving() as receiver, sending(tmp_path / "db", receiver.host) as stage:
        former = await stage.tenant("acme", receiver.url)
        assert (await stage.webhooks.set("acme", receiver.url))[1] == ""
        _, secret = await stage.webhooks.set("acme", receiver.url, rotate=True)
        assert secret not in ("", former)
        await stage.spend("acme")
        await receiver.count(1)
        assert receiver.events(former) == receiver.events(secret)


async def test_nothing_is_sent_to_a_webhook_that_is_disabled_and_what_was_due_is_not_sent_later(tmp_path: Path) -> None:
    async with receiving(lambda _: 500) as receiver, sending(tmp_path / "db", receiver.host) as stage:
        await stage.tenant("acme", receiver.url)
        await stage.spend("acme")
        await stage.tried(1)
        assert not (await stage.webhooks.disable("acme")).enabled
        await stage.spend("acme")
        with pytest.raises(WebhookUnknown):
            await stage.deliveries.test("acme")
        receiver.answers = lambda _: 200
        stage.later += DAY_MS // 2
        await stage.webhooks.set("acme", receiver.url)
        await stage.spend("acme")
        await receiver.count(2)
        assert [one.delivery for one in await stage.until_last_delivered()] == [
            Delivery.NONE, Delivery.NONE, Delivery.DELIVERED,
        ]  # fmt: skip


async def test_a_test_says_what_came_of_it(tmp_path: Path) -> None:
    answers = {1: 200, 2: 404}
    async with (
        receiving(lambda number: answers[number]) as receiver,
        sending(tmp_path / "db", receiver.host) as stage,
    ):
        secret = await stage.tenant("acme", receiver.url)
        assert await stage.deliveries.test("acme") == ""
        assert await stage.deliveries.test("acme") == "the answer was 404, not one of 200 to 299"
        assert [told["type"] for _, told in receiver.events(secret)] == ["webhook.test"] * 2
        assert await stage.events() == []


async def test_a_host_that_the_operator_took_off_the_list_is_sent_nothing_more(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with sending(tmp_path / "db", receiver.host) as stage:
            await stage.tenant("acme", receiver.url)
        async with sending(tmp_path / "db", "hooks.example.com") as stage:
            await stage.spend("acme")
            assert "(webhook_hosts)" in (await stage.tried(1)).failure
            with pytest.raises(WrongUrl):
                await stage.webhooks.set("acme", receiver.url)
        assert receiver.requests == []


async def test_a_host_that_is_at_a_private_address_is_sent_nothing(tmp_path: Path) -> None:
    async with receiving() as receiver, sending(tmp_path / "db", f"http://localhost:{receiver.port}") as stage:
        await stage.tenant("acme", f"http://localhost:{receiver.port}/")
        assert "an address that is not public" in await stage.deliveries.test("acme")
        assert receiver.requests == []
