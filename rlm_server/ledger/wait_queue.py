"""One tenant's holds that wait for room. Nothing polls: a pass runs when a hold arrives, or room is freed or begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError
from rlm_server.ledger.admission import Admission, Pass, QueuedHold, Verdict
from rlm_server.ledger.errors import BudgetBusy
from rlm_server.ledger.holds import Hold, HoldState, withdraw
from rlm_server.ledger.windows import Span, bounds, is_pace

logger = logging.getLogger(__name__)

MINUTE_MS = 60_000
APPLIED_AT_ONCE = 16
"""Verdicts that are applied in one step of the event loop."""


@dataclass(frozen=True, slots=True)
class _Lower:
    """What a hold is to be from the next pass on, and whether it came to that."""

    hold: Hold
    done: asyncio.Future[bool]


@dataclass(slots=True, eq=False)
class _Waiter:
    hold: Hold
    state: HoldState
    # Whether the hold was taken for this waiter; False where it existed already, or the waiter gave up.
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    busy: BudgetBusy | None = None  # the last verdict; None until the first
    in_pass: bool = False  # a pass that includes it is under way
    lower: _Lower | None = None
    expired: bool = False
    abandoned: bool = False


class WaitQueue:
    """First come, first served, for each account that is in the way."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database, self._clock = database, clock
        # A dict for its order, and because one may leave from the middle.
        self._waiting: dict[_Waiter, None] = {}
        self._pass_under_way = False
        self._pass_again = False
        self._next_minute: asyncio.TimerHandle | None = None
        self._judged_at = 0  # when the last pass was, which the present minute may not be that of

    @property
    def crowded(self) -> bool:
        """Whether holds are here."""
        return bool(self._waiting)

    async def reserve(self, hold: Hold, state: HoldState, deadline: float) -> None:
        """Wait for room until `deadline` and take it, pending or dispatched; see `Ledger.reserve`."""
        waiter = _Waiter(hold, state)
        self._waiting[waiter] = None
        self.advance()
        try:
            left = deadline - time.monotonic()
            if left > 0:  # else it takes what there is now, and does without a timer
                await asyncio.wait([waiter.done], timeout=left)
            if not waiter.done.done():
                self._expire(waiter)
                await asyncio.wait([waiter.done])
        except asyncio.CancelledError:
            # Short: what is under way is one commit, or two where the hold has to be taken back.
            await asyncio.wait([self._abandon(waiter)])
            raise
        waiter.done.result()

    async def lower(self, hold: Hold) -> bool:
        """Have a hold that waits be this one, of the same id, in its place in the queue; see `Ledger.lower`."""
        waiter = next((waiter for waiter in self._waiting if waiter.hold.id == hold.id), None)
        if waiter is None:
            return False
        waiter.lower = _Lower(hold, asyncio.get_running_loop().create_future())
        done = waiter.lower.done
        if not waiter.in_pass:
            self._replace(waiter)
            self.advance()
        return await done

    def advance(self) -> None:
        """Judge the queue again, after the pass that is under way if there is one."""
        if self._pass_under_way:
            self._pass_again = True
            return
        if not self._waiting:
            return
        self._pass_again = False
        waiters = list(self._waiting)
        queue = [QueuedHold(waiter.hold, waiter.state, waiter.busy is None) for waiter in waiters]

        def judge(connection: Connection) -> tuple[list[Verdict], bool]:
            self._judged_at = self._clock()
            return Pass(connection, self._database.epoch, self._judged_at).judge(queue)

        try:
            judging = self._database.submit(judge)
        except DatabaseError as error:
            self._fail(waiters, error)
            return
        self._pass_under_way = True
        for waiter in waiters:
            waiter.in_pass = True
        judging.add_done_callback(lambda judged: self._pass_ended(waiters, judged))

    def _pass_ended(self, waiters: Sequence[_Waiter], judged: asyncio.Future[tuple[list[Verdict], bool]]) -> None:
        error = judged.exception()
        if error is not None:
            self._fail(waiters, error)
            self._pass_over()
            return
        verdicts, cut = judged.result()
        self._pass_again |= cut
        self._apply_some(zip(waiters, verdicts, strict=True))

    def _apply_some(self, judged: Iterator[tuple[_Waiter, Verdict]]) -> None:
        """Apply verdicts, a few at a time: hundreds who go on at once would keep everybody else waiting."""
        some = list(islice(judged, APPLIED_AT_ONCE))
        for waiter, verdict in some:
            waiter.in_pass = False
            self._apply(waiter, verdict)
        if len(some) == APPLIED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._apply_some, judged)
        else:
            self._pass_over()

    def _pass_over(self) -> None:
        # Only now, so that no other pass begins while some of the verdicts are still to be applied.
        self._pass_under_way = False
        if self._pass_again:
            self.advance()
        self._await_next_minute()

    def _await_next_minute(self) -> None:
        """Look again when this minute is over, where one waits for that."""
        if self._next_minute is not None:
            self._next_minute.cancel()
            self._next_minute = None
        if any(waiter.busy is not None and is_pace(waiter.busy.account) for waiter in self._waiting):
            _, end = bounds(Span.MINUTE, self._judged_at)
            left = min(max(0, end - self._clock()), MINUTE_MS)  # the clock may have been set back
            self._next_minute = asyncio.get_running_loop().call_later(left / 1000, self.advance)

    def _apply(self, waiter: _Waiter, verdict: Verdict) -> None:
        if isinstance(verdict, BudgetBusy):
            waiter.busy = verdict
        if verdict is Admission.TAKEN or verdict is Admission.REPEATED:
            self._leave(waiter, taken=verdict is Admission.TAKEN)
        elif isinstance(verdict, Exception) and verdict is not waiter.busy:
            self._leave(waiter, verdict)
        elif waiter.abandoned:
            self._give_way(waiter, None)
        elif waiter.lower is not None:
            self._replace(waiter)
            self._pass_again = True
        elif waiter.expired and waiter.busy is not None:
            self._give_way(waiter, waiter.busy)

    def _replace(self, waiter: _Waiter) -> None:
        lower, waiter.lower = waiter.lower, None
        if lower is not None and not lower.done.done():
            lower.done.set_result(True)
            waiter.hold, waiter.busy = lower.hold, None

    def _expire(self, waiter: _Waiter) -> None:
        # A pass under way may have taken it, which only its end shows. And nobody is refused without a verdict.
        waiter.expired = True
        if waiter.busy is not None and not waiter.in_pass:
            self._give_way(waiter, waiter.busy)

    def _abandon(self, waiter: _Waiter) -> asyncio.Future[None]:
        """Give up a cancelled waiter; the future ends when no trace of its hold is left."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter.abandoned = True
        if waiter in self._waiting and not waiter.in_pass:
            self._give_way(waiter, None)
        waiter.done.add_done_callback(lambda done: self._take_back(waiter, done, gone))
        return gone

    def _take_back(self, waiter: _Waiter, done: asyncio.Future[bool], gone: asyncio.Future[None]) -> None:
        if done.exception() is not None or not done.result():
            gone.set_result(None)
            return
        try:
            back = self._database.submit(lambda connection: withdraw(connection, waiter.hold.id, waiter.state))
        except DatabaseError as error:
            self._taken_back(waiter.hold, error, gone)
            return
        back.add_done_callback(lambda done: self._taken_back(waiter.hold, done.exception(), gone))

    def _taken_back(self, hold: Hold, error: BaseException | None, gone: asyncio.Future[None]) -> None:
        if error is not None:
            logger.error("hold %s could not be taken back and stays until the next start: %s", hold.id, error)
        gone.set_result(None)
        self.advance()

    def _fail(self, waiters: Sequence[_Waiter], error: BaseException) -> None:
        for waiter in waiters:
            waiter.in_pass = False
            self._leave(waiter, error)

    def _give_way(self, waiter: _Waiter, error: BaseException | None) -> None:
        """Leave the queue without the room; a hold behind may fit now."""
        self._leave(waiter, error)
        self.advance()

    def _leave(self, waiter: _Waiter, error: BaseException | None = None, *, taken: bool = False) -> None:
        del self._waiting[waiter]
        if waiter.lower is not None and not waiter.lower.done.done():
            waiter.lower.done.set_result(False)
        if error is None:
            waiter.done.set_result(taken)
        else:
            waiter.done.set_exception(error)
