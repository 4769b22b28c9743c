"""Stop sequences are sent to the models that take some, and kept from those that would refuse the request for them."""

from __future__ import annotations

from typing import Any

import pytest

from rlm_server.broker.provider import Message, ModelRequest
from tests.broker.conftest import APIS
from tests.fake_provider.server import FakeProvider


@pytest.mark.parametrize(
    ("api", "model", "sent"),
    [
        ("anthropic", "claude-haiku-5-5", {"stop_sequences": ["###", "END"]}),
        ("openai", "gpt-4.1-mini", {"stop": ["###", "END"]}),
        ("openai", "gpt-6-luna", {}),
        ("compatible", "any-model", {"stop": ["###", "END"]}),
    ],
)
async def test_what_a_model_is_sent_of_stop_sequences(
    fake: FakeProvider, api: str, model: str, sent: dict[str, Any], max_tokens: int
) -> None:
    provider = APIS[api](fake.url)
    for stop in (("###", "END"), ()):
        await provider.complete(ModelRequest(model, (Message("user", "choose"),), max_tokens=max_tokens, stop=stop))
    with_some, without = (fake.received.get_nowait().body for _ in range(2))
    assert {name: value for name, value in with_some.items() if name.startswith("stop")} == sent
    assert not [name for name in without if name.startswith("stop")]
    await provider.close()
