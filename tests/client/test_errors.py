"""A refusal arrives as an error of its own type, with all the server said."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from rlm_client import (
    AlreadyExists,
    BudgetRefused,
    Client,
    DeadlineExceeded,
    ErrorReason,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RlmError,
    ServerFault,
    Unauthenticated,
    Violation,
)

from tests.client.fake_contexts import refusal
from tests.client.fake_server import FakeServer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExists),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidArgument),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, ServerFault),
        (grpc.StatusCode.UNIMPLEMENTED, ServerFault),
    ],
)
def test_a_status_is_an_error_type(
    code: grpc.StatusCode, kind: type[RlmError], client: Client, fake: FakeServer
) -> None:
    fake.refusals["GetRun"].append(refusal(code, "what was wrong"))
    with pytest.raises(RlmError, match="what was wrong") as caught:
        client.get_run("run-1")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ("NOT_FOUND", ErrorReason.ERROR_REASON_NOT_FOUND),
        ("OF_A_NEWER_SERVER", ErrorReason.ERROR_REASON_UNSPECIFIED),
        ("", ErrorReason.ERROR_REASON_UNSPECIFIED),
    ],
    ids=["known", "newer", "none"],
)
def test_reason_and_metadata_are_the_servers(
    sent: str, known: ErrorReason.ValueType, client: Client, fake: FakeServer
) -> None:
    info = error_details_pb2.ErrorInfo(reason=sent, domain="rlm-server", metadata={"run_id": "run-9"})
    fake.refusals["GetRun"].append(refusal(grpc.StatusCode.NOT_FOUND, "no such run", info))
    with pytest.raises(NotFound) as caught:
        client.get_run("run-9")
    assert (caught.value.reason, caught.value.error_reason) == (sent, known)
    assert caught.value.metadata == {"run_id": "run-9"}


def test_every_reason_of_the_protocol_is_known() -> None:
    for name, reason in ErrorReason.items():
        assert RlmError("", reason=name.removeprefix("ERROR_REASON_")).error_reason == reason


def test_an_invalid_argument_names_the_fields(client: Client, fake: FakeServer) -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="limits.max_turn_count", description="at most 100")
    fake.refusals["CreateRun"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "refused", request))
    with pytest.raises(InvalidArgument) as caught:
        client.create_run("?")
    assert caught.value.violations == (Violation("limits.max_turn_count", "at most 100"),)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_refused_budget_is_known_by_its_reason(code: grpc.StatusCode, client: Client, fake: FakeServer) -> None:
    info = error_details_pb2.ErrorInfo(reason="BUDGET_EXCEEDED", metadata={"limit": "$1.00"})
    fake.refusals["CreateRun"].append(refusal(code, "no room", info))
    with pytest.raises(BudgetRefused) as caught:
        client.create_run("?")
    assert caught.value.metadata == {"limit": "$1.00"}


def test_a_quota_says_what_it_is_of_and_when_to_come_back(client: Client, fake: FakeServer) -> None:
    quota = error_details_pb2.QuotaFailure()
    quota.violations.add(subject="sessions", description="at most 10")
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=3))
    fake.refusals["CreateSession"].append(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", quota, retry))
    with pytest.raises(ResourceExhausted) as caught:
        client.create_session()
    assert caught.value.violations == (Violation("sessions", "at most 10"),)
    assert caught.value.retry_seconds == 3


def test_streams_raise_the_same_errors(client: Client, fake: FakeServer) -> None:
    for call in ("WatchRun", "Execute", "UploadContext"):
        fake.refusals[call].append(refusal(grpc.StatusCode.NOT_FOUND, call))
    with pytest.raises(NotFound, match="WatchRun"):
        list(client.watch_run("run-9"))
    with pytest.raises(NotFound, match="Execute"):
        list(client.execute("session-9", "1"))
    with pytest.raises(NotFound, match="UploadContext"):
        client.upload("text")


def test_all_fields_that_are_wrong_are_told(client: Client, fake: FakeServer) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="question", description="must not be empty")
    bad.field_violations.add(field="model", description="is not offered")
    message = "question: must not be empty; and 1 more: model"
    fake.refusals["Complete"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, message, bad))
    with pytest.raises(InvalidArgument, match="and 1 more: model") as caught:
        client.complete("", "text")
    assert caught.value.violations == (
        Violation("question", "must not be empty"),
        Violation("model", "is not offered"),
    )
