"""What a model is told when its run ends without an answer: that it is asked once more, and, where not all of its
conversation can be sent any more, what it has seen so far, as far as that has room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rlm_server.broker.provider import Message
from rlm_server.runs.told import typed
from rlm_server.runs.told.quantities import within

_ENDS = {
    "max_turns": "this was the last turn",
    "budget": "what is left of the budget pays for no other turn",
    "errors_in_a_row": "too many turns in a row have failed",
    "no progress": "the same code gave the same result again and again",
    "answer_schema": "no answer was what the schema takes",
    "wall_seconds": "the time is over, and code that still ran was stopped",
}
"""What ended the work, by the name of the limit that a reason begins with."""

_ASKED = (
    "No more code will run: {why} ({limit}). Give your best answer to the question now, as plain text without code, "
    "from what you have seen so far. Say what is uncertain."
)

_SHORT_SYSTEM = "You answer a question about a text, from what was found out about it by code."

_LEAST_BYTES = 256
"""Room for what is asked and was seen; with less there is nothing to answer from."""

MOST_SAID = 32
"""Of what children said, so many are kept for their parent's last word."""

QUESTION_CHARACTERS, SAID_CHARACTERS = 200, 1_000
"""Of each, so much."""

_ENOUGH_BYTES = 6_000
"""Room that is enough for a closing call after part of a conversation: more output is better than more of that."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a closing call is to say: the system prompt and the messages."""

    system: str
    messages: tuple[Message, ...]

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return sum(map(_size, (self.system, *(message.content for message in self.messages))))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a node's work ended: the question it was for, the reason, and the answer that its code had begun.

    `schema` is the JSON Schema of the answer, empty for any text; `instructions` are of whoever asked.
    """

    question: str
    reason: str
    draft: str
    schema: str = ""
    instructions: str = ""


@dataclass(slots=True)
class ChildrenSaid:
    """What children said to code that was stopped before its model was shown what came of it."""

    asked: int = 0
    ended: int = 0
    _said: list[tuple[str, str]] = field(default_factory=list)

    def add(self, question: str, said: str) -> None:
        """A child has ended, with an answer or with an error."""
        self.ended += 1
        if len(self._said) < MOST_SAID:
            self._said.append((question[:QUESTION_CHARACTERS], said[:SAID_CHARACTERS]))

    def messages(self) -> tuple[Message, ...]:
        """Say what they said, and how many were stopped; nothing where none was asked."""
        if not self.asked:
            return ()
        parts = ["Your code was stopped before you were shown what came of it. It had asked child RLMs."]
        parts += [f"To {question!r} one said:\n{said}" for question, said in self._said]
        if self.ended > len(self._said):
            parts.append(f"What {self.ended - len(self._said)} others said is lost.")
        if self.asked > self.ended:
            parts.append(f"{self.asked - self.ended} had not ended, and said nothing.")
        return (Message("user", "\n\n".join(parts)),)


def asked(ending: Ending, draft: str) -> str:
    """Compose what the model is asked, with as much of the draft as there is room for."""
    limit = ending.reason.partition(":")[0]
    text = _ASKED.format(why=_ENDS.get(limit.partition(".")[0], "a limit is reached"), limit=limit)
    if ending.schema:
        text += f"\n\n{typed.closing(ending.schema)}"
    return f'{text}\n\nanswer["content"] holds so far:\n{draft}' if draft else text


def fitting(
    conversation: Conversation, ending: Ending, rooms: Iterable[tuple[int, int]]
) -> tuple[Conversation, int] | None:
    """Return the closing call and its tokens of output: after all of the conversation, or after what of it has room.

    `rooms` are bytes of input and tokens of output that may be had together. None where no call fits.
    """
    whole, tightest = _whole(conversation, ending), None
    for size, tokens in rooms:
        if whole.size <= size:
            return whole, tokens
        tightest = size, tokens
        if size >= _ENOUGH_BYTES:
            break
    if tightest is None:
        return None
    short = _short(conversation, ending, min(tightest[0], _ENOUGH_BYTES * 8))
    return (short, tightest[1]) if short is not None else None


def _whole(conversation: Conversation, ending: Ending) -> Conversation:
    text = asked(ending, within(ending.draft, _ENOUGH_BYTES))
    *before, last = conversation.messages
    if last.role == "user":
        return Conversation(conversation.system, (*before, Message("user", f"{last.content}\n\n{text}")))
    return Conversation(conversation.system, (*before, last, Message("user", text)))


def _short(conversation: Conversation, ending: Ending, room: int) -> Conversation | None:
    """Compose a closing call of at most `room` bytes; None where that leaves nothing to answer from.

    A third of the room is the question's at most, and a third the draft's. What was seen last goes first.
    """
    left = room - _size(_SHORT_SYSTEM + asked(ending, "-") + _SEEN) - 64
    if left < _LEAST_BYTES:
        return None
    question, draft = within(ending.question, left // 3), within(ending.draft, left // 3)
    left -= _size(question) + _size(draft)
    wanted = within(ending.instructions, left // 3)
    left -= _size(wanted)
    seen: list[str] = []
    for message in reversed(conversation.messages[1:]):
        heading = "You wrote:\n" if message.role == "assistant" else "You were told:\n"
        part = within(message.content, left - len(heading) - 1)
        if not part:
            break
        seen.append(heading + part)
        left -= len(heading) + 1 + _size(part)
    what = "\n".join(reversed(seen)) or "nothing"
    heading = f"Instructions:\n{wanted}\n\n" if wanted else ""
    text = f"{heading}Question:\n{question}\n\n{_SEEN}{what}\n\n{asked(ending, draft)}"
    return Conversation(_SHORT_SYSTEM, (Message("user", text),))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


_SEEN = "What you have seen so far, the last of it (there is no room for the rest):\n"
