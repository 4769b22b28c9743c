"""What happens in a run, as values that are numbered, kept and shown.

The names of the bodies and of their fields are those of the protocol's `RunEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rlm_server.ledger.amounts import Amounts, Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.events import (
    CallFinished,
    CallStarted,
    CallTraced,
    CodeFinished,
    ModelCallRequested,
    Printed,
    ToolCallAnswered,
    ToolCallRequested,
    TurnRestarted,
)
from rlm_server.runs.cuts import CutText, cut, cuts_from_json, cuts_to_json, size_of
from rlm_server.runs.redaction import UNREDACTED, RunRedaction
from rlm_server.runs.state import RunState


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The root begins."""

    question: str
    model: str
    sub_model: str
    context_characters: int
    budget: Limit
    continue_run_id: str = ""
    """The run that it continues, if it does."""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class StrategyChosen:
    """How the run is answered was chosen, and why."""

    strategy: Literal["rlm", "direct"]
    reason: str
    kind: Literal["strategy_chosen"] = "strategy_chosen"


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The node's model is asked what to do next."""

    max_turns: int
    kind: Literal["turn_started"] = "turn_started"


@dataclass(frozen=True, slots=True)
class ModelReplied:
    """The node's model answered, or a fallback: `model` is the one that did.

    `stopped` says how the text ends: "end", "length" or "refusal", or nothing in events of older servers.
    """

    model: str
    text: str
    spent: Amounts
    call_id: str = ""
    stopped: Literal["", "end", "length", "refusal"] = ""
    kind: Literal["model_replied"] = "model_replied"


@dataclass(frozen=True, slots=True)
class CodeStarted:
    """A code block of the reply begins to run; blocks count from 1."""

    code: str
    block: int
    kind: Literal["code_started"] = "code_started"


@dataclass(frozen=True, slots=True)
class NodeResumed:
    """A server, or a process of one, was lost, and the node goes on. What was told of this turn is told again."""

    reason: str
    kind: Literal["node_resumed"] = "node_resumed"


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """The code starts a child RLM."""

    child_id: str
    question: str
    context_characters: int
    budget: Limit
    kind: Literal["child_started"] = "child_started"


@dataclass(frozen=True, slots=True)
class ChildFinished:
    """A child RLM ended."""

    child_id: str
    state: RunState
    reason: str
    spent: Amounts
    kind: Literal["child_finished"] = "child_finished"


@dataclass(frozen=True, slots=True)
class TurnCheckpointed:
    """The session's state after a turn is kept; `private_bytes` of memory are its own."""

    private_bytes: int
    coverage: Coverage = field(default_factory=Coverage)
    """Of the node's own text."""
    kind: Literal["turn_checkpointed"] = "turn_checkpointed"


@dataclass(frozen=True, slots=True)
class BudgetWarning:
    """The run has spent this share of its budget in one unit."""

    unit: str
    percent: int
    spent: int
    limit: int
    kind: Literal["budget_warning"] = "budget_warning"


@dataclass(frozen=True, slots=True)
class Guard:
    """The server held something back or answered it itself."""

    name: str
    detail: str
    kind: Literal["guard"] = "guard"


@dataclass(frozen=True, slots=True)
class Answer:
    """The node has its answer."""

    text: str
    kind: Literal["answer"] = "answer"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The root ended: the last event of a run. The whole answer is the root's."""

    state: RunState
    reason: str
    spent: Amounts
    answer: str
    kind: Literal["run_finished"] = "run_finished"


Body = (
    RunStarted | TurnStarted | ModelReplied | CodeStarted | Printed | CallStarted | CallFinished | ChildStarted
    | ChildFinished | CodeFinished | TurnCheckpointed | BudgetWarning | Guard | Answer | RunFinished | CallTraced
    | TurnRestarted | StrategyChosen | ToolCallRequested | ToolCallAnswered | ModelCallRequested | NodeResumed
)  # fmt: skip

_bodies: TypeAdapter[Body] = TypeAdapter(Annotated[Body, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class EventOrigin:
    """Where in a run's tree something happened. `parent` is empty for the root; `turn` is 0 outside turns."""

    node: str
    parent: str
    depth: int
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A numbered event: 1, 2, 3, … in each run. `at` is in Unix milliseconds. `cut` are texts that are not whole."""

    sequence: int
    at: int
    origin: EventOrigin
    body: Body
    cut: tuple[CutText, ...] = ()


ROW_BYTES = 200
"""What an event counts for besides its texts: its number, its time, where it happened."""


@dataclass(frozen=True, slots=True)
class WrittenEvent:
    """An event in the words of the store, its texts redacted and cut. `size` is in bytes, and what it counts for."""

    event: Event
    body: str
    cut: str
    size: int


def written(event: Event, redaction: RunRedaction = UNREDACTED) -> WrittenEvent:
    """Redact an event's contents, cut its texts, and write it for the store."""
    open_body, redacted = redaction.redacted(event.body)
    body, cut_texts = cut(open_body)
    cuts = redacted + cut_texts
    words, told = to_json(body), cuts_to_json(cuts)
    return WrittenEvent(
        Event(event.sequence, event.at, event.origin, body, cuts), words, told, size_of(words) + len(told) + ROW_BYTES
    )


def to_json(body: Body) -> str:
    """Write a body for the store."""
    return _bodies.dump_json(body).decode()


def from_json(text: str) -> Body:
    """Read a body that `to_json` wrote."""
    return _bodies.validate_json(text)


def read(sequence: int, at: int, origin: EventOrigin, body: str, told: str) -> Event:
    """Read an event from the store. What an older server kept whole is cut now."""
    cuts = cuts_from_json(told)
    read_body, more = cut(from_json(body))
    return Event(sequence, at, origin, read_body, cuts + more)
