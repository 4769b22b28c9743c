"""Prompt caching: where a provider has it, a conversation uses it, its parts are counted, and the hold covers it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Usage
from tests.broker.books import PAYER, Books
from tests.broker.conftest import APIS
from tests.broker.priced import PRICE, billed, broker_of, soon
from tests.fake_provider.server import FakeProvider

SYSTEM = "be brief"
LONG = Message("user", "a text that is long enough to be worth caching " * 150)


def turn(*messages: str, max_tokens: int = 100) -> ModelRequest:
    """A conversation that begins with LONG; the model and the user take turns in what follows."""
    later = (Message("user" if number % 2 else "assistant", said) for number, said in enumerate(messages))
    return ModelRequest("small", (LONG, *later), SYSTEM, max_tokens)


def used(usage: Usage | None) -> Usage:
    assert usage is not None
    return usage


@pytest.mark.parametrize("api", ["anthropic", "openai"])
async def test_a_conversation_that_grows_is_read_from_the_cache_and_costs_what_was_billed(
    books: Books, api: str, fake: FakeProvider, max_tokens: int
) -> None:
    provider = APIS[api](fake.url)
    broker = broker_of(books, provider)
    replies = []
    for said in ((), ("yes", "go on"), ("yes", "go on", "well", "and then?")):
        replies.append(await broker.complete(turn(*said, max_tokens=max_tokens), PAYER, deadline=soon()))
    usages = [used(completion.reply.usage) for completion in replies]
    assert usages == [bill.usage for bill in fake.billed]
    assert usages[-1].cache_read > 1_024
    assert usages[-1].cache_read == usages[-2].input, "all of the conversation before"
    assert usages[-1].cache_write == usages[-1].input - usages[-1].cache_read, "the input includes both"
    plain = PRICE.cost(replace(usages[-1], cache_read=0, cache_write=0))
    assert replies[-1].spent.nano_usd < plain / 2
    assert (await books.balance(PAYER.account)).posted == billed(fake)
    await provider.close()


@pytest.mark.parametrize("api", ["anthropic", "openai"])
async def test_a_prompt_that_is_written_to_the_cache_as_a_whole_fits_its_hold(
    books: Books, api: str, fake: FakeProvider
) -> None:
    provider = APIS[api](fake.url)
    request = turn("yes", "go on")
    completion = await broker_of(books, provider).complete(request, PAYER, deadline=soon())
    usage = used(completion.reply.usage)
    assert usage.cache_write == usage.input
    assert completion.spent.nano_usd == PRICE.cost(usage) > PRICE.cost(replace(usage, cache_write=0))
    assert completion.spent.nano_usd < worst_case(request, PRICE).nano_usd
    await provider.close()


def test_every_price_of_the_table_covers_a_prompt_that_is_written_to_the_cache() -> None:
    prices = Prices.load()
    for provider in ("anthropic", "openai"):
        for model in prices.models(provider):
            price = prices.price(provider, model)
            for tokens in (1, 1_000, 200_001, 1_000_000):
                for cached in (Usage(tokens, 9, cache_write=tokens), Usage(tokens, 9, cache_read=tokens)):
                    assert price.cost(cached) <= price.bound(tokens, 9), model


async def test_anthropic_is_asked_to_cache_conversations_for_five_minutes_and_nothing_else(fake: FakeProvider) -> None:
    provider = APIS["anthropic"](fake.url)
    await provider.complete(turn())
    await provider.complete(turn("yes", "go on"))
    alone, grown = (fake.received.get_nowait().body for _ in range(2))
    assert "cache_control" not in alone, "a single prompt does not come again, and writing costs more"
    assert grown["cache_control"] == {"type": "ephemeral", "ttl": "5m"}, "which is what the table prices"
    await provider.close()


async def test_openai_gets_one_cache_key_for_prompts_that_begin_alike(fake: FakeProvider) -> None:
    provider = APIS["openai"](fake.url)
    alike = turn(), turn("yes", "go on"), ModelRequest("small", (Message("user", LONG.content + "why?"),), SYSTEM, 100)
    others = ModelRequest("small", (Message("user", "short"),), SYSTEM, 100), replace(turn(), system="be long")
    for request in (*alike, *others):
        await provider.complete(request)
    keys = [fake.received.get_nowait().body["prompt_cache_key"] for _ in range(5)]
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 3
    assert LONG.content[:20] not in keys[0]
    await provider.close()


async def test_a_compatible_endpoint_hears_nothing_of_caching_and_what_it_says_of_it_is_counted(
    fake: FakeProvider, max_tokens: int
) -> None:
    provider = APIS["compatible"](fake.url)
    await provider.complete(turn(max_tokens=max_tokens))
    reply = await provider.complete(turn("yes", "go on", max_tokens=max_tokens))
    assert used(reply.usage).cache_read > 0
    assert [name for name in fake.received.get_nowait().body if "cache" in name] == []
    await provider.close()
