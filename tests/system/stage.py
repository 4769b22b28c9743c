"""What the tests play with: scripted models, a caller that speaks gRPC, and what a refusal says."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rlm.v1 import (
    context_pb2,
    context_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
)

from rlm_server.broker.provider import ModelRequest
from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.server import Running

USD = 1_000_000_000
"""In nano-US-dollars."""

CHUNK = 1 << 20
ENDED = {
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXHAUSTED,
}

Said = str | Exception
Sub = Callable[[str], Awaitable[str] | str]


def code(*blocks: str) -> str:
    """A model's reply that holds code."""
    return "\n".join(f"```repl\n{block}\n```" for block in blocks)


class Play:
    """A script. A node's model says one line after another (the last again and again), by the question it is asked:
    `lines` is for the root, `children` by words of the child's question. `sub` answers `llm_query`."""

    def __init__(self, *lines: Said, sub: Sub = lambda prompt: "ok", **children: Said) -> None:
        self.lines, self.sub, self.children = lines, sub, children
        self.asked: list[ModelRequest] = []

    async def reply(self, request: ModelRequest) -> str:
        self.asked.append(request)
        first = request.messages[0].content
        if not request.system:
            said = self.sub(first)
            return await said if inspect.isawaitable(said) else said
        question = first.removeprefix("Question:\n").partition("\n")[0]
        turn = sum(message.role == "assistant" for message in request.messages)
        line = self.children.get(question, self.lines[min(turn, len(self.lines) - 1)])
        if isinstance(line, Exception):
            raise line
        return line

    @property
    def subcalls(self) -> list[str]:
        """The prompts of the sub-calls so far."""
        return [request.messages[0].content for request in self.asked if not request.system]


@dataclass(frozen=True)
class Ended:
    """A run that has ended, with all it told."""

    run: run_pb2.Run
    nodes: list[run_pb2.Node]
    events: list[run_pb2.RunEvent]

    def bodies(self, kind: str) -> list[Any]:
        """The bodies of one kind, in order."""
        return [getattr(event, kind) for event in self.events if event.WhichOneof("body") == kind]

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("body")) for event in self.events]

    @property
    def printed(self) -> str:
        return "".join(output.text for output in self.bodies("output"))


class Caller:
    """A client of its own, with its own channel."""

    def __init__(self, address: str, key: str | None, *, plain: bool = False) -> None:
        """Connect; a `plain` client takes messages of 4 MiB, as any does, and nothing before it asks for it."""
        options = [("grpc.http2.bdp_probe", 0)] if plain else [("grpc.max_receive_message_length", 64 << 20)]
        self._address, self._options = address, options
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.metadata = (("authorization", f"Bearer {key}"),) if key is not None else ()
        self.contexts: Any = context_pb2_grpc.ContextServiceStub(self.channel)
        self.runs: Any = run_pb2_grpc.RunServiceStub(self.channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)

    async def upload(self, text: str | bytes, **wrong: Any) -> context_pb2.Context:
        return await self.send_parts(parts(text, **wrong))

    async def send_parts(self, sent: Iterable[context_pb2.UploadContextRequest]) -> context_pb2.Context:
        """Upload; what is sent is taken in a thread."""
        context: context_pb2.Context = (
            await self.send(lambda channel: context_pb2_grpc.ContextServiceStub(channel).UploadContext, sent)
        ).context
        return context

    async def send(self, method: Callable[[grpc.Channel], Any], sent: Iterable[Any]) -> Any:
        """Make a call that takes a stream, and return its answer.

        By gRPC's other client: grpc.aio puts INTERNAL or a cancellation in the place of an answer that comes while it
        still sends (https://github.com/grpc/grpc/issues/36066).
        """
        loop, answered = asyncio.get_running_loop(), asyncio.Event()
        with grpc.insecure_channel(self._address, self._options) as channel:
            call = method(channel).future(iter(sent), metadata=self.metadata)
            call.add_done_callback(lambda _: loop.call_soon_threadsafe(answered.set))
            await answered.wait()
            if call.code() is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    call.code(),
                    grpc.aio.Metadata.from_tuple(call.initial_metadata()),
                    grpc.aio.Metadata.from_tuple(call.trailing_metadata()),
                    call.details(),
                )
            return call.result()

    async def create(self, question: str = "What?", **asked: Any) -> run_pb2.Run:
        request = run_pb2.CreateRunRequest(question=question, **asked)
        run: run_pb2.Run = (await self.runs.CreateRun(request, metadata=self.metadata)).run
        return run

    async def get(self, run_id: str) -> run_pb2.Run:
        run: run_pb2.Run = (await self.runs.GetRun(run_pb2.GetRunRequest(run_id=run_id), metadata=self.metadata)).run
        return run

    async def cancel(self, run_id: str) -> run_pb2.Run:
        request = run_pb2.CancelRunRequest(run_id=run_id)
        run: run_pb2.Run = (await self.runs.CancelRun(request, metadata=self.metadata)).run
        return run

    async def delete_run(self, run_id: str) -> None:
        await self.runs.DeleteRun(run_pb2.DeleteRunRequest(run_id=run_id), metadata=self.metadata)

    async def watch(self, run_id: str, from_sequence: int = 0) -> AsyncIterator[run_pb2.RunEvent]:
        request = run_pb2.WatchRunRequest(run_id=run_id, from_sequence=from_sequence)
        async for response in self.runs.WatchRun(request, metadata=self.metadata):
            if response.HasField("event"):
                yield response.event

    async def until(self, run_id: str, kind: str) -> run_pb2.RunEvent:
        """Watch a run until something of a kind happens."""
        async for event in self.watch(run_id):
            if event.WhichOneof("body") == kind:
                return event
        raise AssertionError(f"the run ended without {kind}")

    async def ended(self, run_id: str) -> Ended:
        events = [event async for event in self.watch(run_id)]
        return Ended(await self.get(run_id), await self.nodes(run_id), events)

    async def nodes(self, run_id: str) -> list[run_pb2.Node]:
        """All nodes of a run's tree."""
        nodes: list[run_pb2.Node] = []
        request = run_pb2.ListNodesRequest(run_id=run_id)
        while True:
            page = await self.runs.ListNodes(request, metadata=self.metadata)
            nodes += page.nodes
            if not page.next_page_token:
                return nodes
            request.page_token = page.next_page_token

    async def read_answer(self, run_id: str, **asked: Any) -> str:
        """The whole answer of a run, or of a node of it."""
        request = run_pb2.ReadAnswerRequest(run_id=run_id, **asked)
        return "".join([part.text async for part in self.runs.ReadAnswer(request, metadata=self.metadata)])

    async def ask(self, question: str = "What?", **asked: Any) -> Ended:
        """Start a run and wait for its end."""
        return await self.ended((await self.create(question, **asked)).run_id)

    async def open_session(self, **asked: Any) -> str:
        request = session_pb2.CreateSessionRequest(**asked)
        reply = await self.sessions.CreateSession(request, metadata=self.metadata)
        return str(reply.session.session_id)

    def execute(self, session_id: str, source: str, request_id: str = "") -> Any:
        request = session_pb2.ExecuteRequest(session_id=session_id, code=source, request_id=request_id)
        return self.sessions.Execute(request, metadata=self.metadata)

    async def turn(self, session_id: str, source: str, request_id: str = "") -> TurnSeen:
        """Run a turn and wait for its result."""
        printed, calls = "", []
        async for response in self.execute(session_id, source, request_id):
            match response.WhichOneof("event"):
                case "output":
                    printed += response.output.text
                case "turn_restarted":
                    printed = ""
                case "call_finished":
                    calls.append(response.call_finished)
                case "result":
                    return TurnSeen(printed, calls, response.result)
        raise AssertionError("the stream ended without a result")

    async def delete(self, session_id: str) -> types_pb2.Amounts:
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        spent: types_pb2.Amounts = (await self.sessions.DeleteSession(request, metadata=self.metadata)).spent
        return spent


@dataclass(frozen=True)
class TurnSeen:
    """A turn as its caller saw it."""

    printed: str
    calls: list[session_pb2.ModelCallFinished]
    result: session_pb2.TurnResult


def parts(
    text: str | bytes, *, size: int | None = None, sha256: str | None = None, chunk: int = CHUNK
) -> Iterator[context_pb2.UploadContextRequest]:
    """The messages of an upload; `size` and `sha256` may lie."""
    data = text.encode() if isinstance(text, str) else text
    yield header(len(data) if size is None else size, sha256 or hashlib.sha256(data).hexdigest())
    for at in range(0, len(data), chunk):
        yield part(at, data[at : at + chunk])


def header(size: int, sha256: str, name: str = "text") -> context_pb2.UploadContextRequest:
    return context_pb2.UploadContextRequest(header=context_pb2.UploadHeader(name=name, size_bytes=size, sha256=sha256))


def part(offset: int, data: bytes) -> context_pb2.UploadContextRequest:
    return context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(offset=offset, data=data))


def provider_of(running: Running) -> ScriptedProvider:
    """The scripted provider, which keeps its own bill."""
    provider = running.models.routes.route(running.models.model).provider
    assert isinstance(provider, ScriptedProvider)
    return provider


@dataclass(frozen=True)
class Refusal:
    """What an error said."""

    code: grpc.StatusCode
    message: str
    reason: str
    said: dict[str, str]
    fields: list[str]
    details: list[str]


async def refusal(call: Awaitable[object]) -> Refusal:
    """Await a call that must be refused, and read what it says. Every refusal carries an ErrorInfo of our domain."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error: Any = caught.value
    status: Any = rpc_status.from_call(error)
    assert status is not None, error
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "rlm-server"
    fields = []
    for detail in status.details:
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    names = [detail.TypeName() for detail in status.details]
    return Refusal(error.code(), status.message, info.reason, dict(info.metadata), fields, names)


async def eventually(true: Callable[[], object]) -> None:
    """Wait until something is so that nobody announces."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
