"""What the server does for tenants outside of turns is billed to them, and who does not pay is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from time import process_time

import pytest

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, BudgetExceeded, Ledger, Limit
from rlm_server.ledger.host_bills import HostBills
from rlm_server.shares.host_time import MESSAGE_BYTES, HostTimes


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with await Database.open(tmp_path / "rlm.sqlite", MIGRATIONS) as database:
        made = Ledger(database)
        for tenant in ("acme", "other"):
            await made.open_account(tenant, tenant=tenant, parent=None, limit=Limit(cpu_ms=5_000))
        yield made


async def posted(ledger: Ledger, tenant: str) -> Amounts:
    return (await ledger.balance(tenant)).posted


async def test_each_tenant_is_billed_for_its_own_in_whole_milliseconds(ledger: Ledger) -> None:
    times = HostTimes()
    bills = HostBills(ledger, times)
    times.of("acme").spend(1.2345)
    times.of("other").spend(0.3)
    await bills.bill()
    assert await posted(ledger, "acme") == Amounts(cpu_ms=1234)
    assert await posted(ledger, "other") == Amounts(cpu_ms=300)
    assert times.of("acme").seconds == pytest.approx(0.0005)


async def test_little_waits_for_more_and_nothing_is_lost(ledger: Ledger) -> None:
    times = HostTimes()
    bills = HostBills(ledger, times)
    for _ in range(20):
        times.of("acme").spend(0.03)
        await bills.bill()
    assert (await posted(ledger, "acme")).cpu_ms + times.of("acme").seconds * 1000 == pytest.approx(600)


async def test_the_end_of_the_server_bills_the_rest(ledger: Ledger) -> None:
    times = HostTimes()
    async with HostBills(ledger, times):
        times.of("acme").spend(0.7)
    assert await posted(ledger, "acme") == Amounts(cpu_ms=700)


async def test_who_cannot_pay_owes_it_and_is_refused_until_it_is_paid(ledger: Ledger) -> None:
    times = HostTimes()
    bills = HostBills(ledger, times)
    times.of("acme").spend(7.0)
    bills.check("acme")
    await bills.bill()
    assert await posted(ledger, "acme") == Amounts(cpu_ms=5_000)
    bills.check("acme")
    await bills.bill()
    with pytest.raises(BudgetExceeded, match="milliseconds of processor time"):
        bills.check("acme")
    bills.check("other")
    await ledger.set_limit("acme", Limit(cpu_ms=10_000))
    await bills.bill()
    bills.check("acme")
    assert await posted(ledger, "acme") == Amounts(cpu_ms=7_000)


async def test_a_tenant_without_an_account_is_billed_nothing(ledger: Ledger) -> None:
    times = HostTimes()
    times.of("nobody").spend(1.0)
    await HostBills(ledger, times).bill()
    assert times.of("nobody").seconds == 0


async def test_what_a_worker_took_is_billed_and_is_no_part_of_what_this_process_did(ledger: Ledger) -> None:
    times = HostTimes()
    bills = HostBills(ledger, times, {"acme": 1.0, "other": 0.0}.__getitem__)
    times.of("acme").spend(0.25)
    await bills.bill()
    assert await posted(ledger, "acme") == Amounts(cpu_ms=1250)
    times.message("other", 10_000 * MESSAGE_BYTES)
    began = process_time()
    while process_time() < began + 0.05:  # as gRPC would in threads of its own
        pass
    times.share_out()
    assert times.total("other") >= 0.02, "it was not taken for what the worker did"
    assert times.total("acme") >= 1.25
