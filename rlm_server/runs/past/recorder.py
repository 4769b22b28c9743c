"""Writes down what a node is told by others, and tells it again where the node's unfinished turn runs once more."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace

from pydantic import TypeAdapter

from rlm_server.broker.broker import Completion
from rlm_server.broker.provider import ModelReply
from rlm_server.ledger import Amounts, Limit
from rlm_server.runs.past.entries import (
    Answered,
    Began,
    BlockBegan,
    ChildMade,
    Concluded,
    Decided,
    Heard,
    NodeOver,
    RanBlock,
    Replied,
    Reply,
    Standing,
    Told,
    ToolCalled,
    TurnEnded,
)
from rlm_server.runs.past.past import NodePast, RunPast, next_of
from rlm_server.runs.past.run_file import RunFile
from rlm_server.runs.reply.decision import Decision
from sandbox.door import HostCall, Json
from sandbox.inputs import Inputs
from sandbox.turn import Status, Stop, Turn

_NOTHING = Amounts()


def replied(reply: Reply) -> Completion:
    """Return what was answered before, for nothing."""
    answer = ModelReply(reply.text, reply.usage, reply.stopped, reply.max_tokens)
    return Completion(answer, _NOTHING, reply.attempts, reply.call_id, reply.provider, reply.model)


def reply_of(done: Completion) -> Reply:
    """Return what is written down of an answer."""
    reply = done.reply
    return Reply(
        done.call_id, done.attempts, done.model, done.provider, reply.text, reply.stopped, reply.max_tokens,
        reply.usage, done.spent,
    )  # fmt: skip


class Recorder:
    """What one node has behind it, and where more is written down.

    Of a turn that did not end, it has what the turn was told, and tells it again to whoever asks for the same.
    """

    def __init__(
        self,
        node: str,
        file: RunFile,
        past: NodePast | None,
        read: Callable[[], Awaitable[RunPast]],
        no_database: Callable[[], Awaitable[None]],
    ) -> None:
        """`read` reads what the file has by now. `no_database` is told that the database is away."""
        self._node, self._file, self._read, self._no_database = node, file, read, no_database
        self.past = past if past is not None else NodePast()
        self.resumed = self.past.began
        """Whether another process, or this one earlier, worked for the node before."""
        self._blocks: dict[int, RanBlock] = {}
        self.ran: list[RanBlock] = []
        """Of the turn that is under way, the blocks that have run to their end."""

    @property
    def kept(self) -> bool:
        """Whether another process could go on with the node."""
        return self._file.kept

    async def again(self) -> None:
        """Have what the turn under way was told so far told again: its code begins anew."""
        found = (await self._read()).nodes.get(self._node)
        if found is not None:
            self.past.answers, self.past.told = found.answers, found.told
            self.past.tools, self.past.children = found.tools, found.children

    # ---- the node's own model --------------------------------------------------------------------------------------

    def begin(self, first: str) -> None:
        """Write down what the node's model is told first."""
        self._file.add(Began(self._node, first))

    def recall_reply(self, turn: int) -> Completion | None:
        """Return what the node's model answered in a turn already, for nothing."""
        known = self.past.replies.pop(turn, None)
        return None if known is None else replied(known)

    def replied(self, turn: int, done: Completion) -> None:
        """Write down what the node's model answered."""
        self._file.add(Replied(self._node, turn, reply_of(done)))

    def recall_decision(self, turn: int) -> Decision | None:
        """Return how the reply of a turn was read already."""
        known, self.past.decided = self.past.decided, None
        if known is None or known.turn != turn:
            return None
        return Decision(known.said, known.codes, known.told, known.nothing)

    def decided(self, turn: int, one: Decision) -> None:
        """Write down how a reply was read."""
        self._file.add(Decided(self._node, turn, one.said, one.codes, one.told, one.nothing))

    # ---- calls of its code -----------------------------------------------------------------------------------------

    def recall(self, key: bytes) -> Completion | None:
        """Return what a model answered a call of the unfinished turn, which is asked for again; for nothing."""
        known = next_of(self.past.answers, key.hex())
        return None if known is None else replied(known)

    def keep(self, key: bytes, done: Completion, *, fresh: bool) -> None:
        """Write down what a model answered a call of the node's code."""
        self._file.add(Answered(self._node, key.hex(), fresh, reply_of(done)))

    async def told(self, call: HostCall, answer: Callable[[], Awaitable[Json]]) -> Json:
        """Answer a request as it was answered before, or write down how it is answered now."""
        request = request_key(call)
        known = next_of(self.past.told, request)
        if known is not None:
            said: Json = known.value
            return said
        value = await answer()
        self._file.add(Told(self._node, request, value))
        return value

    def tool_call(self, call: HostCall) -> str:
        """Return what a call of a tool is called, as when it was made before: its client may be at work for it."""
        request = request_key(call)
        known = next_of(self.past.tools, request)
        if known is not None:
            return known.call_id
        name = "tool_" + secrets.token_hex(16)
        self._file.add(ToolCalled(self._node, request, name))
        return name

    def recall_child(self, request: str, number: int) -> ChildMade | None:
        """Return the child that the unfinished turn started for this prompt of a request."""
        return next_of(self.past.children, (request, number))

    def inputs(self, turn: int, block: int) -> Inputs:
        """Return what a block of code is told by chance: of one that ran before, what it was told then."""
        before, self.past.block = self.past.block, None
        if before is not None and before[:2] == (turn, block):
            return before[2]
        inputs = Inputs.new()
        self._file.add(BlockBegan(self._node, turn, block, b64encode(inputs.to_bytes()).decode()))
        return inputs

    def heard(self, piece: bytes) -> None:
        """Write down what the code that runs is told by chance."""
        self._file.add(Heard(self._node, b64encode(piece).decode()))

    def child(self, request: str, number: int, child: str, budget: Limit) -> None:
        """Write down that a child is to be started for a prompt of a request."""
        self._file.add(ChildMade(self._node, request, number, child, budget))

    async def no_database(self) -> None:
        """Heed that a call could not be made because the database is away. Returns where that is to be told."""
        await self._no_database()

    # ---- turns -----------------------------------------------------------------------------------------------------

    def stored(self, notes: list[bytes]) -> None:
        """Take the notes that were stored with the node's session: which blocks of the unfinished turn have run."""
        found = [block for note in notes for block in _notes.validate_json(note)]
        self._blocks = {one.block: _as_it_was(one) for one in found if one.turn == self.past.turn + 1}

    def recall_block(self, number: int) -> RanBlock | None:
        """Return a block of the unfinished turn that ran to its end, with what came of it."""
        known = self._blocks.pop(number, None)
        if known is not None:
            self.ran.append(known)
        return known

    def block_ran(self, turn: int, number: int, done: Turn, draft: tuple[str, bool] | None, notes: list[str]) -> bytes:
        """Return the note that is stored with what a block of code did."""
        self.ran.append(RanBlock(turn, number, done, draft, tuple(notes)))
        return _notes.dump_json(self.ran[-1:])

    def note(self) -> bytes:
        """Return the note of all blocks that have run in the turn under way."""
        return _notes.dump_json(self.ran)

    def end_turn(self, turn: int, said: str, shown: str, standing: Standing) -> None:
        """Write down what a turn left: what the node's model said, and what it was shown of what came of that."""
        self.ran.clear()
        self._blocks.clear()
        self.past.forget_turn()
        self._file.add(TurnEnded(self._node, turn, said, shown, standing))

    def conclude(self, turn: int, said: str, standing: Standing) -> None:
        """Write down what the turn left in which the node has its answer."""
        self._file.add(Concluded(self._node, turn, said, standing))

    def over(self) -> None:
        """Write down that the node has ended."""
        self._file.add(NodeOver(self._node))


def request_key(call: HostCall) -> str:
    """Return what tells a request from others."""
    return call.digest.hex()


def _as_it_was(block: RanBlock) -> RanBlock:
    turn = block.result
    if turn.status is not Status.ROLLED_BACK or turn.error is None:
        return block
    return replace(block, result=replace(turn, error=replace(turn.error, type=Stop(turn.error.type))))


_notes = TypeAdapter(list[RanBlock])
