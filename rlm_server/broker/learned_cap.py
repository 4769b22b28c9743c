"""How many calls go to one model at once: as many as its provider takes, which is learned from what it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.broker.rate_limit import HEARING, Allowance
from rlm_server.shares.gate import Gate

START = 288
"""Calls at once that a model is given before anything is known of it."""

RESERVED = 16
"""One of so many calls in flight is kept for tenants that have few there."""

OBJECTION = 0.25
"""The share of requests refused (429) from which a provider objects. A few among many are tried again, and that is
all: halving for each would leave a provider idle that refuses one in ten at random."""

REFUSALS = 8
"""As many at least, where the cap is not small itself."""

LONGEST_PAUSE = 60.0
"""Seconds. No header makes a model wait longer before it is asked again."""


@dataclass(slots=True)
class _Round:
    """Requests that were sent under one cap: how many, and how they ended. `cut` says that they made it smaller."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    cut: bool = False


class LearnedCap:
    """The cap of one model. Its `gate` lets calls in; `most` is never exceeded.

    It grows while it is used and calls are answered: by one for each answer at first, and after an objection by four
    for as many answers as there are calls at once. It is halved where the provider objects, and follows the requests
    that are refused after that down to those that are not. Then all wait as long as the provider asked for.
    """

    def __init__(
        self,
        most: int,
        weights: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
        start: int = START,
    ) -> None:
        self._most, self._clock = most, clock
        self._cap = float(min(most, start))
        self.gate = Gate(calls=self.calls, weights=weights, reserved=self.calls // RESERVED)
        self._round = _Round()
        self._objected = False
        self._not_before = 0.0
        self._allowance: Allowance | None = None
        self._left = self._counted_at = 0.0
        self._taken = 0
        self._out = 0  # requests sent and not answered

    @property
    def calls(self) -> int:
        """The cap now."""
        return int(self._cap)

    async def ready(self, deadline: float) -> None:
        """Wait as long as the provider asked for. The caller holds a slot of the gate, and sends one request after.

        Raises:
            ProviderError: that is beyond the deadline (RATE_LIMITED); not billed.
        """
        wait = max(self._not_before - self._clock(), self._take())
        if wait <= 0:
            return
        if self._clock() + wait >= deadline:
            words = "the provider's rate limit is reached, and it asks to wait beyond the deadline"
            raise ProviderError(Failure.RATE_LIMITED, words, billed=False, retry_after=wait)
        await asyncio.sleep(wait)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Learn from what comes of a request, and from the headers of its answer."""
        taken, of = self._taken, self._round
        of.sent += 1
        self._out += 1
        hearing = HEARING.set(lambda said: self._hear(said, taken))
        try:
            yield
        except ProviderError as error:
            if error.failure is Failure.RATE_LIMITED:
                self._refused(of, error.retry_after or 0.0)
            raise
        else:
            self._answered(of)
        finally:
            self._out -= 1
            HEARING.reset(hearing)

    # ---- the cap -------------------------------------------------------------------------------------------------

    def _answered(self, of: _Round) -> None:
        if of is not self._round:
            return
        of.answered += 1
        if self._out > self.calls / 2:  # else it is not the cap that holds calls back
            self._resize(self._cap + (4 / self._cap if self._objected else 1))
        if of.answered + of.refused >= max(4 * REFUSALS, 2 * self.calls):
            self._round = _Round()

    def _refused(self, of: _Round, retry_after: float) -> None:
        accepted = self._out - 1
        of.refused += 1
        if of is self._round and of.refused >= max(min(REFUSALS, self.calls / 2), OBJECTION * of.sent):
            of.cut, self._round, self._objected = True, _Round(), True
            self._not_before = max(self._not_before, self._clock() + min(LONGEST_PAUSE, retry_after))
            self._resize(min(self._cap / 2, accepted))
        elif of.cut:
            self._resize(min(self._cap, accepted))

    def _resize(self, cap: float) -> None:
        before, self._cap = self.calls, max(1.0, min(cap, self._most))
        if self.calls != before:
            self.gate.resize(self.calls, reserved=self.calls // RESERVED)

    # ---- what headers allow --------------------------------------------------------------------------------------

    def _hear(self, said: Allowance, taken: int) -> None:
        self._allowance, self._counted_at = said, self._clock()
        self._left = float(said.left - (self._taken - taken))  # those sent since are not counted there

    def _take(self) -> float:
        """Take one request of the allowance; return the seconds until it may be sent."""
        self._taken += 1
        if self._allowance is None:
            return 0.0
        now = self._clock()
        self._left += (now - self._counted_at) * self._allowance.rate - 1
        self._counted_at = now
        return min(LONGEST_PAUSE, max(0.0, -self._left / self._allowance.rate))
