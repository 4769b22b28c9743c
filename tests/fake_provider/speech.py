"""How a model provider speaks: the two interfaces, whole and streamed, and what the faults change in what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rlm_server.ledger import Usage
from tests.fake_provider.faults import Fault

Json = dict[str, Any]

PROVIDER_TEXT = "an internal remark of the provider"
"""Part of every error's body, next to the key and the prompt: none of them may come out at the other end."""

THOUGHT = "a thought of the model that is no part of its answer"


@dataclass(frozen=True)
class Reply:
    """What is to be said. `cut` is true where `max_tokens` cut the text off."""

    id: str
    model: str
    text: str
    cut: bool
    usage: Usage
    fault: Fault | None = None


class Speech(Protocol):
    """How one interface puts a reply.

    Its requests go to `base` and then `path`; `base` is the part that a provider's `base_url` has.
    """

    base: str
    path: str
    id_header: str

    def max_tokens(self, body: Json) -> int:
        """The most output a request asks for."""
        ...

    def whole(self, reply: Reply) -> Json:
        """The reply in one piece."""
        ...

    def events(self, reply: Reply, body: Json) -> Iterator[Json]:
        """The reply as the events of a stream."""
        ...

    def refusal(self, kind: str, words: str) -> Json:
        """An error."""
        ...


class Anthropic:
    """The Messages API."""

    base = ""
    path = "/v1/messages"
    id_header = "request-id"

    def max_tokens(self, body: Json) -> int:
        return int(body["max_tokens"])

    def whole(self, reply: Reply) -> Json:
        content = [{"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmVk"}] if reply.usage.reasoning else []
        message = self._message(reply) | {
            "content": [*content, {"type": "text", "text": _text(reply)}],
            "stop_reason": self._stop_reason(reply),
        }
        return message | _said(misreported(self._usage(reply.usage), "output_tokens", reply))

    def events(self, reply: Reply, body: Json) -> Iterator[Json]:
        first = misreported(self._usage(reply.usage) | {"output_tokens": 1}, "", reply)
        yield {"type": "message_start", "message": self._message(reply) | _said(first)}
        yield {"type": "ping"}
        if reply.usage.reasoning:
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
            yield self._delta({"type": "thinking_delta", "thinking": THOUGHT})
            yield {"type": "content_block_stop", "index": 0}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for part in _parts(reply):
            yield self._delta({"type": "text_delta", "text": part})
        yield {"type": "content_block_stop", "index": 0}
        counts = {key: self._usage(reply.usage)[key] for key in ("output_tokens", "output_tokens_details")}
        last = {"type": "message_delta", "delta": {"stop_reason": self._stop_reason(reply)}}
        yield last | _said(misreported(counts, "output_tokens", reply))
        yield {"type": "message_stop"}

    def refusal(self, kind: str, words: str) -> Json:
        return {"type": "error", "error": {"type": kind, "message": words}}

    def _message(self, reply: Reply) -> Json:
        named = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model}
        return named | {"content": [], "stop_reason": None, "stop_sequence": None}

    def _stop_reason(self, reply: Reply) -> str:
        return "refusal" if reply.fault is Fault.FILTERED else "max_tokens" if reply.cut else "end_turn"

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": 0, "delta": delta}

    def _usage(self, usage: Usage) -> Json:
        return {
            "input_tokens": usage.input - usage.cache_read - usage.cache_write,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation_input_tokens": usage.cache_write,
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
        }


class OpenAI:
    """Chat completions."""

    base = "/v1"
    path = "/chat/completions"
    id_header = "x-request-id"

    def max_tokens(self, body: Json) -> int:
        return int(body.get("max_completion_tokens") or body["max_tokens"])

    def whole(self, reply: Reply) -> Json:
        message = {"role": "assistant", "content": _text(reply), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason(reply)}
        return self._frame("chat.completion", reply, [choice]) | self._counted(reply)

    def events(self, reply: Reply, body: Json) -> Iterator[Json]:
        yield self._chunk(reply, {"role": "assistant", "content": ""})
        if reply.usage.reasoning:
            yield self._chunk(reply, {"reasoning_content": THOUGHT})
        for part in _parts(reply):
            yield self._chunk(reply, {"content": part})
        yield self._chunk(reply, {}, self._finish_reason(reply))
        if body.get("stream_options", {}).get("include_usage"):
            yield self._frame("chat.completion.chunk", reply, []) | self._counted(reply)

    def refusal(self, kind: str, words: str) -> Json:
        return {"error": {"type": kind, "code": kind, "message": words}}

    def _chunk(self, reply: Reply, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._frame("chat.completion.chunk", reply, [choice])

    def _frame(self, kind: str, reply: Reply, choices: list[Json]) -> Json:
        return {"id": reply.id, "object": kind, "created": 1, "model": reply.model, "choices": choices}

    def _finish_reason(self, reply: Reply) -> str:
        return "content_filter" if reply.fault is Fault.FILTERED else "length" if reply.cut else "stop"

    def _counted(self, reply: Reply) -> Json:
        usage = reply.usage
        counts = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        }
        return _said(misreported(counts, "completion_tokens", reply))


SPEECHES: dict[str, Speech] = {"anthropic": Anthropic(), "openai": OpenAI()}
"""By the module of `rlm_server/broker/providers/` that speaks so."""

_NONSENSE: dict[Fault, object] = {
    Fault.USAGE_NEGATIVE: -5,
    Fault.USAGE_STRING: "12",
    Fault.USAGE_FLOAT: 12.5,
    Fault.USAGE_BOOLEAN: True,
    Fault.USAGE_HUGE: 10**30,
}


def misreported(report: Json, output: str, reply: Reply) -> object:
    """A report as a fault leaves it. `output` names the count of output, where this report has the last word on it."""
    fault, above = reply.fault, reply.usage.input + 1_000
    if fault in _NONSENSE and output:
        return report | {output: _NONSENSE[fault]}
    match fault:
        case Fault.MISSING_USAGE:
            return None
        case Fault.USAGE_NOT_AN_OBJECT:
            return [1, 2, 3]
        case Fault.USAGE_CACHE_STRING if "cache_read_input_tokens" in report:
            return report | {"cache_read_input_tokens": "many"}
        case Fault.USAGE_CACHE_STRING if "prompt_tokens_details" in report:
            return report | {"prompt_tokens_details": {"cached_tokens": "many"}}
        case Fault.USAGE_CACHE_ABOVE_INPUT if "cache_read_input_tokens" in report:
            return report | {"cache_read_input_tokens": above, "input_tokens": -1_000}
        case Fault.USAGE_CACHE_ABOVE_INPUT if "prompt_tokens_details" in report:
            return report | {"prompt_tokens_details": {"cached_tokens": above}}
    return report


def in_one(speech: Speech, reply: Reply, words: str) -> bytes:
    """The body of a whole reply, or of what a fault puts in its place. `words` are a provider's own."""
    text = json.dumps(speech.whole(reply))
    match reply.fault:
        case Fault.ERROR_INSIDE:
            text = json.dumps(speech.refusal("api_error", words))
        case Fault.NONSENSE:
            text = text[: len(text) // 2]
        case Fault.NOT_AN_OBJECT:
            text = json.dumps([words])
        case Fault.DEEP:
            text = "[" * 100_000 + "]" * 100_000
        case Fault.HTML:
            text = f"<html><body><p>{words}</p></body></html>"
        case Fault.EMPTY:
            text = ""
        case Fault.NOT_UNICODE:
            return text.encode().replace(b'"id"', b'"\xff"')
    return text.encode()


def in_events(speech: Speech, reply: Reply, words: str, body: Json) -> list[bytes]:
    """The events of a streamed reply, or what a fault puts in their place."""
    events = [event(said) for said in speech.events(reply, body)] + [b"data: [DONE]\n\n"]
    half = events[: len(events) // 2]
    match reply.fault:
        case Fault.ERROR_INSIDE:
            return [*half, event(speech.refusal("api_error", words), "error")]
        case Fault.NONSENSE:
            return [*half, event(words, "message_delta")[:-20] + b"\n\n"]
        case Fault.NOT_AN_OBJECT:
            return [*half, event([words], "message_delta")]
        case Fault.DEEP:
            return [*half, b"event: message_delta\ndata: " + b"[" * 100_000 + b"]" * 100_000 + b"\n\n"]
        case Fault.NOT_UNICODE:
            return [*half, b'event: message_delta\ndata: {"\xff": 1}\n\n']
        case Fault.HTML | Fault.EMPTY:
            return [in_one(speech, reply, words)]
    return events


def event(said: object, name: str | None = None) -> bytes:
    """One event of a stream."""
    named = name or (said["type"] if isinstance(said, dict) and "type" in said else None)
    line = f"event: {named}\n" if named else ""
    return f"{line}data: {json.dumps(said)}\n\n".encode()


def _said(usage: object) -> Json:
    return {} if usage is None else {"usage": usage}


def _text(reply: Reply) -> object:
    return 42 if reply.fault is Fault.NOT_A_STRING else reply.text


def _parts(reply: Reply) -> list[object]:
    half = len(reply.text) // 2
    return [42] if reply.fault is Fault.NOT_A_STRING else [reply.text[:half], reply.text[half:]]
