"""When a provider asks to come again later: in how many words, and how the broker heeds them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from rlm_server.broker.broker import CallFailed
from rlm_server.broker.provider import Failure, Provider, ProviderError
from rlm_server.broker.providers.faults import retry_after
from tests.broker.books import PAYER, Books
from tests.broker.priced import ask, billed, broker_of, soon
from tests.fake_provider.server import FakeProvider, Fault

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HALF_A_MINUTE_LATER = format_datetime(datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC), usegmt=True)

READABLE = {
    "seconds": ({"retry-after": "7"}, 7.0),
    "fraction": ({"retry-after": "1.5"}, 1.5),
    "none": ({"retry-after": "0"}, 0.0),
    "milliseconds": ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    "milliseconds that are nonsense": ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    "date": ({"retry-after": HALF_A_MINUTE_LATER}, 30.0),
    "huge": ({"retry-after": "999999999999"}, 999_999_999_999.0),
}
UNREADABLE = {
    "absent": {},
    "empty": {"retry-after": ""},
    "words": {"retry-after": "soon"},
    "negative": {"retry-after": "-1"},
    "not a number": {"retry-after-ms": "nan"},
    "without end": {"retry-after": "inf"},
    "more than a float": {"retry-after": "9" * 400},
    "no day": {"retry-after": "Fri, 31 Feb 2026 03:04:35 GMT"},
    "twice": {"retry-after": "7, 9"},
}


@pytest.mark.parametrize("name", READABLE)
def test_a_wait_is_read_as_seconds_milliseconds_or_a_date(name: str) -> None:
    headers, seconds = READABLE[name]
    assert retry_after(headers, now=NOW.timestamp()) == seconds


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_wait_that_makes_no_sense_is_none(name: str) -> None:
    assert retry_after(UNREADABLE[name], now=NOW.timestamp()) is None


def test_a_date_that_has_passed_is_no_wait() -> None:
    assert retry_after({"retry-after": HALF_A_MINUTE_LATER}, now=NOW.timestamp() + 60) == 0


async def test_the_wait_a_provider_asks_for_is_passed_on(provider: Provider, fake: FakeProvider) -> None:
    fake.faults.append(Fault.RATE_LIMITED_WITH_HINT)
    fake.hint = {"retry-after": "7"}
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask())
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("hint", [{"retry-after": "999999999999"}, {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}])
async def test_a_wait_beyond_the_deadline_is_not_begun_and_costs_nothing(
    books: Books, provider: Provider, fake: FakeProvider, hint: dict[str, str]
) -> None:
    fake.faults.append(Fault.RATE_LIMITED_WITH_HINT)
    fake.hint = hint
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, provider).complete(ask(), PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.attempts, caught.value.billed) == (Failure.RATE_LIMITED, 1, False)
    assert fake.requests == 1
    assert await books.costs() == {}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_without_a_readable_wait_the_backoff_alone_is_waited_for(
    books: Books, provider: Provider, fake: FakeProvider, name: str
) -> None:
    fake.faults.extend([Fault.RATE_LIMITED_WITH_HINT, Fault.OVERLOADED])
    fake.hint = UNREADABLE[name]
    completion = await broker_of(books, provider).complete(ask(), PAYER, deadline=soon())
    assert completion.attempts == fake.requests == 3
    assert completion.spent == billed(fake)
