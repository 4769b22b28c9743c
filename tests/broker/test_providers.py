"""The SDK providers over real HTTP: one request per attempt, usage as billed, and failures in our own few words."""

from __future__ import annotations

import asyncio
import traceback
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from rlm_server.broker.calls import Failure, Message, ModelRequest, Provider, ProviderError
from rlm_server.broker.providers.anthropic import AnthropicProvider
from rlm_server.broker.providers.faults import retry_after
from rlm_server.broker.providers.openai import OpenAIProvider
from tests.broker.conftest import APIS, KEY
from tests.fake_provider.server import PROVIDER_TEXT, FakeProvider, Fault

PROMPT = "a prompt that must not show"

FAILURES = {
    Fault.RATE_LIMITED: (Failure.RATE_LIMITED, False),
    Fault.RATE_LIMITED_WITH_HINT: (Failure.RATE_LIMITED, False),
    Fault.OVERLOADED: (Failure.OVERLOADED, False),
    Fault.UNAVAILABLE: (Failure.OVERLOADED, False),
    Fault.BAD_KEY: (Failure.AUTH, False),
    Fault.NO_CREDIT: (Failure.AUTH, False),
    Fault.NO_SUCH_MODEL: (Failure.BAD_REQUEST, False),
    Fault.BAD_REQUEST: (Failure.BAD_REQUEST, False),
    Fault.REDIRECT: (Failure.BAD_REQUEST, False),
    Fault.TOO_LONG: (Failure.TOO_LONG, False),
    Fault.SERVER_ERROR: (Failure.GONE, True),
    Fault.CUT: (Failure.GONE, True),
    Fault.ENDS_EARLY: (Failure.GONE, True),
    Fault.ERROR_INSIDE: (Failure.GONE, True),
    Fault.NONSENSE: (Failure.GONE, True),
}


def ask(max_tokens: int, *more: Message) -> ModelRequest:
    return ModelRequest("fake-model", (*more, Message("user", PROMPT)), system="be brief", max_tokens=max_tokens)


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


async def test_an_answer_comes_back_with_the_usage_that_was_billed(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    reply = await provider.complete(ask(max_tokens))
    assert (reply.text, reply.stopped) == (fake.answer, "end")
    assert [bill.usage for bill in fake.billed] == [reply.usage]


async def test_a_slow_answer_is_an_answer(provider: Provider, fake: FakeProvider, max_tokens: int) -> None:
    fake.faults.append(Fault.SLOW)
    assert (await provider.complete(ask(max_tokens))).text == fake.answer


async def test_an_answer_that_was_cut_at_max_tokens_says_so(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.answer = "word " * max_tokens
    reply = await provider.complete(ask(max_tokens))
    assert (len(reply.text), reply.stopped) == (max_tokens * 4, "length")


async def test_an_answer_without_usage_is_kept_and_marked_as_uncounted(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.faults.append(Fault.MISSING_USAGE)
    reply = await provider.complete(ask(max_tokens))
    assert (reply.text, reply.usage) == (fake.answer, None)


@pytest.mark.parametrize("fault", FAILURES)
async def test_a_failure_names_its_kind_and_whether_it_was_billed_and_repeats_nothing_secret(
    provider: Provider, fake: FakeProvider, max_tokens: int, fault: Fault
) -> None:
    fake.faults.append(fault)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask(max_tokens))
    assert (caught.value.failure, caught.value.billed) == FAILURES[fault]
    assert bool(fake.billed) <= caught.value.billed, "what was billed is never called unbilled"
    assert fake.received.qsize() == 1, "the SDK does not retry by itself"
    said = everything_said(caught.value)
    assert not [secret for secret in (KEY, PROMPT, PROVIDER_TEXT) if secret in said]


@pytest.mark.parametrize("api", APIS)
async def test_a_refused_connection_is_not_billed(api: str) -> None:
    async with FakeProvider().serving() as gone:
        pass
    provider = APIS[api](gone.url)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask(100))
    assert (caught.value.failure, caught.value.billed) == (Failure.GONE, False)
    await provider.close()


async def test_cancelling_abandons_a_request_that_stalls(provider: Provider, fake: FakeProvider) -> None:
    fake.faults.append(Fault.STALL)
    task = asyncio.create_task(provider.complete(ask(100)))
    await fake.received.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_wait_a_provider_asks_for_is_passed_on(provider: Provider, fake: FakeProvider) -> None:
    fake.faults.append(Fault.RATE_LIMITED_WITH_HINT)
    fake.retry_after = "7"
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask(100))
    assert caught.value.retry_after == 7


def test_a_wait_is_read_as_seconds_milliseconds_or_a_date() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    date = format_datetime(datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC), usegmt=True)
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": date}, now=now.timestamp()) == 30
    assert retry_after({"retry-after": date}, now=now.timestamp() + 60) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after-ms": "nan"}):
        assert retry_after(nothing) is None


async def test_anthropic_requests_are_pinned_to_what_the_price_is_for(fake: FakeProvider, max_tokens: int) -> None:
    provider = AnthropicProvider(api_key=KEY, base_url=fake.url)
    await provider.complete(ask(max_tokens))
    sent = fake.received.get_nowait()
    assert sent.key == KEY
    assert sent.body["service_tier"] == "standard_only"
    assert sent.body["max_tokens"] == max_tokens
    assert "cache_control" not in sent.body, "a single prompt does not come again"
    await provider.close()


async def test_a_growing_conversation_is_cached_and_its_parts_are_counted(fake: FakeProvider, max_tokens: int) -> None:
    provider = AnthropicProvider(api_key=KEY, base_url=fake.url)
    turns = (Message("user", "first " * 50), Message("assistant", "second"))
    first = await provider.complete(ask(max_tokens, *turns))
    second = await provider.complete(ask(max_tokens, *turns, Message("user", PROMPT), Message("assistant", "third")))
    assert [bill.usage for bill in fake.billed] == [first.usage, second.usage]
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.cache_read == 0
    assert second.usage.cache_read > 0
    assert first.usage.cache_write == first.usage.input, "the input includes what was written to the cache"
    assert second.usage.cache_read + second.usage.cache_write == second.usage.input
    await provider.close()


async def test_openai_requests_are_pinned_and_compatible_ones_are_plain(fake: FakeProvider, max_tokens: int) -> None:
    proper = OpenAIProvider(api_key=KEY, base_url=fake.url + "/v1", compatible=False)
    await proper.complete(ask(max_tokens))
    sent = fake.received.get_nowait()
    assert (sent.key, sent.body["service_tier"], sent.body["store"]) == (KEY, "default", False)
    assert (sent.body["max_completion_tokens"], sent.body.get("max_tokens")) == (max_tokens, None)

    compatible = OpenAIProvider(base_url=fake.url + "/v1")
    await compatible.complete(ask(max_tokens))
    body = fake.received.get_nowait().body
    assert body["max_tokens"] == max_tokens
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
    assert body.keys() <= {"model", "messages", "max_tokens", "stream", "stream_options"}
    await proper.close()
    await compatible.close()
