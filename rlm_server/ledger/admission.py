"""Admission: which holds of a queue are taken now, which must wait, and which can never fit. One transaction's work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from rlm_server.database.engine import Connection
from rlm_server.ledger.accounts import ZERO, Account, Shortage, Tree, customer_of, shortage, taking
from rlm_server.ledger.amounts import UNITS, Amounts
from rlm_server.ledger.errors import (
    AccountClosed,
    AccountUnknown,
    BudgetBusy,
    BudgetExceeded,
    CustomerClosed,
    HoldConflict,
    LedgerError,
    MoveRefused,
)
from rlm_server.ledger.holds import Hold, HoldState, find, insert, post_new
from rlm_server.ledger.windows import is_pace

PASS_SIZE = 128
"""The most holds one pass takes or judges for the first time, so that other tenants' writes get their turn."""

PASS_SECONDS = 0.01
"""After so long a pass ends, for the same reason. One hold is judged at least."""


class Admission(Enum):
    """What became of a hold that was not refused."""

    TAKEN = auto()
    """It is there now, in the state that was wanted."""
    REPEATED = auto()
    """It existed already."""
    UNJUDGED = auto()
    """It was not looked at: one before it on the same account waits, or the pass was over."""


Verdict = Admission | LedgerError
"""What a pass decides of a hold. `BudgetBusy` means that it has to wait; any other error is final."""


@dataclass(frozen=True, slots=True)
class QueuedHold:
    """A hold that waits, and the state it is to be taken in. `fresh` until it has been judged once."""

    hold: Hold
    state: HoldState
    fresh: bool


@dataclass(slots=True)
class Pass:
    """One look at a tenant's queue, in the order of arrival.

    Fairness comes from the order: a hold that must wait blocks the account it waits for, and a later hold that would
    take room there waits behind it. A hold that does not need that account goes ahead.
    """

    connection: Connection
    epoch: int
    at: int
    spent: bool = False
    """Whether the holds are for what was spent already, which counts on closed accounts above, too."""
    tree: Tree = field(init=False)
    blocked: set[str] = field(default_factory=set)
    """Accounts that an earlier hold waits for."""
    counted: int = 0
    """Holds that count towards `PASS_SIZE`."""

    def __post_init__(self) -> None:
        self.tree = Tree(self.connection)

    def judge(self, queue: Sequence[QueuedHold]) -> tuple[list[Verdict], bool]:
        """The verdict on each hold of the queue, and whether the pass ended before the queue did."""
        verdicts: list[Verdict] = []
        waited_on: set[tuple[str, str]] = set()
        end = time.monotonic() + PASS_SECONDS
        over = False
        for queued in queue:
            if over:
                verdicts += [Admission.UNJUDGED] * (len(queue) - len(verdicts))
                break
            # Behind another on its own account, a hold that was judged before would only have to wait again.
            own = queued.hold.account, queued.hold.model  # which are on the same accounts and windows
            if own in waited_on and not queued.fresh:
                verdicts.append(Admission.UNJUDGED)
                continue
            verdict = self._verdict(queued.hold, queued.state)
            verdicts.append(verdict)
            self.counted += queued.fresh or verdict is Admission.TAKEN
            if isinstance(verdict, BudgetBusy):
                waited_on.add(own)
            over = self.counted >= PASS_SIZE or (self.counted > 0 and time.monotonic() >= end)
        self.tree.save()
        return verdicts, over

    def _verdict(self, hold: Hold, state: HoldState) -> Verdict:
        try:
            path = self._path(hold)
            busy = self._obstacle(path, hold.amounts)
        except LedgerError as error:
            return self._repeated(hold, state, error)
        if busy is not None:
            verdict = self._repeated(hold, state, _error(BudgetBusy, busy))
            if isinstance(verdict, BudgetBusy):
                self.blocked.add(busy.account)
            return verdict
        if not insert(self.connection, hold, state, self.at, self.epoch, customer_of(path)):
            return self._repeated(hold, state, HoldConflict(hold.id))
        self.tree.apply(path, pending=hold.amounts)
        return Admission.TAKEN

    def _repeated(self, hold: Hold, state: HoldState, otherwise: Verdict) -> Verdict:
        """The verdict on a hold that is there already, and `otherwise` where it is not."""
        kept = find(self.connection, hold.id)
        if kept is None:
            return otherwise
        if kept.hold != hold:
            return HoldConflict(hold.id)
        # Whoever learns that it is dispatched sends it, and that may happen once.
        return Admission.REPEATED if state is HoldState.PENDING else MoveRefused(hold.id, kept.outcome.state, state)

    def spend(self, hold: Hold) -> None:
        """Take a hold for what was spent already, and post all of it.

        Raises:
            LedgerError: it does not fit, or not now, or has no account. Nothing was written.
        """
        verdict = self._verdict(hold, HoldState.DISPATCHED)
        if isinstance(verdict, LedgerError):
            raise verdict
        post_new(self.tree, hold, epoch=self.epoch, at=self.at)

    def _path(self, hold: Hold) -> list[Account]:
        path = self.tree.path(hold.account, self.at, hold.model)
        if path[0].tenant != hold.tenant:
            raise AccountUnknown(hold.account)
        if path[0].closed:
            raise AccountClosed(hold.account)
        for account in () if self.spent else path:
            if account.closed:
                raise closed_above(account, hold.amounts)
        return path

    def _obstacle(self, path: Sequence[Account], amounts: Amounts) -> Shortage | None:
        """What the hold must wait for: of the accounts without room, the one nearest to the leaf.

        Raises:
            BudgetExceeded: it does not fit even beside no pending hold at all.
        """
        nearest: Shortage | None = None
        for account, part in taking(path, amounts):
            short = _shortage(self.tree, account, part)
            nearest = nearest or short or self._blocked_by_earlier(account, part)
        return nearest

    def _blocked_by_earlier(self, account: Account, part: Amounts) -> Shortage | None:
        """What the hold lacks at an account that an earlier hold waits for: whatever is limited and wanted there."""
        if account.id not in self.blocked:
            return None
        for unit in UNITS:
            limit, wanted = getattr(account.limit, unit), getattr(part, unit)
            if limit is not None and wanted > 0:
                return Shortage(account.id, unit, limit, getattr(account.used, unit), wanted)
        return None


def check(connection: Connection, account: str, amounts: Amounts, model: str, at: int) -> None:
    """Look whether amounts for a call of a model would be refused at once, at a time in Unix milliseconds.

    Raises:
        BudgetExceeded: they do not fit even beside no pending hold at all.
        AccountUnknown: there is no such account.
    """
    tree = Tree(connection)
    path = tree.path(account, at, model)
    for one in path[1:]:
        if one.closed:
            raise closed_above(one, amounts)
    for one, part in taking(path, amounts):
        _shortage(tree, one, part)


def _shortage(tree: Tree, account: Account, asked: Amounts) -> Shortage | None:
    """What an account lacks now for what is asked. What was spent in a minute is out of the way when it is over.

    Raises:
        BudgetExceeded: it would lack it beside no pending hold at all.
    """
    short = shortage(account, asked, account.used)
    if short is not None:
        lasting = shortage(account, asked, ZERO if is_pace(account.id) else tree.lasting(account))
        if lasting is not None:
            raise _error(BudgetExceeded, lasting)
    return short


def closed_above(account: Account, asked: Amounts) -> CustomerClosed:
    """Say that an account above has been closed."""
    unit = next((unit for unit in UNITS if getattr(asked, unit)), UNITS[0])
    used = getattr(account.used, unit)
    return CustomerClosed(account.id, unit, used, used, getattr(asked, unit))


def _error(kind: type[BudgetBusy | BudgetExceeded], short: Shortage) -> LedgerError:
    return kind(short.account, short.unit, short.limit, short.used, short.asked)
