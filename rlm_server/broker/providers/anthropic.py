"""Models of Anthropic, over the Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

from rlm_server.broker.provider import ModelReply, ModelRequest
from rlm_server.broker.providers.faults import STREAM_ABOVE, cut_off, reply_or_error, unreadable
from rlm_server.broker.providers.fields import count, field, text
from rlm_server.broker.providers.http import Client
from rlm_server.broker.providers.temperatures import taken
from rlm_server.ledger import Usage

if TYPE_CHECKING:  # the SDK checks what is sent, and sends nothing
    from anthropic.types import CacheControlEphemeralParam, MessageParam
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

URL = "https://api.anthropic.com"
PATH = "/v1/messages"
NAME = "anthropic"
VERSION = "2023-06-01"
"""Of the API: https://docs.anthropic.com/en/api/versioning."""

CACHE: CacheControlEphemeralParam = {"type": "ephemeral", "ttl": "5m"}
"""Cache the prompt up to its last block, for the lifetime that the price table prices."""

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicProvider:
    """Reach Anthropic with one key.

    Requests are pinned to the standard tier and the five-minute cache, because the price table has their prices. A
    workspace whose default region has a surcharge needs a stated price.
    """

    def __init__(self, *, api_key: str, base_url: str = URL) -> None:
        headers = {"x-api-key": api_key, "anthropic-version": VERSION}
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
        message = await self._client.post(_body(request), request.max_tokens)
        match message:
            case {"content": [*blocks]}:
                said = "".join(text(block, "text") for block in blocks if field(block, "type") == "text")
                return ModelReply(said, _usage(field(message, "usage")), _stopped(field(message, "stop_reason")))
        raise unreadable()

    async def _streamed(self, request: ModelRequest) -> ModelReply:
        body = {**_body(request), "stream": True}
        parts: list[str] = []
        first: object = None
        last: object = None
        reason: object = None
        async with aclosing(self._client.stream(body, request.max_tokens)) as stream:
            async for name, event in stream:
                if name == "error":
                    raise unreadable()
                match event:
                    case {"type": "message_start", "message": message}:
                        first = field(message, "usage")
                    case {"type": "content_block_delta", "delta": {"type": "text_delta"} as delta}:
                        parts.append(text(delta, "text"))
                    case {"type": "message_delta", "delta": delta}:
                        last = field(event, "usage")
                        reason = field(delta, "stop_reason") or reason
                    case {"type": "message_stop"}:
                        return ModelReply("".join(parts), _usage(first, last), _stopped(reason))
        raise cut_off()


def _body(request: ModelRequest) -> Mapping[str, object]:
    messages: list[MessageParam] = [
        {"role": "user", "content": message.content}
        if message.role == "user"
        else {"role": "assistant", "content": message.content}
        for message in request.messages
    ]
    body: MessageCreateParamsNonStreaming = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": messages,
        "service_tier": "standard_only",
    }
    if request.system:
        body["system"] = request.system
    # A conversation comes again, with more messages. A prompt used once is not cached: writing costs a quarter more.
    if len(messages) > 1:
        body["cache_control"] = CACHE
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    temperature = taken(NAME, request.model, request.temperature)
    # The SDK's type has no temperature any more, because the newest models take none.
    return body if temperature is None else {**body, "temperature": temperature}


def _usage(*reports: object) -> Usage | None:
    """Return the last report of every count. A stream reports at its start and, cumulatively, at its end.

    Output is taken from the last report only, because the first report of a stream counts hardly any of it.
    """
    counts: dict[str, int] = {}
    try:
        for report in reports:
            for name in _COUNTS:
                if (tokens := count(report, name)) is not None:
                    counts[name] = tokens
        output = count(reports[-1], "output_tokens")
        thinking = count(field(reports[-1], "output_tokens_details"), "thinking_tokens")
    except ValueError:
        return None
    if "input_tokens" not in counts or output is None:
        return None
    read, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
    return Usage(
        input=counts["input_tokens"] + read + written,
        output=output,
        cache_read=read,
        cache_write=written,
        reasoning=thinking or 0,
    )


def _stopped(reason: object) -> Literal["end", "length", "refusal"]:
    match reason:
        case "max_tokens" | "model_context_window_exceeded":
            return "length"
        case "refusal":
            return "refusal"
    return "end"
