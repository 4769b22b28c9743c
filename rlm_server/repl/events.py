"""What guest code makes happen, in a run's turn as in a session's, as values that are shown and kept.

The names of the bodies and of their fields are those of the protocol's `RunEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from rlm_server.broker.provider import Message
from rlm_server.contexts.passages import Passage
from rlm_server.ledger.amounts import Amounts
from sandbox.turn import Turn


@dataclass(frozen=True, slots=True)
class Printed:
    """The code printed; `stream` is stdout or stderr."""

    stream: Literal["stdout", "stderr"]
    text: str
    kind: Literal["output"] = "output"


@dataclass(frozen=True, slots=True)
class TurnRestarted:
    """The process that ran the code was lost, and the code runs again: what it has printed so far is void."""

    reason: str
    kind: Literal["turn_restarted"] = "turn_restarted"


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The code calls a model."""

    call_id: str
    model: str
    prompt_characters: int
    kind: Literal["call_started"] = "call_started"


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """What there is to say of a model call that has ended.

    `model` is the one that answered: another than the one asked where a fallback did. `memo` says that the answer is
    that of an identical call, and free.
    """

    call_id: str
    model: str
    spent: Amounts
    memo: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class CallFinished:
    """A model call of the code's ended."""

    call: FinishedCall
    reply_characters: int
    kind: Literal["call_finished"] = "call_finished"


@dataclass(frozen=True, slots=True)
class CallTraced:
    """Parts of the run's context that stand word for word in the prompt of a call; `more` says there may be others."""

    call_id: str
    passages: tuple[Passage, ...]
    more: bool
    kind: Literal["call_traced"] = "call_traced"


@dataclass(frozen=True, slots=True)
class ToolCallRequested:
    """The code calls a tool, and waits until a client answers, or until `deadline` (Unix milliseconds).

    `arguments_json` is a JSON object, as text.
    """

    call_id: str
    name: str
    arguments_json: str
    deadline: int
    kind: Literal["tool_call_requested"] = "tool_call_requested"


@dataclass(frozen=True, slots=True)
class ModelCallRequested:
    """A model is asked that the client plays, and waits until it answers, or until `deadline` (Unix milliseconds)."""

    call_id: str
    model: str
    system: str
    messages: tuple[Message, ...]
    max_tokens: int
    deadline: int
    kind: Literal["model_call_requested"] = "model_call_requested"


class Ending(StrEnum):
    """How a call ended that a client was to answer."""

    RESULT = "result"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ToolCallAnswered:
    """A call that a client was to answer has ended; `result_json` is what it answered, as text."""

    call_id: str
    end: Ending
    result_json: str = ""
    error: str = ""
    kind: Literal["tool_call_answered"] = "tool_call_answered"


@dataclass(frozen=True, slots=True)
class UntoldCalls:
    """Model calls of a turn that have no events of their own, and cost nothing.

    `from_memory` had the answers of identical calls. `failed` failed, or were not made for what became of others.
    """

    from_memory: int = 0
    failed: int = 0


NONE_UNTOLD = UntoldCalls()


@dataclass(frozen=True, slots=True)
class CodeFinished:
    """A code block ended."""

    result: Turn
    untold: UntoldCalls = NONE_UNTOLD
    kind: Literal["code_finished"] = "code_finished"
