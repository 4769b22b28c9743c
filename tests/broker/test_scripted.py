"""The scripted stand-in: deterministic, counted by its stated rule, and plainly not a model."""

from __future__ import annotations

import pytest

from rlm_server.broker.provider import Failure, Message, ModelRequest, ProviderError
from rlm_server.broker.providers.scripted import NAME, ScriptedProvider
from rlm_server.ledger import Usage


class Echo:
    async def reply(self, request: ModelRequest) -> str:
        return request.messages[-1].content


def ask(text: str, *, max_tokens: int = 100, model: str = "echo", system: str = "") -> ModelRequest:
    return ModelRequest(model, (Message("user", text),), system=system, max_tokens=max_tokens)


async def test_it_answers_what_its_script_says_and_logs_the_bill() -> None:
    provider = ScriptedProvider({"echo": Echo()})
    reply = await provider.complete(ask("hello", system="sys"))
    assert (reply.text, reply.stopped) == ("hello", "end")
    assert reply.usage == Usage(input=2, output=2), "8 bytes in, 5 bytes out, 4 bytes to a token, rounded up"
    assert provider.billed == [("echo", Usage(input=2, output=2))]
    assert NAME == "scripted"


async def test_an_answer_above_max_tokens_is_cut_between_characters() -> None:
    reply = await ScriptedProvider({"echo": Echo()}).complete(ask("ä€" * 3, max_tokens=2))
    assert (reply.text, reply.stopped) == ("ä€ä", "length")
    assert reply.usage is not None
    assert reply.usage.output == 2


async def test_an_unknown_script_is_a_bad_request_and_not_billed() -> None:
    provider = ScriptedProvider({})
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask("hello"))
    assert (caught.value.failure, caught.value.billed, provider.billed) == (Failure.BAD_REQUEST, False, [])
