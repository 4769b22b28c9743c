"""The ledger: nothing is spent that was not reserved, on every account from the call to the tenant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Sequence
from typing import TypeVar

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.ledger import account_lifecycle, admission, entries, events, holds, statements
from rlm_server.ledger.accounts import Account, Balance, Tree, left, refuse_uncountable
from rlm_server.ledger.amounts import Amounts, Limit
from rlm_server.ledger.entries import By, Entry, Query, UsageRow
from rlm_server.ledger.errors import AccountUnknown
from rlm_server.ledger.events import BudgetEvent, EventFilter
from rlm_server.ledger.holds import Hold, HoldState, Moved, Outcome, Recovery
from rlm_server.ledger.statements import Statement, Totals, Window
from rlm_server.ledger.usage import Usage
from rlm_server.ledger.wait_queue import WaitQueue
from rlm_server.ledger.windows import Scope, Span, limits_of

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Ledger:
    """Accounts and holds in a database, whose schema must be that of `database.migrations`.

    Every answer is durable when it is given. Besides what each method names, all raise `DatabaseError` where the
    database fails; then nothing was changed. One ledger owns its database's accounts: the queues of holds that wait for
    room are in its memory. `clock` says the time in Unix milliseconds; windows and entries go by it.
    """

    def __init__(self, database: Database, *, clock: Callable[[], int] = now) -> None:
        self._database, self._clock = database, clock
        self._wait_queues: dict[str, WaitQueue] = {}
        self._limited: dict[str, Limit] = {}
        self._limits_changed = 0
        self.told: Callable[[], None] = lambda: None
        """Is called when a soft limit was crossed by what was posted, and that is durable."""

    async def open_account(
        self,
        account: str,
        *,
        tenant: str,
        parent: str | None,
        limit: Limit,
        carve: bool = False,
        reserve: Limit | None = None,
        also: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Open an account under `parent`, or with None the tenant's own.

        Without `carve` the limit is only a cap: the account competes for the parent's room. With `carve` the parent
        sets the limit aside until it is used or the account is closed, in the units the limit names. The promise goes
        as far up as the accounts are carved. Above the first one that is only capped, room is looked for now but not
        set aside, so holds may still be refused there (by the tenant, say). Never more is promised than `left(parent)`.

        A `reserve` is kept aside from the account itself: nothing can take it until `release_reserve`, or until the
        account is closed. Where there is not as much, nothing is kept.

        Opening an account again as it is changes nothing. The limit of a tenant's own account is then not compared:
        `set_limit` changes it. What `also` writes is written with it, or neither is.

        Raises:
            BudgetExceeded: the carve is more than is left; it is not waited for.
            AccountConflict: it exists otherwise, or is to be carved from no parent.
            AccountUnknown: the tenant has no such parent.
            AccountClosed: it, or the parent, was closed.
            AmountRefused: the limit is negative or above 2^62.
        """
        wanted = Account(account, tenant, parent, carve, limit)

        def write(connection: Connection) -> None:
            account_lifecycle.open_account(connection, wanted, self._clock(), reserve)
            also(connection)

        await self._freeing(write, lambda _: tenant)

    async def open_several(
        self,
        accounts: Sequence[str],
        *,
        tenant: str,
        parent: str,
        limit: Limit,
        also: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Open accounts that are not carved under `parent`, with the same limit each: all of them, or none.

        What `also` writes is written with them, or nothing is. Raises as `open_account`.
        """

        def write(connection: Connection) -> None:
            for account in accounts:
                wanted = Account(account, tenant, parent, False, limit)
                account_lifecycle.open_account(connection, wanted, self._clock())
            also(connection)

        await self._freeing(write, lambda _: tenant)

    async def release_reserve(self, account: str) -> None:
        """Give an account back the reserve it was opened with. Where it has none, or no more, nothing changes."""
        await self._freeing(
            lambda connection: account_lifecycle.release_reserve(connection, account),
            lambda kept: kept.tenant if kept is not None else "",
        )

    async def close_account(
        self, account: str, *, also: Callable[[Connection, Balance], None] = lambda *_: None
    ) -> Balance:
        """Close an account and return its last balance; what a carved one left unspent goes back to its parent.

        Its reserve is given back first. Closing it again changes nothing. What `also` writes is written with it, or
        neither is.

        Raises:
            AccountInUse: holds on it are unresolved, or accounts under it are open.
            AccountUnknown: there is none.
        """
        self._limited.pop(account, None)

        def write(connection: Connection) -> Account:
            closed = account_lifecycle.close_account(connection, account)
            also(connection, closed.balance)
            return closed

        return (await self._freeing(write, lambda closed: closed.tenant)).balance

    async def close_left(self, prefix: str, kept: Container[str] = ()) -> int:
        """Close the open accounts whose names begin with `prefix`, but for those `kept`, and return how many.

        It is for what ended with a server. Accounts stay open that have open ones of other names under them.

        Raises:
            AccountInUse: holds on one of them are unresolved.
        """
        closed = 0
        while True:
            found = await self._database.read(lambda db: account_lifecycle.open_leaves(db, prefix))
            leaves = [account for account in found if account not in kept]
            if not leaves:
                return closed
            for account in leaves:
                await self.close_account(account)
            closed += len(leaves)

    async def set_limit(self, account: str, limit: Limit) -> None:
        """Change the limit of an account that is not carved.

        Raises:
            LimitTooLow: more than that is posted, pending and carved already.
            AccountConflict: it is carved.
            AccountUnknown, AccountClosed: there is none to change.
            AmountRefused: the limit is negative or above 2^62.
        """
        await self._freeing(
            lambda connection: account_lifecycle.set_limit(connection, account, limit),
            lambda changed: self._limits_changed_of(changed.tenant),
        )

    async def set_window(self, tenant: str, span: Span | None, limit: Limit | None, model: str = "") -> None:
        """Limit what a tenant may spend in every window of a span, from the present one on; None lifts the limit.

        With a `model`, a name or a pattern, it is on the calls of such models; then a `span` of None is for good.
        What was reserved earlier in the present window counts. Where that is more than the limit, nothing more is
        allowed until the window ends.

        Raises:
            AccountUnknown: the tenant has no account.
            AmountRefused: the limit is negative or above 2^62.
        """
        scope = Scope(span, model)

        def work(connection: Connection, at: int) -> None:
            others = {one: kept for one, kept in limits_of(connection, (tenant,))[tenant].items() if one != scope}
            wanted = others if limit is None else {**others, scope: limit}
            account_lifecycle.set_limits(connection, tenant, wanted, at)

        await self.change(tenant, work)

    async def change(self, tenant: str, work: Callable[[Connection, int], T]) -> T:
        """Change a tenant's accounts in one transaction, at a time in Unix milliseconds, and have it in force at once.

        Raises:
            LedgerError: what `work` raised; nothing was changed.
        """
        return await self._freeing(
            lambda connection: work(connection, self._clock()), lambda _: self._limits_changed_of(tenant)
        )

    async def windows(self, tenant: str) -> list[Window]:
        """The limited windows of a tenant around now, and where each stands."""
        return await self._database.read(lambda connection: statements.windows(connection, tenant, self._clock()))

    async def reserve(self, hold: Hold, *, deadline: float, dispatch: bool = False) -> None:
        """Take a hold's amounts on every account from its leaf to the tenant, or on none.

        Where calls in flight are in the way, it waits until `deadline`, a `time.monotonic()` value. Holds that wait for
        the same account get its room in the order they came. A hold is never made smaller to fit, unless its owner
        does that while it waits (`lower`). Reserving the same hold again changes nothing. A cancelled reservation
        leaves no trace.

        With `dispatch` the hold is dispatched in the same commit, for a request that leaves as soon as this returned.

        Raises:
            BudgetExceeded: it does not fit even when every call in flight turns out to cost nothing; raised at once.
            BudgetBusy: there was no room until the deadline.
            HoldConflict: a hold of this id exists with other content.
            MoveRefused: with `dispatch`, and the hold exists already; do not send.
            AccountUnknown, AccountClosed: there is no such account to take it from.
            AmountRefused: an amount is negative or above 2^62.
        """
        refuse_uncountable(amounts=hold.amounts)
        queue = self._wait_queues.setdefault(hold.tenant, WaitQueue(self._database, self._clock))
        await queue.reserve(hold, HoldState.DISPATCHED if dispatch else HoldState.PENDING, deadline)

    async def lower(self, hold: Hold) -> bool:
        """Have a hold that waits be this smaller one, of the same id, and keep its place in the line.

        Return True as soon as it is, before it is taken; False where none waits, or it was taken or refused as it was.

        Raises:
            AmountRefused: an amount is negative or above 2^62.
        """
        refuse_uncountable(amounts=hold.amounts)
        queue = self._wait_queues.get(hold.tenant)
        return queue is not None and await queue.lower(hold)

    def crowded(self, tenant: str) -> bool:
        """Whether holds of a tenant are judged just now, or wait for room."""
        queue = self._wait_queues.get(tenant)
        return queue is not None and queue.crowded

    async def check(self, account: str, amounts: Amounts, model: str = "") -> None:
        """Look whether a hold of these amounts for a call of a model would be refused at once; nothing is held.

        Raises:
            BudgetExceeded: it does not fit even when every call in flight turns out to cost nothing.
            AccountUnknown: there is no such account.
        """
        at = self._clock()
        await self._database.read(lambda connection: admission.check(connection, account, amounts, model, at))

    async def dispatch(self, hold_id: str) -> None:
        """Record that the request is about to leave. Only after this returned may it be sent, and only once.

        Raises:
            MoveRefused: it was dispatched before, or is resolved; do not send.
            HoldUnknown: there is none; do not send.
            StaleEpoch: a former owner of the database reserved it; do not send.
        """
        await self._database.write(lambda connection: self._move(connection, hold_id, Outcome(HoldState.DISPATCHED)))

    async def post(self, hold_id: str, actual: Amounts, usage: Usage | None, *, patience: float = 0.0) -> None:
        """Resolve a dispatched hold with what the call cost; the rest of the hold is free again.

        With `patience` it waits so many seconds for another write, to share its commit.

        What is above the hold is a defect of the worst case: it is recorded as `overrun`, logged and counted. The hold
        is resolved though the caller is cancelled meanwhile. Repeating it changes nothing.

        Raises:
            MoveRefused: it was not dispatched, or was resolved otherwise.
            HoldUnknown: there is none.
            AmountRefused: a number is negative or above 2^62; post it in full instead.
        """
        await self._resolve(hold_id, Outcome(HoldState.POSTED, actual, usage), patience)

    async def post_in_full(self, hold_id: str) -> None:
        """Resolve a dispatched hold whose cost is not known: all of it is spent. Otherwise as `post`."""
        await self._resolve(hold_id, Outcome(HoldState.POSTED))

    async def void(self, hold_id: str) -> None:
        """Resolve a hold that cost nothing: not sent, or failed in a way the provider does not bill.

        The hold is resolved though the caller is cancelled meanwhile. Repeating it changes nothing.

        Raises:
            MoveRefused: it was posted.
            HoldUnknown: there is none.
        """
        await self._resolve(hold_id, Outcome(HoldState.VOIDED))

    async def charge(self, hold: Hold, *, patience: float = 0.0) -> None:
        """Post what was spent without having been held, because nothing limited it: all of a hold's amounts.

        It counts though a customer's account above was closed meanwhile.

        With `patience` it waits so many seconds for another write, to share its commit. Repeating it changes nothing.

        Raises:
            BudgetExceeded, BudgetBusy: it is limited now, and there is no room.
            AccountUnknown, AccountClosed: there is no such account to take it from.
            AmountRefused: an amount is negative or above 2^62.
        """
        refuse_uncountable(amounts=hold.amounts)

        def post(connection: Connection) -> str:
            if holds.find(connection, hold.id) is None:
                admission.Pass(connection, self._database.epoch, self._clock(), spent=True).spend(hold)
            return hold.tenant

        await self._freeing(post, lambda tenant: tenant, patience=patience)

    async def balance(self, account: str) -> Balance:
        """Where an account stands, closed or not.

        Raises:
            AccountUnknown: there is none.
        """
        return await self._database.read(lambda connection: statements.balance(connection, account))

    async def balances(self, accounts: Sequence[str]) -> list[Balance]:
        """Where accounts stand, in their order, as `balance` tells of one."""
        return await self._database.read(lambda db: [statements.balance(db, account) for account in accounts])

    async def left(self, account: str) -> Limit:
        """The most a hold on `account` could take now, all its ancestors considered; None where nothing limits it.

        Limits on models are not considered.

        Raises:
            AccountUnknown: there is none.
        """
        return await self._database.read(lambda connection: left(Tree(connection).path(account, self._clock(), "")))

    async def limited(self, account: str, unit: str) -> bool:
        """Whether an account, one above it, or a window of its tenant limits a unit. It is read once, and remembered.

        Raises:
            AccountUnknown: there is no such account.
        """
        found = self._limited.get(account)
        if found is None:
            changed = self._limits_changed
            found = await self.left(account)
            if changed == self._limits_changed:
                self._limited[account] = found
        return getattr(found, unit) is not None

    def heed_limits(self, tenant: str) -> None:
        """Hear that others changed a tenant's limits in the database: those who wait for room are judged again."""
        self._limits_changed_of(tenant)
        queue = self._wait_queues.get(tenant)
        if queue is not None:
            queue.advance()

    def _limits_changed_of(self, tenant: str) -> str:
        self._limits_changed += 1
        self._limited.clear()
        return tenant

    async def recover(self) -> Recovery:
        """Resolve what a dead server left: pending holds are void, dispatched ones are posted in full.

        For the start of a server. Holds of this server's own calls in flight are not touched.
        """
        epoch = self._database.epoch
        return await self._database.write(lambda connection: holds.recover(connection, epoch, self._clock()))

    async def unresolved_of(self, run: str) -> list[tuple[str, bool]]:
        """Return the holds of a run that are neither posted nor void, and whether each was dispatched."""
        return await self._database.read(lambda connection: holds.unresolved_of(connection, run))

    async def unresolved(self) -> int:
        """How many holds are neither posted nor void: those of calls in flight, and of a dead server's."""
        return await self._database.read(holds.unresolved)

    async def entries(self, query: Query, *, most: int | None = None) -> list[Entry]:
        """The entries that a query selects, in the order they were posted; at most `most` of them."""
        return await self._database.read(lambda connection: entries.entries(connection, query, most))

    async def usage(self, query: Query, by: By, label: str = "") -> list[UsageRow]:
        """What the entries that a query selects add up to, by day, model, run, account, or value of a label."""
        return await self._database.read(lambda connection: entries.usage(connection, query, by, label))

    async def ancestry(self, account: str) -> list[Balance]:
        """Where an account and those above it stand, up to the tenant's, windows aside.

        Raises:
            AccountUnknown: there is none.
        """
        return await self._database.read(lambda connection: [one.balance for one in Tree(connection).ancestry(account)])

    async def events(self, asked: EventFilter, after: int, most: int) -> list[BudgetEvent]:
        """A tenant's events in the order of their numbers, after that of a number; at most so many."""
        return await self._database.read(lambda connection: events.page(connection, asked, after, most))

    async def last_entry(self, tenant: str) -> int:
        """The number of a tenant's last entry; 0 where it has none."""
        return await self._database.read(lambda connection: entries.last(connection, tenant))

    async def statement(self, tenant: str, account: str) -> Statement | None:
        """Where a tenant's account stands, all out of one snapshot; None where the tenant has none of this name.

        A customer's goes by the id that the tenant chose.
        """
        at = self._clock()
        return await self._database.read(lambda connection: statements.statement(connection, tenant, account, at))

    async def statements(self, tenant: str, accounts: Sequence[str]) -> list[Statement]:
        """Where some of a tenant's accounts stand, in their order, as `statement` tells of one.

        Raises:
            AccountUnknown: there is none of one of these names.
        """
        at = self._clock()

        def read(connection: Connection) -> list[Statement]:
            found = [(name, statements.statement(connection, tenant, name, at)) for name in accounts]
            for name, statement in found:
                if statement is None:
                    raise AccountUnknown(name)
            return [statement for _, statement in found if statement is not None]

        return await self._database.read(read)

    async def totals(self) -> Totals:
        """What all tenants together have spent, and hold."""
        return await self._database.read(statements.totals)

    async def posted(self, prefix: str) -> Amounts:
        """What the posted holds cost whose ids begin with `prefix`."""
        return await self._database.read(lambda connection: entries.posted(connection, prefix))

    async def overruns(self) -> int:
        """How many posted holds cost more than they held; anything but 0 is a defect of a worst case."""
        return await self._database.read(entries.overruns)

    def hurry(self) -> None:
        """Have what waits to share a commit written at once."""
        self._database.hurry()

    async def _resolve(self, hold_id: str, outcome: Outcome, patience: float = 0.0) -> None:
        await self._freeing(
            lambda connection: self._move(connection, hold_id, outcome), self._resolved, patience=patience
        )

    def _resolved(self, moved: Moved) -> str:
        if moved.told:
            self.told()
        return _resolved(moved)

    def _move(self, connection: Connection, hold_id: str, outcome: Outcome) -> Moved:
        return holds.move(connection, hold_id, outcome, epoch=self._database.epoch, at=self._clock())

    async def _freeing(
        self, change: Callable[[Connection], T], tenant_of: Callable[[T], str], *, patience: float = 0.0
    ) -> T:
        """Make a change that may free room or take the last of it, and have the tenant's queue judged again.

        The change is shielded and the queue is called back, so that waiters hear of it though the caller is cancelled.
        """
        changing = self._database.submit(change, patience=patience)

        def changed(done: asyncio.Future[T]) -> None:
            if not done.cancelled() and done.exception() is None:
                queue = self._wait_queues.get(tenant_of(done.result()))
                if queue is not None:
                    queue.advance()

        changing.add_done_callback(changed)
        return await asyncio.shield(changing)


def _resolved(moved: Moved) -> str:
    if moved.overrun != Amounts():
        logger.error(
            "hold %s of model %s cost more than it held, by %s", moved.hold.id, moved.hold.model, moved.overrun
        )
    return moved.hold.tenant
