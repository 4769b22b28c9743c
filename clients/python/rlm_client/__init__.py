"""The Python client of rlm-server.

Events, runs, contexts and sessions are the protocol's own messages, re-exported here: a wrapper would add nothing to
them. What is ours is small: `Client`, `Budget`, `Answer`, `Retry` and the errors.

    with Client() as client:
        print(client.ask("How many users are named?", Path("log.txt"), budget=Budget(usd="0.50")).text)
"""

from rlm.v1.context_pb2 import Context
from rlm.v1.run_pb2 import Run, RunEvent, RunState
from rlm.v1.session_pb2 import ExecuteResponse, Session
from rlm.v1.types_pb2 import Amounts

from rlm_client.client import Answer, Client
from rlm_client.errors import (
    Aborted,
    AlreadyExists,
    BudgetRefused,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlaintextRefused,
    ResourceExhausted,
    RlmError,
    RunFailed,
    ServerFault,
    Unauthenticated,
    Unavailable,
    Violation,
)
from rlm_client.money import Budget, nano_usd, usd
from rlm_client.retry import Retry

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Amounts",
    "Answer",
    "Budget",
    "BudgetRefused",
    "Cancelled",
    "Client",
    "Context",
    "DeadlineExceeded",
    "ExecuteResponse",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "PlaintextRefused",
    "ResourceExhausted",
    "Retry",
    "RlmError",
    "Run",
    "RunEvent",
    "RunFailed",
    "RunState",
    "ServerFault",
    "Session",
    "Unauthenticated",
    "Unavailable",
    "Violation",
    "nano_usd",
    "usd",
]
