"""A fake provider on loopback: Anthropic's Messages and OpenAI's chat completions, whole or streamed, and their faults.

By hand: `python -m tests.fake_provider.server --port 8400`, then point a provider's `base_url` at it (with `/v1` for
OpenAI). `POST /faults` with `["429", "stall"]` makes the next requests fail so, one each; `GET /bill` lists what was
billed. Tokens are UTF-8 bytes, divided by four and rounded up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from rlm_server.ledger import Usage

PROVIDER_TEXT = "an internal remark of the provider"
"""Part of every error's body, next to the key and the prompt: none of them may come out at the other end."""


class Fault(StrEnum):
    """What can go wrong with one request."""

    RATE_LIMITED = "429"
    RATE_LIMITED_WITH_HINT = "429-retry-after"
    OVERLOADED = "529"
    UNAVAILABLE = "503"
    SERVER_ERROR = "500"
    BAD_KEY = "401"
    NO_SUCH_MODEL = "404"
    BAD_REQUEST = "400"
    TOO_LONG = "too-long"
    NO_CREDIT = "no-credit"
    REDIRECT = "redirect"
    STALL = "stall"
    SLOW = "slow"
    CUT = "cut"
    ENDS_EARLY = "ends-early"
    MISSING_USAGE = "missing-usage"
    ERROR_INSIDE = "error-inside"
    NONSENSE = "nonsense"


_STATUS = {
    Fault.RATE_LIMITED: 429,
    Fault.RATE_LIMITED_WITH_HINT: 429,
    Fault.OVERLOADED: 529,
    Fault.UNAVAILABLE: 503,
    Fault.SERVER_ERROR: 500,
    Fault.BAD_KEY: 401,
    Fault.NO_SUCH_MODEL: 404,
    Fault.BAD_REQUEST: 400,
    Fault.TOO_LONG: 400,
    Fault.NO_CREDIT: 429,
    Fault.REDIRECT: 307,
}

NOT_BILLED = frozenset(_STATUS) - {Fault.SERVER_ERROR}
"""Faults that the fake does not bill. It does bill a 500, as if it had failed after the work was done."""


@dataclass(frozen=True)
class Bill:
    """What one request was billed: also where the answer never arrived."""

    model: str
    usage: Usage
    fault: Fault | None


@dataclass(frozen=True)
class Received:
    """One request, as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages


@dataclass
class FakeProvider:
    """The server. `faults` are spent one to a request; `billed` is its billing log; `received` what came in, in order.

    `answer` is said to every prompt, cut at the request's `max_tokens`.
    """

    answer: str = "The answer is 42, says the fake provider."
    retry_after: str = "0"
    slow_seconds: float = 0.05
    faults: deque[Fault] = field(default_factory=deque)
    billed: list[Bill] = field(default_factory=list)
    received: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    url: str = ""
    _cached: set[str] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[FakeProvider]:
        """Listen on loopback; port 0 takes any free one."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(await _read(reader), reader, writer)
        finally:
            writer.close()

    async def _serve(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/v1/messages":
                await self._complete(request, _Anthropic(), reader, writer)
            case "/v1/chat/completions":
                await self._complete(request, _OpenAI(), reader, writer)
            case "/faults":
                self.faults.extend(Fault(name) for name in request.body)
                await _send(writer, 200, json.dumps([str(fault) for fault in self.faults]))
            case "/bill":
                await _send(writer, 200, json.dumps([asdict(bill) for bill in self.billed]))
            case _:
                await _send(writer, 404, "{}")

    async def _complete(
        self, request: Received, api: _Api, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.received.put_nowait(request)
        fault = self.faults.popleft() if self.faults else None
        text = self.answer.encode()[: api.max_tokens(request.body) * 4].decode(errors="ignore")
        usage = self._count(request, text)
        if fault not in NOT_BILLED:
            self.billed.append(Bill(request.body["model"], usage, fault))
        if fault in _STATUS:
            await self._refuse(request, fault, writer)
            return
        if fault is Fault.STALL:
            await reader.read()  # until the client gives up
            return
        if fault is Fault.SLOW:
            await asyncio.sleep(self.slow_seconds)
        reported = None if fault is Fault.MISSING_USAGE else usage
        cut = text != self.answer
        if request.body.get("stream"):
            await _stream(writer, list(api.events(request.body, text, reported, cut)), fault, api.error(request))
            return
        whole = json.dumps(api.error(request) if fault is Fault.ERROR_INSIDE else api.reply(text, reported, cut))
        if fault in (Fault.NONSENSE, Fault.ENDS_EARLY):
            whole = whole[: len(whole) // 2]
        await _send(writer, 200, whole, cut=fault is Fault.CUT)

    async def _refuse(self, request: Received, fault: Fault, writer: asyncio.StreamWriter) -> None:
        words = f"{PROVIDER_TEXT}: {request.key} {request.messages[-1]['content']}"
        kind = {Fault.TOO_LONG: "context_length_exceeded", Fault.NO_CREDIT: "insufficient_quota"}.get(fault, "an_error")
        headers = {}
        if fault is Fault.RATE_LIMITED_WITH_HINT:
            headers["retry-after"] = self.retry_after
        if fault is Fault.REDIRECT:
            headers["location"] = self.url + "/elsewhere"
        error = {"type": "error", "error": {"type": kind, "code": kind, "message": words}}
        await _send(writer, _STATUS[fault], json.dumps(error), headers)

    def _count(self, request: Received, text: str) -> Usage:
        """Count tokens, with a cache of whole prefixes of conversations where the request asks for it."""
        total = _tokens(json.dumps(request.body.get("system", ""))) + _tokens(json.dumps(request.messages))
        read = written = 0
        if "cache_control" in request.body:
            for end in range(len(request.messages), 0, -1):
                prefix = json.dumps(request.messages[:end])
                if prefix in self._cached:
                    read = min(_tokens(prefix), total)
                    break
            written = total - read
            self._cached.add(json.dumps(request.messages))
        return Usage(input=total, output=max(1, _tokens(text)), cache_read=read, cache_write=written)


class _Api:
    """How one of the two interfaces is spoken."""

    def max_tokens(self, body: dict[str, Any]) -> int:
        raise NotImplementedError

    def reply(self, text: str, usage: Usage | None, cut: bool) -> dict[str, Any]:
        raise NotImplementedError

    def events(self, body: dict[str, Any], text: str, usage: Usage | None, cut: bool) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def error(self, request: Received) -> dict[str, Any]:
        words = f"{PROVIDER_TEXT}: {request.key} {request.messages[-1]['content']}"
        return {"type": "error", "error": {"type": "api_error", "message": words}}


class _Anthropic(_Api):
    def max_tokens(self, body: dict[str, Any]) -> int:
        return int(body["max_tokens"])

    def reply(self, text: str, usage: Usage | None, cut: bool) -> dict[str, Any]:
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "fake",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "max_tokens" if cut else "end_turn",
        }
        return message | ({"usage": self._usage(usage)} if usage else {})

    def events(self, body: dict[str, Any], text: str, usage: Usage | None, cut: bool) -> Iterator[dict[str, Any]]:
        message = self.reply("", usage, cut) | {"content": [], "stop_reason": None}
        if usage:
            message["usage"]["output_tokens"] = 1
        yield {"type": "message_start", "message": message}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for part in _halves(text):
            delta = {"type": "text_delta", "text": part}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        last = {"type": "message_delta", "delta": {"stop_reason": "max_tokens" if cut else "end_turn"}}
        yield last | ({"usage": {"output_tokens": usage.output}} if usage else {})
        yield {"type": "message_stop"}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.input - usage.cache_read - usage.cache_write,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation_input_tokens": usage.cache_write,
            "output_tokens": usage.output,
        }


class _OpenAI(_Api):
    def max_tokens(self, body: dict[str, Any]) -> int:
        return int(body.get("max_completion_tokens") or body["max_tokens"])

    def reply(self, text: str, usage: Usage | None, cut: bool) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if cut else "stop",
        }
        return self._frame("chat.completion", [choice], usage)

    def events(self, body: dict[str, Any], text: str, usage: Usage | None, cut: bool) -> Iterator[dict[str, Any]]:
        for part in _halves(text):
            choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
            yield self._frame("chat.completion.chunk", [choice], None)
        last = {"index": 0, "delta": {}, "finish_reason": "length" if cut else "stop"}
        yield self._frame("chat.completion.chunk", [last], None)
        if body.get("stream_options", {}).get("include_usage"):
            yield self._frame("chat.completion.chunk", [], usage)

    def _frame(self, kind: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        frame = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "fake", "choices": choices}
        if usage:
            frame["usage"] = {
                "prompt_tokens": usage.input,
                "completion_tokens": usage.output,
                "total_tokens": usage.input + usage.output,
                "prompt_tokens_details": {"cached_tokens": usage.cache_read},
            }
        return frame


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // 4)


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    _, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(path.partition("?")[0], headers, json.loads(body or b"{}"))


async def _send(
    writer: asyncio.StreamWriter, status: int, body: str, headers: dict[str, str] | None = None, *, cut: bool = False
) -> None:
    content = body.encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    writer.write(_head(status, fields | (headers or {})))
    writer.write(content[: len(content) // 2] if cut else content)
    await writer.drain()


async def _stream(
    writer: asyncio.StreamWriter, events: list[dict[str, Any]], fault: Fault | None, error: dict[str, Any]
) -> None:
    writer.write(
        _head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", "connection": "close"})
    )
    if fault in (Fault.CUT, Fault.ENDS_EARLY, Fault.ERROR_INSIDE, Fault.NONSENSE):
        events = events[: len(events) // 2]
    for event in events:
        _chunk(writer, f"event: {event.get('type', 'message')}\ndata: {json.dumps(event)}\n\n")
    if fault is Fault.ERROR_INSIDE:
        _chunk(writer, f"event: error\ndata: {json.dumps(error)}\n\n")
    if fault is Fault.NONSENSE:
        _chunk(writer, f"event: message_delta\ndata: {PROVIDER_TEXT}\n\n")
    if fault is None or fault in (Fault.SLOW, Fault.MISSING_USAGE):
        _chunk(writer, "data: [DONE]\n\n")
    if fault is not Fault.CUT:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Fake", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fake model provider on loopback.")
    parser.add_argument("--port", type=int, default=8400)
    async with FakeProvider().serving(parser.parse_args().port) as fake:
        print(f"fake provider at {fake.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
