"""Models of OpenAI, and of every endpoint that speaks its chat completions (vLLM, llama.cpp, Ollama, a gateway)."""

from __future__ import annotations

from typing import Literal

import httpx2
import openai
from openai import omit
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from openai.types.chat.chat_completion import Choice

from rlm_server.broker.calls import ModelReply, ModelRequest
from rlm_server.broker.providers.faults import CONNECT_TIMEOUT, STREAM_ABOVE, cut_off, reply_or_error, unreadable
from rlm_server.ledger import Usage

URL = "https://api.openai.com/v1"


class OpenAIProvider:
    """Reach OpenAI, or a compatible endpoint, with one key.

    A `compatible` endpoint, which any `base_url` but OpenAI's own is taken for, is sent only what all of them know.
    OpenAI proper is pinned to its default tier, which is what the price table prices, and asked to store nothing.
    """

    def __init__(self, *, api_key: str = "", base_url: str = URL, compatible: bool | None = None) -> None:
        self._compatible = base_url != URL if compatible is None else compatible
        self._client = openai.AsyncOpenAI(
            api_key=api_key or "none",  # the SDK insists on one, self-hosted endpoints do not
            base_url=base_url,
            max_retries=0,  # the broker retries: every attempt needs a hold of its own
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
                follow_redirects=False,  # the key is for this host
            ),
        )

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one attempt, streaming where the answer may be long.

        Raises:
            ProviderError: the attempt failed.
        """
        work = self._streamed(request) if request.max_tokens > STREAM_ABOVE else self._whole(request)
        return await reply_or_error(work, openai.APIStatusError)

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _whole(self, request: ModelRequest) -> ModelReply:
        answer: object = await self._client.chat.completions.create(
            model=request.model,
            messages=_messages(request),
            max_tokens=request.max_tokens if self._compatible else omit,
            max_completion_tokens=omit if self._compatible else request.max_tokens,
            service_tier=omit if self._compatible else "default",
            store=omit if self._compatible else False,
            timeout=self._client.timeout,
        )
        # The SDK does not check an answer against its types, so every field is in doubt.
        if not isinstance(answer, ChatCompletion) or not isinstance(answer.choices, list) or not answer.choices:
            raise unreadable()
        choice: object = answer.choices[0]
        if not isinstance(choice, Choice) or choice.message is None:
            raise unreadable()
        text, refusal = choice.message.content, choice.message.refusal
        stopped = "refusal" if refusal and not text else _stopped(choice.finish_reason)
        return ModelReply(text or refusal or "", _usage(getattr(answer, "usage", None)), stopped)

    async def _streamed(self, request: ModelRequest) -> ModelReply:
        stream = await self._client.chat.completions.create(
            model=request.model,
            messages=_messages(request),
            max_tokens=request.max_tokens if self._compatible else omit,
            max_completion_tokens=omit if self._compatible else request.max_tokens,
            service_tier=omit if self._compatible else "default",
            store=omit if self._compatible else False,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts: list[str] = []
        usage: Usage | None = None
        reason: str | None = None
        refused = False
        async with stream:
            async for chunk in stream:
                usage = _usage(getattr(chunk, "usage", None)) or usage
                for choice in chunk.choices or ():
                    parts.append(choice.delta.content or choice.delta.refusal or "")
                    refused = refused or bool(choice.delta.refusal)
                    reason = choice.finish_reason or reason
        if reason is None:
            raise cut_off()
        return ModelReply("".join(parts), usage, "refusal" if refused else _stopped(reason))


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


def _usage(report: object) -> Usage | None:
    if not isinstance(report, CompletionUsage):
        return None
    prompt, answer = report.prompt_tokens_details, report.completion_tokens_details
    counts = (
        report.prompt_tokens,
        report.completion_tokens,
        getattr(prompt, "cached_tokens", None) or 0,
        getattr(prompt, "cache_write_tokens", None) or 0,
        getattr(answer, "reasoning_tokens", None) or 0,
    )
    return Usage(*counts) if all(isinstance(count, int) for count in counts) else None


def _stopped(reason: object) -> Literal["end", "length", "refusal"]:
    match reason:
        case "length":
            return "length"
        case "content_filter":
            return "refusal"
    return "end"
