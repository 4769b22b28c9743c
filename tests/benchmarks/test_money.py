from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.money.broker import PRICE
from benchmarks.money.databases import KINDS, Databases
from benchmarks.money.findings import Findings
from benchmarks.money.load import Loaded, loaded
from benchmarks.money.measuring import Sizes, measure
from benchmarks.money.provider import Bill
from benchmarks.money.reconciled import Books, reconciled
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS

SMALL = Sizes(calls=200, holds=300, sequential=50, batch=60, queue=150, tries=3, attempt_seconds=3.0)
PLAIN = {
    *("overspend_nano_usd", "unresolved_holds", "ledger_minus_provider_bill", "holds_per_s"),
    *("broker_overhead_ms_p50", "batch_1000_x", "fairness"),
}


@pytest.fixture
def places(tmp_path: Path, postgres: str) -> Databases:
    return Databases(tmp_path, postgres)


async def test_everything_is_measured_on_both_databases_and_no_money_is_lost(places: Databases) -> None:
    found, said = Findings(), list[str]()
    for kind in KINDS:
        await measure(places, kind, SMALL, found, said.append)
    assert found.right, [books.wrong for books in found.books.values()]
    result = found.result()
    assert set(result) == {*PLAIN, *(f"{name}_{kind}" for name in PLAIN for kind in KINDS)}
    assert [result[name] for name in ("overspend_nano_usd", "unresolved_holds", "ledger_minus_provider_bill")] == [
        0
    ] * 3
    assert result["holds_per_s"] == min(result["holds_per_s_sqlite"], result["holds_per_s_postgres"]) > 0
    for kind in KINDS:
        ends = found.loads[kind].counts()
        assert ends.total() == SMALL.calls
        assert {"answered", "refused: spent", "failed: gone"} <= set(ends)
        assert found.books[kind].certain
        assert found.books[kind].doubts
        assert kind in found.table().splitlines()
        assert f"{kind}: {SMALL.calls} calls at a provider at which everything goes wrong" in said


@pytest.fixture
async def load(tmp_path: Path) -> tuple[Path, Loaded]:
    """A database, and the load that it was under."""
    at = tmp_path / "rlm.sqlite"
    async with await Database.open(at, MIGRATIONS) as database:
        made = await loaded(database, 100, 1, 3.0, lambda _: None)
    return at, made


async def books(at: Path, load: Loaded) -> Books:
    async with await Database.open(at, MIGRATIONS) as database:
        return await reconciled(database, load)


async def test_what_is_wrong_in_the_books_is_seen(load: tuple[Path, Loaded]) -> None:
    at, made = load
    right = await books(at, made)
    assert (right.overspend, right.unresolved, right.difference, right.wrong) == (0, 0, 0, [])

    prompt, bill = next((prompt, bill) for prompt, (bill, *_) in made.bills.items() if bill.fault is None)

    async def told(*bills: Bill) -> Books:
        return await books(at, replace(made, bills=made.bills | {prompt: list(bills)}))

    dearer = replace(bill, usage=replace(bill.usage, output=bill.usage.output + 1))
    assert (await told(dearer)).difference == PRICE.cost(dearer.usage) - PRICE.cost(bill.usage)
    assert (await told(dearer)).wrong
    assert (await told(bill, bill)).wrong, "sent twice"
    assert (await told()).difference == PRICE.cost(bill.usage), "posted and never billed"
    assert (await books(at, replace(made, bills=made.bills | {"of nobody": [bill]}))).wrong

    def change(statement: str) -> None:
        with closing(sqlite3.connect(at)) as connection, connection:
            assert connection.execute(statement).rowcount

    change("UPDATE account SET posted_nano_usd = posted_nano_usd + 1 WHERE id = 'tenant-1'")
    assert (await books(at, made)).wrong
    change("UPDATE hold SET state = 'dispatched', resolved_at = NULL WHERE state = 'voided'")
    assert (await books(at, made)).unresolved
