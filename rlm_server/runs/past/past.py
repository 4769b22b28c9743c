"""What the file of a run says of it: where each node was after its last finished turn, and what it was told since."""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from rlm_server.broker.provider import Message
from rlm_server.runs.past.entries import (
    Answered,
    Began,
    BlockBegan,
    Carried,
    ChildMade,
    Concluded,
    Decided,
    Entry,
    Happened,
    Heard,
    NodeOver,
    Replied,
    Reply,
    RunAsked,
    Standing,
    Told,
    ToolCalled,
    TurnEnded,
)
from sandbox.inputs import Inputs

K = TypeVar("K")
V = TypeVar("V")


def next_of(lines: Mapping[K, deque[V]], key: K) -> V | None:
    """Take the first that is left in a line; None where nothing is."""
    line = lines.get(key)
    return line.popleft() if line is not None and len(line) > 0 else None


@dataclass(slots=True)
class NodePast:
    """Where a node was, after `turn` turns. What follows is of the turn that had not ended, and is used up."""

    messages: list[Message] = field(default_factory=list)
    turn: int = 0
    standing: Standing | None = None
    replies: dict[int, Reply] = field(default_factory=dict)
    """What the node's model answered, by turns."""
    carried: Carried | None = None
    """What the run that this one continues had."""
    began: bool = False
    """Whether its model was told anything, or answered."""
    concluded: bool = False
    """Whether it has its answer."""
    decided: Decided | None = None
    block: tuple[int, int, Inputs] | None = None
    """The last block that began: its turn, its number, and what it was told by chance."""
    answers: defaultdict[str, deque[Reply]] = field(default_factory=lambda: defaultdict(deque))
    told: defaultdict[str, deque[Told]] = field(default_factory=lambda: defaultdict(deque))
    tools: defaultdict[str, deque[ToolCalled]] = field(default_factory=lambda: defaultdict(deque))
    children: defaultdict[tuple[str, int], deque[ChildMade]] = field(default_factory=lambda: defaultdict(deque))

    def begin(self, entry: Began) -> None:
        """Take what the node's model is told first."""
        self.messages = [*self.messages, Message("user", entry.first)]
        self.began = True

    def carry(self, entry: Carried) -> None:
        """Take what the run that this one continues had."""
        self.carried, self.standing = entry, entry.standing
        self.messages = [Message(one.role, one.content) for one in entry.messages]

    def conclude(self, entry: Concluded) -> None:
        """Take what the last turn left."""
        self.messages = [*self.messages, Message("assistant", entry.said)]
        self.turn, self.standing, self.concluded = entry.turn, entry.standing, True
        self.forget_turn()

    def end_turn(self, entry: TurnEnded) -> None:
        """Take what a turn left; what happened in it is not wanted any more."""
        self.messages += [Message("assistant", entry.said), Message("user", entry.shown)]
        self.turn, self.standing = entry.turn, entry.standing
        self.forget_turn()

    def forget_turn(self) -> None:
        """Forget what the unfinished turn was told."""
        self.decided = None
        self.replies.clear()
        self.answers.clear()
        self.told.clear()
        self.tools.clear()
        self.children.clear()

    @property
    def orphans(self) -> list[str]:
        """The children that the turn had begun, and that it has not asked for again."""
        return [made.child for line in self.children.values() for made in line]


@dataclass(slots=True)
class RunPast:
    """A run as its file tells it. `answers` are those that identical calls may have."""

    asked: RunAsked
    nodes: dict[str, NodePast] = field(default_factory=dict)
    answers: dict[str, Reply] = field(default_factory=dict)
    replies: list[tuple[str, Reply]] = field(default_factory=list)
    """All that models have answered, each with its node: what they cost may not be in the books."""
    events: list[Happened] = field(default_factory=list)
    """Some may not be in the journal yet."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> RunPast | None:
        """Read entries, the first of which says what was asked; None where it does not."""
        past: RunPast | None = None
        for entry in entries:
            if isinstance(entry, RunAsked):
                past = cls(entry)
            elif past is None:
                return None
            else:
                past.take(entry)
        return past

    @property
    def tool_calls(self) -> list[str]:
        """The calls of tools that unfinished turns had made."""
        return [one.call_id for node in self.nodes.values() for line in node.tools.values() for one in line]

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        if isinstance(entry, RunAsked):
            return
        if isinstance(entry, Happened):
            self.events.append(entry)
            return
        node = self.nodes.setdefault(entry.node, NodePast())
        match entry:
            case Carried():
                node.carry(entry)
            case Began():
                node.begin(entry)
            case Concluded():
                node.conclude(entry)
            case Replied():
                node.began = True
                node.replies[entry.turn] = entry.reply
                self.replies.append((entry.node, entry.reply))
            case Decided():
                node.decided = entry
            case BlockBegan():
                node.block = entry.turn, entry.block, Inputs.from_bytes(b64decode(entry.inputs))
            case Heard():
                if node.block is not None:
                    node.block[2].add(b64decode(entry.piece))
            case Answered():
                self._answered(node, entry)
            case Told():
                node.told[entry.request].append(entry)
            case ToolCalled():
                node.tools[entry.request].append(entry)
            case ChildMade():
                node.children[entry.request, entry.number].append(entry)
            case TurnEnded():
                node.end_turn(entry)
            case NodeOver():
                del self.nodes[entry.node]

    def _answered(self, node: NodePast, entry: Answered) -> None:
        node.answers[entry.key].append(entry.reply)
        if not entry.fresh and entry.reply.stopped != "length" and entry.reply.text.strip():
            self.answers[entry.key] = entry.reply
        self.replies.append((entry.node, entry.reply))
