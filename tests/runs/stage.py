"""Short ways to say what the tests of runs say often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlm_server.database.requests import Request
from rlm_server.ledger import Amounts, Limit
from rlm_server.repl.events import Printed
from rlm_server.runs.event_log import Quota
from rlm_server.runs.events import Body, Event, EventOrigin, RunFinished, WrittenEvent, written
from rlm_server.runs.journal import NodeRow, RunRow
from rlm_server.runs.state import RunState
from sandbox.turn import Status, Turn, TurnError

ROOT = EventOrigin("run", "", 0)
END = RunFinished(RunState.SUCCEEDED, "", Amounts(), "42")
AMPLE = Quota(1 << 40, 1 << 40)


def a_run(id: str = "run", **fields: Any) -> RunRow:
    return replace(RunRow(id, "acme", None, None, "model", "sub-model", Limit(), 1_000), **fields)


def asked(id: str, *, tenant: str = "acme", content: str = "some-content") -> Request:
    return Request(tenant, "CreateRun", id, content)


def a_node(id: str, **fields: Any) -> NodeRow:
    return replace(NodeRow(id, "run", "run", 1, RunState.PENDING, "What?"), **fields)


def an_event(sequence: int, body: Body | None = None) -> Event:
    return Event(sequence, sequence * 10, ROOT, body or Printed("stdout", str(sequence)))


def in_rows(*events: Event) -> list[WrittenEvent]:
    return [written(event) for event in events]


def a_turn(stdout: str = "", stderr: str = "", error: TurnError | None = None, **fields: Any) -> Turn:
    status = Status.ERROR if error else Status.OK
    return replace(Turn(status, stdout, stderr, len(stdout + stderr), False, 0.25, 0, error), **fields)
