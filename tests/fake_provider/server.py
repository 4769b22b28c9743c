"""A fake provider on loopback: the interfaces that providers speak, whole or streamed, and their faults.

By hand: `python -m tests.fake_provider.server --port 8400`, then point a provider's `base_url` at it (with `/v1` for
OpenAI); `--help` lists the faults. `POST /faults` with `["429", null, "stall"]` says what happens to the next requests,
one each; `GET /bill` lists what was billed, each with the id that its answer's header had. Tokens are UTF-8 bytes,
divided by four and rounded up.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

from rlm_server.ledger import Usage
from tests.fake_provider.faults import BY_NAME, NOT_BILLED, STATUS, WAITING, Fault
from tests.fake_provider.speech import PROVIDER_TEXT, SPEECHES, Reply, Speech, in_events, in_one
from tests.fake_provider.wire import Answer, Received, cut, read, reset, spelled, without_end

__all__ = ["NOT_BILLED", "PROVIDER_TEXT", "Bill", "FakeProvider", "Fault", "Received"]

MIN_CACHED = 1_024
"""Tokens of the shortest prefix that is cached where the request does not ask for it."""

_KINDS = {
    Fault.TOO_LONG: "context_length_exceeded",
    Fault.NO_CREDIT: "insufficient_quota",
    Fault.REFUSED: "content_filter",
}
_BY_PATH = {speech.base + speech.path: speech for speech in SPEECHES.values()}
_CUTS = frozenset({Fault.CUT_HEAD, Fault.CUT, Fault.CUT_EVENT, Fault.CUT_BEFORE_USAGE, Fault.CUT_AFTER_USAGE})


@dataclass(frozen=True)
class Bill:
    """What one request was billed: also where the answer never arrived.

    `id` was the answer's `request-id` (Anthropic) or `x-request-id` (OpenAI). `prompt` is the beginning of the SHA-256
    of the last message, in hexadecimal, so that a caller who never saw the header finds the bill of a prompt too.
    """

    id: str
    model: str
    prompt: str
    usage: Usage
    fault: Fault | None


@dataclass
class FakeProvider:
    """The server. `faults` are spent one to a request (None: no fault), then `chance` is asked for more.

    `billed` is its billing log; `received` what came in, in order, unless `forgets`. `answer` is said to every prompt,
    cut at the request's `max_tokens`; `thinking` tokens of output go before it. `hint` are the headers of
    `RATE_LIMITED_WITH_HINT`. `latency` goes before every answer, `drip` between two bytes of a dripping one; both are
    in seconds. `sent` counts the bytes of answers without end; `left` counts answers that the client did not wait for.
    """

    answer: str = "The answer is 42, says the fake provider."
    answers: Callable[[Received], str] | None = None
    """What is said to each request, where it is not `answer`."""
    thinking: int = 0
    hint: dict[str, str] = field(default_factory=lambda: {"retry-after": "0"})
    latency: float = 0.0
    slow_seconds: float = 0.05
    drip: float = 0.0
    forgets: bool = False
    chance: Callable[[], Fault | None] = lambda: None
    faults: deque[Fault | None] = field(default_factory=deque)
    billed: list[Bill] = field(default_factory=list)
    delivered: list[tuple[float, Bill]] = field(default_factory=list)
    """Of what was billed, that whose client was still there when the answer was sent, and when (`time.monotonic()`)."""
    received: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    url: str = ""
    requests: int = 0
    sent: int = 0
    left: int = 0
    connections: int = 0
    _cached: set[bytes] = field(default_factory=set)
    _open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[FakeProvider]:
        """Listen on loopback; port 0 takes any free one."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, backlog=4_096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            serving = list(self._open)
            for task, writer in self._open.items():
                writer.transport.abort()
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    def base_url(self, interface: str) -> str:
        """The address of one of SPEECHES, as a provider is given it."""
        return self.url + SPEECHES[interface].base

    async def idle(self) -> None:
        """Wait until every connection is closed."""
        while self._open:
            await asyncio.wait(list(self._open))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._connection(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.faults and self.faults[0] is Fault.RESET:
                self.faults.popleft()
                reset(writer)
                return
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve(await read(reader), reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        if speech := _BY_PATH.get(request.path):
            return await self._complete(request, speech, reader, writer)
        match request.path:
            case "/faults":
                self.faults.extend(BY_NAME[name] if name else None for name in request.body)
                content: object = self.faults
            case "/bill":
                content = [asdict(bill) for bill in self.billed]
            case _:
                content = None
        text = json.dumps(list(content) if isinstance(content, deque) else content)
        writer.write(Answer(404 if content is None else 200, [text.encode()]).whole())
        await writer.drain()
        return True

    async def _complete(
        self, request: Received, speech: Speech, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        self.requests += 1
        if not self.forgets:
            self.received.put_nowait(request)
        fault = self.faults.popleft() if self.faults else self.chance()
        reply = self._reply(request, speech, fault)
        bill = None
        if fault not in NOT_BILLED:
            prompt = hashlib.sha256(request.messages[-1]["content"].encode()).hexdigest()[:16]
            bill = Bill(reply.id, reply.model, prompt, reply.usage, fault)
            self.billed.append(bill)
        if self.latency or fault is Fault.SLOW:
            await asyncio.sleep(self.latency or self.slow_seconds)
        answer = self._refusal(request, speech, reply) if fault in STATUS else self._answer(request, speech, reply)
        if bill is not None and not reader.at_eof():
            self.delivered.append((time.monotonic(), bill))
        return await self._deliver(answer, fault, reader, writer)

    async def _deliver(
        self, answer: Answer, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        match fault:
            case Fault.RESET:
                reset(writer)
                return False
            case Fault.HANG_UP:
                return False
            case Fault.STALL | Fault.LATE:
                await self._gone(reader)
                if fault is Fault.LATE:
                    writer.write(answer.whole())
                return False
            case Fault.STALL_INSIDE | Fault.RATE_LIMITED_STALLING:
                writer.write(cut(answer, Fault.CUT))
                await self._gone(reader)
                return False
            case Fault.ENDLESS | Fault.ENDLESS_EVENT | Fault.ENDLESS_HEAD | Fault.RATE_LIMITED_ENDLESS:
                await self._flood(answer, fault, writer)
                return False
            case Fault.DRIP:
                for byte in answer.whole():
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(self.drip)
                return True
            case Fault.RATE_LIMITED_CUT:
                writer.write(cut(answer, Fault.CUT))
            case _ if fault in _CUTS:
                writer.write(cut(answer, fault))
            case _:
                writer.write(spelled(answer, fault))
        await writer.drain()
        return fault is not Fault.CLOSES and fault not in _CUTS and fault is not Fault.RATE_LIMITED_CUT

    async def _gone(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client has given up."""
        await reader.read()
        self.left += 1

    async def _flood(self, answer: Answer, fault: Fault, writer: asyncio.StreamWriter) -> None:
        try:
            for part in without_end(answer, fault):
                writer.write(part)
                self.sent += len(part)
                await writer.drain()
                await asyncio.sleep(0)  # where the client takes it all, drain does not wait
        finally:
            self.left += 1

    def _answer(self, request: Received, speech: Speech, reply: Reply) -> Answer:
        words, headers = self._words(request), [(speech.id_header, reply.id)]
        if request.body.get("stream"):
            events = in_events(speech, reply, words, request.body)
            return Answer(200, events, headers, "text/event-stream", events=True)
        return Answer(200, [in_one(speech, reply, words)], headers)

    def _refusal(self, request: Received, speech: Speech, reply: Reply) -> Answer:
        fault, headers = reply.fault, [(speech.id_header, reply.id)]
        assert fault is not None
        if fault is Fault.RATE_LIMITED_WITH_HINT:
            headers += self.hint.items()
        if fault is Fault.REDIRECT:
            headers.append(("location", self.url + "/elsewhere"))
        if fault is Fault.RATE_LIMITED_IN_HTML:
            return Answer(429, [in_one(speech, replace(reply, fault=Fault.HTML), self._words(request))], headers)
        error = speech.refusal(_KINDS.get(fault, "an_error"), self._words(request))
        return Answer(STATUS[fault], [json.dumps(error).encode()], headers)

    def _words(self, request: Received) -> str:
        return f"{PROVIDER_TEXT}: {request.key} {request.messages[-1]['content']}"

    def _reply(self, request: Received, speech: Speech, fault: Fault | None) -> Reply:
        most = speech.max_tokens(request.body)
        said = self.answer if self.answers is None else self.answers(request)
        text = said.encode()[: most * 4].decode(errors="ignore")
        usage = self._count(request, text)
        if fault is Fault.OUTPUT_ABOVE:
            usage = replace(usage, output=most + 1_000)
        if fault is Fault.INPUT_ABOVE:
            usage = replace(usage, input=usage.input + 1_000_000)
        id = f"req-{self.requests:07}"
        return Reply(id, request.body["model"], text, text != said, usage, fault)

    def _count(self, request: Received, text: str) -> Usage:
        """Count tokens. What was asked before is read from the cache, up to the end of the longest prefix that was.

        Anthropic's is used where the request says so, OpenAI's where the prefix is long enough.
        """
        asked = "cache_control" in request.body
        digest, total, read = hashlib.sha256(), 0, 0
        written = dict[bytes, int]()
        for part in (request.body.get("system", ""), *(message["content"] for message in request.messages)):
            digest.update(part.encode() + b"\0")
            total += _tokens(part)
            prefix = digest.digest()
            if asked or total >= MIN_CACHED:
                written[prefix] = total
                read = total if prefix in self._cached else read
        used = bool(written)
        self._cached.update(written)
        output = max(1, _tokens(text)) + self.thinking
        return Usage(total, output, read, total - read if used else 0, self.thinking)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // 4)


def chance(rate: float, seed: int, among: Sequence[Fault]) -> Callable[[], Fault | None]:
    """Faults drawn at a rate, the same ones for the same seed."""
    drawn = random.Random(seed)
    return lambda: drawn.choice(among) if drawn.random() < rate else None


def _arguments() -> argparse.Namespace:
    words = "\n".join(f"  {fault:24}{fault.words}" for fault in Fault)
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_provider.server",
        description="A fake model provider on loopback.",
        epilog=f"POST /faults with a JSON list of names orders faults for the next requests. They are:\n{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--answer", default=FakeProvider.answer, help="what it says to every prompt")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--fault-rate", type=float, default=0.0, help="how many of the requests go wrong, from 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="which of them, and how")
    quick = ",".join(fault for fault in Fault if fault not in WAITING)
    parser.add_argument("--faults", default=quick, help="among which faults; all that end by themselves where not said")
    return parser.parse_args()


async def _main() -> None:
    said = _arguments()
    among = [BY_NAME[name] for name in said.faults.split(",")]
    fake = FakeProvider(
        answer=said.answer,
        latency=said.latency,
        chance=chance(said.fault_rate, said.seed, among),
        forgets=True,
    )
    async with fake.serving(said.port):
        print(f"fake provider at {fake.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
