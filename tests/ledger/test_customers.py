"""A tenant's customers: budgets between the tenant's and its runs', in force at once, and never passed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from rlm_server.database.labels import put
from rlm_server.database.requests import Request, RequestIdReused
from rlm_server.ledger import (
    AccountClosed,
    AccountConflict,
    AccountExists,
    AccountUnknown,
    Amounts,
    BudgetBusy,
    BudgetExceeded,
    By,
    CustomerClosed,
    Ledger,
    Limit,
    Query,
    Span,
    TooManyAccounts,
)
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.customers import Customer
from rlm_server.ledger.windows import KEPT
from tests.ledger.accounting import Books, a_hold, at_most, at_once, cents, soon

NOON = 1_795_780_800_000
"""The beginning of a minute, an hour and a day, in Unix milliseconds: 2026-11-27T12:00Z."""
MINUTE = 60_000


@dataclass
class Clock:
    now: int = NOON

    def __call__(self) -> int:
        return self.now


@dataclass
class Stage:
    books: Books
    book: CustomerBook
    clock: Clock

    @property
    def ledger(self) -> Ledger:
        return self.books.ledger

    async def customer(self, id: str, limit: Limit = Limit(), *, parent: str = "", **terms: object) -> str:  # noqa: B008
        made = await self.book.create(Customer("acme", id, parent, limit=limit, **terms))  # type: ignore[arg-type]
        return made.account

    async def run(self, name: str, customer: str, limit: Limit = Limit()) -> None:  # noqa: B008
        payer = await self.book.payer("acme", customer)
        await self.books.run(name, limit, parent=payer.account if payer is not None else "acme")

    async def limit(self, id: str, limit: Limit) -> None:
        await self.book.update("acme", id, lambda now: replace(now, limit=limit))


@pytest.fixture
async def stage(books: Books) -> Stage:
    clock = Clock()
    ledger = Ledger(books.database, clock=clock)
    made = Stage(Books(ledger, books.database, books.at), CustomerBook(books.database, ledger, lambda _: 20), clock)
    await made.books.tenant(at_most(1_000))
    return made


@contextmanager
def refused(account: str) -> Iterator[None]:
    with pytest.raises(BudgetExceeded) as error:
        yield
    assert error.value.account == account


async def test_what_a_run_spends_is_counted_on_every_customer_above_it(stage: Stage) -> None:
    top, under = await stage.customer("top"), await stage.customer("under", parent="top")
    await stage.run("run_1", "under")
    await stage.run("run_2", "top")
    await stage.books.spent("run_1", cents(3))
    await stage.books.held("run_2", cents(4))
    for account, posted, pending in ((under, 3, 0), (top, 3, 4), ("acme", 3, 4)):
        balance = await stage.ledger.balance(account)
        assert (balance.posted, balance.pending) == (cents(posted), cents(pending))


async def test_a_hold_that_a_customer_at_any_level_has_no_room_for_is_placed_nowhere(stage: Stage) -> None:
    one = await stage.customer("one", at_most(5))
    await stage.customer("two", parent="one")
    await stage.customer("three", parent="two")
    await stage.customer("four", parent="three")
    await stage.run("run_1", "four")
    with refused(one):
        await stage.books.held("run_1", cents(6))
    for account in ("acme", one, "run_1"):
        assert (await stage.ledger.balance(account)).pending == Amounts()
    with pytest.raises(AccountConflict, match="more than 4 levels"):
        await stage.customer("five", parent="four")


async def test_a_hundred_calls_of_many_runs_never_pass_their_customers_limit(stage: Stage) -> None:
    account = await stage.customer("one", at_most(7))
    for number in range(10):
        await stage.run(f"run_{number}", "one")

    async def call(number: int) -> bool:
        hold = a_hold(f"run_{number % 10}", cents(1))
        try:
            await stage.ledger.reserve(hold, deadline=soon(), dispatch=True)
        except BudgetExceeded:
            return False
        await stage.ledger.post(hold.id, cents(1), None)
        return True

    assert sum(await asyncio.gather(*(call(number) for number in range(100)))) == 7
    assert (await stage.ledger.balance(account)).posted == cents(7)


async def test_a_limit_below_what_was_spent_is_taken_and_nothing_more_is_spent(stage: Stage) -> None:
    account = await stage.customer("one", at_most(10))
    await stage.run("run_1", "one")
    await stage.books.spent("run_1", cents(5))
    sent = await stage.books.sent("run_1", cents(4))
    await stage.limit("one", at_most(6))
    with pytest.raises(BudgetBusy):  # of what is held, 1 would fit when it cost nothing
        await stage.books.held("run_1", cents(1))
    with refused(account):
        await stage.books.held("run_1", cents(2))
    await stage.ledger.void(sent)
    await stage.books.spent("run_1", cents(1))
    with refused(account):
        await stage.books.held("run_1", cents(1))
    assert (await stage.ledger.balance(account)).limit == at_most(6)
    await stage.limit("one", at_most(2))
    assert (await stage.ledger.balance(account)).left == at_most(0)


async def test_a_raised_limit_lets_those_through_who_wait_and_a_lowered_one_refuses_them(stage: Stage) -> None:
    await stage.customer("one", at_most(5))
    await stage.run("run_1", "one")
    await stage.books.sent("run_1", cents(5))
    first, second = (
        asyncio.create_task(stage.ledger.reserve(a_hold("run_1", cents(asked)), deadline=soon())) for asked in (2, 4)
    )
    await stage.books.settled()
    assert not first.done()
    await stage.limit("one", at_most(8))
    await first
    assert not second.done()
    await stage.limit("one", at_most(3))
    with pytest.raises(BudgetExceeded):
        await second


async def test_a_closed_customer_and_those_under_it_spend_nothing_more_and_what_is_under_way_counts(
    stage: Stage,
) -> None:
    one = await stage.customer("one", at_most(10))
    await stage.customer("two", parent="one")
    await stage.run("run_1", "two")
    sent = await stage.books.sent("run_1", cents(8))
    waiting = asyncio.create_task(stage.ledger.reserve(a_hold("run_1", cents(4)), deadline=soon()))
    await stage.books.settled()
    await stage.book.close("acme", "one")
    with pytest.raises(CustomerClosed, match="'two' was closed, and nothing more can be spent on it"):
        await waiting
    with pytest.raises(CustomerClosed):
        await stage.ledger.check("run_1", cents(1))
    for id in ("one", "two"):
        with pytest.raises(AccountClosed):
            await stage.run("run_2", id)
        with pytest.raises(AccountExists):
            await stage.customer(id)
    with pytest.raises(AccountClosed):
        await stage.limit("one", at_most(20))
    await stage.ledger.charge(a_hold("run_1", Amounts(cpu_ms=7)))  # what its code ran meanwhile
    await stage.ledger.post(sent, cents(8), None)
    await stage.ledger.close_account("run_1")
    assert (await stage.ledger.balance(one)).posted == cents(8) + Amounts(cpu_ms=7)
    await stage.book.close("acme", "one")


@pytest.mark.parametrize("span", [Span.HOUR, Span.DAY, Span.MONTH])
async def test_a_customers_window_refuses_until_the_next_and_counts_what_came_before_it_was_set(
    stage: Stage, span: Span
) -> None:
    await stage.customer("one")
    await stage.customer("two", parent="one")
    await stage.customer("other")
    await stage.run("run_1", "two")
    await stage.run("run_2", "other")
    await stage.books.spent("run_1", cents(4))
    await stage.books.spent("run_2", cents(50))
    await stage.book.update("acme", "one", lambda now: replace(now, windows={span: at_most(6)}))
    with pytest.raises(BudgetExceeded, match=rf"account 'one' for the {span} "):
        await stage.books.held("run_1", cents(3))
    await stage.books.spent("run_2", cents(50))
    await stage.books.spent("run_1", cents(2))
    await stage.book.update("acme", "one", lambda now: now, [span])
    await stage.books.spent("run_1", cents(6))
    stage.clock.now += 32 * 24 * 60 * MINUTE
    await stage.books.spent("run_1", cents(6))
    with pytest.raises(BudgetExceeded):
        await stage.books.held("run_1", cents(1))


async def test_a_call_beyond_a_minutes_pace_waits_for_the_next_minute_and_then_goes(stage: Stage) -> None:
    await stage.customer("one", windows={Span.MINUTE: Limit(calls=2)})
    await stage.run("run_1", "one")
    for _ in range(2):
        await stage.books.spent("run_1", Amounts(calls=1))
    assert (await stage.ledger.left("run_1")).calls is None  # it is no budget that would be used up
    stage.clock.now += MINUTE - 20
    waiting = asyncio.create_task(stage.ledger.reserve(a_hold("run_1", Amounts(calls=1)), deadline=soon()))
    await stage.books.settled()
    assert not waiting.done()
    stage.clock.now += 20  # nothing else happens that would have the line judged again
    await waiting


async def test_a_call_that_no_minute_has_room_for_is_refused_at_once_and_one_that_came_too_late_at_its_deadline(
    stage: Stage,
) -> None:
    await stage.customer("one", windows={Span.MINUTE: Limit(tokens=100)})
    await stage.run("run_1", "one")
    with pytest.raises(BudgetExceeded, match="for the minute 2026-11-27T12:00"):
        await stage.books.held("run_1", Amounts(tokens=101))
    await stage.books.spent("run_1", Amounts(tokens=60))
    with pytest.raises(BudgetBusy):
        await stage.ledger.reserve(a_hold("run_1", Amounts(tokens=60)), deadline=at_once())


async def test_a_minutes_pace_keeps_no_child_from_being_promised_its_share(stage: Stage) -> None:
    await stage.customer("one", windows={Span.MINUTE: Limit(calls=2)})
    await stage.run("run_1", "one", Limit(calls=100))
    await stage.books.child("child", Limit(calls=50), parent="run_1")
    assert (await stage.ledger.balance("run_1")).carved.calls == 50


async def test_windows_that_are_long_over_are_removed_and_still_count_when_the_clock_goes_back(stage: Stage) -> None:
    await stage.customer("one", windows={Span.MINUTE: Limit(calls=2)})
    await stage.run("run_1", "one")
    for _ in range(KEPT * 3):
        await stage.books.spent("run_1", Amounts(calls=2))
        stage.clock.now += MINUTE
    counted = "SELECT count(*) FROM window_account"
    (kept,) = await stage.books.database.read(lambda connection: connection.execute(counted).fetchone())
    assert kept <= KEPT + 2
    stage.clock.now = NOON + 5 * MINUTE
    with pytest.raises(BudgetBusy):
        await stage.books.held("run_1", Amounts(calls=1))


async def test_a_window_counts_what_was_reserved_in_it_before_a_clock_that_went_back_saw_it_limited(
    stage: Stage,
) -> None:
    await stage.customer("one")
    await stage.run("run_1", "one")
    stage.clock.now += 3 * 60 * MINUTE
    await stage.books.spent("run_1", cents(5))
    stage.clock.now = NOON
    await stage.book.update("acme", "one", lambda now: replace(now, windows={Span.HOUR: at_most(6)}))
    stage.clock.now += 3 * 60 * MINUTE
    with pytest.raises(BudgetExceeded):
        await stage.books.held("run_1", cents(2))


async def test_a_customer_that_was_never_made_is_made_as_the_template_says(stage: Stage) -> None:
    with pytest.raises(AccountUnknown):
        await stage.run("run_1", "new")
    await stage.customer("default", at_most(3), windows={Span.DAY: at_most(2)}, labels={"plan": "free"})
    with pytest.raises(AccountConflict):
        await stage.run("run_1", "default")
    await stage.run("run_1", "new")
    new = await stage.book.get("acme", "new")
    assert (new.limit, new.windows, new.labels) == (at_most(3), {Span.DAY: at_most(2)}, {"plan": "free"})
    with pytest.raises(BudgetExceeded):
        await stage.books.held("run_1", cents(3))
    await stage.book.close("acme", "default")
    await stage.run("run_2", "new")
    with pytest.raises(AccountUnknown):
        await stage.run("run_3", "newer")
    await stage.customer("default", at_most(9))
    await stage.run("run_3", "newer")
    assert (await stage.book.get("acme", "newer")).limit == at_most(9)


async def test_an_id_is_its_tenants_own_and_there_are_no_more_than_may_be(stage: Stage) -> None:
    await stage.ledger.open_account("other", tenant="other", parent=None, limit=Limit())
    await stage.book.create(Customer("other", "one"))
    with pytest.raises(AccountUnknown):
        await stage.book.get("acme", "one")
    assert await stage.ledger.statement("acme", "one") is None
    await stage.customer("one")
    await stage.customer("other")
    found = await stage.ledger.statement("acme", "other")
    assert found is not None
    assert found.parent == "acme"
    for number in range(18):
        await stage.customer(f"more-{number}")
    with pytest.raises(TooManyAccounts):
        await stage.customer("last")


async def test_usage_goes_by_who_pays_and_by_labels_also_when_what_had_them_is_gone(stage: Stage) -> None:
    await stage.customer("one")
    await stage.customer("two", parent="one")
    for run, customer, team in (("run_1", "one", "a"), ("run_2", "two", "b"), ("run_3", "", "b"), ("run_4", "", "")):
        await stage.run(run, customer)
        labels = {"team": team} if team else {}
        await stage.books.database.write(lambda db, run=run, labels=labels: put(db, "run", run, labels))  # type: ignore[misc]
        await stage.ledger.charge(a_hold(run, cents(int(run[-1])), run=run))

    async def usage(by: By, **query: object) -> dict[str, int]:
        rows = await stage.ledger.usage(Query("acme", **query), by, "team")  # type: ignore[arg-type]
        return {row.key: row.actual.nano_usd // cents(1).nano_usd for row in rows}

    assert await usage(By.ACCOUNT) == {"acme": 7, "one": 1, "two": 2}
    assert await usage(By.LABEL) == {"": 4, "a": 1, "b": 5}
    assert await usage(By.RUN, customer="one") == {"run_1": 1, "run_2": 2}
    assert await usage(By.RUN, customer="one/two") == {"run_2": 2}
    assert await usage(By.ACCOUNT, labels=(("team", "b"),)) == {"acme": 3, "two": 2}
    entries = await stage.ledger.entries(Query("acme"))
    assert [entry.customer for entry in entries] == ["one", "one/two", "", ""]


async def test_a_request_that_comes_again_changes_nothing_also_after_a_restart(stage: Stage) -> None:
    request = Request("acme", "CreateAccount", "once", "some-content")
    made = await stage.book.create(Customer("acme", "one", name="first"), request)
    async with stage.books.taken_over() as ledger:
        book = CustomerBook(ledger._database, ledger, lambda _: 20)
        assert await book.create(Customer("acme", "one", name="first"), request) == made
        with pytest.raises(RequestIdReused):
            await book.create(Customer("acme", "two"), replace(request, content_sha256="other"))
        with pytest.raises(AccountUnknown):
            await book.get("acme", "two")


async def test_what_a_tenant_called_its_customers_is_forgotten_and_what_they_spent_is_not(stage: Stage) -> None:
    await stage.ledger.open_account("other", tenant="other", parent=None, limit=Limit())
    asked = {tenant: Request(tenant, "CreateAccount", "once", "the same") for tenant in ("acme", "other")}
    for tenant, request in asked.items():
        windows = {Span.DAY: at_most(9)}
        await stage.book.create(
            Customer(tenant, "one", name="One", labels={"plan": "free"}, windows=windows, limit=at_most(9)), request
        )
    await stage.run("run_1", "one")
    await stage.ledger.change("acme", lambda connection, _: put(connection, "run", "run_1", {"team": "a"}))
    await stage.ledger.charge(a_hold("run_1", cents(3), run="run_1"))
    await stage.book.forget_all("acme")
    await stage.book.forget_all("acme")
    one, others = await stage.book.get("acme", "one"), await stage.book.get("other", "one")
    assert (one.name, one.labels, one.windows) == ("", {}, {})
    assert (others.name, others.labels, others.windows) == ("One", {"plan": "free"}, {Span.DAY: at_most(9)})
    with pytest.raises(AccountClosed):
        await stage.run("run_2", "one")
    assert [row.key for row in await stage.ledger.usage(Query("acme"), By.LABEL, "team")] == [""]
    assert [(row.key, row.actual) for row in await stage.ledger.usage(Query("acme"), By.ACCOUNT)] == [("one", cents(3))]
    with pytest.raises(AccountExists):
        await stage.book.create(Customer("acme", "one"), asked["acme"])
    assert await stage.book.create(Customer("other", "one"), asked["other"]) == others
