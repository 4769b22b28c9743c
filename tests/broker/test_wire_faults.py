"""Every fault of a provider, met over real HTTP through the broker: what the caller sees and what the ledger holds."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator

import pytest

from rlm_server.broker.broker import CallFailed, Completion
from rlm_server.broker.provider import Provider
from rlm_server.broker.providers import faults, http
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts
from tests.broker.books import PAYER, Books
from tests.broker.conftest import APIS, KEY
from tests.broker.law import LAWS, law
from tests.broker.priced import PRICE, PROMPT, ask, billed, broker_of, soon
from tests.fake_provider.server import PROVIDER_TEXT, FakeProvider, Fault
from tests.fake_provider.speech import SPEECHES, THOUGHT

ENDED_BY_THE_DEADLINE = {Fault.STALL, Fault.STALL_INSIDE, Fault.LATE}


@pytest.fixture(params=SPEECHES)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def provider(api: str, fake: FakeProvider) -> AsyncIterator[Provider]:
    reached = APIS[api](fake.url)
    yield reached
    await reached.close()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers without end are soon large enough."""
    monkeypatch.setattr(http, "ANSWER_BYTES", 400_000)
    monkeypatch.setattr(http, "ANSWER_BYTES_PER_TOKEN", 0)


def everything_said(error: BaseException) -> str:
    """All that a log, a debugger or a tenant could get out of an error."""
    said = []
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None:
            said.append(f"{link!r} {link.args} {vars(link)} {''.join(traceback.format_exception(link))}")
            chain += [link.__cause__, link.__context__]
    return "\n".join(said)


def test_there_is_a_law_for_every_fault() -> None:
    assert LAWS.keys() == set(Fault)


@pytest.mark.parametrize("fault", Fault)
async def test_a_fault_is_settled_by_the_law_and_nothing_of_it_leaks(
    books: Books,
    provider: Provider,
    api: str,
    fake: FakeProvider,
    max_tokens: int,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault is Fault.RATE_LIMITED_STALLING:
        monkeypatch.setattr(http, "ERROR_SECONDS", 0.05)
    fake.thinking = 5
    fake.faults.append(fault)
    broker = broker_of(books, provider, attempt_seconds=0.15 if fault in ENDED_BY_THE_DEADLINE else 10)
    expected = law(fault, api, streamed=max_tokens > faults.STREAM_ABOVE)
    held = worst_case(ask(max_tokens), PRICE)
    spent_in_vain = held if expected.end == "post_in_full" else Amounts()

    result: Completion | CallFailed
    try:
        result = await broker.complete(ask(max_tokens), PAYER, deadline=soon())
    except CallFailed as error:
        result = error
    if isinstance(result, CallFailed):
        assert (result.failure, result.spent) == (expected.failure, spent_in_vain)
        said = everything_said(result)
    else:
        assert expected.failure is None
        said = result.reply.text
        assert said == fake.answer
    assert not [secret for secret in (KEY, PROMPT, PROVIDER_TEXT, THOUGHT) if secret in said]

    # One attempt, one hold, one end.
    ends = [expected.end, "post"] if expected.retried else [expected.end]
    assert books.ends == {f"{result.call_id}.{number}": end for number, end in enumerate(ends, 1)}
    assert result.attempts == len(ends)

    entries, balance = await books.chargeback(), await books.balance(PAYER.account)
    assert balance.pending == Amounts()
    if expected.end == "post_in_full":
        # In doubt: the whole hold, marked by having no usage, and never less than what was billed.
        assert [(entry.usage, entry.actual) for entry in entries] == [(None, held)]
        assert balance.posted == held
        assert held.nano_usd >= billed(fake).nano_usd
    else:
        assert [entry.usage for entry in entries] == [bill.usage for bill in fake.billed]
        assert balance.posted + balance.overrun == billed(fake)
    overruns = fault in (Fault.OUTPUT_ABOVE, Fault.INPUT_ABOVE)
    assert (broker.counters.overruns, await books.overruns()) == (overruns, overruns)

    # The server goes on, whatever the fault did to its connections.
    fake.faults.clear()
    again = await broker_of(books, provider).complete(ask(max_tokens), PAYER, deadline=soon())
    assert again.reply.text == fake.answer
