"""The Python client of rlm-server.

Events, runs, contexts and sessions are the protocol's own messages, re-exported here: a wrapper would add nothing to
them. What is ours is small: `Client`, `Budget`, `Sampling`, `Guards`, `Entries`, `Answer`, `Retry`, `ArchiveLimits`,
`Tool` and the errors.

    with Client() as client:
        print(client.ask("How many users are named?", Path("log.txt"), budget=Budget(usd="0.50")).text)
"""

from rlm.v1.budget_pb2 import Account, BudgetWindow, Entry, GetBudgetResponse, UsageRow
from rlm.v1.context_pb2 import Context, ContextKind, Coverage, Document, Match, Range, SearchContextResponse
from rlm.v1.errors_pb2 import ErrorReason
from rlm.v1.run_pb2 import Node, Run, RunEvent, RunState
from rlm.v1.session_pb2 import ExecuteOnceResponse, ExecuteResponse, Session, SessionState
from rlm.v1.types_pb2 import Amounts

from rlm_client.archive import ArchiveLimits
from rlm_client.asked import Guards, Sampling
from rlm_client.client import Answer, Client
from rlm_client.documents import SourceChanged, SourceRefused
from rlm_client.errors import (
    Aborted,
    AlreadyExists,
    BudgetRefused,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NoKey,
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
from rlm_client.spending import Entries
from rlm_client.tools import Tool, tool

__all__ = [
    "Aborted",
    "Account",
    "AlreadyExists",
    "Amounts",
    "Answer",
    "ArchiveLimits",
    "Budget",
    "BudgetRefused",
    "BudgetWindow",
    "Cancelled",
    "Client",
    "Context",
    "ContextKind",
    "Coverage",
    "DeadlineExceeded",
    "Document",
    "Entries",
    "Entry",
    "ErrorReason",
    "ExecuteOnceResponse",
    "ExecuteResponse",
    "FailedPrecondition",
    "GetBudgetResponse",
    "Guards",
    "InvalidArgument",
    "Match",
    "NoKey",
    "Node",
    "NotFound",
    "PermissionDenied",
    "PlaintextRefused",
    "Range",
    "ResourceExhausted",
    "Retry",
    "RlmError",
    "Run",
    "RunEvent",
    "RunFailed",
    "RunState",
    "Sampling",
    "SearchContextResponse",
    "ServerFault",
    "Session",
    "SessionState",
    "SourceChanged",
    "SourceRefused",
    "Tool",
    "Unauthenticated",
    "Unavailable",
    "UsageRow",
    "Violation",
    "nano_usd",
    "tool",
    "usd",
]
