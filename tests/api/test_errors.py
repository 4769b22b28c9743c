"""Every error becomes one status: its reason, its code, and what comes with it, in trailers of bounded size."""

from __future__ import annotations

import base64
import errno
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from rlm.v1 import errors_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.api import errors, requests
from rlm_server.api.admission import MAX_REQUEST, RequestTooLarge, TooManyRequests, TooManyStreams
from rlm_server.api.availability import ServerStarting, ServerStopping
from rlm_server.api.errors import (
    MAX_TEXT,
    InvalidField,
    KeyBound,
    MalformedRequest,
    NotFound,
    Unauthenticated,
    Violation,
    WatcherTooSlow,
    WrongKindOfKey,
    status_of,
)
from rlm_server.contexts.context_table import ContextUnknown
from rlm_server.contexts.contexts import ContextDamaged
from rlm_server.contexts.object_store import ObjectStoreUnavailable
from rlm_server.contexts.search import SearchTooLong
from rlm_server.contexts.spool import UploadRefused
from rlm_server.contexts.upload_table import ContextQuotaExceeded
from rlm_server.contexts.uploads import UploadBusy, UploadStalled
from rlm_server.database.engine import (
    DatabaseBusyError,
    DatabaseClosedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLostError,
)
from rlm_server.database.requests import RequestIdReused
from rlm_server.ledger import (
    AccountClosed,
    AccountExists,
    AccountUnknown,
    BudgetBusy,
    BudgetExceeded,
    HoldUnknown,
    Scope,
    Span,
    TooManyAccounts,
    windows,
)
from rlm_server.runs.redaction import ContentsRedacted
from rlm_server.runs.supervisor import RunNotContinuable, RunNotEnded, RunQuotaExceeded, TooManyRuns
from rlm_server.sessions.results import ResultForgotten
from rlm_server.sessions.sessions import TooManySessions
from rlm_server.sessions.state import End, EndReason, SessionEnded
from rlm_server.sessions.turn_line import SessionLineFull, TurnUnknown
from rlm_server.shares.held import TooMuchHeld
from rlm_server.tenants.keys import KeyUnknown, TooManyChecks
from rlm_server.tenants.open_calls import KeyLapsed
from rlm_server.tenants.tenants import TenantExists, TenantInUse, TenantUnknown
from rlm_server.tools.waiting import CallAnswered, CallEnded, CallUnknown
from sandbox.pool.live_sessions import OwnerFull, PoolFull
from sandbox.pool.pool import JailMissing
from sandbox.pool.process import WorkerLost
from sandbox.pool.sealing import SnapshotRefused
from sandbox.pool.worker_session import TooManyTurns
from tests.api.offers import routes
from tests.system.stage import Refusal, refusal

Detail = TypeVar("Detail", bound=Message)

HEADERS = 8 << 10
"""Bytes of headers that a client of gRPC takes: https://grpc.io/docs/guides/metadata/"""
HEADER = 32
"""Bytes that HTTP/2 counts for each header besides its name and its value: RFC 9113, 6.5.2."""
AT = 1_764_140_400_000
"""2025-11-26T07:00:00Z."""
LIMIT = {"unit": "tokens", "limit": "10", "used": "9", "asked": "2"}


@dataclass(frozen=True)
class Expected:
    """What an error is to become; `details` are those after the `ErrorInfo`."""

    error: Exception
    reason: str
    metadata: dict[str, str] = field(default_factory=dict)
    details: tuple[str, ...] = ()


def window(span: Span, at: int) -> str:
    return windows.account_of("ann", Scope(span), at)


CASES: dict[str, Expected] = {
    "no key": Expected(Unauthenticated("no"), "UNAUTHENTICATED"),
    "a key that has ended": Expected(KeyLapsed("no"), "UNAUTHENTICATED"),
    "a key of a tenant's": Expected(WrongKindOfKey(operators=True), "WRONG_KIND_OF_KEY", {"key_kind": "operator"}),
    "a key of one account": Expected(KeyBound("ann"), "KEY_BOUND", {"account": "ann"}),
    "a key of an operator's": Expected(WrongKindOfKey(operators=False), "WRONG_KIND_OF_KEY", {"key_kind": "tenant"}),
    "a call that ended": Expected(CallEnded("tool_1", "late"), "TOOL_CALL_ENDED", {"call_id": "tool_1"}),
    "a call that has an answer": Expected(CallAnswered("tool_1"), "TOOL_CALL_ANSWERED", {"call_id": "tool_1"}),
    "no such call": Expected(CallUnknown("tool_1"), "NOT_FOUND", details=("ResourceInfo",)),
    "a request id of before": Expected(RequestIdReused("r"), "REQUEST_ID_REUSED", {"request_id": "r"}),
    "no tenant": Expected(TenantUnknown("acme"), "NOT_FOUND", details=("ResourceInfo",)),
    "no such key": Expected(KeyUnknown("key_1"), "NOT_FOUND", details=("ResourceInfo",)),
    "a tenant of the name": Expected(TenantExists("acme", deleted=True), "TENANT_EXISTS", details=("ResourceInfo",)),
    "a tenant that has something": Expected(
        TenantInUse("acme", {"keys": 1, "runs": 0}), "TENANT_IN_USE", {"keys": "1", "runs": "0"}
    ),
    "malformed": Expected(MalformedRequest(), "MALFORMED_REQUEST"),
    "a key that waits": Expected(TooManyChecks("no"), "SERVER_FULL", details=("RetryInfo",)),
    "too many calls": Expected(
        TooManyRequests("tenant_requests", 3, 3, "calls"),
        "TOO_MANY_REQUESTS",
        {"unit": "tenant_requests", "limit": "3", "used": "3"},
        ("QuotaFailure", "RetryInfo"),
    ),
    "too many turns": Expected(
        SessionLineFull(64),
        "TOO_MANY_REQUESTS",
        {"unit": "session_turns", "limit": "64", "used": "64"},
        ("QuotaFailure", "RetryInfo"),
    ),
    "too many streams": Expected(
        TooManyStreams("tenant_streams", 3, 3, "streams"),
        "TOO_MANY_STREAMS",
        {"unit": "tenant_streams", "limit": "3", "used": "3"},
        ("QuotaFailure", "RetryInfo"),
    ),
    "too much held": Expected(
        TooMuchHeld("a request", 10, 9, 2),
        "TOO_MUCH_HELD",
        {"unit": "tenant_held_bytes", "limit": "10", "used": "9", "asked": "2"},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a request too large": Expected(
        RequestTooLarge(5_000_000), "REQUEST_TOO_LARGE", {"limit": str(MAX_REQUEST), "asked": "5000000"}
    ),
    "not found": Expected(NotFound("run", "run_1"), "NOT_FOUND", details=("ResourceInfo",)),
    "a context that is gone": Expected(ContextUnknown("ctx_1"), "NOT_FOUND", details=("ResourceInfo",)),
    "a field": Expected(InvalidField("a.b", "no"), "INVALID_FIELD", {"field": "a.b"}, ("BadRequest",)),
    "an upload's field": Expected(UploadRefused("a.b", "no"), "INVALID_FIELD", {"field": "a.b"}, ("BadRequest",)),
    "a model": Expected(
        InvalidField("model", "no", ErrorReason.ERROR_REASON_UNKNOWN_MODEL),
        "UNKNOWN_MODEL",
        {"field": "model"},
        ("BadRequest",),
    ),
    "an upload taken": Expected(UploadBusy("no"), "UPLOAD_BUSY", details=("RetryInfo",)),
    "an upload stalled": Expected(UploadStalled("no"), "UPLOAD_STALLED", details=("RetryInfo",)),
    "a quota": Expected(ContextQuotaExceeded("tokens", 10, 9, 2), "CONTEXT_QUOTA_EXCEEDED", LIMIT, ("QuotaFailure",)),
    "a damaged context": Expected(ContextDamaged("ctx_1", "cut"), "CONTEXT_DAMAGED", {"context_id": "ctx_1"}),
    "no object store": Expected(ObjectStoreUnavailable("no"), "OBJECT_STORE_UNAVAILABLE", details=("RetryInfo",)),
    "a budget": Expected(
        BudgetExceeded("run_1", "tokens", 10, 9, 2), "BUDGET_EXCEEDED", {"account": "run_1", **LIMIT}, ("QuotaFailure",)
    ),
    "a budget that is taken": Expected(
        BudgetBusy("run_1", "tokens", 10, 9, 2), "BUDGET_EXCEEDED", {"account": "run_1", **LIMIT}, ("QuotaFailure",)
    ),
    "a window": Expected(
        BudgetExceeded(window(Span.DAY, AT), "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "ann", "window": "day", "window_end": "2025-11-27T00:00:00Z", **LIMIT},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a window that is over": Expected(
        BudgetExceeded(window(Span.HOUR, AT - 1), "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "ann", "window": "hour", **LIMIT},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a limit on a model": Expected(
        BudgetExceeded(windows.account_of("customer:acme:ann", Scope(None, "opus-*"), AT), "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "ann", "model": "opus-*", **LIMIT},
        ("QuotaFailure",),
    ),
    "a window of a model": Expected(
        BudgetExceeded(windows.account_of("customer:acme:ann", Scope(Span.DAY, "a:b#c"), AT), "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "ann", "model": "a:b#c", "window": "day", "window_end": "2025-11-27T00:00:00Z", **LIMIT},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a customer's budget": Expected(
        BudgetExceeded("customer:acme:ann", "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "ann", **LIMIT},
        ("QuotaFailure",),
    ),
    "a customer's window": Expected(
        BudgetExceeded(windows.account_of("customer:acme:bob", Scope(Span.MINUTE), AT), "tokens", 10, 9, 2),
        "BUDGET_EXCEEDED",
        {"account": "bob", "window": "minute", "window_end": "2025-11-26T07:01:00Z", **LIMIT},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a closed account": Expected(AccountClosed("customer:acme:ann"), "ACCOUNT_CLOSED", {"account": "ann"}),
    "an account that exists": Expected(AccountExists("ann", closed=True), "ACCOUNT_EXISTS", details=("ResourceInfo",)),
    "an account that does not": Expected(AccountUnknown("customer:acme:ann"), "NOT_FOUND", details=("ResourceInfo",)),
    "too many accounts": Expected(
        TooManyAccounts(10, 10),
        "TOO_MANY_ACCOUNTS",
        {"unit": "tenant_accounts", "limit": "10", "used": "10"},
        ("QuotaFailure",),
    ),
    "a session that ended": Expected(
        SessionEnded("ses_1", End(EndReason.IDLE_TIME, "it was idle", 1_764_230_415_678)),
        "SESSION_ENDED",
        metadata={"session_id": "ses_1", "end_reason": "IDLE_TIME", "end_time": "2025-11-27T08:00:15Z"},
    ),
    "a turn that is not there": Expected(TurnUnknown("turn_1"), "NOT_FOUND", details=("ResourceInfo",)),
    "a forgotten result": Expected(ResultForgotten(), "RESULT_FORGOTTEN"),
    "too many sessions": Expected(TooManySessions("no"), "TOO_MANY_SESSIONS", details=("QuotaFailure",)),
    "a stored session": Expected(SnapshotRefused("no"), "SNAPSHOT_REFUSED"),
    "a full pool": Expected(PoolFull("no"), "SERVER_FULL", details=("RetryInfo",)),
    "too many waiting turns": Expected(TooManyTurns("no"), "SERVER_FULL", details=("RetryInfo",)),
    "too large stored sessions": Expected(OwnerFull("no"), "TOO_MANY_SESSIONS", details=("QuotaFailure",)),
    "too many runs": Expected(
        TooManyRuns(10),
        "TOO_MANY_RUNS",
        {"unit": "tenant_waiting_runs", "limit": "10"},
        ("QuotaFailure", "RetryInfo"),
    ),
    "a quota of runs": Expected(
        RunQuotaExceeded(10, 12),
        "RUN_QUOTA_EXCEEDED",
        {"unit": "tenant_kept_bytes", "limit": "10", "used": "12"},
        ("QuotaFailure",),
    ),
    "a run that goes on": Expected(RunNotEnded("run_1"), "RUN_NOT_ENDED"),
    "a run of which nothing is kept": Expected(RunNotContinuable("run_1"), "RUN_NOT_CONTINUABLE", {"run_id": "run_1"}),
    "an answer that is redacted": Expected(ContentsRedacted("node_1"), "CONTENTS_REDACTED", {"node": "node_1"}),
    "a slow watcher": Expected(WatcherTooSlow(60, 7), "WATCHER_TOO_SLOW", {"from_sequence": "7"}),
    "a server that starts": Expected(ServerStarting(), "SERVER_STARTING", details=("RetryInfo",)),
    "a server that stops": Expected(ServerStopping(), "SERVER_STOPPING", details=("RetryInfo",)),
    "a stream whose server stops": Expected(
        ServerStopping(7), "SERVER_STOPPING", {"from_sequence": "7"}, details=("RetryInfo",)
    ),
    "no jail": Expected(JailMissing("no"), "JAIL_MISSING"),
    "a lost worker": Expected(WorkerLost("no"), "WORKER_LOST"),
    "a full database": Expected(DatabaseFullError("no"), "DISK_FULL", details=("RetryInfo",)),
    **{
        kind.__name__: Expected(kind("no"), "DATABASE_UNAVAILABLE", details=("RetryInfo",))
        for kind in (DatabaseLostError, DatabaseBusyError, DatabaseClosedError)
    },
    "a full disk": Expected(OSError(errno.ENOSPC, "no"), "DISK_FULL", details=("RetryInfo",)),
    "a disk quota": Expected(OSError(errno.EDQUOT, "no"), "DISK_FULL", details=("RetryInfo",)),
    "a text that does not fit": Expected(MemoryError("no"), "CONTEXT_TOO_LARGE"),
    "a search that takes too long": Expected(SearchTooLong(), "SEARCH_TOO_LONG"),
    "a fault": Expected(RuntimeError("no"), "INTERNAL"),
}


@pytest.fixture(autouse=True)
def at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "now", lambda: AT)


def detail(status: status_pb2.Status, kind: type[Detail]) -> Detail:
    """The one detail of a kind."""
    found = kind()
    (packed,) = [one for one in status.details if one.Is(kind.DESCRIPTOR)]
    assert packed.Unpack(found)
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_error_becomes_its_status(case: str) -> None:
    expected = CASES[case]
    status = status_of(expected.error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (expected.reason, "rlm-server", expected.metadata)
    value = ErrorReason.DESCRIPTOR.values_by_name[f"ERROR_REASON_{expected.reason}"]
    name = value.GetOptions().Extensions[errors_pb2.status_code]
    assert status.code == grpc.StatusCode[name].value[0]
    names = [one.TypeName() for one in status.details]
    assert names == [f"google.rpc.{one}" for one in ("ErrorInfo", *expected.details)]


def test_every_reason_is_that_of_an_error() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name, number in ErrorReason.items() if number}
    assert {expected.reason for expected in CASES.values()} == reasons


# ---- what each says -----------------------------------------------------------------------------------------------


def test_a_wrong_field_is_named_in_the_message_and_apart_from_it() -> None:
    status = status_of(InvalidField("limits.max_turns", "must be from 0 to 30, not 31"))
    assert status.message == "limits.max_turns: must be from 0 to 30, not 31"
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("limits.max_turns", "must be from 0 to 30, not 31")


def test_all_wrong_fields_are_named_and_the_first_is_the_message() -> None:
    more = [Violation("b", "no b", ErrorReason.ERROR_REASON_UNKNOWN_MODEL), Violation("c", "no c")]
    status = status_of(InvalidField("a", "no a", more=more))
    assert status.message == "a: no a; and 2 more: b, c"
    found = detail(status, error_details_pb2.BadRequest).field_violations
    assert [(one.field, one.description) for one in found] == [("a", "no a"), ("b", "no b"), ("c", "no c")]
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("INVALID_FIELD", {"field": "a", "violation_count": "3"})


def test_more_wrong_fields_than_fit_are_counted() -> None:
    more = [Violation(f"documents[{number}]", "must be from 0 to 2, not 3") for number in range(1, 1_000)]
    status = status_of(InvalidField("documents[0]", "must be from 0 to 2, not 3", more=more))
    found = detail(status, error_details_pb2.BadRequest).field_violations
    assert 30 < len(found) < 1_000
    assert [one.field for one in found] == [f"documents[{number}]" for number in range(len(found))]
    assert detail(status, error_details_pb2.ErrorInfo).metadata["violation_count"] == "1000"
    assert trailers(status) < HEADERS


def test_what_is_not_found_is_named() -> None:
    status = status_of(NotFound("run", "run_1"))
    resource = detail(status, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("run", "run_1")
    assert status.message == "there is no run 'run_1'"


def test_a_quota_says_of_what_it_is() -> None:
    (violation,) = detail(status_of(TooManySessions("at most 3")), error_details_pb2.QuotaFailure).violations
    assert (violation.subject, violation.description) == ("sessions", "at most 3")


@pytest.mark.parametrize(
    ("span", "end", "seconds"),
    [
        (Span.HOUR, "2025-11-26T08:00:00Z", 3_600),
        (Span.DAY, "2025-11-27T00:00:00Z", 17 * 3_600),
        (Span.MONTH, "2025-12-01T00:00:00Z", (4 * 24 + 17) * 3_600),
    ],
)
def test_a_full_window_says_when_it_ends(span: Span, end: str, seconds: int) -> None:
    status = status_of(BudgetExceeded(window(span, AT), "calls", 1, 1, 1))
    assert status.message.endswith(f"This {span} ends at {end}")
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == seconds


def test_a_wait_is_rounded_up_to_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "now", lambda: AT + 3_600_000 - 1)
    status = status_of(BudgetExceeded(window(Span.HOUR, AT), "calls", 1, 1, 1))
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_a_window_that_is_over_asks_for_no_wait() -> None:
    status = status_of(BudgetExceeded(window(Span.DAY, AT - 24 * 3_600_000), "calls", 1, 1, 1))
    assert status.message.endswith("This day is over")
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("/srv/secret"),
        KeyError("/srv/secret"),
        OSError(errno.EACCES, "no", "/srv/secret"),
        OSError(errno.ENOSPC, "no", "/srv/secret"),
        DatabaseError("postgresql://secret"),
        DatabaseFullError("/srv/secret"),
        DatabaseLostError("postgresql://secret"),
        HoldUnknown("secret"),
        AssertionError("secret"),
    ],
    ids=repr,
)
def test_an_error_that_is_the_servers_own_is_not_shown(error: Exception) -> None:
    assert b"secret" not in status_of(error).SerializeToString()


# ---- its size -----------------------------------------------------------------------------------------------------


def trailers(status: status_pb2.Status) -> int:
    """Bytes of headers a status becomes, as gRPC writes them and HTTP/2 counts them."""
    printable = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    headers = {
        "grpc-status": str(status.code),
        "grpc-message": quote(status.message, safe=printable),
        "grpc-status-details-bin": base64.b64encode(status.SerializeToString()).decode(),
        "content-type": "application/grpc",
    }
    return sum(len(name) + len(value) + HEADER for name, value in headers.items())


MAKERS: dict[str, Callable[[str], Exception]] = {
    "no key": Unauthenticated,
    "not found": lambda text: NotFound("account", text),
    "a field": lambda text: InvalidField(text, text),
    "many fields": lambda text: InvalidField(text, text, more=[Violation(text, text)] * 100),
    "an upload's field": lambda text: UploadRefused(text, text),
    "a busy upload": UploadBusy,
    "a quota": lambda text: ContextQuotaExceeded(text, 1, 1, 1),
    "a budget": lambda text: BudgetExceeded(text, text, 1 << 62, 1 << 62, 1 << 62),
    "a window": lambda text: BudgetExceeded(window(Span.MONTH, AT) + text, text, 1 << 62, 1 << 62, 1 << 62),
    "a context that is gone": ContextUnknown,
    "a damaged context": lambda text: ContextDamaged(text, text),
    "too many sessions": TooManySessions,
    "a full pool": PoolFull,
    "a text that does not fit": MemoryError,
    "a fault": RuntimeError,
}
TEXTS = ("x", "%", "\n", "\x00", "é", "語", "🎉", "\ud800")
long_texts = st.builds(lambda text, times: text * times, st.text(), st.integers(1, 20_000))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
@pytest.mark.parametrize("case", MAKERS)
def test_no_text_makes_the_trailers_longer_than_a_client_takes(case: str, text: str) -> None:
    assert trailers(status_of(MAKERS[case](text * 100_000))) < HEADERS


@given(st.sampled_from(sorted(MAKERS)), long_texts)
def test_whatever_an_error_says_its_trailers_are_bounded(case: str, text: str) -> None:
    assert trailers(status_of(MAKERS[case](text))) < HEADERS


def test_what_is_cut_says_so_and_what_fits_is_whole() -> None:
    fits = "é" * (MAX_TEXT // 2)
    assert status_of(MemoryError(fits)).message == fits
    assert status_of(MemoryError(fits + "é")).message == "é" * ((MAX_TEXT - 3) // 2) + "…"
    assert len(status_of(MemoryError("語" * MAX_TEXT)).message.encode()) <= MAX_TEXT


def test_half_a_surrogate_pair_is_shown_as_a_question_mark() -> None:
    assert status_of(MemoryError("a\ud800b")).message == "a?b"


# ---- on the wire --------------------------------------------------------------------------------------------------

Raising = Callable[[Exception], Any]


@pytest.fixture
async def raising() -> AsyncIterator[Raising]:
    """A call whose handler raises the error that is given, through a server and a client as they come."""
    to_raise: list[Exception] = []

    async def handle(request: bytes, context: Any) -> bytes:
        await context.abort_with_status(errors.refusal(to_raise.pop()))
        raise AssertionError("it was aborted")

    handler: Any = grpc.unary_unary_rpc_method_handler(handle)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Raising", {"Raise": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/test.Raising/Raise")

        async def said(error: Exception) -> Refusal:
            to_raise.append(error)
            return await refusal(call(b""))

        yield said
    await server.stop(None)


@pytest.mark.parametrize("text", [text for text in TEXTS if text != "\ud800"], ids=ascii)
async def test_a_client_as_it_comes_reads_every_error_however_long(text: str, raising: Raising) -> None:
    for make in MAKERS.values():
        error = make(text * 100_000)
        status = status_of(error)
        said = await raising(error)
        assert said.code.value[0] == status.code
        assert (said.message, said.reason) == (status.message, detail(status, error_details_pb2.ErrorInfo).reason)


async def test_a_model_misspelt_among_many_is_an_invalid_argument(raising: Raising) -> None:
    models = [f"provider-{number}/a-model-with-a-long-name-{number}" for number in range(150)]
    with pytest.raises(InvalidField) as caught:
        requests.check_offered(routes(*models), "model", "a-modle")
    said = await raising(caught.value)
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODEL")
    assert said.fields == ["model"]
    assert said.message.startswith("model: there is no model 'a-modle'; the models are: provider-0/")
    assert said.message.endswith("…")
