"""What is written down of a run as it goes: what it was told by others, and where each of its nodes is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from rlm_server.ledger import Amounts, Limit, Usage
from rlm_server.repl.limits import RunLimits
from rlm_server.runs.asked import Asked
from rlm_server.runs.events import Guard
from rlm_server.schemas.schema import Schema
from rlm_server.tools.tool import Tool
from sandbox.turn import Turn, Variable


@dataclass(frozen=True, slots=True)
class ToolAsked:
    """A tool of the run, which was checked."""

    name: str
    description: str
    schema: str
    seconds: float
    size: int

    @classmethod
    def of(cls, tool: Tool) -> ToolAsked:
        """Return what is written down of a tool."""
        return cls(tool.name, tool.description, tool.schema.text, tool.seconds, tool.size)

    def tool(self) -> Tool:
        """Return the tool."""
        return Tool(self.name, self.description, Schema.checked(self.schema), self.seconds, self.size)


@dataclass(frozen=True, slots=True)
class RunAsked:
    """The run as it was asked for, beside what its row has."""

    question: str
    limits: RunLimits
    image: str
    besides: Asked
    tools: tuple[ToolAsked, ...] = ()
    deployed: tuple[str, ...] = ()
    """The names of those tools that the deployment answers."""
    continues: str = ""
    """The run that it continues, if it does."""
    kind: Literal["asked"] = "asked"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a node is after a turn, beside its conversation and its session."""

    draft: str
    shown: int
    calls: int
    errors: int
    seen: dict[str, int]
    told: tuple[Variable, ...]
    loops: tuple[str, ...]
    assigned: tuple[str, ...]
    seconds_left: float
    failures: int
    """Calls of the whole run that have failed."""
    refused: int = 0
    """Answers that the run's schema did not take. The root's alone, as is all that follows."""
    best: str = ""
    """The last that it took."""
    sent: tuple[tuple[int, int, int], ...] = ()
    """Of the whole run: parts of its context that stood in prompts, as document, start and end."""
    sent_more: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Carried:
    """A node continues what the root of another run had: its conversation, where that was, and perhaps its session."""

    node: str
    messages: tuple[Said, ...]
    standing: Standing
    session: bool
    kind: Literal["carried"] = "carried"


@dataclass(frozen=True, slots=True)
class Concluded:
    """A node has its answer, in its last turn: what its conversation has more, and where it is now."""

    node: str
    turn: int
    said: str
    standing: Standing
    kind: Literal["concluded"] = "concluded"


@dataclass(frozen=True, slots=True)
class Began:
    """A node has what its model is told first."""

    node: str
    first: str
    kind: Literal["began"] = "began"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, and what that cost. `call_id` and `attempts` name the hold that it is paid from."""

    call_id: str
    attempts: int
    model: str
    provider: str
    text: str
    stopped: Literal["end", "length", "refusal"]
    max_tokens: int
    usage: Usage | None
    spent: Amounts


@dataclass(frozen=True, slots=True)
class Replied:
    """A node's model answered."""

    node: str
    turn: int
    reply: Reply
    kind: Literal["replied"] = "replied"


@dataclass(frozen=True, slots=True)
class Decided:
    """The reply of a node's model was read: see `rlm_server.runs.reply.decision.Decision`."""

    node: str
    turn: int
    said: str
    codes: tuple[str, ...]
    told: tuple[str, ...]
    nothing: Guard | None
    kind: Literal["decided"] = "decided"


@dataclass(frozen=True, slots=True)
class BlockBegan:
    """A block of code begins to run, with these inputs: see `sandbox.inputs`, in base64."""

    node: str
    turn: int
    block: int
    inputs: str
    kind: Literal["block_began"] = "block_began"


@dataclass(frozen=True, slots=True)
class Heard:
    """The code that runs was told more by chance: a piece of its inputs, in base64."""

    node: str
    piece: str
    kind: Literal["heard"] = "heard"


@dataclass(frozen=True, slots=True)
class Answered:
    """A model answered a call of a node's code. `key` is the digest of what was asked, in hex digits."""

    node: str
    key: str
    fresh: bool
    reply: Reply
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True, slots=True)
class Told:
    """A request of a node's code was answered with what may be otherwise the next time."""

    node: str
    request: str
    value: Any
    kind: Literal["told"] = "told"


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A request of a node's code calls a tool: what the call is called."""

    node: str
    request: str
    call_id: str
    kind: Literal["tool_called"] = "tool_called"


@dataclass(frozen=True, slots=True)
class ChildMade:
    """A request of a node's code is to start a child RLM: the prompt of this number in the request."""

    node: str
    request: str
    number: int
    child: str
    budget: Limit
    kind: Literal["child_made"] = "child_made"


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A node has ended a turn: what its conversation has more, and where it is now."""

    node: str
    turn: int
    said: str
    shown: str
    standing: Standing
    kind: Literal["turn_ended"] = "turn_ended"


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of the run, as it is kept in the journal a little later."""

    sequence: int
    at: int
    node: str
    parent: str
    depth: int
    turn: int
    body: str
    cut: str
    size: int
    kind: Literal["happened"] = "happened"


@dataclass(frozen=True, slots=True)
class NodeOver:
    """A node has ended: nothing of it is wanted any more."""

    node: str
    kind: Literal["node_over"] = "node_over"


Entry = (
    RunAsked | Carried | Began | Replied | Decided | BlockBegan | Heard | Answered | Told | ToolCalled | ChildMade
    | TurnEnded | Concluded | Happened | NodeOver
)  # fmt: skip

entries: TypeAdapter[list[Entry]] = TypeAdapter(list[Annotated[Entry, Field(discriminator="kind")]])


@dataclass(frozen=True, slots=True)
class RanBlock:
    """A block of code that ran to its end: stored with the state that it left, as a note."""

    turn: int
    block: int
    result: Turn
    draft: tuple[str, bool] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
