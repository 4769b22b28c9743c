"""Scripted stand-ins for models: deterministic programs, so that the system can be tried and tested without a key.

They are not models. `census` answers one kind of question exactly. `errands` asks the tools of a run that has some.
`excerpts` answers any other question with the passages that share most words with it.
"""

from __future__ import annotations

from rlm_server.broker.provider import ModelRequest
from rlm_server.broker.providers.scripted import Script
from rlm_server.broker.providers.scripted_models import census, errands, excerpts


class Player:
    """Plays every model of a run: the one of a node, which writes code, and the sub-model that the code asks."""

    async def reply(self, request: ModelRequest) -> str:
        """Answer by the play that this conversation belongs to."""
        first = request.messages[0].content
        turn = sum(message.role == "assistant" for message in request.messages)
        if census.knows(first):
            return census.write_code(first, turn) if request.system else census.answer(first)
        asked = errands.tools(request.system)
        if asked:
            return errands.write_code(first, asked)
        return excerpts.write_code(first, turn) if request.system else excerpts.answer(first)


SCRIPTS: dict[str, Script] = {"scripted": Player()}
"""The scripted models every server offers, by name."""
