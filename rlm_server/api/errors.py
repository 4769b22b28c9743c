"""The one place where what went wrong becomes a gRPC status. Nothing internal leaks."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from rlm.v1 import errors_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.api.admission import RequestTooLarge, TooManyCalls, TooManyStreams
from rlm_server.api.availability import ServerStarting, ServerStopping
from rlm_server.clock import now
from rlm_server.contexts.context_table import ContextUnknown
from rlm_server.contexts.contexts import ContextDamaged
from rlm_server.contexts.object_store import ObjectStoreUnavailable
from rlm_server.contexts.search import SearchTooLong
from rlm_server.contexts.spool import UploadRefused
from rlm_server.contexts.upload_table import ContextQuotaExceeded
from rlm_server.contexts.uploads import UploadBusy, UploadStalled
from rlm_server.database.engine import DatabaseBusyError, DatabaseClosedError, DatabaseFullError, DatabaseLostError
from rlm_server.database.requests import RequestIdReused
from rlm_server.ledger import (
    AccountClosed,
    AccountExists,
    AccountUnknown,
    BudgetError,
    TooManyAccounts,
    names,
    windows,
)
from rlm_server.repl.bounds import cut
from rlm_server.runs.event_log import WatchBroken
from rlm_server.runs.redaction import ContentsRedacted
from rlm_server.runs.supervisor import RunNotContinuable, RunNotEnded, RunQuotaExceeded, TooManyRuns
from rlm_server.sessions.results import ResultForgotten
from rlm_server.sessions.sessions import TooManySessions
from rlm_server.sessions.snapshot_table import TooManySnapshots
from rlm_server.sessions.state import SessionEnded
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
from sandbox.pool.snapshots import StoreFull
from sandbox.pool.worker_session import SessionClosed, TooManyTurns

log = logging.getLogger(__name__)

DOMAIN = "rlm-server"
MAX_TEXT = 1_000
"""Bytes of UTF-8 of a status's message, and of the description of a field or a quota.

A status travels twice: its message as a header, each byte of which may become three, and all of it in base64. With
these bounds both stay below the 8 KiB of headers that every client takes.
"""
MAX_VALUE = 200
"""Bytes of UTF-8 of a value of the metadata, of a field's path, and of the name of a resource or a quota."""
MAX_VIOLATIONS = 2_000
"""Bytes of UTF-8 of all violations of one request, where there are several. Those that do not fit are counted alone."""
_AROUND = 8
"""Bytes around a violation in its message."""

STARTING_RETRY_SECONDS, STOPPING_RETRY_SECONDS = 2, 5
"""When to try again with a server that starts, or that stops."""


class Unauthenticated(Exception):
    """The call carries no valid key."""


class WrongKindOfKey(Exception):
    """The key is valid, and for other services than the one that is called."""

    def __init__(self, *, operators: bool) -> None:
        super().__init__(
            "this service is for operators alone, and the key is a tenant's"
            if operators
            else "an operator's key is for TenantService alone: call this service with a tenant's key"
        )
        self.kind = "operator" if operators else "tenant"


class KeyBound(Exception):
    """The key is for one customer's account and those under it, and another was named, or that one is to change."""

    def __init__(self, account: str, refused: str = "names no other") -> None:
        super().__init__(f"this key is for account {account!r} and those under it, and {refused}")
        self.account = account


class MalformedRequest(Exception):
    """A request, or a message of its stream, is not what the method takes."""

    def __init__(self) -> None:
        super().__init__("the request cannot be decoded as the message that this method takes")


class NotFound(Exception):
    """There is no such thing for this tenant."""

    def __init__(self, kind: str, name: str, field: str = "", hint: str = "") -> None:
        where, more = f"{field}: " if field else "", f"; {hint}" if hint else ""
        super().__init__(f"{where}there is no {kind} {name[:200]!r}{more}")
        self.kind = kind
        self.name = name


class WatcherTooSlow(Exception):
    """The events of a run are taken too slowly; the message says where to resume."""

    def __init__(self, seconds: float, from_sequence: int) -> None:
        super().__init__(
            f"an event was not taken within {seconds:g} s, and the stream has ended; the run goes on: watch it again "
            f"from {from_sequence}"
        )
        self.from_sequence = from_sequence


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a request that is wrong, and what it may be."""

    field: str
    message: str
    reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_INVALID_FIELD


class InvalidField(ValueError):
    """A field of a request is wrong; the message says what it may be. `violations` has it, and `more` that are."""

    def __init__(
        self,
        field: str,
        message: str,
        reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_INVALID_FIELD,
        more: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason
        self.violations = (Violation(field, message, reason), *more)


def status_of(error: Exception) -> status_pb2.Status:
    """Make the status for an error: always an `ErrorInfo`, and more where more is known."""
    text = str(error)
    match error:
        case Unauthenticated():
            return _status(ErrorReason.ERROR_REASON_UNAUTHENTICATED, text)
        case KeyLapsed():
            return _status(ErrorReason.ERROR_REASON_UNAUTHENTICATED, text)
        case WrongKindOfKey():
            return _status(ErrorReason.ERROR_REASON_WRONG_KIND_OF_KEY, text, metadata={"key_kind": error.kind})
        case KeyBound():
            return _status(ErrorReason.ERROR_REASON_KEY_BOUND, text, metadata={"account": error.account})
        case RequestIdReused():
            reason = ErrorReason.ERROR_REASON_REQUEST_ID_REUSED
            return _status(reason, text, metadata={"request_id": error.request_id})
        case TenantUnknown():
            return status_of(NotFound("tenant", error.tenant))
        case KeyUnknown():
            return status_of(NotFound("key", error.key))
        case TenantExists():
            return _status(ErrorReason.ERROR_REASON_TENANT_EXISTS, text, resource=("tenant", error.tenant))
        case TenantInUse():
            counts = {what: str(number) for what, number in error.counts.items()}
            return _status(ErrorReason.ERROR_REASON_TENANT_IN_USE, text, metadata=counts)
        case MalformedRequest():
            return _status(ErrorReason.ERROR_REASON_MALFORMED_REQUEST, text)
        case RequestTooLarge():
            sizes = {"limit": str(error.limit), "asked": str(error.asked)}
            return _status(ErrorReason.ERROR_REASON_REQUEST_TOO_LARGE, text, metadata=sizes)
        case TooManyCalls() | SessionLineFull():
            return _too_many(error)
        case TooMuchHeld():
            reason, unit = ErrorReason.ERROR_REASON_TOO_MUCH_HELD, "tenant_held_bytes"
            return _status(reason, text, quota=unit, retry_seconds=1, metadata=_limit_hit(error) | {"unit": unit})
        case NotFound():
            return _status(ErrorReason.ERROR_REASON_NOT_FOUND, text, resource=(error.kind, error.name))
        case InvalidField():
            return _invalid_fields(error.violations)
        case UploadRefused():
            return _invalid_fields([Violation(error.field, text)])
        case SearchTooLong():
            return _status(ErrorReason.ERROR_REASON_SEARCH_TOO_LONG, text)
        case UploadBusy():
            return _status(ErrorReason.ERROR_REASON_UPLOAD_BUSY, text, retry_seconds=1)
        case UploadStalled():
            return _status(ErrorReason.ERROR_REASON_UPLOAD_STALLED, text, retry_seconds=1)
        case ContextQuotaExceeded():
            reason = ErrorReason.ERROR_REASON_CONTEXT_QUOTA_EXCEEDED
            return _status(reason, text, quota=error.unit, metadata=_limit_hit(error))
        case ContextUnknown():
            return status_of(NotFound("context", error.context))
        case ContextDamaged():
            return _status(ErrorReason.ERROR_REASON_CONTEXT_DAMAGED, text, metadata={"context_id": error.context})
        case ObjectStoreUnavailable():
            return _status(ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE, text, retry_seconds=1)
        case AccountExists():
            return _status(ErrorReason.ERROR_REASON_ACCOUNT_EXISTS, text, resource=("account", error.account))
        case AccountClosed():
            account = names.public(error.account)
            return _status(ErrorReason.ERROR_REASON_ACCOUNT_CLOSED, text, metadata={"account": account})
        case AccountUnknown():
            return status_of(NotFound("account", names.public(error.account)))
        case TooManyAccounts():
            hit = {"unit": "tenant_accounts", "limit": str(error.limit), "used": str(error.used)}
            return _status(ErrorReason.ERROR_REASON_TOO_MANY_ACCOUNTS, text, quota=hit["unit"], metadata=hit)
        case BudgetError():
            return _budget_exceeded(error)
        case SessionEnded():
            metadata = {
                "session_id": error.session,
                "end_reason": error.end.reason.name,
                "end_time": _rfc3339(error.end.at),
            }
            return _status(ErrorReason.ERROR_REASON_SESSION_ENDED, text, metadata=metadata)
        case SessionClosed():
            return _status(ErrorReason.ERROR_REASON_SESSION_ENDED, text)
        case TurnUnknown():
            return status_of(NotFound("turn", error.turn, hint=text))
        case ResultForgotten():
            return _status(ErrorReason.ERROR_REASON_RESULT_FORGOTTEN, text)
        case TooManySessions():
            return _status(ErrorReason.ERROR_REASON_TOO_MANY_SESSIONS, text, quota="sessions")
        case SnapshotRefused():
            return _status(ErrorReason.ERROR_REASON_SNAPSHOT_REFUSED, text)
        case TooManySnapshots():
            return _status(ErrorReason.ERROR_REASON_TOO_MANY_SESSIONS, text, quota="snapshots")
        case OwnerFull() | StoreFull():
            return _status(ErrorReason.ERROR_REASON_TOO_MANY_SESSIONS, text, quota="stored_bytes")
        case TooManyRuns():
            hit = {"unit": "tenant_waiting_runs", "limit": str(error.limit)}
            return _status(
                ErrorReason.ERROR_REASON_TOO_MANY_RUNS, text, quota=hit["unit"], retry_seconds=1, metadata=hit
            )
        case RunQuotaExceeded():
            hit = {"unit": "tenant_kept_bytes", "limit": str(error.limit), "used": str(error.used)}
            return _status(ErrorReason.ERROR_REASON_RUN_QUOTA_EXCEEDED, text, quota=hit["unit"], metadata=hit)
        case CallUnknown():
            return status_of(NotFound("call", error.call))
        case CallEnded():
            return _status(ErrorReason.ERROR_REASON_TOOL_CALL_ENDED, text, metadata={"call_id": error.call})
        case CallAnswered():
            return _status(ErrorReason.ERROR_REASON_TOOL_CALL_ANSWERED, text, metadata={"call_id": error.call})
        case RunNotContinuable():
            return _status(ErrorReason.ERROR_REASON_RUN_NOT_CONTINUABLE, text, metadata={"run_id": error.run})
        case RunNotEnded():
            return _status(ErrorReason.ERROR_REASON_RUN_NOT_ENDED, text)
        case ContentsRedacted():
            return _status(ErrorReason.ERROR_REASON_CONTENTS_REDACTED, text, metadata={"node": error.node})
        case WatcherTooSlow():
            return _status(
                ErrorReason.ERROR_REASON_WATCHER_TOO_SLOW, text, metadata={"from_sequence": str(error.from_sequence)}
            )
        case PoolFull() | TooManyTurns() | TooManyChecks():
            return _status(ErrorReason.ERROR_REASON_SERVER_FULL, text, retry_seconds=1)
        case ServerStarting():
            return _status(ErrorReason.ERROR_REASON_SERVER_STARTING, text, retry_seconds=STARTING_RETRY_SECONDS)
        case ServerStopping():
            where = {} if error.from_sequence is None else {"from_sequence": str(error.from_sequence)}
            reason = ErrorReason.ERROR_REASON_SERVER_STOPPING
            return _status(reason, text, retry_seconds=STOPPING_RETRY_SECONDS, metadata=where)
        case JailMissing():
            return _status(ErrorReason.ERROR_REASON_JAIL_MISSING, text)
        case WorkerLost():
            return _status(ErrorReason.ERROR_REASON_WORKER_LOST, text)
        case DatabaseFullError() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _status(ErrorReason.ERROR_REASON_DISK_FULL, "the server's disk is full", retry_seconds=1)
        case WatchBroken():
            return _status(ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, text, retry_seconds=1)
        case DatabaseLostError() | DatabaseBusyError() | DatabaseClosedError():
            reason = ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
            return _status(reason, "the server cannot reach its database", retry_seconds=1)
        case MemoryError():
            return _status(ErrorReason.ERROR_REASON_CONTEXT_TOO_LARGE, text)
        case _:
            return _status(ErrorReason.ERROR_REASON_INTERNAL, "an internal error of the server; it has been logged")


def _budget_exceeded(error: BudgetError) -> status_pb2.Status:
    """Make the status of a refused budget. A window's says when it ends, because then there is room again."""
    reason = ErrorReason.ERROR_REASON_BUDGET_EXCEEDED
    window, at = windows.parts(error.account), now()
    metadata = {"account": names.public(window.account if window else error.account)} | _limit_hit(error)
    if window is not None and window.scope.model:
        metadata["model"] = window.scope.model
    if window is None or window.scope.span is None:
        return _status(reason, str(error), quota=error.unit, metadata=metadata)
    span = window.scope.span
    metadata["window"] = str(span)
    # It may have ended since the refusal; the window around now is then the next one, and there is no need to wait.
    if window.label != windows.label(span, at):
        text = f"{error}. This {span} is over"
        return _status(reason, text, quota=error.unit, retry_seconds=1, metadata=metadata)
    _, end = windows.bounds(span, at)
    window_end = _rfc3339(end)
    text = f"{error}. This {span} ends at {window_end}"
    wait = math.ceil((end - at) / 1000)
    return _status(reason, text, quota=error.unit, retry_seconds=wait, metadata=metadata | {"window_end": window_end})


def _rfc3339(at: int) -> str:
    """Write a time in Unix milliseconds, to seconds."""
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _too_many(error: TooManyCalls | SessionLineFull) -> status_pb2.Status:
    reason = (
        ErrorReason.ERROR_REASON_TOO_MANY_STREAMS
        if isinstance(error, TooManyStreams)
        else ErrorReason.ERROR_REASON_TOO_MANY_REQUESTS
    )
    counts = {"unit": error.unit, "limit": str(error.limit), "used": str(error.used)}
    return _status(reason, str(error), quota=error.unit, retry_seconds=1, metadata=counts)


def _limit_hit(error: BudgetError | ContextQuotaExceeded | TooMuchHeld) -> dict[str, str]:
    """Return what was asked of which limit, and what of it is used."""
    return {name: str(getattr(error, name)) for name in ("unit", "limit", "used", "asked")}


def _invalid_fields(violations: Sequence[Violation]) -> status_pb2.Status:
    """Make the status of a request that is wrong in several fields: the message is about the first of them.

    The reason is that of all, where they have one in common.
    """
    first, *more = violations
    reasons = {one.reason for one in violations}
    reason = first.reason if len(reasons) == 1 else ErrorReason.ERROR_REASON_INVALID_FIELD
    metadata, text = {"field": first.field}, f"{first.field}: {first.message}"
    if more:
        metadata["violation_count"] = str(len(violations))
        text = f"{cut(text, MAX_TEXT - MAX_VALUE)}; and {len(more)} more: {', '.join(one.field for one in more)}"
    return _status(reason, text, violations=_bounded(violations), metadata=metadata)


def _bounded(violations: Sequence[Violation]) -> list[tuple[str, str]]:
    """Return as many violations as fit, each a field and what is wrong with it; of one alone, all of the text."""
    if len(violations) == 1:
        return [(cut(violations[0].field, MAX_VALUE), cut(violations[0].message, MAX_TEXT))]
    fitting: list[tuple[str, str]] = []
    left = MAX_VIOLATIONS
    for one in violations:
        field, text = cut(one.field, MAX_VALUE), cut(one.message, MAX_VALUE)
        left -= len(field.encode()) + len(text.encode()) + _AROUND
        if left < 0:
            break
        fitting.append((field, text))
    return fitting


def _status(
    reason: ErrorReason.ValueType,
    message: str,
    *,
    violations: Sequence[tuple[str, str]] = (),
    quota: str | None = None,
    resource: tuple[str, str] | None = None,
    retry_seconds: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    """Make a status, all of whose texts are bounded.

    `violations` are fields' paths and what is wrong with them, bounded together. `quota` is the subject of the quota
    that the message is about, `resource` the kind and the name of a thing.
    """
    value = ErrorReason.DESCRIPTOR.values_by_number[reason]
    name = value.name.removeprefix("ERROR_REASON_")
    particulars = {key: cut(text, MAX_VALUE) for key, text in (metadata or {}).items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=name, domain=DOMAIN, metadata=particulars)]
    if violations:
        request = error_details_pb2.BadRequest()
        for field, text in violations:
            request.field_violations.add(field=field, description=text)
        details.append(request)
    if quota is not None:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=cut(quota, MAX_VALUE), description=cut(message, MAX_TEXT))
        details.append(failure)
    if resource is not None:
        kind, thing = resource
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=cut(thing, MAX_VALUE)))
    if retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(retry_seconds)
        details.append(retry)
    code = code_pb2.Code.Value(value.GetOptions().Extensions[errors_pb2.status_code])
    status = status_pb2.Status(code=code, message=cut(message, MAX_TEXT))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def refusal(error: Exception) -> Any:
    """Return the status that a call ends with whose handler raised an error. A fault of the server is logged."""
    status = status_of(error)
    if status.code == code_pb2.INTERNAL:
        log.error("a call failed", exc_info=error)
    return rpc_status.to_status(status)
