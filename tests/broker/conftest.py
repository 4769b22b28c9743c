"""A fake provider on loopback, the providers that speak to it, and a ledger that pays for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rlm_server.broker.provider import Provider
from rlm_server.broker.providers.anthropic import AnthropicProvider
from rlm_server.broker.providers.openai import OpenAIProvider
from tests.broker.books import Books
from tests.fake_provider.server import FakeProvider

KEY = "sk-a-key-that-must-not-show"

APIS: dict[str, Callable[[str], Provider]] = {
    "anthropic": lambda url: AnthropicProvider(api_key=KEY, base_url=url),
    "openai": lambda url: OpenAIProvider(api_key=KEY, base_url=url + "/v1", compatible=False),
    "compatible": lambda url: OpenAIProvider(api_key=KEY, base_url=url + "/v1"),
}


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    async with Books.opened(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider().serving() as serving:
        yield serving


@pytest.fixture(params=APIS)
async def provider(request: pytest.FixtureRequest, fake: FakeProvider) -> AsyncIterator[Provider]:
    reached = APIS[request.param](fake.url)
    yield reached
    await reached.close()


@pytest.fixture(params=[500, 10_000], ids=["whole", "streamed"])
def max_tokens(request: pytest.FixtureRequest) -> int:
    """An output bound below and above the one from which answers are streamed."""
    bound: int = request.param
    return bound
