"""The page of all limits, made from where they are declared: `python -m rlm_server.api.limits_page docs/limits.md`.

A limit that an operator may set is a field declared with `limit`. Any other is a constant of a module, with a string
below it that says what it is. The page has the words and the value of both from there.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.broker.limits import CallLimits
from rlm_server.config.described import shown_number
from rlm_server.repl.limits import RunLimits
from rlm_server.shares.limits import TenantLimits
from sandbox.limits import Limits, PoolLimits, declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HEAD = """\
# Limits

`make docs` makes this page from the code that declares the limits. Edit that, not the page.

What a caller or its code makes the server do is bounded before it is done: for a request, a turn, a session, a run, a
tenant and the server. The first tables are the limits that an operator sets, by these names, for all or for a tenant
([settings](settings.md)). A request may lower those that the protocol names. The last table is of those that are fixed.
What is reached says which limit it was: a call ends with the reason that is named ([errors](errors.md)), code gets a
Python exception, and a run ends with the limit's name as its reason.
"""

DECLARED: Sequence[tuple[str, type[DataclassInstance]]] = (
    ("A tenant", TenantLimits),
    ("A run, and a session where it has no loop", RunLimits),
    ("A sandbox: a session and one turn of it", Limits),
    ("Model calls", CallLimits),
    ("The server's sessions and workers", PoolLimits),
)
"""What a limit is of, and the class that declares it."""

REFUSED = {
    "tenant_sessions": ErrorReason.ERROR_REASON_TOO_MANY_SESSIONS,
    "tenant_waiting_runs": ErrorReason.ERROR_REASON_TOO_MANY_RUNS,
    "tenant_kept_bytes": ErrorReason.ERROR_REASON_RUN_QUOTA_EXCEEDED,
    "tenant_requests": ErrorReason.ERROR_REASON_TOO_MANY_REQUESTS,
    "tenant_streams": ErrorReason.ERROR_REASON_TOO_MANY_STREAMS,
    "tenant_uploads": ErrorReason.ERROR_REASON_CONTEXT_QUOTA_EXCEEDED,
    "tenant_contexts": ErrorReason.ERROR_REASON_CONTEXT_QUOTA_EXCEEDED,
    "tenant_accounts": ErrorReason.ERROR_REASON_TOO_MANY_ACCOUNTS,
    "tenant_held_bytes": ErrorReason.ERROR_REASON_TOO_MUCH_HELD,
    "sessions": ErrorReason.ERROR_REASON_SERVER_FULL,
}
"""The reason of a call that is refused at a declared limit, where one is. The words of the others say what happens."""

_FIELD = ErrorReason.ERROR_REASON_INVALID_FIELD
_REFUSED_ANSWER = "the model is told, and may give another"
_FORGOTTEN = ErrorReason.ERROR_REASON_RESULT_FORGOTTEN


@dataclass(frozen=True, slots=True)
class Fixed:
    """A constant that is a limit: its module, its name, what it is of, and what happens at it."""

    module: str
    name: str
    of: str
    at: ErrorReason.ValueType | str


FIXED = (
    Fixed("rlm_server.api.transport", "MAX_CONNECTIONS", "the server", "the connection is closed"),
    Fixed("rlm_server.api.transport", "HANDSHAKE_SECONDS", "a connection", "the connection is closed"),
    Fixed("rlm_server.api.transport", "IDLE_SECONDS", "a connection", "the connection is closed"),
    Fixed("rlm_server.api.transport", "MAX_CALLS", "a connection", "the client keeps more to itself"),
    Fixed("rlm_server.api.transport", "MAX_BURST", "the server", "gRPC's CANCELLED"),
    Fixed("rlm_server.api.transport", "MAX_METADATA", "a request", "gRPC's RESOURCE_EXHAUSTED"),
    Fixed("rlm_server.api.transport", "MAX_MESSAGE", "a request", "gRPC's RESOURCE_EXHAUSTED"),
    Fixed("rlm_server.api.transport", "LOOKAHEAD", "a stream", "gRPC makes the sender wait"),
    Fixed("rlm_server.api.admission", "MAX_REQUEST", "a request", ErrorReason.ERROR_REASON_REQUEST_TOO_LARGE),
    Fixed("rlm_server.api.admission", "MAX_OPEN_STREAMS", "the server", ErrorReason.ERROR_REASON_TOO_MANY_STREAMS),
    Fixed(
        "rlm_server.api.admission", "MAX_WAITING_STRANGERS", "the server", ErrorReason.ERROR_REASON_TOO_MANY_REQUESTS
    ),
    Fixed("rlm_server.tenants.keys", "MAX_WAITING_CHECKS", "the server", ErrorReason.ERROR_REASON_SERVER_FULL),
    Fixed("rlm_server.tenants.checks", "MAX_PATTERNS", "a request", _FIELD),
    Fixed("rlm_server.tenants.checks", "MAX_PATTERN", "a request", _FIELD),
    Fixed("rlm_server.api.requests", "MAX_REQUEST_ID", "a request", _FIELD),
    Fixed("rlm_server.repl.bounds", "MAX_NAME", "a request", _FIELD),
    Fixed("rlm_server.api.requests", "MAX_TOKEN", "a request", _FIELD),
    Fixed("rlm_server.database.labels", "MAX_LABELS", "a request", _FIELD),
    Fixed("rlm_server.database.labels", "MAX_LABEL", "a request", _FIELD),
    Fixed("rlm_server.api.accounts", "MAX_ACCOUNT_NAME", "a request", _FIELD),
    Fixed("rlm_server.webhooks.hosts", "MAX_URL", "a request", _FIELD),
    Fixed("rlm_server.webhooks.deliveries", "ATTEMPT_SECONDS", "a webhook", "the attempt has failed"),
    Fixed("rlm_server.webhooks.deliveries", "AT_ONCE", "the server", "tenants take turns"),
    Fixed("rlm_server.webhooks.deliveries", "GIVEN_UP_MS", "an event", "it is given up, and shown so"),
    Fixed("rlm_server.ledger.events", "KEPT_DAYS", "an event", "it is removed"),
    Fixed("rlm_server.ledger.amounts", "MAX_BUDGET", "a request", _FIELD),
    Fixed("rlm_server.api.requests", "MAX_SECONDS", "a request", _FIELD),
    Fixed("rlm_server.api.requests", "MAX_DURATION", "a request", _FIELD),
    Fixed("rlm_server.repl.limits", "MAX_QUESTION", "a request", _FIELD),
    Fixed("rlm_server.runs.asked", "MAX_INSTRUCTIONS", "a request", _FIELD),
    Fixed("rlm_server.runs.direct", "COMFORTABLE", "a run", "an RLM answers"),
    Fixed("rlm_server.broker.sampling", "MAX_STOPS", "a model call", _FIELD),
    Fixed("rlm_server.broker.sampling", "MAX_STOP", "a model call", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_SCHEMA", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_SCHEMA_LEVELS", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_SCHEMA_VALUES", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_IN_PLACE", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_HOPS", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_VALUE_LEVELS", "an answer", _REFUSED_ANSWER),
    Fixed("rlm_server.schemas.schema", "MAX_VALUES", "an answer", _REFUSED_ANSWER),
    Fixed("rlm_server.schemas.work", "MAX_STEPS", "an answer", _REFUSED_ANSWER),
    Fixed("rlm_server.schemas.work", "PATTERN_MEMORY", "a request", _FIELD),
    Fixed("rlm_server.schemas.schema", "MAX_VIOLATIONS", "an answer", "more are not told"),
    Fixed("rlm_server.schemas.schema", "MAX_VIOLATION", "an answer", "the rest is cut"),
    Fixed("rlm_server.runs.typed", "MAX_TYPED_BYTES", "an answer", _REFUSED_ANSWER),
    Fixed("rlm_server.repl.call_request", "MAX_SYSTEM", "a model call", "the code gets an exception"),
    Fixed("rlm_server.tools.tool", "MAX_TOOL_NAME", "a request", _FIELD),
    Fixed("rlm_server.tools.tool", "MAX_DESCRIPTION", "a request", _FIELD),
    Fixed("rlm_server.tools.tool", "MAX_ARGUMENTS_SCHEMA", "a request", _FIELD),
    Fixed("rlm_server.tools.tool", "MAX_ARGUMENTS_SCHEMA_NODES", "a request", _FIELD),
    Fixed("rlm_server.tools.tool", "MAX_TOOLS_BYTES", "a request", _FIELD),
    Fixed("rlm_server.tools.tool_calls", "MAX_CHECK_STEPS", "a call of a tool", "the code gets an exception"),
    Fixed("rlm_server.tools.tool_calls", "MAX_TOOL_ERROR", "a request", _FIELD),
    Fixed("rlm_server.tools.waiting", "KNOWN_ENDED", "a run", "an answer to one of the others is for a call unknown"),
    Fixed("rlm_server.api.session", "MAX_CODE", "a request", _FIELD),
    Fixed("rlm_server.api.session", "MAX_FORKS", "a request", _FIELD),
    Fixed("rlm_server.api.snapshots", "MAX_SNAPSHOT_BYTES", "an import", _FIELD),
    Fixed("rlm_server.sessions.turn_line", "SESSION_TURNS", "a session", ErrorReason.ERROR_REASON_TOO_MANY_REQUESTS),
    Fixed("rlm_server.sessions.turn_log", "LOG_BYTES", "a turn", "the oldest are left out"),
    Fixed("rlm_server.sessions.turn_line", "WATCHABLE_TURNS", "a session", "of others there is the result alone"),
    Fixed("rlm_server.api.session_messages", "ONCE_OUTPUT", "an answer", "the rest is cut"),
    Fixed("rlm_server.sessions.collected", "COLLECTED_CALLS", "an answer", "others are counted"),
    Fixed("rlm_server.sessions.results", "REMEMBERED_RESULTS", "a session", _FORGOTTEN),
    Fixed("rlm_server.sessions.results", "RESULT_BYTES", "a session", _FORGOTTEN),
    Fixed("rlm_server.sessions.results", "REMEMBERED_REQUESTS", "a session", "the oldest would run again"),
    Fixed("rlm_server.sessions.happenings", "WAITING_BYTES", "a turn", "more are left out"),
    Fixed("rlm_server.repl.bounds", "MAX_ERROR", "an answer", "the rest is cut"),
    Fixed("rlm_server.repl.bounds", "MAX_REASON", "an answer", "the rest is cut"),
    Fixed("rlm_server.api.errors", "MAX_VIOLATIONS", "an error", "the rest is counted"),
    Fixed("rlm_server.api.field_checks", "MAX_WRONG", "an error", "the rest is not looked at"),
    Fixed("rlm_server.repl.bounds", "MAX_EVENT_TEXT", "an event", "the rest is told in another, or cut"),
    Fixed("rlm_server.api.requests", "MAX_CONTEXT_NAME", "an upload", _FIELD),
    Fixed("rlm_server.api.completion", "MAX_INLINE_TEXT", "a request", _FIELD),
    Fixed("rlm_server.contexts.spool", "CHUNK", "an upload", _FIELD),
    Fixed("rlm_server.contexts.spool", "MAX_DOCUMENTS", "an upload", _FIELD),
    Fixed("rlm_server.contexts.spool", "MAX_DOCUMENT", "an upload", _FIELD),
    Fixed("rlm_server.contexts.spool", "MAX_DOCUMENT_NAME", "an upload", _FIELD),
    Fixed("rlm_server.contexts.spool", "MAX_NAMES", "an upload", _FIELD),
    Fixed("rlm_server.api.upload_stream", "MAX_WAITING", "an upload", "the sender waits"),
    Fixed("rlm_server.contexts.uploads", "MAX_IDLE_DOCUMENTS", "a tenant", "the oldest are read again"),
    Fixed("rlm_server.api.context", "MAX_READ", "a request", _FIELD),
    Fixed("rlm_server.api.context", "MAX_DOCUMENTS", "a request", _FIELD),
    Fixed("rlm_server.api.context", "MAX_ANSWER", "an answer", "the rest is on the next page, or `more` is set"),
    Fixed("rlm_server.contexts.search", "LONGEST_PATTERN", "a request", _FIELD),
    Fixed("rlm_server.contexts.search", "SEARCH_SECONDS", "a request", ErrorReason.ERROR_REASON_SEARCH_TOO_LONG),
    Fixed("rlm_server.contexts.search", "SHOWN", "an answer", "the rest is cut"),
    Fixed("rlm_server.repl.coverage", "MAX_RANGES", "an answer", "`more` is set"),
    Fixed("rlm_server.api.ledger_export", "MAX_CHUNK", "an answer", "another message follows"),
    Fixed("rlm_server.api.errors", "MAX_TEXT", "an error", "the rest is cut"),
    Fixed("rlm_server.api.errors", "MAX_VALUE", "an error", "the rest is cut"),
)
"""The limits that nobody sets, in the order of the page."""


def text() -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for title, limits in DECLARED for line in _declared(title, limits)), *_fixed()])


def _declared(title: str, limits: type[DataclassInstance]) -> Iterator[str]:
    default = limits()
    yield f"## {title}\n"
    yield from _rows(("Limit", "Default", "Unit", "What it is of, and what happens at it"))
    for name, bounds in declared(limits).items():
        value = getattr(default, name)
        shown = "none" if value == math.inf else shown_number(value, bounds.unit)
        refused = f" {_reason(REFUSED[name])}." if name in REFUSED else ""
        yield _row((f"`{name}`", shown, bounds.unit, f"{bounds.doc}{refused}"))
    yield ""


def _fixed() -> Iterator[str]:
    yield "## Fixed\n"
    yield from _rows(("Limit", "Value", "Of", "What it is", "At it"))
    for one in FIXED:
        words = doc(one)
        unit = "bytes" if words.startswith("Bytes") or "bytes of" in words else ""
        shown = shown_number(getattr(import_module(one.module), one.name), unit)
        yield _row((f"`{one.name}`", shown, one.of, words, one.at if isinstance(one.at, str) else _reason(one.at)))
    yield ""


def doc(one: Fixed) -> str:
    """Return the string below a constant, as one line.

    Raises:
        KeyError: there is none.
    """
    return _strings(one.module)[one.name]


def _strings(module: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for statement, below in pairwise(ast.parse(getsource(import_module(module))).body):
        match statement, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def _reason(reason: ErrorReason.ValueType) -> str:
    name = ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    return f"[`{name}`](errors.md#{name.lower()})"


def _rows(columns: Sequence[str]) -> Iterator[str]:
    yield _row(columns)
    yield _row(["---"] * len(columns))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlm_server.api.limits_page FILE")
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
