"""Models of OpenAI, and of every endpoint that speaks its chat completions (vLLM, llama.cpp, Ollama, a gateway)."""

from __future__ import annotations

import hashlib
import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

from rlm_server.broker.provider import ModelReply, ModelRequest
from rlm_server.broker.providers.faults import STREAM_ABOVE, cut_off, reply_or_error, unreadable
from rlm_server.broker.providers.fields import count, field, text
from rlm_server.broker.providers.http import Client
from rlm_server.broker.providers.stops import takes_stops
from rlm_server.broker.providers.temperatures import taken
from rlm_server.ledger import Usage

if TYPE_CHECKING:  # the SDK checks what is sent, and sends nothing
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

URL = "https://api.openai.com/v1"
PATH = "/chat/completions"
NAME = "openai"

_BILLED_TO = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
"""Headers that say whom OpenAI bills, and the variables of the environment that they come from."""

CACHED_CHARACTERS = 4_096
"""About as long as the shortest prefix that OpenAI caches, 1,024 tokens."""


class OpenAIProvider:
    """Reach OpenAI, or a compatible endpoint, with one key.

    Any `base_url` but OpenAI's own counts as a `compatible` endpoint. It is sent only fields that all of them know.
    Requests to OpenAI itself are pinned to its default tier, which the price table prices, and ask it to store nothing.
    """

    def __init__(self, *, api_key: str = "", base_url: str = URL, compatible: bool | None = None) -> None:
        self._compatible = base_url != URL if compatible is None else compatible
        # Self-hosted endpoints need no key, but may insist on one.
        headers = {"authorization": f"Bearer {api_key or 'none'}"}
        if not self._compatible:
            headers |= {name: value for name, key in _BILLED_TO.items() if (value := os.environ.get(key, "")) != ""}
        self._client = Client(base_url.rstrip("/") + PATH, headers)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one attempt, streaming where the answer may be long.

        Raises:
            ProviderError: the attempt failed.
        """
        work = self._streamed(request) if request.max_tokens > STREAM_ABOVE else self._whole(request)
        return await reply_or_error(work)

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _whole(self, request: ModelRequest) -> ModelReply:
        answer = await self._client.post(self._body(request), request.max_tokens)
        match answer:
            case {"choices": [{"message": {**message}} as choice, *_]}:
                said, refusal = text(message, "content"), text(message, "refusal")
                stopped = "refusal" if refusal and not said else _stopped(field(choice, "finish_reason"))
                return ModelReply(said or refusal, _usage(field(answer, "usage")), stopped)
        raise unreadable()

    async def _streamed(self, request: ModelRequest) -> ModelReply:
        body = {**self._body(request), "stream": True, "stream_options": {"include_usage": True}}
        parts: list[str] = []
        usage: Usage | None = None
        reason: object = None
        refused = False
        async with aclosing(self._client.stream(body, request.max_tokens)) as stream:
            async for _, chunk in stream:
                if field(chunk, "error"):
                    raise unreadable()
                if (report := field(chunk, "usage")) is not None:
                    usage = _usage(report)
                match chunk:
                    case {"choices": [choice, *_]}:
                        delta, reason = field(choice, "delta"), field(choice, "finish_reason") or reason
                        refusal = text(delta, "refusal")
                        parts.append(text(delta, "content") or refusal)
                        refused = refused or bool(refusal)
        if reason is None:
            raise cut_off()
        return ModelReply("".join(parts), usage, "refusal" if refused else _stopped(reason))

    def _body(self, request: ModelRequest) -> CompletionCreateParamsNonStreaming:
        body: CompletionCreateParamsNonStreaming = {"model": request.model, "messages": _messages(request)}
        name = "" if self._compatible else NAME
        temperature = taken(name, request.model, request.temperature)
        if temperature is not None:
            body["temperature"] = temperature
        if request.stop and takes_stops(name, request.model):
            body["stop"] = list(request.stop)
        if self._compatible:
            body["max_tokens"] = request.max_tokens
        else:
            body["max_completion_tokens"] = request.max_tokens
            body["service_tier"] = "default"
            body["store"] = False
            body["prompt_cache_key"] = _cache_key(request)
        return body


def _messages(request: ModelRequest) -> list[ChatCompletionMessageParam]:
    messages: list[ChatCompletionMessageParam] = []
    if request.system:
        messages.append({"role": "system", "content": request.system})
    for message in request.messages:
        if message.role == "user":
            messages.append({"role": "user", "content": message.content})
        else:
            messages.append({"role": "assistant", "content": message.content})
    return messages


def _cache_key(request: ModelRequest) -> str:
    """Return a key that prompts with the same beginning share: OpenAI routes them to where it may be cached."""
    beginnings = [request.system, *(message.content for message in request.messages[:1])]
    beginning = "\0".join(said[:CACHED_CHARACTERS] for said in beginnings)[:CACHED_CHARACTERS]
    return hashlib.sha256(beginning.encode("utf-8", "replace")).hexdigest()[:32]


def _usage(report: object) -> Usage | None:
    prompt, answer = field(report, "prompt_tokens_details"), field(report, "completion_tokens_details")
    try:
        input, output = count(report, "prompt_tokens"), count(report, "completion_tokens")
        if input is None or output is None:
            return None
        return Usage(
            input=input,
            output=output,
            cache_read=count(prompt, "cached_tokens") or 0,
            cache_write=count(prompt, "cache_write_tokens") or 0,
            reasoning=count(answer, "reasoning_tokens") or 0,
        )
    except ValueError:
        return None


def _stopped(reason: object) -> Literal["end", "length", "refusal"]:
    match reason:
        case "length":
            return "length"
        case "content_filter":
            return "refusal"
    return "end"
