"""The ledger's database fails in the middle of a call: nothing unpaid leaves, nothing paid is lost or paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.broker.breaker import BreakerConfig, State
from rlm_server.broker.broker import CallFailed
from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.database.database import Database
from rlm_server.database.engine import DatabaseBusyError, DatabaseError, DatabaseLostError
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, Hold, Recovery, Usage, settling
from tests.broker.books import AT_ONCE, PAYER, Books, reserving
from tests.broker.stage import COST, HELD, PROMPT, Play, Until, answered, broker_of, soon

PATH_OF_THE_SERVER = "/var/lib/rlm.sqlite"
UNREACHABLE = ProviderError(Failure.GONE, "the provider cannot be reached", billed=False)
BROKEN = ProviderError(Failure.GONE, "the provider's answer was cut off", billed=True)


class Failing(Books):
    """Books whose database fails: `before` an order, or `after` it was done, as often as is said."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.fails_before: dict[str, int] = {}
        self.before_kind: type[DatabaseError] = DatabaseBusyError
        self.fails_after: dict[str, int] = {}

    async def reserve(self, hold: Hold, *, deadline: float, dispatch: bool = False) -> None:
        order = reserving(dispatch=dispatch)
        self._may_fail(order, self.fails_before)
        await super().reserve(hold, deadline=deadline, dispatch=dispatch)
        self._may_fail(order, self.fails_after)

    async def dispatch(self, hold_id: str) -> None:
        self._may_fail("dispatch", self.fails_before)
        await super().dispatch(hold_id)
        self._may_fail("dispatch", self.fails_after)

    async def post(self, hold_id: str, actual: Amounts, usage: Usage | None, *, patience: float = 0.0) -> None:
        self._may_fail("post", self.fails_before)
        await super().post(hold_id, actual, usage, patience=patience)
        self._may_fail("post", self.fails_after)

    async def post_in_full(self, hold_id: str) -> None:
        self._may_fail("post_in_full", self.fails_before)
        await super().post_in_full(hold_id)
        self._may_fail("post_in_full", self.fails_after)

    async def void(self, hold_id: str) -> None:
        self._may_fail("void", self.fails_before)
        await super().void(hold_id)
        self._may_fail("void", self.fails_after)

    def _may_fail(self, order: str, times: dict[str, int]) -> None:
        if times.get(order, 0) > 0:
            times[order] -= 1
            kind = DatabaseLostError if times is self.fails_after else self.before_kind
            raise kind(f"the database cannot be reached: {PATH_OF_THE_SERVER}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def books(path: Path) -> AsyncIterator[Failing]:
    async with Failing.opened(path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PAUSE", 0.001)


@pytest.fixture
def hopeless(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """The database does not come back for as long as a call waits for it."""
    monkeypatch.setattr(settling, "SECONDS", 0.0)


async def restarted(path: Path) -> tuple[Recovery, Amounts, Amounts]:
    """What the next server's start recovers, and what the account has posted and holds then."""
    async with await Database.open(path, MIGRATIONS) as database:
        books = Books(database)
        recovery = await books.recover()
        balance = await books.balance(PAYER.account)
        return recovery, balance.posted, balance.pending


@pytest.mark.parametrize("order", [AT_ONCE, "reserve", "dispatch"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [DatabaseBusyError, DatabaseLostError], ids=["busy", "lost"])
async def test_a_call_that_cannot_be_written_down_is_not_sent_and_costs_nothing(
    books: Failing, order: str, when: str, kind: type[DatabaseError]
) -> None:
    play = Play([answered])
    books.before_kind = kind
    {"before": books.fails_before, "after": books.fails_after}[when][order] = 1
    broker = broker_of(books, play)
    if order != AT_ONCE:
        await books.short(PAYER, HELD)
    with pytest.raises(CallFailed, match="nothing was sent") as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent, caught.value.billed) == (Failure.INTERNAL, Amounts(), False)
    assert PATH_OF_THE_SERVER not in str(caught.value)
    assert play.started.empty()
    await books.freed()
    balance = await books.balance(PAYER.account)
    assert (balance.posted, balance.pending) == (Amounts(), Amounts())
    assert await books.unresolved() == 0
    assert broker.counters.failures == {Failure.INTERNAL: 1}
    assert (await broker.complete(PROMPT, PAYER, deadline=soon())).spent == COST


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_answer_that_was_paid_for_is_given_and_posted_once_when_the_database_is_back(
    books: Failing, when: str, times: int
) -> None:
    {"before": books.fails_before, "after": books.fails_after}[when]["post"] = times
    broker = broker_of(books, Play([answered]))
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (completion.reply.text, completion.spent) == ("answered", COST)
    assert await books.costs() == {f"{completion.call_id}.1": COST}
    balance = await books.balance(PAYER.account)
    assert (balance.posted, balance.pending) == (COST, Amounts())
    assert broker.counters.unsettled == 0


@pytest.mark.usefixtures("hopeless")
async def test_an_answer_that_was_paid_for_is_given_though_the_books_count_its_whole_hold_from_the_next_start_on(
    books: Failing, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    books.fails_before["post"] = 99
    broker = broker_of(books, Play([answered]))
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (completion.reply.text, completion.spent) == ("answered", HELD)
    assert broker.counters.unsettled == 1
    assert f"hold {completion.call_id}.1 could not be resolved" in caplog.text
    assert (await books.balance(PAYER.account)).pending == HELD
    await books._database.close()
    assert await restarted(path) == (Recovery(voided=0, posted=1), HELD, Amounts())


@pytest.mark.usefixtures("hopeless")
@pytest.mark.parametrize(
    ("failure", "order"), [(BROKEN, "post_in_full"), (UNREACHABLE, "void")], ids=["billed", "not billed"]
)
async def test_a_failure_is_told_as_it_was_though_its_hold_cannot_be_resolved(
    books: Failing, path: Path, failure: ProviderError, order: str
) -> None:
    books.fails_before[order] = 99
    broker = broker_of(books, Play([failure]))
    with pytest.raises(CallFailed, match=str(failure)) as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.spent) == (failure.failure, HELD)
    assert broker.counters.unsettled == 1
    await books._database.close()
    # It was sent, and the books do not know how it ended: the safe side is to count it.
    assert await restarted(path) == (Recovery(voided=0, posted=1), HELD, Amounts())


@pytest.mark.usefixtures("hopeless")
async def test_a_call_that_was_not_sent_and_cannot_be_voided_is_void_at_the_next_start(
    books: Failing, path: Path
) -> None:
    await books.short(PAYER, HELD)
    books.fails_after["reserve"] = 1
    books.fails_before["void"] = 99
    with pytest.raises(CallFailed, match="nothing was sent") as caught:
        await broker_of(books, Play([answered])).complete(PROMPT, PAYER, deadline=soon())
    assert caught.value.spent == Amounts()
    await books._database.close()
    assert await restarted(path) == (Recovery(voided=1, posted=0), Amounts(), Amounts())


@pytest.mark.usefixtures("hopeless")
async def test_a_call_that_was_not_sent_but_stays_dispatched_in_the_books_is_told_as_what_they_will_count(
    books: Failing, path: Path
) -> None:
    books.fails_after[AT_ONCE] = 1
    books.fails_before["void"] = 99
    with pytest.raises(CallFailed, match="nothing was sent") as caught:
        await broker_of(books, Play([answered])).complete(PROMPT, PAYER, deadline=soon())
    assert caught.value.spent == HELD
    await books._database.close()
    assert await restarted(path) == (Recovery(voided=0, posted=1), HELD, Amounts())


async def test_cancelling_while_the_database_is_away_still_settles(books: Failing) -> None:
    books.fails_before["post_in_full"] = 2
    play = Play([Until()])
    task = asyncio.create_task(broker_of(books, play).complete(PROMPT, PAYER, deadline=soon()))
    await play.started.get()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((await books.costs()).values()) == [HELD]


async def test_a_server_that_stops_in_a_call_does_not_wait_for_its_database(books: Failing, path: Path) -> None:
    async def stop() -> None:
        await books._database.close()

    async def answer_late(request: object) -> str:
        await stop()
        return "answered"

    broker = broker_of(books, Play([answer_late]))
    completion = await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (completion.reply.text, completion.spent) == ("answered", HELD)
    assert [order for order, _ in books.orders] == [AT_ONCE, "post"]
    assert await restarted(path) == (Recovery(voided=0, posted=1), HELD, Amounts())


async def test_a_provider_is_not_blamed_for_the_database(books: Failing) -> None:
    broker = broker_of(books, Play([answered]))
    for _ in range(2 * BreakerConfig().calls):
        books.fails_before[AT_ONCE] = 1
        with pytest.raises(CallFailed, match="nothing was sent"):
            await broker.complete(PROMPT, PAYER, deadline=soon())
    assert broker.states() == {"small": State.CLOSED}
