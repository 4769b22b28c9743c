"""The one place where what went wrong becomes a gRPC status. Nothing internal leaks."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from rlm_server.broker.prices.table import NoPrice
from rlm_server.broker.routes import UnknownModel
from rlm_server.clock import now
from rlm_server.contexts.contexts import ContextGone
from rlm_server.contexts.local_files import ContextDamaged
from rlm_server.contexts.object_store import ObjectStoreUnavailable
from rlm_server.contexts.spool import UploadRefused
from rlm_server.contexts.uploads import ContextQuotaExceeded, UploadBusy, UploadStalled
from rlm_server.database.engine import DatabaseFullError
from rlm_server.ledger import BudgetError, windows
from rlm_server.runs.supervisor import TooManyRuns
from rlm_server.sessions.sessions import SessionEnded, TooManySessions
from sandbox.pool.pool import JailMissing, PoolFull
from sandbox.pool.process import WorkerLost
from sandbox.pool.snapshots import SnapshotRefused

log = logging.getLogger(__name__)

DOMAIN = "rlm.v1"


class Unauthenticated(Exception):
    """The call carries no valid key."""


class NotFound(Exception):
    """There is no such thing for this tenant."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name[:200]!r}")
        self.kind = kind
        self.name = name


class InvalidField(ValueError):
    """A field of a request is wrong; the message says what it may be."""

    def __init__(self, field: str, message: str, reason: str = "INVALID_FIELD") -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason


def status_of(error: Exception) -> status_pb2.Status:
    """Make the status for an error: always an `ErrorInfo`, and more where more is known."""
    match error:
        case Unauthenticated():
            return _status(code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", str(error))
        case NotFound():
            resource = error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=error.name[:200])
            return _status(code_pb2.NOT_FOUND, "NOT_FOUND", str(error), resource)
        case InvalidField():
            return _invalid(error.reason, error.field, str(error))
        case UploadRefused():
            return _invalid("INVALID_FIELD", error.field, str(error))
        case UploadBusy():
            return _status(code_pb2.ABORTED, "UPLOAD_BUSY", str(error), _retry())
        case UploadStalled():
            return _status(code_pb2.ABORTED, "UPLOAD_STALLED", str(error), _retry())
        case ContextQuotaExceeded():
            quota, said = _quota(error.unit, error), _asked(error)
            return _status(code_pb2.RESOURCE_EXHAUSTED, "CONTEXT_QUOTA_EXCEEDED", str(error), quota, said=said)
        case ContextGone():
            return status_of(NotFound("context", error.context))
        case ContextDamaged():
            return _status(code_pb2.DATA_LOSS, "CONTEXT_DAMAGED", str(error), said={"context_id": error.context})
        case ObjectStoreUnavailable():
            return _status(code_pb2.UNAVAILABLE, "OBJECT_STORE_UNAVAILABLE", str(error), _retry())
        case UnknownModel():
            return _invalid("UNKNOWN_MODEL", "model", str(error))
        case NoPrice():
            return _invalid("NO_PRICE", "model", str(error))
        case BudgetError():
            return _budget_exceeded(error)
        case SessionEnded():
            return _status(code_pb2.NOT_FOUND, "SESSION_ENDED", str(error))
        case TooManySessions():
            return _status(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS", str(error), _quota("sessions", error))
        case SnapshotRefused():
            return _status(code_pb2.DATA_LOSS, "SNAPSHOT_REFUSED", str(error))
        case PoolFull() | TooManyRuns():
            return _status(code_pb2.RESOURCE_EXHAUSTED, "SERVER_FULL", str(error), _retry())
        case JailMissing():
            return _status(code_pb2.FAILED_PRECONDITION, "JAIL_MISSING", str(error))
        case WorkerLost():
            return _status(code_pb2.UNAVAILABLE, "WORKER_LOST", str(error))
        case DatabaseFullError():
            return _status(code_pb2.RESOURCE_EXHAUSTED, "DISK_FULL", "the server's disk is full", _retry())
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _status(code_pb2.RESOURCE_EXHAUSTED, "DISK_FULL", "the server's disk is full", _retry())
        case MemoryError():
            return _status(code_pb2.FAILED_PRECONDITION, "CONTEXT_TOO_LARGE", str(error))
        case _:
            return _status(code_pb2.INTERNAL, "INTERNAL", "an internal error of the server; it has been logged")


def _budget_exceeded(error: BudgetError) -> status_pb2.Status:
    """A window's says when it ends, because then there is room again."""
    code, reason, message = code_pb2.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED", str(error)
    quota, said = _quota(error.unit, error), _asked(error)
    window = windows.parts(error.account)
    if window is None:
        return _status(code, reason, message, quota, said=said)
    (span, label, _), at = window, now()
    _, end = windows.bounds(span, at)
    # It may have ended since the refusal; what is around now is then the next one, and there is no need to wait.
    over = label != windows.label(span, at)
    ends = f"{datetime.fromtimestamp(end / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    told = f"{message}. This {span} {'is over' if over else f'ends at {ends}'}"
    wait = _retry(1) if over else _retry(math.ceil((end - at) / 1000))
    said = said | {"window": str(span)} | ({} if over else {"window_end": ends})
    return _status(code, reason, told, quota, wait, said=said)


def _quota(subject: str, error: Exception) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=str(error))
    return error_details_pb2.QuotaFailure(violations=[violation])


def _asked(error: BudgetError | ContextQuotaExceeded) -> dict[str, str]:
    """What was asked of which limit."""
    return {name: str(getattr(error, name)) for name in ("unit", "limit", "used", "asked")}


def _retry(seconds: int = 1) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(seconds)
    return retry


def _invalid(reason: str, field: str, message: str) -> status_pb2.Status:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    return _status(code_pb2.INVALID_ARGUMENT, reason, f"{field}: {message}", detail, said={"field": field})


def _status(
    code: int,
    reason: str,
    message: str,
    *details: error_details_pb2.BadRequest
    | error_details_pb2.QuotaFailure
    | error_details_pb2.ResourceInfo
    | error_details_pb2.RetryInfo,
    said: dict[str, str] | None = None,
) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=said or {}), *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


@asynccontextmanager
async def mapped(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """End the call with the right status where its handler raises."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        status = status_of(error)
        if status.code == code_pb2.INTERNAL:
            log.exception("a call failed")
        await context.abort_with_status(rpc_status.to_status(status))
