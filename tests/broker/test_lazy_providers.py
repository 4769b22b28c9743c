"""What a provider needs is imported by the first call, which pays for nothing while that goes on, or where it fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Failure, ModelReply, ModelRequest, Provider, ProviderError
from rlm_server.broker.providers.lazy import LazyProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import Amounts, Usage
from tests.broker.books import PAYER, Books
from tests.broker.stage import COST, PRICE, PROMPT, soon

ROOT = Path(__file__).parents[2]


class Answering:
    """A provider that answers, and says that it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        return ModelReply("answered", Usage(input=100, output=2))

    async def close(self) -> None:
        self.closed += 1


class Making:
    """Makes a provider when it is let, in whichever thread it is called in."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.may = threading.Event()
        self.begun = 0
        self.provider = Answering()

    def __call__(self) -> Provider:
        self.begun += 1
        assert self.may.wait(20)
        if self.failures:
            raise self.failures.pop(0)
        return self.provider


def broker_of(books: Books, provider: LazyProvider) -> Broker:
    return Broker(books, Routes({"small": Route("lazy", provider, "upstream", PRICE)}), Prices.load())


async def begun(making: Making) -> None:
    async with asyncio.timeout(20):
        while not making.begun:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_calls_that_come_at_once_share_one_making_and_hold_nothing_before(books: Books) -> None:
    making = Making()
    broker = broker_of(books, LazyProvider("lazy", making))
    calls = [asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon())) for _ in range(5)]
    await begun(making)
    assert books.orders == []
    making.may.set()
    assert {(await call).reply.text for call in calls} == {"answered"}
    assert making.begun == 1
    assert list((await books.costs()).values()) == [COST] * 5
    await broker.close()
    assert making.provider.closed == 1


async def test_a_provider_that_cannot_be_made_costs_nothing_and_is_tried_again(books: Books) -> None:
    making = Making(ModuleNotFoundError("secret_sdk"))
    making.may.set()
    broker = broker_of(books, LazyProvider("lazy", making))
    with pytest.raises(CallFailed, match="could not make its provider lazy ready; nothing was sent") as caught:
        await broker.complete(PROMPT, PAYER, deadline=soon())
    assert (caught.value.failure, caught.value.billed, caught.value.spent) == (Failure.INTERNAL, False, Amounts())
    assert "secret_sdk" not in str(caught.value)
    assert books.orders == []
    assert (await broker.complete(PROMPT, PAYER, deadline=soon())).reply.text == "answered"
    await broker.close()


async def test_a_deadline_or_a_cancellation_before_it_is_made_costs_nothing(books: Books) -> None:
    making = Making()
    broker = broker_of(books, LazyProvider("lazy", making))
    cancelled = asyncio.create_task(broker.complete(PROMPT, PAYER, deadline=soon()))
    await begun(making)
    cancelled.cancel()
    with pytest.raises(CallFailed, match="before the request was sent") as caught:
        await broker.complete(PROMPT, PAYER, deadline=time.monotonic() + 0.05)
    assert (caught.value.failure, caught.value.billed) == (Failure.TIMED_OUT, False)
    assert (books.orders, making.begun, cancelled.cancelled()) == ([], 1, True)
    making.may.set()
    assert (await broker.complete(PROMPT, PAYER, deadline=soon())).reply.text == "answered"
    await broker.close()


async def test_it_can_be_closed_unmade_being_made_and_where_that_failed() -> None:
    await LazyProvider("never asked", Making()).close()
    making = Making()
    provider = LazyProvider("being made", making)
    call = asyncio.create_task(provider.complete(PROMPT))
    await begun(making)
    closing = asyncio.create_task(provider.close())
    making.may.set()
    await closing
    assert ((await call).text, making.provider.closed) == ("answered", 1)
    failing = Making(OSError())
    failing.may.set()
    provider = LazyProvider("failing", failing)
    with pytest.raises(ProviderError):
        await provider.ready()
    await provider.close()
    assert failing.provider.closed == 0


PROGRAM = """
import asyncio, sys
import rlm_server.server
from rlm_server.broker.providers import registry
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.config.model_catalog import build_models
from rlm_server.config.settings import Settings

def told(*words):
    print(*words, *sorted({"aiohttp", "anthropic", "openai"} & set(sys.modules)))

async def main():
    models = build_models(Settings.load(anthropic_api_key="", openai_api_key=""), SCRIPTS)
    told("without a key", models.model)
    models = build_models(Settings.load(anthropic_api_key="a", openai_api_key="b"), SCRIPTS)
    told("with keys", models.model)
    await models.routes.route("gpt-6-sol").prepare()
    told("openai's first call")
    await models.routes.route(models.model).prepare()
    told("anthropic's first call")
    await models.routes.close()

asyncio.run(main())
"""


def test_no_sdk_is_imported_and_what_a_call_needs_only_once_one_does(
    tmp_path: Path,
) -> None:
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.splitlines() == [
        "without a key scripted",
        "with keys claude-sonnet-5-5",
        "openai's first call aiohttp",
        "anthropic's first call aiohttp",
    ]
