"""The stage of this suite: a case tells what a model says and what must come of it, and is played on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from tests.system.context_calls import of_documents
from tests.system.stage import Caller, Ended, Play, Said, Sub, code

SUCCEEDED, EXHAUSTED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_EXHAUSTED
SECONDS = 60
"""A case that takes longer fails."""


def sub(prompt: str) -> str:
    """Answer a sub-call: most prompts in capitals, "nothing" with nothing, and "fail" with a refusal."""
    if "fail" in prompt:
        raise ProviderError(Failure.BAD_REQUEST, "it was asked to", billed=False)
    return "" if prompt == "nothing" else prompt.upper()


@dataclass(frozen=True)
class Case:
    """A run: what its model says, and what comes of it.

    `replies` are the model's, one for a turn; `children` are those of child RLMs, by their question. `told` must stand
    in what the root's model was told after its turns, and `untold` must not. `printed` is what the code must print.
    """

    name: str
    replies: Sequence[str]
    answer: str | None = None
    state: int = SUCCEEDED
    reason: str = ""
    told: Sequence[str] = ()
    untold: Sequence[str] = ()
    printed: str | None = None
    turns: int | None = None
    context: str | Sequence[str] | None = None
    sub: Sub = sub
    children: Mapping[str, Said] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Ended, Play], None] | None = None


def case(name: str, *replies: str, **expected: Any) -> Case:
    """Make a case of whole replies."""
    return Case(name, replies, **expected)


def blocks(name: str, *turns: str, **expected: Any) -> Case:
    """Make a case of turns that are one block of code each."""
    return Case(name, [code(turn) for turn in turns], **expected)


def played(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Play each of the cases, by its name."""
    assert len({one.name for one in cases}) == len(cases)
    return pytest.mark.parametrize("played_case", cases, ids=lambda one: str(one.name))


class Theatre:
    """Plays cases one after another: each has the stage to itself."""

    caller: Caller

    def __init__(self) -> None:
        self.begin(Play(""))
        self.second = Second(self)

    def begin(self, play: Play) -> None:
        """Take a play for what comes next."""
        self.play = play

    async def reply(self, request: ModelRequest) -> str:
        return await self.play.reply(request)

    async def run(self, one: Case) -> Ended:
        """Play a case and see that it ends as it must."""
        self.begin(Play(*one.replies, sub=one.sub, **one.children))
        async with asyncio.timeout(SECONDS):
            asked = dict(one.asked)
            if one.context is not None:
                asked["context_id"] = await self.upload(one.context)
            ended = await self.caller.ask("What?", **asked)
        self._compare(one, ended)
        if one.check is not None:
            one.check(ended, self.play)
        return ended

    async def upload(self, context: str | Sequence[str]) -> str:
        """Upload a text, or documents, and return its id."""
        if isinstance(context, str):
            return (await self.caller.upload(context)).context_id
        parts = of_documents([(f"{number}.txt", text) for number, text in enumerate(context)])
        return (await self.caller.send_parts(parts)).context_id

    def _compare(self, one: Case, ended: Ended) -> None:
        run = ended.run
        assert run.state == one.state, (run_pb2.RunState.Name(run.state), run.end_message, self.told)
        assert one.reason in run.end_message
        if one.answer is not None:
            assert run.answer == one.answer, self.told
        if one.printed is not None:
            assert ended.printed == one.printed
        if one.turns is not None:
            assert _turns(ended) == one.turns
        for words in one.told:
            assert words in self.told, words
        for words in one.untold:
            assert words not in self.told, words

    @property
    def told(self) -> str:
        """What the root's model was told after its turns, in order."""
        messages = [request.messages for request in self.play.asked if request.system]
        last = max((found for found in messages if _is_root(found[0].content)), key=len, default=())
        return "\n".join(message.content for message in last[1:] if message.role == "user")


def _turns(ended: Ended) -> int:
    """Return how many turns the root had."""
    return sum(event.depth == 0 and event.WhichOneof("body") == "turn_started" for event in ended.events)


def _is_root(first: str) -> bool:
    return first.removeprefix("Question:\n").partition("\n")[0] == "What?"


class Second:
    """Another model, which says so."""

    def __init__(self, theatre: Theatre) -> None:
        self.theatre = theatre

    async def reply(self, request: ModelRequest) -> str:
        self.theatre.play.asked.append(request)
        return code('FINAL("the second as a child")') if request.system else "the second"


def tokens(most: int) -> types_pb2.Budget:
    return types_pb2.Budget(token_count=most)
