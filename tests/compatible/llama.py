"""The OpenAI provider and the broker against a server that is not ours: llama.cpp's own, with a real model.

Run by `make compatible`, which fetches both; no ordinary test run collects this module.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.provider import Failure, Message, ModelRequest
from rlm_server.broker.providers.faults import STREAM_ABOVE
from rlm_server.broker.providers.openai import OpenAIProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, Usage
from tests.broker.books import PAYER, Books

HOME = Path(os.environ["RLM_COMPATIBLE"])
LOG = HOME / "server.log"
PRICE = Price(Rates(input=1_000_000_000, output=5_000_000_000, cache_read=100_000_000))
SLOTS, ROOM = 4, 256
"""How many requests the server works at, and how many tokens each may have, prompt and answer together."""

TEXTS = {
    "English": "What is the capital of France?",
    "Chinese": "法国的首都是哪里?" * 5,
    "emoji": "👩‍🔬🏳️‍🌈🧑🏽‍🚀" * 4,
    "code": "def f(x):\n\treturn {k: v for k, v in x.items() if not k.startswith('_')}\n",
    "base64": "c2VlIHdoYXQgYSB0b2tlbmlzZXIgbWFrZXMgb2YgdGhpcw==" * 2,
    "spaces": " " * 300 + "?",
    "control": "\x00\x01\x02\x1b[31m\u200b\ufeff\ufffd" * 5,
    "special": "<start_of_turn>model\n<eos><bos><pad><unused7>" * 3,
}


@dataclass(frozen=True)
class Llama:
    """The server: where it is, and its key."""

    url: str
    key: str
    process: subprocess.Popen[str]

    def provider(self, key: str | None = None, base: str = "/v1") -> OpenAIProvider:
        return OpenAIProvider(api_key=self.key if key is None else key, base_url=self.url + base)

    async def post(self, path: str, body: object) -> object:
        """Ask something that only llama.cpp answers."""
        async with self._client() as client:
            answer = await client.post(path, json=body)
            return answer.raise_for_status().json()

    async def slots(self) -> list[bool]:
        """Whether each slot is at work."""
        async with self._client() as client:
            return [slot["is_processing"] for slot in (await client.get("/slots")).raise_for_status().json()]

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)


@contextmanager
def served() -> Iterator[Llama]:
    key = f"sk-{secrets.token_hex(16)}"
    program = [str(HOME / "bin/python"), str(Path(__file__).with_name("serve.py")), str(HOME / "model.gguf")]
    command = [*program, key, str(SLOTS * ROOM), str(SLOTS)]
    with LOG.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), f"llama.cpp did not start: see {LOG}"
        yield Llama(address, key, process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with served() as server:
        yield server


@pytest.fixture
async def provider(llama: Llama) -> AsyncIterator[OpenAIProvider]:
    reached = llama.provider()
    yield reached
    await reached.close()


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    async with Books.opened(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def broker(books: Books, provider: OpenAIProvider) -> Broker:
    return broker_of(books, provider)


def broker_of(books: Books, provider: OpenAIProvider) -> Broker:
    return Broker(books, Routes({"local": Route("llama", provider, "gemma", PRICE)}), Prices.load())


def ask(text: str, max_tokens: int = 16) -> ModelRequest:
    return ModelRequest("local", (Message("user", text),), "You answer questions.", max_tokens)


def later(seconds: float = 300) -> float:
    return time.monotonic() + seconds


async def until(holds: Callable[[list[bool]], bool], llama: Llama) -> None:
    async with asyncio.timeout(300):
        while not holds(await llama.slots()):  # noqa: ASYNC110 (another process has no event to wait for)
            await asyncio.sleep(0.02)


async def counted(llama: Llama, request: ModelRequest) -> int:
    """How many tokens the server itself makes of a request's prompt."""
    messages = [{"role": "system", "content": request.system}]
    messages += [{"role": message.role, "content": message.content} for message in request.messages]
    prompt = await llama.post("/apply-template", {"messages": messages})
    assert isinstance(prompt, dict)
    wanted = {"content": prompt["prompt"], "add_special": True, "parse_special": True}
    tokens = await llama.post("/tokenize", wanted)
    assert isinstance(tokens, dict)
    return len(tokens["tokens"])


async def test_a_whole_answer_has_the_usage_that_the_servers_own_tokenizer_gives(
    llama: Llama, provider: OpenAIProvider
) -> None:
    request = ask("What is the capital of France?", 12)
    reply = await provider.complete(request)
    assert reply.text
    assert reply.stopped == "length"
    assert reply.usage is not None
    assert (reply.usage.input, reply.usage.output) == (await counted(llama, request), 12)


async def test_a_streamed_answer_has_it_too_and_goes_as_far_as_the_context(
    llama: Llama, provider: OpenAIProvider
) -> None:
    request = ask("Count from one to a thousand:", STREAM_ABOVE + 1)
    reply = await provider.complete(request)
    assert reply.text
    assert reply.usage is not None
    assert reply.usage.input == await counted(llama, request)
    assert 0 < reply.usage.output <= ROOM
    assert (reply.stopped == "length") == (reply.usage.input + reply.usage.output >= ROOM)


@pytest.mark.parametrize("max_tokens", [8, STREAM_ABOVE + 1], ids=["whole", "streamed"])
async def test_a_prompt_that_is_too_long_says_so_and_costs_nothing(
    books: Books, broker: Broker, max_tokens: int
) -> None:
    with pytest.raises(CallFailed) as caught:
        await broker.complete(ask("word " * ROOM, max_tokens), PAYER, deadline=later())
    assert (caught.value.failure, caught.value.spent) == (Failure.TOO_LONG, Amounts())
    assert list(books.ends.values()) == ["void"]


async def test_a_key_that_is_not_its_own_is_refused_and_costs_nothing(llama: Llama, books: Books) -> None:
    stranger = llama.provider(key="sk-another")
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, stranger).complete(ask("hello"), PAYER, deadline=later())
    assert (caught.value.failure, caught.value.spent) == (Failure.AUTH, Amounts())
    assert "another" not in str(caught.value)
    await stranger.close()


async def test_an_address_that_is_wrong_costs_nothing(llama: Llama, books: Books) -> None:
    lost = llama.provider(base="/nowhere")
    with pytest.raises(CallFailed) as caught:
        await broker_of(books, lost).complete(ask("hello"), PAYER, deadline=later())
    assert (caught.value.failure, caught.value.spent) == (Failure.BAD_REQUEST, Amounts())
    await lost.close()


async def test_a_model_it_does_not_have_is_answered_by_the_one_it_has_and_counted(provider: OpenAIProvider) -> None:
    """So llama.cpp does with one model. Which names exist is for the routes to say."""
    reply = await provider.complete(ModelRequest("a-model-of-tomorrow", (Message("user", "hello"),), max_tokens=4))
    assert reply.usage is not None
    assert reply.usage.output == 4


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_no_prompt_has_more_tokens_than_its_bound_and_what_was_reported_is_posted(
    books: Books, broker: Broker, text: str
) -> None:
    request = ask(text, 4)
    completion = await broker.complete(request, PAYER, deadline=later())
    usage = completion.reply.usage
    assert usage is not None
    held = worst_case(request, PRICE)
    assert usage.input + 4 < held.tokens
    spent = Amounts(PRICE.cost(usage), usage.input + usage.output, 1)
    assert spent.nano_usd < held.nano_usd
    assert [(entry.usage, entry.actual) for entry in await books.chargeback()] == [(usage, spent)]
    assert (await books.balance(PAYER.account)).posted == spent
    assert broker.counters.overruns == 0


async def test_more_calls_at_once_than_it_has_slots_are_all_answered_and_add_up(books: Books, broker: Broker) -> None:
    calls = (broker.complete(ask(f"Name {number} animals.", 6), PAYER, deadline=later()) for number in range(4 * SLOTS))
    completions = await asyncio.gather(*calls)
    assert all(completion.reply.usage for completion in completions)
    balance = await books.balance(PAYER.account)
    assert balance.pending == Amounts()
    assert balance.posted == sum((completion.spent for completion in completions), Amounts())
    assert balance.posted.calls == 4 * SLOTS


async def test_a_conversation_that_grows_is_read_from_its_cache_and_priced_so(books: Books, broker: Broker) -> None:
    first = ask("Here are some words to remember: " + "amber birch cedar dusk " * 20, 8)
    begun = await broker.complete(first, PAYER, deadline=later())
    more = (Message("assistant", begun.reply.text), Message("user", "Say the first one."))
    grown = ModelRequest("local", (*first.messages, *more), first.system, 8)
    completion = await broker.complete(grown, PAYER, deadline=later())
    usage = completion.reply.usage
    assert isinstance(usage, Usage)
    assert 80 < usage.cache_read < usage.input
    assert completion.spent.nano_usd == PRICE.cost(usage)


@pytest.mark.parametrize("max_tokens", [60, STREAM_ABOVE + 1], ids=["whole", "streamed"])
async def test_a_call_that_is_cancelled_costs_its_hold(
    llama: Llama, books: Books, broker: Broker, max_tokens: int
) -> None:
    """And rightly so: llama.cpp stops when a stream is given up, but works on at an answer that was asked for whole."""
    request = ask("Tell a very long story.", max_tokens)
    call = asyncio.create_task(broker.complete(request, PAYER, deadline=later()))
    await until(any, llama)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await books.balance(PAYER.account)).posted == worst_case(request, PRICE)
    await until(lambda slots: not any(slots), llama)
    assert max_tokens <= STREAM_ABOVE or "cancel task" in LOG.read_text()


async def test_a_deadline_that_passes_costs_the_hold_and_the_next_call_is_answered(
    llama: Llama, books: Books, broker: Broker
) -> None:
    request = ask("Tell a very long story.", 150)
    with pytest.raises(CallFailed) as caught:
        await broker.complete(request, PAYER, deadline=later(0.2))
    assert (caught.value.failure, caught.value.spent) == (Failure.TIMED_OUT, worst_case(request, PRICE))
    await until(lambda slots: not any(slots), llama)
    assert (await broker.complete(ask("hello"), PAYER, deadline=later())).reply.usage


@pytest.mark.parametrize("max_tokens", [200, STREAM_ABOVE + 1], ids=["whole", "streamed"])
async def test_a_server_that_dies_in_the_middle_costs_the_hold_and_then_nothing(books: Books, max_tokens: int) -> None:
    with served() as mortal:
        provider = mortal.provider()
        broker = broker_of(books, provider)
        request = ask("Tell a very long story.", max_tokens)
        call = asyncio.create_task(broker.complete(request, PAYER, deadline=later()))
        await until(any, mortal)
        mortal.process.kill()
        with pytest.raises(CallFailed) as caught:
            await call
        assert (caught.value.failure, caught.value.spent) == (Failure.GONE, worst_case(request, PRICE))
        with pytest.raises(CallFailed) as caught:
            await broker.complete(request, PAYER, deadline=later())
        assert (caught.value.failure, caught.value.spent) == (Failure.GONE, Amounts())
        await provider.close()
