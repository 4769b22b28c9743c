"""Who waits where: thousands of one tenant's calls keep no other's single call from a provider, or from the ledger."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlm_server.broker.broker import LEDGER_WRITES, Broker
from rlm_server.broker.limits import CallLimits
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Message, ModelReply, ModelRequest
from rlm_server.broker.routes import Route, Routes
from rlm_server.database.database import Database
from rlm_server.ledger import Hold, Ledger, Limit, Payer, Usage
from rlm_server.shares.gate import Load
from rlm_server.tenants.policy import Policy
from tests.broker.books import AT_ONCE, PAYER, RUN, TENANT, Books, reserving
from tests.broker.stage import COST, HELD, PRICE, PROMPT, soon, until

MANY = 2_000


@dataclass
class Desk:
    """A provider that answers when it is told to. `started` says whose calls came in, by the prompts' first words."""

    started: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)

    async def complete(self, request: ModelRequest) -> ModelReply:
        who = request.messages[0].content.partition(" ")[0]
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((who, answer))
        self.started.put_nowait(who)
        await answer
        return ModelReply("answered", Usage(input=100, output=2))

    async def close(self) -> None:
        pass

    def answer(self, who: str | None = None) -> None:
        """Answer the oldest call, or the oldest of somebody."""
        at = next(at for at, (asker, _) in enumerate(self.waiting) if who in (None, asker))
        self.waiting.pop(at)[1].set_result(None)

    async def next(self) -> str:
        return await asyncio.wait_for(self.started.get(), 20)


@pytest.fixture
async def other(books: Books) -> Payer:
    return await books.open(Payer(account="run-2", tenant="globex", run="run-2", node="0"))


def ask(who: str) -> ModelRequest:
    return ModelRequest("small", (Message("user", f"{who} asks"),), max_tokens=100)


def broker_of(books: Books, desk: Desk, **options: object) -> Broker:
    routes = Routes({"small": Route("desk", desk, "upstream", PRICE)})
    return Broker(books, routes, Prices.load(), **options)  # type: ignore[arg-type]


@asynccontextmanager
async def in_line(broker: Broker, payers: list[Payer], who: str, count: int) -> AsyncIterator[None]:
    """Calls that are under way while the block runs, and are given up then."""
    tasks = [
        asyncio.create_task(broker.complete(ask(who), payers[number % len(payers)], deadline=soon() + 50))
        for number in range(count)
    ]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("runs", [1, 50])
async def test_a_single_call_goes_next_though_another_tenant_has_thousands_in_line(
    books: Books, other: Payer, runs: int
) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=4))
    payers = [await books.open(Payer(f"{RUN}.{n}", TENANT, f"{RUN}.{n}", "0")) for n in range(runs)]
    async with in_line(broker, payers, "many", MANY):
        assert [await desk.next() for _ in range(4)] == ["many"] * 4
        single = asyncio.create_task(broker.complete(ask("single"), other, deadline=soon()))
        await until(lambda: broker.loads()["desk"].waiting > min(256, 64 * runs) - 4)
        desk.answer()
        assert await desk.next() == "single"
        desk.answer("single")
        assert (await single).reply.text == "answered"
        # Those in line have asked nothing of the ledger, in which the single call's orders would wait behind theirs.
        assert Counter(order for order, _ in books.orders)[AT_ONCE] <= 4 + 1 + 2


async def test_a_runs_single_call_goes_next_though_another_run_of_its_tenant_has_thousands_in_line(
    books: Books,
) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=4, tenant_calls=8))
    modest = await books.open(Payer("run-2", TENANT, "run-2", "0"))
    async with in_line(broker, [PAYER], "many", MANY):
        assert [await desk.next() for _ in range(4)] == ["many"] * 4
        async with in_line(broker, [modest], "single", 1):
            assert broker.waiting == MANY + 1 - 8
            order = []
            while "single" not in order:
                desk.answer()
                order.append(await desk.next())
            # The four that waited for the provider before it came, at most, and then it.
            assert len(order) <= 5


async def test_a_tenant_over_its_cap_and_a_run_over_its_cap_wait_apart_from_the_provider(
    books: Books, other: Payer
) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=10, tenant_calls=3, run_calls=2))
    second = await books.open(Payer("run-3", TENANT, "run-3", "0"))
    async with (
        in_line(broker, [PAYER], "first-run", 5),
        in_line(broker, [second], "second-run", 5),
        in_line(broker, [other], "other", 1),
    ):
        started = Counter([await desk.next() for _ in range(4)])
        assert started == {"first-run": 2, "second-run": 1, "other": 1}
        assert (broker.waiting, broker.loads()) == (7, {"desk": Load(inside=4, waiting=0)})


async def test_tenants_share_a_provider_in_the_proportion_of_their_weights(books: Books, other: Payer) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=8), policies={"globex": Policy(weight=3.0)})
    async with in_line(broker, [PAYER], "light", 40), in_line(broker, [other], "heavy", 40):
        for _ in range(8):
            await desk.next()
        for _ in range(12):
            desk.answer()
            await desk.next()
        assert Counter(who for who, _ in desk.waiting) == {"heavy": 6, "light": 2}


async def test_a_call_that_waits_for_money_holds_no_slot_and_takes_one_when_it_has_the_money(
    books: Books, other: Payer
) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=2))
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd + COST.nano_usd))
    first = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    assert await desk.next() == PROMPT.messages[0].content
    second = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await until(lambda: "reserve" in [order for order, _ in books.orders])
    assert broker.loads() == {"desk": Load(inside=1, waiting=0)}
    async with in_line(broker, [other], "other", 1):
        assert await desk.next() == "other"
        desk.answer()  # the first: its money and its slot are free
        assert await desk.next() == PROMPT.messages[0].content
        desk.answer("other")
        desk.answer()
        assert (await first).spent == (await second).spent == COST
    assert (await books.balance(PAYER.account)).pending.calls == 0


async def test_a_call_that_waits_for_its_slot_again_with_the_money_in_hand_gives_it_back_when_it_gives_up(
    books: Books, other: Payer
) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=1))
    await books.set_limit(PAYER.account, Limit(nano_usd=HELD.nano_usd + COST.nano_usd))
    await books.reserve(Hold("elsewhere", RUN, HELD, "small", "", TENANT, RUN, "0"), deadline=soon())
    task = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon(), call_id="call"))
    await until(lambda: ("reserve", "call.1") in books.orders)
    async with in_line(broker, [other], "other", 1):
        assert await desk.next() == "other"
        await books.void("elsewhere")
        await until(lambda: broker.loads()["desk"].waiting == 1)
        assert (await books.balance(PAYER.account)).pending == HELD
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert books.ends["call.1"] == "void"
    assert (await books.balance(PAYER.account)).pending.calls == 0
    assert broker.loads() == {"desk": Load(inside=0, waiting=0)}


class Held(Books):
    """Books that take a tenant's order to reserve only when they are let."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.let = asyncio.Semaphore(0)

    async def reserve(self, hold: Hold, *, deadline: float, dispatch: bool = False) -> None:
        self._note(reserving(dispatch=dispatch), hold.id)
        if hold.tenant == TENANT:
            await self.let.acquire()
        await Ledger.reserve(self, hold, deadline=deadline, dispatch=dispatch)


async def test_a_single_calls_orders_to_the_ledger_go_next_however_many_another_tenant_has(tmp_path: Path) -> None:
    async with Held.opened(tmp_path / "ledger.db") as books:
        desk = Desk()
        other = await books.open(Payer(account="run-2", tenant="globex", run="run-2", node="0"))
        broker = broker_of(books, desk, limits=CallLimits(provider_calls=1_000, run_calls=1_000))
        async with in_line(broker, [PAYER], "many", 200):
            await until(lambda: len(books.orders) == LEDGER_WRITES)
            single = asyncio.create_task(broker.complete(ask("single"), other, deadline=soon(), call_id="single"))
            await until(lambda: broker.loads()["desk"].inside == 201)
            assert len(books.orders) == LEDGER_WRITES
            books.let.release()
            await until(lambda: len(books.orders) > LEDGER_WRITES)
            assert books.orders[LEDGER_WRITES] == (AT_ONCE, "single.1")
            for _ in range(200):
                books.let.release()
            while await desk.next() != "single":
                pass
            desk.answer("single")
            assert (await single).spent == COST


async def test_cancelling_thousands_in_line_leaves_nothing_behind(books: Books) -> None:
    desk = Desk()
    broker = broker_of(books, desk, limits=CallLimits(provider_calls=4))
    async with in_line(broker, [PAYER], "many", MANY):
        assert await desk.next() == "many"
    assert (broker.waiting, broker.loads()) == (0, {"desk": Load(inside=0, waiting=0)})
    assert await books.unresolved() == 0
