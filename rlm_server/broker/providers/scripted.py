"""A scripted stand-in for a model: no network, no key, no cost of its own. For tests, and for a first look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from rlm_server.broker.provider import Failure, ModelReply, ModelRequest, ProviderError
from rlm_server.ledger import Usage

NAME = "scripted"
"""The provider name its routes carry, so that no one takes its answers for a model's."""

BYTES_PER_TOKEN = 4


class Script(Protocol):
    """Code that answers requests in place of one model."""

    async def reply(self, request: ModelRequest) -> str:
        """Answer. May raise ProviderError, or wait, as a provider would."""
        ...


class ScriptedProvider:
    """A deterministic stand-in. It is **not a model**: its scripts answer.

    Usage follows a fixed rule. A text's tokens are its UTF-8 bytes, divided by four and rounded up. The input is the
    system prompt and all messages as one text. An answer above `max_tokens` is cut, and its stop reason is `length`.
    `billed` lists every answer as (model, usage), as a provider's own bill would.
    """

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self._scripts = dict(scripts)
        self.billed: list[tuple[str, Usage]] = []

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Let the model's script answer.

        Raises:
            ProviderError: there is no such script, or the script raised it.
        """
        script = self._scripts.get(request.model)
        if script is None:
            raise ProviderError(Failure.BAD_REQUEST, "there is no script for this model", billed=False)
        text = await script.reply(request)
        stopped: Literal["end", "length"] = "end"
        if tokens(text) > request.max_tokens:
            cut = text.encode("utf-8", "replace")[: request.max_tokens * BYTES_PER_TOKEN]
            text, stopped = cut.decode("utf-8", "ignore"), "length"
        prompt = request.system + "".join(message.content for message in request.messages)
        usage = Usage(input=tokens(prompt), output=tokens(text))
        self.billed.append((request.model, usage))
        return ModelReply(text, usage, stopped)

    async def close(self) -> None:
        """Nothing is held open."""


def tokens(text: str) -> int:
    """Return how many tokens a text counts as here: its UTF-8 bytes, divided by four and rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
