"""How long answers have been: a call for whose worst case there is no room is bounded by that instead.

A hold covers the most that a request can cost, and nearly all of that is output that never comes: an answer of ten
tokens is held as one of 4,096. So a small budget lets few calls go at once, though it would pay for hundreds. Where the
hold of a call finds no room, the call is sent with a `max_tokens` of a few times what answers like it have had, and
held at that. What leaves is covered. An answer that the lower bound cut off is asked for again, with a higher one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

RECENT = 32
"""Answers whose length is remembered."""

TIMES = 4
"""A lower bound is so many times the longest of them: and after a cut, of the bound that cut it off."""

LEAST = 64
"""Tokens. No bound is made lower."""

AT_ONCE = 16
"""Calls with a lower bound that go at once, for each answer whose length is known: or more, as long as all of them
together cost no more than one with its whole bound."""


class Outputs:
    """How long the answers of one model to one run, or session, have been."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._lowered = 0
        self._waiting: deque[tuple[asyncio.Future[None], tuple[int, int, int]]] = deque()

    def lowest(self, most: int, least: int = 0) -> int:
        """Return the lowest bound that a call may have whose own is `most`: that, where nothing lower is known."""
        if not self._recent:
            return most
        return min(most, max(LEAST, least, TIMES * max(self._recent)))

    def lower(self, most: int, least: int = 0, besides: int = 0) -> int | None:
        """Have a call go with a bound below `most`, and not below `least`. Return the bound, or None if it may not.

        Besides its output it costs as much as so many tokens of that. `ended` must be called once the call is over.
        """
        bound = self.lowest(most, least)
        if bound >= most or self._waiting or not self._may_go(most, least, besides):  # those that wait go first
            return None
        self._lowered += 1
        return bound

    async def lowered(self, most: int, least: int = 0, besides: int = 0) -> int:
        """Wait, for ever if need be, until a call may go with a lower bound, as `lower` says."""
        if (bound := self.lower(most, least, besides)) is not None:
            return bound
        while True:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append((waiter, (most, least, besides)))
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self.ended()
                raise
            if (bound := self.lowest(most, least)) < most:
                return bound
            self.ended()

    def ended(self) -> None:
        """A call with a lower bound is over."""
        self._lowered -= 1
        self._wake()

    def _may_go(self, most: int, least: int, besides: int) -> bool:
        for_each = max(AT_ONCE, (most + besides) // (self.lowest(most, least) + besides))
        return self._lowered < for_each * len(self._recent)

    def saw(self, tokens: int, *, cut: bool) -> None:
        """An answer had so many tokens. Where it was cut off there, nothing learned before is relied on."""
        if cut:
            self._recent.clear()
        self._recent.append(tokens)
        self._wake()

    def _wake(self) -> None:
        """Let those that wait go, in their order, as many as may."""
        while self._waiting:
            waiter, asked = self._waiting[0]
            if not waiter.done():
                if not self._may_go(*asked):
                    return
                self._lowered += 1
                waiter.set_result(None)
            self._waiting.popleft()


@dataclass(frozen=True, slots=True)
class Lowering:
    """Allows a call to be sent with a lower bound, which is `least` at least."""

    outputs: Outputs
    least: int = 0

    def raised(self, bound: int) -> Lowering:
        """Return what allows a call to be sent again whose answer was cut off at a bound."""
        return Lowering(self.outputs, TIMES * bound)
