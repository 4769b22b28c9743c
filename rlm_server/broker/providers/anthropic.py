"""Models of Anthropic, over the Messages API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import anthropic
import httpx2
from anthropic import omit
from anthropic.types import (
    Message,
    MessageParam,
    RawContentBlockDeltaEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
    TextBlock,
    TextDelta,
)

from rlm_server.broker.calls import ModelReply, ModelRequest
from rlm_server.broker.providers.faults import CONNECT_TIMEOUT, STREAM_ABOVE, cut_off, reply_or_error, unreadable
from rlm_server.ledger import Usage

URL = "https://api.anthropic.com"

_USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicProvider:
    """Reach Anthropic with one key.

    Requests are pinned to the standard tier and the five-minute cache, which is what the price table prices. A
    workspace whose default is a region with a surcharge needs a stated price.
    """

    def __init__(self, *, api_key: str, base_url: str = URL) -> None:
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,  # the broker retries: every attempt needs a hold of its own
            http_client=anthropic.DefaultAsyncHttpxClient(
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
        return await reply_or_error(work, anthropic.APIStatusError)

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _whole(self, request: ModelRequest) -> ModelReply:
        message: object = await self._client.messages.create(
            model=request.model,
            max_tokens=request.max_tokens,
            messages=_messages(request),
            system=request.system or omit,
            cache_control={"type": "ephemeral"} if _comes_again(request) else omit,
            service_tier="standard_only",
            timeout=self._client.timeout,
        )
        # The SDK does not check an answer against its types, so every field is in doubt.
        if not isinstance(message, Message) or not isinstance(message.content, list):
            raise unreadable()
        text = "".join(block.text for block in message.content if isinstance(block, TextBlock))
        return ModelReply(
            text, _usage(_counts([getattr(message, "usage", None)])), _stopped(getattr(message, "stop_reason", None))
        )

    async def _streamed(self, request: ModelRequest) -> ModelReply:
        stream = await self._client.messages.create(
            model=request.model,
            max_tokens=request.max_tokens,
            messages=_messages(request),
            system=request.system or omit,
            cache_control={"type": "ephemeral"} if _comes_again(request) else omit,
            service_tier="standard_only",
            stream=True,
        )
        parts: list[str] = []
        first: object = None
        last: object = None
        reason: str | None = None
        async with stream:
            async for event in stream:
                match event:
                    case RawMessageStartEvent():
                        first = getattr(event.message, "usage", None)
                    case RawContentBlockDeltaEvent(delta=TextDelta(text=text)):
                        parts.append(text)
                    case RawMessageDeltaEvent():
                        last = getattr(event, "usage", None)
                        reason = event.delta.stop_reason or reason
                    case RawMessageStopEvent():
                        # The first report counts hardly any of the output.
                        counted = "output_tokens" in _counts([last])
                        usage = _usage(_counts([first, last])) if counted else None
                        return ModelReply("".join(parts), usage, _stopped(reason))
        raise cut_off()


def _messages(request: ModelRequest) -> list[MessageParam]:
    return [
        {"role": "user", "content": message.content}
        if message.role == "user"
        else {"role": "assistant", "content": message.content}
        for message in request.messages
    ]


def _comes_again(request: ModelRequest) -> bool:
    """Whether the prompt is a conversation that grows: writing the cache costs a quarter more, for a single use."""
    return len(request.messages) > 1


def _counts(reports: Iterable[object]) -> dict[str, int]:
    """The last word on every count; a stream reports at its start and, cumulatively, at its end."""
    counts = {}
    for report in reports:
        for name in _USAGE:
            count = getattr(report, name, None)
            if isinstance(count, int):
                counts[name] = count
        thinking = getattr(getattr(report, "output_tokens_details", None), "thinking_tokens", None)
        if isinstance(thinking, int):
            counts["thinking"] = thinking
    return counts


def _usage(counts: dict[str, int]) -> Usage | None:
    if "input_tokens" not in counts or "output_tokens" not in counts:
        return None
    read, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
    return Usage(
        input=counts["input_tokens"] + read + written,
        output=counts["output_tokens"],
        cache_read=read,
        cache_write=written,
        reasoning=counts.get("thinking", 0),
    )


def _stopped(reason: object) -> Literal["end", "length", "refusal"]:
    match reason:
        case "max_tokens" | "model_context_window_exceeded":
            return "length"
        case "refusal":
            return "refusal"
    return "end"
