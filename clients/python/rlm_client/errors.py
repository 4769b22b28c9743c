"""Every error a call can end with, and the one place that makes them from a gRPC status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from rlm.v1 import run_pb2
from rlm.v1.errors_pb2 import ErrorReason

_REASONS = {name.removeprefix("ERROR_REASON_"): reason for name, reason in ErrorReason.items()}
"""The reasons that the protocol knows, by the names they are sent under."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing the server refused: a request's field, or the subject of a quota; and why."""

    subject: str
    description: str


class RlmError(Exception):
    """A call that failed. Its text is the server's message.

    `reason` is the server's name for the cause (`ErrorInfo.reason`; empty where it gave none) and `metadata` its
    particulars, such as the limit. `violations` lists refused fields or quotas. `retry_seconds` is how long the server
    asks to wait before a repeat, or None. docs/errors.md says of every reason what it means and what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_seconds = retry_seconds

    @property
    def error_reason(self) -> ErrorReason.ValueType:
        """`reason` as a value of the protocol's enum; UNSPECIFIED for one that this client does not know."""
        return _REASONS.get(self.reason, ErrorReason.ERROR_REASON_UNSPECIFIED)


class Unauthenticated(RlmError):
    """There is no key, or the server does not know it."""


class NoKey(Unauthenticated):
    """No key was given, and none was found; nothing was sent."""


class PermissionDenied(RlmError):
    """The key is known, and may not do this."""


class NotFound(RlmError):
    """There is no such thing, or it is another tenant's."""


class AlreadyExists(RlmError):
    """The request id was used for a different request, or the name is taken."""


class InvalidArgument(RlmError):
    """The request is wrong in itself; `violations` names the fields."""


class FailedPrecondition(RlmError):
    """The request is right, and not possible in the present state."""


class ResourceExhausted(RlmError):
    """A limit or a quota was hit; `violations` names it where the server says more."""


class BudgetRefused(ResourceExhausted):
    """The spending asked for does not fit a budget; `metadata` names the account, its limit and what of it is used."""


class Unavailable(RlmError):
    """The server cannot be reached, or is draining; a repeat may succeed."""


class DeadlineExceeded(RlmError):
    """The call took longer than it was given."""


class Cancelled(RlmError):
    """The call was cancelled."""


class Aborted(RlmError):
    """The call lost against another at the same time; a repeat may succeed."""


class ServerFault(RlmError):
    """The server failed in a way that is not the caller's doing, or does not offer this call."""


class PlaintextRefused(RlmError):
    """The key would have gone over the network unencrypted; nothing was sent."""


class RunFailed(RlmError):
    """A run ended without an answer: it failed or was cancelled. `run` is its last state."""

    def __init__(self, run: run_pb2.Run) -> None:
        state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
        super().__init__(f"run {run.run_id} {state}: {run.end_message or 'no reason given'}", reason=run.end_message)
        self.run = run


_BY_CODE: dict[grpc.StatusCode, type[RlmError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.ABORTED: Aborted,
}
_BY_REASON: dict[ErrorReason.ValueType | None, type[RlmError]] = {
    ErrorReason.ERROR_REASON_BUDGET_EXCEEDED: BudgetRefused,
}
"""Errors with a type of their own, whatever their code."""


def from_call(call: grpc.RpcError) -> RlmError:
    """Make the typed error of a failed call, from its status code and the details the server sent along."""
    status = _status(call)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    request, quota = error_details_pb2.BadRequest(), error_details_pb2.QuotaFailure()
    has_retry = False
    for detail in status.details:
        known: tuple[Message, ...] = (info, retry, request, quota)
        for message in known:
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
                has_retry = has_retry or message is retry
    error = _BY_REASON.get(_REASONS.get(info.reason)) or _BY_CODE.get(call.code(), ServerFault)
    return error(
        status.message or f"the server answered {call.code().name}",
        reason=info.reason,
        metadata=info.metadata,
        violations=(
            *(Violation(one.field, one.description) for one in request.field_violations),
            *(Violation(one.subject, one.description) for one in quota.violations),
        ),
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
    )


def _status(call: grpc.RpcError) -> status_pb2.Status:
    bare = status_pb2.Status(message=call.details() or "")
    if not isinstance(call, grpc.Call):
        return bare
    try:
        return rpc_status.from_call(call) or bare
    except ValueError:  # The details contradict the status they came with: the status counts.
        return bare


@contextmanager
def typed() -> Iterator[None]:
    """Turn the gRPC error of a call made inside into its RlmError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(error) from None
