"""The ledger against the provider's billing log, over real HTTP: many calls at once, and any fault by chance."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict

import pytest

from rlm_server.broker.broker import CallFailed, Completion
from rlm_server.broker.provider import Provider
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts
from tests.broker.books import PAYER, Books
from tests.broker.priced import PRICE, ask, billed, broker_of, cost, soon
from tests.fake_provider.faults import WAITING
from tests.fake_provider.server import Bill, FakeProvider, Fault, chance

QUICK = [fault for fault in Fault if fault not in WAITING]


def digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_bill_is_in_the_books_and_what_is_in_doubt_is_marked_and_never_less(
    books: Books, provider: Provider, fake: FakeProvider, seed: int
) -> None:
    fake.chance = chance(0.5, seed, QUICK)
    broker = broker_of(books, provider)
    # What each call asks is its own, so that the provider's log can be read by it.
    prompts = {f"call-{number}": f"the question of call {number}" for number in range(150)}
    requests = {call: ask(10_000 if number % 2 else 500, prompts[call]) for number, call in enumerate(prompts)}
    calls = (broker.complete(request, PAYER, deadline=soon() + 20, call_id=call) for call, request in requests.items())
    results = dict(zip(prompts, await asyncio.gather(*calls, return_exceptions=True), strict=True))

    bills: defaultdict[str, list[Bill]] = defaultdict(list)
    for bill in fake.billed:
        bills[bill.prompt].append(bill)
    posted = {entry.hold.id.partition(".")[0]: entry for entry in await books.chargeback()}
    doubts = Amounts()
    for call, request in requests.items():
        owed, entry, result = bills.pop(digest(prompts[call]), []), posted.get(call), results[call]
        assert isinstance(result, Completion | CallFailed)
        assert len(owed) <= 1, "what may have been billed is not sent again"
        assert result.spent == (entry.actual if entry else Amounts())
        if entry is None:
            assert owed == []
        elif entry.usage is None:
            assert entry.actual == worst_case(request, PRICE)
            assert entry.actual.nano_usd >= sum(map(cost, owed), Amounts()).nano_usd
            doubts += entry.actual - sum(map(cost, owed), Amounts())
        else:
            assert [(entry.usage, entry.actual)] == [(bill.usage, cost(bill)) for bill in owed]
    assert bills == {}
    balance = await books.balance(PAYER.account)
    assert balance.pending == Amounts()
    assert balance.posted + balance.overrun == billed(fake) + doubts
    assert {type(result) for result in results.values()} == {Completion, CallFailed}
    assert doubts != Amounts()


async def test_a_request_abandoned_in_flight_is_paid_for(books: Books, provider: Provider, fake: FakeProvider) -> None:
    fake.faults.append(Fault.STALL)
    task = asyncio.create_task(broker_of(books, provider).complete(ask(100), PAYER, deadline=soon()))
    await fake.received.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    balance = await books.balance(PAYER.account)
    assert (balance.pending, balance.posted) == (Amounts(), worst_case(ask(100), PRICE))
