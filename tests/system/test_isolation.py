"""One tenant's key opens nothing of another's, by whichever call: what is another's is as if it had never been."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from rlm.v1 import context_pb2

from tests.servers import Served
from tests.system.every_call import FILLED, Naming, make, namings, tenants_methods
from tests.system.stage import Caller, Play, code, part, refusal

TEXT = "Nothing of this is yours. " * 100
LEAST_CASES = 50


def never_was(name: str) -> str:
    """A name of the same form that nothing ever had."""
    kind, _, number = name.rpartition("_")
    return f"{kind}_{hashlib.sha256(number.encode()).hexdigest()[: len(number)]}"


async def told(caller: Caller, naming: Naming, name: str) -> tuple[Any, ...]:
    """How a call that names something is refused, without the name."""
    said = await refusal(make(caller, naming.method, naming.request(name)))
    return said.code, said.reason, said.message.replace(name, "NAME"), tuple(said.details)


async def answered(caller: Caller, method: Any, request: Any) -> bytes:
    """All that a call answers, or nothing where it is refused as a wrong request."""
    call: Any = getattr(caller.channel, "unary_stream" if method.server_streaming else "unary_unary")
    made = call(f"/{method.containing_service.full_name}/{method.name}")(
        request.SerializeToString(), metadata=caller.metadata
    )
    try:
        if not method.server_streaming:
            return bytes(await made)
        return b"".join([bytes(message) async for message in made])
    except grpc.aio.AioRpcError as error:
        if error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}:
            return b""
        raise


class Owner:
    """A tenant that has one thing of each kind, by request ids that others know."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.things: dict[str, str] = {}

    async def have(self) -> None:
        """Make the things."""
        context = (await self.caller.upload(TEXT)).context_id
        await self.caller.upload("another text, for a second page")
        header = context_pb2.UploadHeader(name="half", size_bytes=100, sha256="0" * 64, request_id="of-A upload")
        upload = self.caller.contexts.UploadContext(metadata=self.caller.metadata)
        await upload.write(context_pb2.UploadContextRequest(header=header))
        await upload.write(part(0, b"a part"))
        await upload.done_writing()
        await refusal(upload)
        run = (await self.caller.ask("A's question", context_id=context, request_id="of-A run")).run
        child = next(node.node_id for node in await self.caller.nodes(run.run_id) if node.node_id != run.run_id)
        session = await self.caller.open_session(context_id=context, request_id="of-A session")
        await self.caller.turn(session, "secret = 'of-A'")
        self.things = {"context": context, "run": run.run_id, "node": child, "session": session}

    async def state(self) -> list[bytes]:
        """All that can be seen of the things, for a comparison."""
        run = await self.caller.get(self.things["run"])
        turn = await self.caller.turn(self.things["session"], "print(secret)")
        page = await self.caller.contexts.ListContexts(context_pb2.ListContextsRequest(), metadata=self.caller.metadata)
        status = await self.caller.contexts.GetUploadStatus(
            context_pb2.GetUploadStatusRequest(request_id="of-A upload"), metadata=self.caller.metadata
        )
        return [run.SerializeToString(), turn.printed.encode(), page.SerializeToString(), status.SerializeToString()]


CHILD: dict[str, Any] = {"A child question": code("FINAL(1)")}
PLAY = Play(code("rlm_query('A child question', 'a text')"), code("FINAL('of-A')"), **CHILD)


async def test_what_is_anothers_is_refused_as_what_never_was_by_every_call_that_names_something(
    server: Served,
) -> None:
    async with server(PLAY) as served:
        owner, stranger = Owner(served.caller), await served.tenant("stranger")
        await owner.have()
        before, cases, wrong = await owner.state(), 0, []
        for naming in namings():
            names = [*owner.things.values(), "development"]
            if naming.path == ("request_id",):
                names = ["of-A upload", "of-A run"]
            for name in names:
                seen, unseen = await told(stranger, naming, name), await told(stranger, naming, never_was(name))
                cases += 1
                if seen != unseen or seen[0] is not grpc.StatusCode.NOT_FOUND:
                    wrong.append((str(naming), name, seen, unseen))
        assert wrong == []
        assert cases >= LEAST_CASES
        assert await owner.state() == before


async def test_a_place_in_anothers_list_and_anothers_request_id_show_nothing_of_its(server: Served) -> None:
    async with server(PLAY) as served:
        owner, stranger = Owner(served.caller), await served.tenant("stranger")
        await owner.have()
        theirs = [name.encode() for name in (*owner.things.values(), "A's question")]
        before, cases = await owner.state(), 0
        for method in tenants_methods():
            fields = method.input_type.fields_by_name
            if method.client_streaming:
                continue
            requests = list[Any]()
            if "page_token" in fields:
                request: Any = GetMessageClass(method.input_type)(page_size=1)
                answer: Any = GetMessageClass(method.output_type).FromString(
                    await answered(owner.caller, method, request)
                )
                if answer.next_page_token:
                    requests.append(GetMessageClass(method.input_type)(page_token=answer.next_page_token))
            if "request_id" in fields:
                for known in ("of-A upload", "of-A run", "of-A session"):
                    request = GetMessageClass(method.input_type)(request_id=known)
                    for field, value in FILLED.items():
                        if field in fields:
                            setattr(request, field, value)
                    requests.append(request)
            for request in requests:
                said = await answered(stranger, method, request)
                assert not [one for one in theirs if one in said], (method.name, request)
                cases += 1
        assert cases >= 5
        assert await owner.state() == before
