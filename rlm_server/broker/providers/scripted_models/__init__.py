"""Scripted stand-ins for models: deterministic programs, so that the system can be tried and tested without a key.

They are no models. `census` knows one kind of question and answers it exactly; `excerpts` answers any other with the
passages that share most words with it.
"""

from __future__ import annotations

from rlm_server.broker.provider import ModelRequest
from rlm_server.broker.providers.scripted import Script
from rlm_server.broker.providers.scripted_models import census, excerpts


class Player:
    """Plays the part of every model of a run: of the node that writes code, and of the sub-model that is asked."""

    async def reply(self, request: ModelRequest) -> str:
        """Answer as the play that knows this conversation."""
        first = request.messages[0].content
        turn = sum(message.role == "assistant" for message in request.messages)
        if census.knows(first):
            return census.write_code(first, turn) if request.system else census.answer(first)
        return excerpts.write_code(first, turn) if request.system else excerpts.answer(first)


SCRIPTS: dict[str, Script] = {"scripted": Player()}
"""The scripted models every server offers, by name."""
