"""The texts that the server holds for one request for child RLMs until it is answered."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rlm_server.runs.cuts import size_of
from rlm_server.shares.held import Held, TooMuchHeld
from sandbox.door import DoorRefusal


class RequestTexts:
    """Counts what is held for one request, for the request and for its tenant, until the context ends.

    `most` is in bytes: what a frame through the door may have, as what is made by reference may be no more than what
    could have been sent.
    """

    def __init__(self, held: Held, tenant: str, most: int) -> None:
        self._held, self._tenant, self._most = held, tenant, most
        self._taken = 0

    def take(self, text: str, what: str) -> None:
        """Count a text; `what` says what it is one of.

        Raises:
            DoorRefusal: the request would have more than a frame, or the tenant more than it may. Nothing is counted.
        """
        size = size_of(text)
        if self._taken + size > self._most:
            raise DoorRefusal("LimitExceeded", f"frame_bytes: {what} may have {self._most} bytes together")
        try:
            self._held.take(self._tenant, size, what)
        except TooMuchHeld as error:
            raise DoorRefusal("LimitExceeded", str(error)) from None
        self._taken += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.give_back(self._tenant, self._taken)
