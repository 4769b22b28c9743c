"""The providers over real HTTP: one request per attempt, pinned to what the price is for, and usage as billed."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from rlm_server.broker.provider import Message, ModelRequest, Provider
from rlm_server.broker.providers.anthropic import AnthropicProvider
from rlm_server.broker.providers.faults import STREAM_ABOVE
from rlm_server.broker.providers.openai import OpenAIProvider
from tests.broker.conftest import APIS, KEY
from tests.fake_provider.server import FakeProvider, Fault

PROMPT = "a prompt"
OLDEST = "claude-opus-4-0"
"""Anthropic itself asks for streaming above 8,192 tokens of this one."""


def ask(max_tokens: int, *more: Message, model: str = "fake-model") -> ModelRequest:
    return ModelRequest(model, (*more, Message("user", PROMPT)), system="be brief", max_tokens=max_tokens)


async def test_an_answer_comes_back_with_the_usage_that_was_billed(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.thinking = 7
    reply = await provider.complete(ask(max_tokens))
    assert (reply.text, reply.stopped) == (fake.answer, "end")
    assert [bill.usage for bill in fake.billed] == [reply.usage]
    assert reply.usage is not None
    assert reply.usage.reasoning == 7, "which the output includes"
    assert reply.usage.output > 7


async def test_an_answer_that_was_cut_at_max_tokens_says_so(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.answer = "word " * max_tokens
    reply = await provider.complete(ask(max_tokens))
    assert (len(reply.text), reply.stopped) == (max_tokens * 4, "length")


async def test_an_answer_that_a_filter_stopped_says_so(provider: Provider, fake: FakeProvider, max_tokens: int) -> None:
    fake.faults.append(Fault.FILTERED)
    reply = await provider.complete(ask(max_tokens))
    assert reply.stopped == "refusal"
    assert [bill.usage for bill in fake.billed] == [reply.usage]


async def test_an_answer_without_usage_is_kept_and_marked_as_uncounted(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.faults.append(Fault.MISSING_USAGE)
    reply = await provider.complete(ask(max_tokens))
    assert (reply.text, reply.usage) == (fake.answer, None)


@pytest.mark.parametrize("model", ["fake-model", OLDEST])
async def test_only_answers_that_may_be_long_are_streamed(provider: Provider, fake: FakeProvider, model: str) -> None:
    for max_tokens, streamed in ((STREAM_ABOVE, False), (STREAM_ABOVE + 1, True), (1_000_000, True)):
        with warnings.catch_warnings(action="error"):
            await provider.complete(ask(max_tokens, model=model))
        assert bool(fake.received.get_nowait().body.get("stream")) is streamed


async def test_cancelling_abandons_a_request_that_stalls(provider: Provider, fake: FakeProvider) -> None:
    fake.faults.append(Fault.STALL)
    task = asyncio.create_task(provider.complete(ask(100)))
    await fake.received.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake.idle()
    assert fake.left == 1, "the provider sees that nobody waits"


async def test_anthropic_requests_are_pinned_to_what_the_price_is_for(fake: FakeProvider, max_tokens: int) -> None:
    provider = AnthropicProvider(api_key=KEY, base_url=fake.url)
    await provider.complete(ask(max_tokens))
    sent = fake.received.get_nowait()
    assert sent.key == KEY
    assert sent.body["service_tier"] == "standard_only"
    assert sent.body["max_tokens"] == max_tokens
    assert sent.body["system"] == "be brief"
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


@pytest.mark.parametrize("api", APIS)
async def test_no_other_credential_of_the_environment_leaves(
    api: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "another-secret")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "another-secret" if api == "compatible" else "ours")
    provider = APIS[api](fake.url)
    await provider.complete(ask(100))
    sent = fake.received.get_nowait()
    assert sent.key == KEY
    assert "another-secret" not in str(sent.headers)
    await provider.close()
