"""The line of one tenant's holds that wait for room. Nothing polls: a pass runs when one arrives or room is freed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, DatabaseError
from rlm_server.ledger.admission import Admission, Asked, Pass, Verdict
from rlm_server.ledger.errors import BudgetBusy
from rlm_server.ledger.holds import Hold, HoldState, withdraw

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Waiter:
    hold: Hold
    state: HoldState
    # Whether the hold was taken for this waiter; False where it existed already, or the waiter gave up.
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    busy: BudgetBusy | None = None  # the last judgement; None until the first
    flying: bool = False  # a pass that includes it is under way
    expired: bool = False
    abandoned: bool = False


class WaitQueue:
    """First come, first served, for each account that is in the way."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database, self._clock = database, clock
        # A dict for its order, and because one may leave from the middle.
        self._waiting: dict[_Waiter, None] = {}
        self._flying = False
        self._again = False

    async def reserve(self, hold: Hold, state: HoldState, deadline: float) -> None:
        """Wait for room until `deadline` and take it, pending or dispatched; see `Ledger.reserve`."""
        waiter = _Waiter(hold, state)
        self._waiting[waiter] = None
        self.advance()
        try:
            await asyncio.wait([waiter.done], timeout=max(0.0, deadline - time.monotonic()))
            if not waiter.done.done():
                self._expire(waiter)
                await asyncio.wait([waiter.done])
        except asyncio.CancelledError:
            # Short: what is under way is one commit, or two where the hold has to be taken back.
            await asyncio.wait([self._abandon(waiter)])
            raise
        waiter.done.result()

    def advance(self) -> None:
        """Judge the line again, after the pass that is under way if there is one."""
        if self._flying:
            self._again = True
            return
        if not self._waiting:
            return
        self._again = False
        waiters = list(self._waiting)
        line = [Asked(waiter.hold, waiter.state, waiter.busy is None) for waiter in waiters]

        def judge(connection: Connection) -> tuple[list[Verdict], bool]:
            return Pass(connection, self._database.epoch, self._clock()).judge(line)

        try:
            landing = self._database.submit(judge)
        except DatabaseError as error:
            self._fail(waiters, error)
            return
        self._flying = True
        for waiter in waiters:
            waiter.flying = True
        landing.add_done_callback(lambda landed: self._landed(waiters, landed))

    def _landed(self, waiters: Sequence[_Waiter], landed: asyncio.Future[tuple[list[Verdict], bool]]) -> None:
        for waiter in waiters:
            waiter.flying = False
        error = landed.exception()
        if error is not None:
            self._fail(waiters, error)
        else:
            verdicts, cut = landed.result()
            self._again |= cut
            for waiter, verdict in zip(waiters, verdicts, strict=True):
                self._settle(waiter, verdict)
        # Not before, so that the line is not judged again while half of its verdicts are still to be told.
        self._flying = False
        if self._again:
            self.advance()

    def _settle(self, waiter: _Waiter, verdict: Verdict) -> None:
        if isinstance(verdict, BudgetBusy):
            waiter.busy = verdict
        if verdict is Admission.TAKEN or verdict is Admission.REPEATED:
            self._leave(waiter, taken=verdict is Admission.TAKEN)
        elif isinstance(verdict, Exception) and verdict is not waiter.busy:
            self._leave(waiter, verdict)
        elif waiter.abandoned:
            self._give_way(waiter, None)
        elif waiter.expired and waiter.busy is not None:
            self._give_way(waiter, waiter.busy)

    def _expire(self, waiter: _Waiter) -> None:
        # A pass under way may have taken it: only its end tells. And nobody is refused without having been judged.
        waiter.expired = True
        if waiter.busy is not None and not waiter.flying:
            self._give_way(waiter, waiter.busy)

    def _abandon(self, waiter: _Waiter) -> asyncio.Future[None]:
        """Forget a cancelled waiter; the future ends when no trace of it is left, whoever still waits for that."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter.abandoned = True
        if waiter in self._waiting and not waiter.flying:
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
            self._leave(waiter, error)

    def _give_way(self, waiter: _Waiter, error: BaseException | None) -> None:
        """Leave the line without the room; whoever stood behind may fit."""
        self._leave(waiter, error)
        self.advance()

    def _leave(self, waiter: _Waiter, error: BaseException | None = None, *, taken: bool = False) -> None:
        del self._waiting[waiter]
        if error is None:
            waiter.done.set_result(taken)
        else:
            waiter.done.set_exception(error)
