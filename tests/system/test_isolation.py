"""One tenant's key opens nothing of another's, by whichever call: what is another's is as if it had never been."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from rlm.v1 import budget_pb2, context_pb2

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, Cursor
from rlm_server.shares import host_time
from tests.servers import Served, Server
from tests.system.accountant import Accountant
from tests.system.context_calls import of_documents
from tests.system.every_call import FILLED, Naming, make, namings, path, tenants_methods
from tests.system.operator import operating
from tests.system.owner import CUSTOMER, DATA, DOCUMENTS, LABELS, PLAY, REQUESTS, SHA256, Owner
from tests.system.stage import Caller, part, refusal
from tests.system.test_customers import Keeper
from tests.system.test_sessions_kept import imported
from tests.webhooks.receiver import receiving

NEW_KINDS = {"account", "key", "turn", "fork", "snapshot"}
LEAST_CASES = 50
"""Of names of these kinds, each by a call that could take it."""


pytestmark = pytest.mark.usefixtures("unbilled")


# ---- what is asked of the database -----------------------------------------------------------------------------------


@dataclass
class Counted:
    """A connection that notes the statements that run on it."""

    connection: Connection
    seen: list[str]

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        self.seen.append(statement)
        return self.connection.execute(statement, values)

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> Any:
        self.seen.append(statement)
        return self.connection.executemany(statement, rows)


@dataclass
class Statements:
    """The statements that calls of one tenant make, in the order they ran."""

    tenant: str
    seen: list[str] = field(default_factory=list)

    def noted(self, function: Callable[[Connection], Any]) -> Callable[[Connection], Any]:
        """The function, with its statements noted where it is the tenant's."""
        charged_to = host_time.current()
        if charged_to is None or charged_to.tenant != self.tenant:
            return function
        return lambda connection: function(Counted(connection, self.seen))

    def taken(self) -> list[str]:
        """What was noted since this was asked."""
        seen, self.seen[:] = list(self.seen), []
        return seen


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """The statements of the tenant that is called `stranger`."""
    noting, read, submit = Statements("stranger"), Database.read, Database.submit
    monkeypatch.setattr(Database, "read", lambda self, function: read(self, noting.noted(function)))
    monkeypatch.setattr(Database, "submit", lambda self, function, **how: submit(self, noting.noted(function), **how))
    return noting


# ---- who asks, and what it is told -----------------------------------------------------------------------------------


@dataclass
class Stage:
    served: Server
    owner: Owner
    stranger: Caller
    own: dict[str, str]
    """What the stranger has, by kind."""


@asynccontextmanager
async def both(server: Served) -> AsyncIterator[Stage]:
    """A tenant that has everything, and another that has a context, a run and a session."""
    async with (
        receiving() as receiver,
        server(PLAY, webhook_hosts=[receiver.host]) as served,
        operating(served) as operator,
    ):
        owner, stranger = Owner(served.caller), await served.tenant("stranger")
        await owner.have(operator, receiver.url)
        own = {
            "context": (await stranger.upload("my own text, of a few words")).context_id,
            "run": (await stranger.ask("Mine?")).run.run_id,
            "session": await stranger.open_session(),
        }
        yield Stage(served, owner, stranger, own)


def never_was(name: str) -> str:
    """A name of the same form that nothing ever had."""
    kind, _, number = name.rpartition("_")
    return f"{kind}_{hashlib.sha256(number.encode()).hexdigest()[: len(number)]}"


async def answered(caller: Caller, method: Any, request: Any) -> bytes:
    """All that a call answers."""
    call: Any = getattr(caller.channel, "unary_stream" if method.server_streaming else "unary_unary")
    made = call(path(method))(request.SerializeToString(), metadata=caller.metadata)
    if not method.server_streaming:
        return bytes(await made)
    return b"".join([bytes(message) async for message in made])


async def told(caller: Caller, method: Any, request: Any, name: str) -> tuple[Any, ...]:
    """What a call that names something is told, without the name."""
    call = asyncio.ensure_future(answered(caller, method, request))
    await asyncio.wait([call])
    if call.exception() is None:
        return "OK", call.result().replace(name.encode(), b"NAME")
    said = await refusal(call)
    metadata = {key: value.replace(name, "NAME") for key, value in said.said.items()}
    return said.code, said.reason, said.message.replace(name, "NAME"), metadata, said.fields, said.details


async def check_alike(
    caller: Caller, method: Any, asking: Callable[[str], Any], name: str, noted: Statements | None = None
) -> Any:
    """Check that a call says of a name what it says of one that never was, by the same work; return the code."""
    if noted is not None:
        noted.taken()
    seen = await told(caller, method, asking(name), name)
    work = noted.taken() if noted is not None else []
    unseen = await told(caller, method, asking(never_was(name)), never_was(name))
    assert seen == unseen, method.name
    assert noted is None or work == noted.taken(), method.name
    return seen[0]


# ---- names -----------------------------------------------------------------------------------------------------------


async def test_what_is_anothers_is_refused_as_what_never_was_by_every_call_that_names_something_and_by_the_same_work(
    server: Served, statements: Statements
) -> None:
    async with both(server) as stage:
        owner, cases = stage.owner, 0
        before = await owner.state()
        for naming in namings():
            names = owner.things | {"tenant": "development"}
            if naming.path == ("request_id",):
                names = {name: name for name in REQUESTS}
            for kind, name in names.items():
                code = await check_alike(stage.stranger, naming.method, naming.request, name, statements)
                assert code is grpc.StatusCode.NOT_FOUND, (str(naming), name)
                cases += kind in NEW_KINDS
        assert cases >= LEAST_CASES
        assert await owner.state() == before


WITHIN = {"turn_id": ("session_id", "session"), "node_id": ("run_id", "run")}
"""Names of what is within something, by their fields: the field of that, and its kind."""


async def test_what_is_within_anothers_is_not_within_ones_own(server: Served, statements: Statements) -> None:
    async with both(server) as stage:
        cases = 0

        def inside(naming: Naming, name: str) -> Any:
            request: Any = naming.request(name)
            above, kind = WITHIN[naming.path[-1]]
            inner = request
            for part_of in naming.path[:-1]:
                inner = getattr(inner, part_of)
            setattr(inner, above, stage.own[kind])
            return request

        for naming in namings():
            if naming.path[-1] in WITHIN:
                kinds = ("turn",) if naming.path[-1] == "turn_id" else ("node", "run")
                for kind in kinds:
                    name = stage.owner.things[kind]
                    await check_alike(stage.stranger, naming.method, partial(inside, naming), name, statements)
                    cases += 1
        assert cases >= 10


async def test_a_key_that_is_bound_to_an_account_of_the_same_name_opens_nothing_of_anothers(server: Served) -> None:
    async with both(server) as stage, operating(stage.served) as operator:
        await Keeper(stage.stranger).create(CUSTOMER)
        bound = stage.served.another((await operator.key("stranger", account_id=CUSTOMER)).secret)
        names = {kind: name for kind, name in stage.owner.things.items() if kind != "account"}
        before = await stage.owner.state()
        for naming in namings():
            for name in names.values():
                code = await check_alike(bound, naming.method, naming.request, name)
                assert code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}, (str(naming), name)
        for method in tenants_methods():
            if "account_id" in method.input_type.fields_by_name and not method.client_streaming:
                request: Any = GetMessageClass(method.input_type)(account_id=CUSTOMER)
                await shows_nothing(stage, method, request, bound)
        assert await stage.owner.state() == before


# ---- lists -----------------------------------------------------------------------------------------------------------


async def shows_nothing(stage: Stage, method: Any, request: Any, caller: Caller | None = None) -> None:
    """Check that a call shows a stranger nothing of the owner's, whether or not it is refused."""
    said = await told(caller or stage.stranger, method, request, "nothing's name")
    told_bytes = said[1] if said[0] == "OK" else repr(said).encode()
    asked = request.SerializeToString()
    assert [one for one in stage.owner.secrets if one in told_bytes and one not in asked] == [], (method.name, said)


def lists() -> list[Any]:
    """The calls that answer in pages."""
    return [method for method in tenants_methods() if "page_token" in method.input_type.fields_by_name]


def asking_for_pages(things: dict[str, str], method: Any) -> Any:
    """A request for the first page of a list that has several."""
    fields = method.input_type.fields_by_name
    request: Any = GetMessageClass(method.input_type)(page_size=1)
    for name, kind in (("context_id", "context"), ("run_id", "run"), ("session_id", "session")):
        if name in fields and things.get(kind):
            setattr(request, name, things[kind])
    if "pattern" in fields:
        request.pattern = "o"
    if "by" in fields:
        request.by = budget_pb2.USAGE_GROUPING_RUN
    return request


SAME_FOR_ALL = "ListModels"
"""A list that is nobody's."""


async def test_a_place_in_anothers_list_is_none_in_ones_own(server: Served) -> None:
    async with both(server) as stage:
        cases = 0
        for method in lists():
            if method.name == SAME_FOR_ALL:
                continue
            request = asking_for_pages(stage.owner.things, method)
            page: Any = GetMessageClass(method.output_type).FromString(
                await answered(stage.served.caller, method, request)
            )
            assert page.next_page_token, method.name
            request.page_token = page.next_page_token
            await shows_nothing(stage, method, request)
            mine = asking_for_pages(stage.own, method)
            mine.page_token = page.next_page_token
            said = await refusal(answered(stage.stranger, method, mine))
            mine.page_token = "nobody's"
            other = await refusal(answered(stage.stranger, method, mine))
            assert (said, said.fields) == (other, ["page_token"]), method.name
            cases += 1
        assert cases >= 10


def labelled(method: Any) -> list[Any]:
    """Requests for what has the owner's label, of a call that lists by labels."""
    fields = method.input_type.fields_by_name
    within = fields["filter"].message_type.fields_by_name if "filter" in fields else {}
    if "labels" not in within and not ("labels" in fields and "page_token" in fields):
        return []
    made: Any = GetMessageClass(method.input_type)()
    (made.filter if "labels" in within else made).labels.update(LABELS)
    return [made]


async def test_anothers_label_finds_nothing_and_sums_up_nothing(server: Served) -> None:
    async with both(server) as stage:
        cases = 0
        for method in tenants_methods():
            for request in labelled(method):
                theirs = await answered(stage.served.caller, method, request)
                said = await answered(stage.stranger, method, request)
                never = GetMessageClass(method.input_type).FromString(
                    request.SerializeToString().replace(b"of-A", b"of-B")
                )
                nothing = await answered(stage.stranger, method, never)
                assert theirs.replace(b"of-A", b"") != said.replace(b"of-A", b""), f"{method.name} finds its own"
                assert said == nothing, method.name
                cases += 1
        usage = Accountant(stage.stranger)
        rows = (await usage.usage(by=budget_pb2.USAGE_GROUPING_LABEL, label="team")).rows
        assert [row.key for row in rows] == [""], "what it spent has no such label"
        assert {row.key for row in (await usage.usage(by=budget_pb2.USAGE_GROUPING_ACCOUNT)).rows} == {"stranger"}
        assert cases >= 8


async def test_anothers_request_ids_show_nothing_of_its_and_stand_for_ones_own_requests(server: Served) -> None:
    async with both(server) as stage:
        before, cases = await stage.owner.state(), 0
        for method in tenants_methods():
            fields = method.input_type.fields_by_name
            if "request_id" not in fields or method.client_streaming:
                continue
            for known in REQUESTS:
                request: Any = GetMessageClass(method.input_type)(request_id=known)
                for name, value in FILLED.items():
                    if name in fields:
                        setattr(request, name, value)
                await shows_nothing(stage, method, request)
                cases += 1
        assert cases >= LEAST_CASES
        assert await stage.owner.state() == before


# ---- contents --------------------------------------------------------------------------------------------------------


def announced(sha256: str, request_id: str = "") -> context_pb2.UploadContextRequest:
    return context_pb2.UploadContextRequest(
        header=context_pb2.UploadHeader(
            size_bytes=len(DATA), sha256=sha256, document_count=len(DOCUMENTS), request_id=request_id
        )
    )


async def test_who_knows_the_hash_and_the_size_of_a_text_does_not_get_it_without_its_bytes(
    server: Served, statements: Statements
) -> None:
    async with both(server) as stage:
        sent = of_documents(DOCUMENTS)
        other = of_documents([(name, text[::-1]) for name, text in DOCUMENTS])
        for rest in ([], sent[1:2], [*sent[1:2], part(0, DATA[:100])], other[1:]):
            outcomes = []
            for sha256 in (SHA256, "0" * 64):
                statements.taken()
                said = await refusal(stage.stranger.send_parts([announced(sha256), *rest]))
                outcomes.append(
                    (said.code, said.reason, said.message.replace(sha256, ""), said.fields, statements.taken())
                )
            assert outcomes[0] == outcomes[1]
            assert outcomes[0][0] is grpc.StatusCode.INVALID_ARGUMENT
        unfinished = await refusal(stage.stranger.send_parts([announced(SHA256, "mine")]))
        assert unfinished.code is grpc.StatusCode.INVALID_ARGUMENT
        request = context_pb2.GetUploadStatusRequest(request_id="mine")
        status = await stage.stranger.contexts.GetUploadStatus(request, metadata=stage.stranger.metadata)
        assert (status.received_bytes, status.HasField("context")) == (0, False)
        (one,) = (await listed(stage.stranger)).contexts
        assert one.context_id == stage.own["context"]


async def test_who_has_the_same_bytes_has_a_context_of_its_own_with_nothing_of_the_other(server: Served) -> None:
    async with both(server) as stage:
        made = await stage.stranger.send_parts(of_documents(DOCUMENTS, name="mine"))
        assert (made.name, dict(made.labels)) == ("mine", {})
        assert made.context_id != stage.owner.things["context"]
        assert made.sha256 == SHA256
        assert {one.context_id for one in (await listed(stage.stranger)).contexts} == {
            made.context_id,
            stage.own["context"],
        }


async def listed(caller: Caller) -> context_pb2.ListContextsResponse:
    page: context_pb2.ListContextsResponse = await caller.contexts.ListContexts(
        context_pb2.ListContextsRequest(), metadata=caller.metadata
    )
    return page


async def test_anothers_snapshot_file_is_refused_as_a_damaged_one(server: Served, statements: Statements) -> None:
    async with both(server) as stage:
        file, outcomes = stage.owner.snapshot_file, []
        damaged = [bytes([*file[:at], file[at] ^ 1, *file[at + 1 :]]) for at in (50, len(file) // 2, len(file) - 1)]
        for data in (file, *damaged):
            statements.taken()
            said = await refusal(imported(stage.served, data, hashlib.sha256(data).hexdigest(), by=stage.stranger))
            outcomes.append((said, statements.taken()))
        assert all(one == outcomes[0] for one in outcomes)
        assert outcomes[0][0].reason == "SNAPSHOT_REFUSED"
        for data in damaged:
            said = await refusal(imported(stage.served, data, hashlib.sha256(data).hexdigest()))
            assert said == outcomes[0][0], "what its owner is told of a damaged one"


async def test_anothers_webhook_is_not_told_of_not_tried_and_not_stopped(server: Served) -> None:
    async with both(server) as stage:
        before = await stage.owner.state()
        for name in ("GetWebhook", "TestWebhook", "DisableWebhook"):
            method = next(one for one in tenants_methods() if one.name == name)
            said = await refusal(make(stage.stranger, method))
            assert said.code is grpc.StatusCode.NOT_FOUND
        assert await stage.owner.state() == before
