"""A request that is wrong in several fields is refused once, with all of them named, and nothing else.

The requests are made from the protocol. Every field that a caller sets is made wrong, by its kind or its name; of those
that cannot be wrong alone it is said here why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from rlm.v1 import budget_pb2, run_pb2, session_pb2, types_pb2

from rlm_server.api.field_checks import MAX_WRONG
from tests.servers import Served
from tests.system import every_call
from tests.system.operator import Operator, operating
from tests.system.stage import Caller, Play, Refusal, refusal

LONG = "x" * 300
OUTPUT_ONLY = field_behavior_pb2.OUTPUT_ONLY
TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")

TEXTS = {"request_id": LONG, "page_token": "nonsense", "model": LONG, "sub_model": LONG, "image": LONG, "name": LONG,
         "label": LONG, "url": "nowhere", "question": "", "pattern": "", "code": "", "sha256": "",
         "answer_schema": "{", "instructions": "x" * 20_001,
         "text": "x" * 1_000_001, "description": "x" * 4_001, "arguments_schema": "[]"}  # fmt: skip
"""Texts that are wrong, by the names of their fields."""
IDS = {
    "CreateAccount account.account_id": "a b",
    "CreateTenant tenant.tenant_id": "A b",
    "CreateApiKey tenant_id": LONG,
    "ListApiKeys tenant_id": LONG,
}
"""Ids that can be wrong before anything is looked up, by the call and the path of the field."""
RIGHT: Mapping[str, Any] = {"question": "What?", "pattern": "x", "code": "1", "account.account_id": "a",
                            "tenant.tenant_id": "a", "tenant_id": "a", "header.sha256": "0" * 64,
                            "header.size_bytes": 1, "result_json": "1"}  # fmt: skip
"""What must be said where it is not to be wrong, by the path of the field."""
NEVER_WRONG = {
    "_id": "an id names something: what nothing has is NOT_FOUND, after all that can be seen of the request alone",
    "model.text": "is judged with the call that it answers",
    "result_json": "is judged with the call that it answers",
    "error": "is judged with the call that it answers",
    "chunk": "follows the header of a stream, and is judged as it comes",
    "documents.documents": "follows the header of a stream, and is judged as it comes",
    "documents.first_document": "follows the header of a stream, and is judged as it comes",
}
"""Fields that are not wrong alone, by how their paths end or begin, and why."""
TOGETHER = 8
"""Fields that are wrong at once: as many as are told of, whatever is said of them."""


@dataclass(frozen=True)
class Wrong:
    """Fields of a request that are made wrong together: all of an item of a list, or one field."""

    paths: tuple[str, ...]
    spoil: Callable[[Any], None]


def wrongs(method: Any) -> list[Wrong]:
    """Every way in which a request of a method can be wrong."""
    return [one for one in _of_message(method, method.input_type, "", lambda request: request) if one.paths]


def _of_message(method: Any, of: Any, above: str, get: Callable[[Any], Any], without: str = "") -> Iterator[Wrong]:
    for field in of.fields:
        path = f"{above}{field.name}"
        if OUTPUT_ONLY in field.GetOptions().Extensions[field_behavior_pb2.field_behavior] or field.name == without:
            continue
        if f"{method.name} {path}" in IDS:
            yield Wrong((path,), _setting(get, field.name, IDS[f"{method.name} {path}"]))
        elif not _is_never_wrong(field, path):
            yield from _of_field(method, field, path, get)


def _is_never_wrong(field: Any, path: str) -> bool:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    return (field.name not in TEXTS or path in NEVER_WRONG) and any(
        path.endswith(one) or path.startswith(one) for one in NEVER_WRONG
    )


def _of_field(method: Any, field: Any, path: str, get: Callable[[Any], Any]) -> Iterator[Wrong]:
    name, of = field.name, field.message_type
    if of is None and field.is_repeated:
        yield _repeated(field, path, get)
    elif of is None:
        yield Wrong((path,), _setting(get, name, _value(field)))
    elif of.GetOptions().map_entry and name == "labels":
        yield Wrong((path,), lambda request: getattr(get(request), name).update({str(n): "" for n in range(17)}))
    elif of.GetOptions().map_entry:
        yield Wrong((f"{path}.nothing",), lambda request: getattr(get(request), name).update(nothing=1))
    elif of.full_name == "google.protobuf.FieldMask":
        yield Wrong((path,), lambda request: getattr(get(request), name).paths.append("nothing"))
    elif of.full_name in TIMES:
        yield Wrong((path,), lambda request: setattr(getattr(get(request), name), "seconds", -5))
    elif field.is_repeated:
        yield _items(method, field, path, get)
    else:
        yield from _of_message(method, of, f"{path}.", lambda request: getattr(get(request), name))


def _setting(get: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    return lambda request: setattr(get(request), name, value)


def _value(field: Any) -> Any:
    """A value of a field that is wrong. A text that no name tells how to make wrong is not known here."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return TEXTS[field.name]
        case FieldDescriptor.CPPTYPE_ENUM:
            return 99
        case _:
            return 101 if field.name == "percent" else -1


def _repeated(field: Any, path: str, get: Callable[[Any], Any]) -> Wrong:
    """A list of names is wrong as a whole, and one of numbers by its items."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return Wrong((path,), lambda request: getattr(get(request), field.name).append(LONG))
    return Wrong((f"{path}[0]",), lambda request: getattr(get(request), field.name).append(_value(field)))


def _items(method: Any, field: Any, path: str, get: Callable[[Any], Any]) -> Wrong:
    """Items that are all wrong: one for each member of a oneof."""
    of = field.message_type
    choices = [one for oneof in of.oneofs if len(oneof.fields) == 2 for one in oneof.fields]
    within: list[list[Wrong]] = []
    for place, without in enumerate([one.name for one in choices] or [""]):
        item = lambda request, place=place: getattr(get(request), field.name)[place]  # noqa: E731
        within.append(list(_of_message(method, of, f"{path}[{place}].", item, without)))

    def spoil(request: Any) -> None:
        for wrong in within:
            getattr(get(request), field.name).add()
            for one in wrong:
                one.spoil(request)

    return Wrong(tuple(name for wrong in within for one in wrong for name in one.paths), spoil)


def request_of(method: Any, wrong: Iterable[Wrong], context_id: str) -> Message:
    """A request that is wrong in some ways alone."""
    request: Any = GetMessageClass(method.input_type)()
    wrong = list(wrong)
    spoilt = {path for one in wrong for path in one.paths}
    for path, value in {**RIGHT, "context_id": context_id}.items():
        *into, name = path.split(".")
        inner, of = request, method.input_type
        for part in into:
            if of is not None and part in of.fields_by_name:
                inner, of = getattr(inner, part), of.fields_by_name[part].message_type
            else:
                of = None
        if path not in spoilt and of is not None and name in of.fields_by_name:
            setattr(inner, name, value)
    for one in wrong:
        one.spoil(request)
    made: Message = request
    return made


def batches(wrong: list[Wrong]) -> Iterator[list[Wrong]]:
    """All ways to be wrong, a few at a time."""
    batch: list[Wrong] = []
    for one in wrong:
        if batch and sum(len(each.paths) for each in [*batch, one]) > TOGETHER:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def methods() -> list[Any]:
    """The calls whose requests can be wrong."""
    return [method for method in every_call.methods() if wrongs(method)]


NOTHING_WRONG = {
    "GetBudget", "GetWebhook", "TestWebhook", "GetContext", "GetRun", "GetServerInfo", "ListImages", "GetQuota",
    "GetSession", "GetTenant",
}  # fmt: skip
"""Calls whose requests say nothing, or only name something."""


def test_every_call_can_be_wrong_but_for_those_that_only_name_something() -> None:
    assert {method.name for method in methods()} == {method.name for method in every_call.methods()} - NOTHING_WRONG
    assert sum(len(one.paths) for method in methods() for one in wrongs(method)) > 300


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
async def test_all_wrong_fields_of_a_request_are_named_and_no_others(server: Served, method: Any) -> None:
    every = wrongs(method)
    async with server(Play("")) as served, operating(served) as operator:
        context_id = (await served.caller.upload("a text")).context_id
        caller = operator.caller if method.containing_service.name == "TenantService" else served.caller
        for batch in batches(every):
            said = await refusal(every_call.make(caller, method, request_of(method, batch, context_id)))
            paths = sorted(path for one in batch for path in one.paths)
            assert (said.code, sorted(said.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, paths), said.message
        said = await refusal(every_call.make(caller, method, request_of(method, every, context_id)))
        paths = [path for one in every for path in one.paths]
        assert said.code is grpc.StatusCode.INVALID_ARGUMENT
        assert set(said.fields) <= set(paths)
        assert len(said.fields) == len(set(said.fields)), "each is named once"
        assert int(said.said.get("violation_count", "1")) == len(paths), "those that do not fit are counted"


# ---- what is wrong together ------------------------------------------------------------------------------------------


async def refused(caller: Caller, call: str, request: Any) -> Refusal:
    """What is said of a request of `SessionService` or `RunService` that is refused."""
    stub = caller.sessions if hasattr(session_pb2, type(request).__name__) else caller.runs
    return await refusal(getattr(stub, call)(request, metadata=caller.metadata))


async def test_a_session_that_cannot_begin_from_a_snapshot_is_told_all_that_is_wrong(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        session = await caller.open_session()
        made = await caller.sessions.CreateSnapshot(
            session_pb2.CreateSnapshotRequest(session_id=session), metadata=caller.metadata
        )
        asked = session_pb2.CreateSessionRequest(
            snapshot_id=made.snapshot.snapshot_id, image="data", context_id="ctx_1", sub_model="nobody"
        )
        assert sorted((await refused(caller, "CreateSession", asked)).fields) == ["context_id", "image", "sub_model"]
        asked.snapshot_id = "snp_none"
        assert sorted((await refused(caller, "CreateSession", asked)).fields) == ["context_id", "sub_model"]


async def test_limits_are_named_by_their_places_in_the_request_and_all_of_them(server: Served) -> None:
    call = types_pb2.Budget(call_count=1)
    day = budget_pb2.WINDOW_SPAN_DAY
    models = [
        budget_pb2.ModelLimit(model="play", span=day, limit=call),
        budget_pb2.ModelLimit(model="play", limit=call),
        budget_pb2.ModelLimit(model="play", span=day, limit=call),
        budget_pb2.ModelLimit(model="play", span=budget_pb2.WINDOW_SPAN_MONTH),
    ]
    soft = [
        budget_pb2.SoftLimit(span=budget_pb2.WINDOW_SPAN_MINUTE, percent=50),
        budget_pb2.SoftLimit(percent=50),
        budget_pb2.SoftLimit(percent=50),
    ]
    wrong = ["model_limits[2]", "model_limits[3].limit", "soft_limits[0].span", "soft_limits[2]"]
    async with server(Play("")) as served, operating(served) as operator:
        account = budget_pb2.Account(account_id="a", model_limits=models, soft_limits=soft)
        budgets: Any = served.caller.channel.unary_unary("/rlm.v1.BudgetService/CreateAccount")
        request = budget_pb2.CreateAccountRequest(account=account)
        said = await refusal(budgets(request.SerializeToString(), metadata=served.caller.metadata))
        assert sorted(said.fields) == [f"account.{one}" for one in wrong]
        said = await refusal(_tenant(operator, model_limits=models, soft_limits=soft))
        assert sorted(said.fields) == [f"tenant.{one}" for one in wrong]


async def _tenant(operator: Operator, **terms: Any) -> None:
    await operator.create("acme", **terms)


async def test_all_labels_of_a_tenant_that_are_too_long_are_named(server: Served) -> None:
    async with server(Play("")) as served, operating(served) as operator:
        said = await refusal(_tenant(operator, labels={"a": LONG, "b": "right", "c": LONG}))
        assert sorted(said.fields) == ["tenant.labels.a", "tenant.labels.c"]


async def test_a_request_that_is_wrong_without_end_is_read_no_further(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        said = await refused(caller, "ListRuns", run_pb2.ListRunsRequest(states=[99] * 1_000_000))  # type: ignore[list-item]
        assert said.fields[0] == "states[0]"
        assert int(said.said["violation_count"]) == MAX_WRONG + 1


async def test_what_is_wrong_with_a_pattern_is_told_beside_what_else_is(server: Served) -> None:
    async with server(Play("")) as served:
        context = (await served.caller.upload("a text")).context_id
        search: Any = next(one for one in every_call.methods() if one.name == "SearchContext")
        request: Any = GetMessageClass(search.input_type)(context_id=context, pattern="(", documents=[0, 7, 8])
        said = await refusal(every_call.make(served.caller, search, request))
        assert sorted(said.fields) == ["documents[1]", "documents[2]", "pattern"]


async def test_a_token_of_a_list_is_good_though_something_else_is_wrong(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        for _ in range(2):
            await caller.open_session()
        asked = session_pb2.ListSessionsRequest(account_id="development", page_size=1)
        page = await caller.sessions.ListSessions(asked, metadata=caller.metadata)
        asked.page_token, asked.page_size = page.next_page_token, -1
        assert (await refused(caller, "ListSessions", asked)).fields == ["page_size"]
