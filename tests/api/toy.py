"""A service with a method of each kind, behind what every call passes; and a caller with a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from rlm_server.api.admission import Admission
from rlm_server.api.auth import AuthInterceptor, tenant
from rlm_server.api.errors import InvalidField
from rlm_server.api.transport import OPTIONS
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.shares.held import Held
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.shares import Shares
from rlm_server.tenants.identities import Identities
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.tenants import Tenants
from tests.system.stage import Refusal, refusal

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
NOT_UTF8, CUT = b"\x0a\x02\xff\xff", b"\x0a\x20short"

USUAL = TenantLimits()


class Toy:
    """A service with a method of each kind, whose methods do what the request's words say."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def obey(self, word: str, context: Any) -> StringValue:
        self.heard.append(word)
        self.begun.set()
        if word == "wrong":
            raise InvalidField("word", "is wrong")
        if word == "broken":
            raise RuntimeError("a secret of the server")
        if word == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "the handler's own words")
        if word == "wait":
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return StringValue(value=f"{tenant()} {word}")

    async def unary_unary(self, request: StringValue, context: Any) -> StringValue:
        return await self.obey(request.value.rpartition(" ")[2], context)

    async def unary_stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        for word in request.value.split():
            yield await self.obey(word, context)

    async def stream_unary(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        answer = StringValue()
        async for request in requests:
            answer = await self.obey(request.value, context)
        return answer

    async def stream_stream(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield await self.obey(request.value, context)

    def handlers(self) -> grpc.GenericRpcHandler:
        made = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, kind),
                request_deserializer=StringValue.FromString,
                response_serializer=StringValue.SerializeToString,
            )
            for kind in KINDS
        }
        return grpc.method_handlers_generic_handler("rlm.test.Toy", made)


@dataclass
class Stage:
    """A server with a toy, and a caller with a key.

    The caller blocks a thread: a caller of grpc.aio may be told INTERNAL in the place of an error that comes while it
    still sends.
    """

    toy: Toy
    address: str
    channel: grpc.Channel
    key: str
    keys: Keys
    admission: Admission
    held: Held
    answers: list[str] = field(default_factory=list)

    @property
    def bearer(self) -> tuple[str, str]:
        return ("authorization", f"Bearer {self.key}")

    async def send(self, kind: str, sent: list[bytes], metadata: tuple[tuple[str, str], ...]) -> None:
        """Make a call and keep its answers, those before an error included."""
        method: Any = getattr(self.channel, kind)(f"/rlm.test.Toy/{kind}")
        request = iter(sent) if kind.startswith("stream") else sent[0]

        def call() -> None:
            answered = method(request, metadata=metadata)
            for answer in [answered] if kind.endswith("unary") else answered:
                self.answers.append(StringValue.FromString(answer).value)

        await asyncio.to_thread(call)

    async def refused(self, kind: str, sent: list[bytes], *metadata: tuple[str, str]) -> Refusal:
        return await refusal(self.send(kind, sent, metadata))


def words(kind: str, *said: str) -> list[bytes]:
    """The messages that say some words: one each where the kind takes a stream, else one together."""
    together = said if kind.startswith("stream") else (" ".join(said),)
    return [StringValue(value=value).SerializeToString() for value in together]


@asynccontextmanager
async def serving(folder: Path, limits: TenantLimits = USUAL) -> AsyncIterator[Stage]:
    """Serve the toy to a tenant `ann`, who has these limits, as everybody has."""
    async with await Database.open(folder / "keys.sqlite", MIGRATIONS) as database:
        await Tenants(database).ensure("ann")
        keys, toy = Keys(database), Toy()
        _, key = await keys.create("ann")
        shares = Shares.of(lambda _: limits)
        held, admission = shares.held, Admission(shares)
        server = grpc.aio.server(interceptors=[AuthInterceptor(keys, Identities(keys, {}), admission)], options=OPTIONS)
        server.add_generic_rpc_handlers((toy.handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            yield Stage(toy, address, channel, key, keys, admission, held)
        await server.stop(None)
