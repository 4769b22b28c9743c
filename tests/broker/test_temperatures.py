"""A temperature is sent to the models that take one, and kept from those that would refuse the request for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.providers.temperatures import MOST, taken
from tests.broker.conftest import APIS
from tests.fake_provider.server import FakeProvider

REQUEST = ModelRequest("small", (Message("user", "choose"),), max_tokens=100)


@pytest.mark.parametrize(
    ("api", "model", "sent"),
    [
        ("anthropic", "claude-sonnet-4-5", {"temperature": 1.0}),
        ("anthropic", "claude-haiku-5-5", {}),
        ("openai", "gpt-4.1-mini", {"temperature": 1.5}),
        ("openai", "gpt-6-luna", {}),
        ("compatible", "any-model", {"temperature": 1.5}),
    ],
)
async def test_what_a_model_is_sent_of_a_temperature(
    fake: FakeProvider, api: str, model: str, sent: dict[str, float], max_tokens: int
) -> None:
    provider = APIS[api](fake.url)
    asked = replace(REQUEST, model=model, temperature=1.5, max_tokens=max_tokens)
    await provider.complete(asked)
    await provider.complete(replace(asked, temperature=None))
    with_one, without = (fake.received.get_nowait().body for _ in range(2))
    assert {name: value for name, value in with_one.items() if name == "temperature"} == sent
    assert "temperature" not in without
    await provider.close()


OLDER = {
    "anthropic": "claude-2 claude-v1 claude-3-5-haiku claude-3.7-sonnet claude-sonnet-3-7 claude-haiku-4-5 "
    "claude-opus-4 claude-4-5-haiku claude-opus-4-0 claude-opus-4-20250514 claude-opus-4-1 claude-opus-4-6 "
    "claude-4.6-opus claude-4-opus claude-sonnet-4-6 claude-opus-4-5-20251101",
    "openai": "gpt-3.5-turbo gpt-35-turbo gpt-4 gpt-4o-mini gpt-4.1-nano chatgpt-4o-latest",
}
NEWER = {
    "anthropic": "claude-opus-4-7 claude-4.7-opus claude-opus-4.8 claude-4-8-opus claude-opus-5 claude-sonnet-5-5 "
    "claude-haiku-5-5 claude-5-5-haiku claude-fable-5 claude-opus-4-7-20260416",
    "openai": "gpt-5 gpt-5-mini gpt-5.6-luna gpt-6-sol o1 o3-mini o4-mini gpt-7",
}


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_the_models_that_take_a_temperature_are_the_older_ones(provider: str) -> None:
    assert [name for name in OLDER[provider].split() if taken(provider, name, 0.0) is None] == []
    assert [name for name in NEWER[provider].split() if taken(provider, name, 0.0) is not None] == []


def test_no_model_of_the_price_table_is_sent_more_than_it_takes() -> None:
    prices = Prices.load()
    for provider, most in (("anthropic", 1.0), ("openai", MOST)):
        assert {taken(provider, model, MOST) for model in prices.models(provider)} == {most, None}
