"""The client of a run as a model: what is asked is told in the run's events, and a client answers."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from rlm_server.broker.provider import Failure, ModelReply, ModelRequest, ProviderError

NAME = "client"
"""The provider's name, and that of its one model."""
MARGIN = 0.05
"""Seconds by which a client has less than an attempt, so that its deadline is the one that ends it."""


class Seat(Protocol):
    """Where a client plays the model: at a node of a run that names it."""

    async def ask(self, request: ModelRequest, seconds: float) -> ModelReply:
        """Have a client answer within so many seconds.

        Raises:
            ProviderError: it did not.
        """
        ...


SEAT: ContextVar[Seat | None] = ContextVar("where a client plays the model", default=None)
"""Of the node whose calls are made."""


class ClientProvider:
    """Asks the client of whichever run makes the call. An attempt may take so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Have the run's client answer.

        Raises:
            ProviderError: it did not, or the run does not name it.
        """
        seat = SEAT.get()
        if seat is None:
            words = f"{NAME} is a model only in runs whose model or sub_model it is: nobody would answer here"
            raise ProviderError(Failure.BAD_REQUEST, words, billed=False)
        return await seat.ask(request, max(0.0, self._seconds - MARGIN))

    async def close(self) -> None:
        """Nothing is held open."""
