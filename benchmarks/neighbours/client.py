"""A tenant's client: the calls that the victim, the attackers and those who measure make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
from rlm.v1 import (
    budget_pb2,
    budget_pb2_grpc,
    context_pb2,
    context_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

CHUNK = 1 << 20
ANNOUNCED = 1_000
"""Documents of one message of an upload."""
OPTIONS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0))
NEXT = "\n=====\n"
"""Between the replies of a play."""


class Client:
    """A tenant's channel and its key."""

    def __init__(self, address: str, key: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.contexts: Any = context_pb2_grpc.ContextServiceStub(self.channel)
        self.runs: Any = run_pb2_grpc.RunServiceStub(self.channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)
        self.budgets: Any = budget_pb2_grpc.BudgetServiceStub(self.channel)
        self.server: Any = server_pb2_grpc.ServerServiceStub(self.channel)

    async def upload(self, text: str, documents: Sequence[str] = ()) -> str:
        """Upload a text, or documents, and return the context's id."""
        parts = uploaded_documents(documents) if documents else uploaded_text(text)
        reply = await self.contexts.UploadContext(parts, metadata=self.metadata)
        return str(reply.context.context_id)

    async def open(self, **asked: Any) -> str:
        """Create a session and return its id."""
        request = session_pb2.CreateSessionRequest(**asked)
        return str((await self.sessions.CreateSession(request, metadata=self.metadata)).session.session_id)

    def execute(self, session_id: str, code: str, request_id: str = "") -> Any:
        """Begin a turn and return its stream."""
        request = session_pb2.ExecuteRequest(session_id=session_id, code=code, request_id=request_id)
        return self.sessions.Execute(request, metadata=self.metadata)

    async def turn(self, session_id: str, code: str, request_id: str = "") -> Turn:
        """Run a turn to its end."""
        printed, restarts = "", 0
        async for response in self.execute(session_id, code, request_id):
            match response.WhichOneof("event"):
                case "output":
                    printed += response.output.text
                case "turn_restarted":
                    printed, restarts = "", restarts + 1
        return Turn(printed, restarts)

    async def delete(self, session_id: str) -> None:
        """End a session."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        await self.sessions.DeleteSession(request, metadata=self.metadata)

    async def start(self, *replies: str, **asked: Any) -> str:
        """Start a run whose model gives these replies, and return its id."""
        request = run_pb2.CreateRunRequest(question=question(*replies), **asked)
        return str((await self.runs.CreateRun(request, metadata=self.metadata)).run.run_id)

    async def answered(self, run_id: str) -> str:
        """Watch a run to its end and return its answer."""
        answer = ""
        async for response in self.runs.WatchRun(run_pb2.WatchRunRequest(run_id=run_id), metadata=self.metadata):
            if response.event.WhichOneof("body") == "run_finished":
                answer = response.event.run_finished.answer
        return answer

    async def cancel(self, run_id: str) -> None:
        """Stop a run."""
        await self.runs.CancelRun(run_pb2.CancelRunRequest(run_id=run_id), metadata=self.metadata)

    async def standing(self) -> Standing:
        """Return what the tenant has paid, and has."""
        account = (await self.budgets.GetBudget(budget_pb2.GetBudgetRequest(), metadata=self.metadata)).account
        quotas = await self.server.GetQuota(server_pb2.GetQuotaRequest(), metadata=self.metadata)
        stored = {quota.name: quota.used for quota in quotas.quotas}["stored_bytes"]
        posted, pending = account.posted.cpu_time.ToMilliseconds(), account.pending.cpu_time.ToMilliseconds()
        return Standing(account.posted.call_count, posted / 1e3, pending / 1e3, stored / 1e6)


class Standing(NamedTuple):
    """What a tenant has paid for, what is held for its turns under way, and what its stored sessions have."""

    calls: int = 0
    cpu_s: float = 0.0
    held_cpu_s: float = 0.0
    stored_mb: float = 0.0


class Turn:
    """What a turn printed, and how often the process that ran it was lost."""

    def __init__(self, printed: str, restarts: int) -> None:
        self.printed, self.restarts = printed, restarts


def uploaded_text(text: str) -> Iterator[context_pb2.UploadContextRequest]:
    """Yield the messages that upload a text."""
    data = text.encode()
    yield header(len(data), hashlib.sha256(data).hexdigest())
    yield from _chunks(data)


def uploaded_documents(documents: Sequence[str]) -> Iterator[context_pb2.UploadContextRequest]:
    """Yield the messages that upload documents, each named by its number."""
    encoded = [document.encode() for document in documents]
    data = b"".join(encoded)
    yield header(len(data), hashlib.sha256(data).hexdigest(), documents=len(documents))
    for first in range(0, len(encoded), ANNOUNCED):
        announced = [
            context_pb2.UploadDocument(name=f"{first + at:07d}", size_bytes=len(one))
            for at, one in enumerate(encoded[first : first + ANNOUNCED])
        ]
        yield context_pb2.UploadContextRequest(
            documents=context_pb2.UploadDocuments(first_document=first, documents=announced)
        )
    yield from _chunks(data)


def header(size: int, sha256: str, *, documents: int = 0, request_id: str = "") -> context_pb2.UploadContextRequest:
    """Return the first message of an upload."""
    return context_pb2.UploadContextRequest(
        header=context_pb2.UploadHeader(
            name="text", size_bytes=size, sha256=sha256, document_count=documents, request_id=request_id
        )
    )


def chunk(offset: int, data: bytes) -> context_pb2.UploadContextRequest:
    """Return a message of an upload that carries bytes."""
    return context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(offset=offset, data=data))


def _chunks(data: bytes) -> Iterator[context_pb2.UploadContextRequest]:
    for at in range(0, len(data), CHUNK):
        yield chunk(at, data[at : at + CHUNK])


def question(*replies: str) -> str:
    """Return a question to which the scripted model gives these replies in turn, the last one again and again."""
    return f"<play>\n{NEXT.join(replies)}\n</play>"


def block(code: str) -> str:
    """Return a model's reply that holds code."""
    return f"```repl\n{code}\n```"
