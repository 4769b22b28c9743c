"""Every call that changes something can be repeated: under its request id it is answered as before, and does no more.

The calls are found in the protocol: all but those that only read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from rlm.v1 import budget_pb2, context_pb2, run_pb2, session_pb2, tenant_pb2, types_pb2

from tests.databases import KINDS
from tests.servers import Served, Server
from tests.system import every_call
from tests.system.context_calls import ContextCalls, of_text
from tests.system.operator import Operator, operating
from tests.system.stage import Caller, Play, code, refusal

READING = ("Get", "List", "Read", "Search", "Watch", "Export")
"""How the names of calls begin that change nothing."""
ENDS_A_SESSION = "DeleteSession"
"""What it ends is gone with the server, and its end is told for a while."""
STREAMS = ("UploadContext", "ImportSnapshot")
"""Their request ids are in the headers of their streams: see `test_contexts_resumed.py`, `test_sessions_kept.py`."""
SENDS = "TestWebhook"
"""It has an event sent that says nothing, as often as it is asked."""


def changing() -> list[Any]:
    """The methods that change something."""
    return [
        method
        for method in every_call.methods()
        if not method.name.startswith(READING) and method.name not in (ENDS_A_SESSION, SENDS, *STREAMS)
    ]


@pytest.mark.parametrize("method", changing(), ids=lambda method: method.name)
def test_a_call_that_changes_something_has_a_request_id(method: Any) -> None:
    assert "request_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("header", [context_pb2.UploadHeader, session_pb2.ImportSnapshotHeader])
def test_a_stream_has_it_in_its_header(header: Any) -> None:
    assert "request_id" in header.DESCRIPTOR.fields_by_name


@dataclass(frozen=True)
class Things:
    """What requests are about: two of each, and two more of those that are deleted."""

    contexts: list[str]
    runs: list[str]
    accounts: list[str]
    tenants: list[str]
    keys: list[str]
    calls: list[run_pb2.ToolCallRequested]
    """Of the last of the runs, which waits for both."""


Make = Callable[[Things, int], Message]
HOST = "hooks.example.com"


def account(id: str) -> budget_pb2.Account:
    return budget_pb2.Account(account_id=id, limit=types_pb2.Budget(nano_usd=1))


MAKES: dict[str, Make] = {
    "UpdateContext": lambda there, n: context_pb2.UpdateContextRequest(
        context=context_pb2.Context(context_id=there.contexts[0], name=f"name {n}")
    ),
    "DeleteContext": lambda there, n: context_pb2.DeleteContextRequest(context_id=there.contexts[2 + n]),
    "CreateRun": lambda there, n: run_pb2.CreateRunRequest(question=f"What is {n}?"),
    "Complete": lambda there, n: run_pb2.CompleteRequest(question=f"What is {n}?", text="a text"),
    "CancelRun": lambda there, n: run_pb2.CancelRunRequest(run_id=there.runs[n]),
    "DeleteRun": lambda there, n: run_pb2.DeleteRunRequest(run_id=there.runs[2 + n]),
    "SubmitResult": lambda there, n: run_pb2.SubmitResultRequest(
        run_id=there.runs[-1], call_id=there.calls[n].call_id, result_json="1"
    ),
    "CreateAccount": lambda there, n: budget_pb2.CreateAccountRequest(account=account(f"new-{n}")),
    "UpdateAccount": lambda there, n: budget_pb2.UpdateAccountRequest(
        account=budget_pb2.Account(account_id=there.accounts[0], name=f"name {n}"),
        update_mask=FieldMask(paths=["name"]),
    ),
    "CloseAccount": lambda there, n: budget_pb2.CloseAccountRequest(account_id=there.accounts[n]),
    "SetWebhook": lambda there, n: budget_pb2.SetWebhookRequest(url=f"https://{HOST}/{n}"),
    "DisableWebhook": lambda there, n: budget_pb2.DisableWebhookRequest(),
    "CreateTenant": lambda there, n: tenant_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(tenant_id=f"new-{n}")),
    "UpdateTenant": lambda there, n: tenant_pb2.UpdateTenantRequest(
        tenant=tenant_pb2.Tenant(tenant_id=there.tenants[0], labels={"n": str(n)})
    ),
    "DeleteTenant": lambda there, n: tenant_pb2.DeleteTenantRequest(tenant_id=there.tenants[2 + n]),
    "CreateApiKey": lambda there, n: tenant_pb2.CreateApiKeyRequest(tenant_id=there.tenants[n]),
    "RevokeApiKey": lambda there, n: tenant_pb2.RevokeApiKeyRequest(key_id=there.keys[n]),
}
"""A request of each call, and for `n` = 1 another."""
SECRETS = {"CreateApiKey": ("secret", "repeated"), "SetWebhook": ("secret",)}
"""Fields of an answer that a repeated one has not, or has alone."""

CALLS = [method for method in changing() if method.containing_service.name != "SessionService"]


def test_every_call_is_made_here() -> None:
    assert {method.name for method in CALLS} == MAKES.keys()


WAITS = "Who waits?"
PLAY: Any = {WAITS: code("import asyncio\nawait asyncio.gather(ask_async(), ask_async())")}
"""A run that waits for two calls of a tool."""


async def prepared(served: Server, operator: Operator) -> Things:
    """Make what requests are about."""
    caller = served.caller
    contexts = [(await ContextCalls(caller).send(of_text("text"))).context_id for _ in range(4)]
    runs = [(await caller.ask()).run.run_id for _ in range(4)]
    for name in ("a", "b", "c", "d"):
        await call(caller, "rlm.v1.BudgetService/CreateAccount", budget_pb2.CreateAccountRequest(account=account(name)))
        await operator.create(name)
    keys = [(await operator.call(tenant_pb2.CreateApiKeyRequest(tenant_id=name))).key.key_id for name in ("a", "b")]
    waits = await caller.create(WAITS, tools=[run_pb2.Tool(name="ask")])
    calls = []
    async for event in caller.watch(waits.run_id):
        if event.HasField("tool_call_requested"):
            calls.append(event.tool_call_requested)
            if len(calls) == 2:
                break
    return Things(contexts, [*runs, waits.run_id], ["a", "b"], ["a", "b", "c", "d"], keys, calls)


async def call(caller: Caller, path: str, request: Message) -> bytes:
    made: Any = caller.channel.unary_unary(f"/{path}")
    answer: bytes = await made(request.SerializeToString(), metadata=caller.metadata)
    return answer


def shown(method: Any, data: bytes) -> Message:
    """An answer without what a repeated one has not."""
    answer = GetMessageClass(method.output_type).FromString(data)
    for field in SECRETS.get(method.name, ()):
        answer.ClearField(field)
    return answer


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The setting of a database of each kind."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


async def test_a_call_is_answered_again_after_a_restart_and_refused_with_other_content(
    server: Served, database: dict[str, Any]
) -> None:
    first: dict[str, bytes] = {}
    # What deletes comes last.
    calls = sorted(CALLS, key=lambda method: method.name.startswith(("Cancel", "Close", "Delete", "Disable", "Revoke")))
    settings = {**database, "webhook_hosts": [HOST]}
    async with server(Play(code("FINAL(1)"), **PLAY), **settings) as served, operating(served) as operator:
        there = await prepared(served, operator)
        for method in calls:
            caller, path = _of(method, served, operator)
            request = _request(method, there, 0)
            first[method.name] = await call(caller, path, request)
            again = await call(caller, path, request)
            _check_same(method, first[method.name], again)
    async with server(Play(code("FINAL(1)")), **settings) as served, operating(served) as operator:
        for method in calls:
            caller, path = _of(method, served, operator)
            _check_same(method, first[method.name], await call(caller, path, _request(method, there, 0)))
            other = _request(method, there, 1)
            if other == _request(method, there, 0):
                continue  # it can ask for one thing alone
            said = await refusal(call(caller, path, other))
            assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"), method.name
            assert said.said == {"request_id": "mine"}


def _of(method: Any, served: Server, operator: Operator) -> tuple[Caller, str]:
    service = method.containing_service
    caller = operator.caller if service.name == "TenantService" else served.caller
    return caller, f"{service.full_name}/{method.name}"


def _request(method: Any, there: Things, n: int) -> Any:
    request: Any = MAKES[method.name](there, n)
    request.request_id = "mine"
    return request


def _check_same(method: Any, first: bytes, again: bytes) -> None:
    """Whether it is the same thing; a run may have gone on, an account may have another name meanwhile."""
    one, other = shown(method, first), shown(method, again)
    assert _ids(one) == _ids(other), method.name


def _ids(message: Message) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for field, value in message.ListFields():
        if isinstance(value, Message) and not field.is_repeated:
            found += _ids(value)
        elif field.name in ("context_id", "run_id", "account_id", "tenant_id", "key_id"):
            found.append((field.name, value))
    return found


async def test_a_deleted_run_is_known_to_be_deleted_and_its_other_requests_are_not(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served:
        caller = served.caller

        async def ask(name: str, request: Any) -> None:
            await call(caller, f"rlm.v1.RunService/{name}", request)

        run = (await caller.ask(request_id="made")).run.run_id
        await ask("CancelRun", run_pb2.CancelRunRequest(run_id=run, request_id="stop"))
        await ask("DeleteRun", run_pb2.DeleteRunRequest(run_id=run, request_id="forget"))
        await ask("DeleteRun", run_pb2.DeleteRunRequest(run_id=run, request_id="forget"))
        for again in ("", "another"):
            said = await refusal(ask("DeleteRun", run_pb2.DeleteRunRequest(run_id=run, request_id=again)))
            assert said.code is grpc.StatusCode.NOT_FOUND
        said = await refusal(ask("CancelRun", run_pb2.CancelRunRequest(run_id=run, request_id="stop")))
        assert said.code is grpc.StatusCode.NOT_FOUND
        new = await caller.create(request_id="made")
        assert new.run_id != run


async def test_a_run_that_goes_on_is_not_known_to_be_deleted(server: Served) -> None:
    async with server(Play(code("while True: pass"))) as served:
        caller = served.caller
        run = (await caller.create()).run_id
        await caller.until(run, "code_started")
        request = run_pb2.DeleteRunRequest(run_id=run, request_id="forget")
        for _ in range(2):
            said = await refusal(call(caller, "rlm.v1.RunService/DeleteRun", request))
            assert said.reason == "RUN_NOT_ENDED"
        await caller.cancel(run)
        await call(caller, "rlm.v1.RunService/DeleteRun", request)
        assert (await refusal(caller.get(run))).code is grpc.StatusCode.NOT_FOUND
