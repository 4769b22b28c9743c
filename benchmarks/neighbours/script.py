"""The scripted model: it plays what it is told to, as a root model and as a sub-model."""

from __future__ import annotations

import asyncio

from benchmarks.neighbours.client import NEXT, block
from rlm_server.broker.provider import Failure, ModelRequest, ProviderError

NOTHING = block("FINAL('nothing')")
LONGEST_WAIT = 60.0


class Player:
    """A node's model says what stands between `<play>` and `</play>` in its question, one reply after another.

    A sub-model answers "ok"; to "wait N" after N seconds, to "long N" with N letters; to "fail" it does not answer.
    """

    async def reply(self, request: ModelRequest) -> str:
        """Answer."""
        first = request.messages[0].content
        if not request.system:
            return await _sub(first)
        play = first.partition("<play>\n")[2].partition("\n</play>")[0]
        if not play:
            return NOTHING
        replies = play.split(NEXT)
        turn = sum(message.role == "assistant" for message in request.messages)
        return replies[min(turn, len(replies) - 1)]


async def _sub(prompt: str) -> str:
    match prompt[:40].split()[:2]:
        case ["wait", seconds]:
            await asyncio.sleep(min(float(seconds), LONGEST_WAIT))
        case ["long", letters]:
            return "x" * int(letters)
        case ["fail", *_]:
            raise ProviderError(Failure.BAD_REQUEST, "refused", billed=False)
    return "ok"
