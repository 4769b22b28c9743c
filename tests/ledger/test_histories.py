"""Random histories of a tree of accounts, crashes included, against a plain retelling of what should be true."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from rlm_server.database import postgres as postgres_engine
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import (
    UNITS,
    AccountInUse,
    Amounts,
    Balance,
    BudgetError,
    BudgetExceeded,
    EventFilter,
    Hold,
    Ledger,
    LedgerError,
    Limit,
    LimitTooLow,
    ModelLimit,
    MoveRefused,
    Query,
    Recovery,
    Scope,
    SoftLimit,
    Span,
    Usage,
)
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.customers import Customer
from rlm_server.ledger.windows import BUDGET_SPANS
from tests.databases import cut_off, postgres_database
from tests.ledger.accounting import a_hold, at_once

amounts = st.builds(Amounts, st.integers(0, 6), st.integers(0, 6), st.integers(0, 2), st.integers(0, 6))
limits = st.builds(Limit, *(st.none() | st.integers(0, most) for most in (20, 20, 8, 20)))
some_limits = limits.filter(lambda limit: limit != Limit())
tenants_limits = st.builds(Limit, *(st.none() | st.integers(20, most) for most in (60, 60, 40, 60)))

NOON = int(datetime(2026, 2, 28, 12, tzinfo=UTC).timestamp()) * 1000
MINUTES = 60_000
TOP, UNDER = "customer:acme:top", "customer:acme:under"
MODELS = ("opus-1", "opus-2", "haiku", "")
"""What holds are for; the last are turns."""
PATTERNS = ("opus-*", "opus-1", "*")
"""What limits on models are on."""
LABELS = {None: "", Span.MINUTE: "%Y-%m-%d %H:%M", Span.HOUR: "%Y-%m-%d %H", Span.DAY: "%Y-%m-%d", Span.MONTH: "%Y-%m"}

Place = tuple[str, Scope, str, str, int]
"""An account, the scope of a soft limit of it, its window, a unit, and an amount."""


@dataclass
class Told:
    """An account, as the history tells it."""

    parent: str | None
    limit: Limit
    carve: bool
    closed: bool = False
    customer: bool = False


@dataclass
class Attempt:
    """A hold, as the history tells it."""

    hold: Hold
    at: int
    state: str = "pending"
    actual: Amounts = field(default_factory=Amounts)
    usage: Usage | None = None


def within(actual: Amounts, hold: Amounts) -> Amounts:
    return Amounts(*(min(getattr(actual, unit), getattr(hold, unit)) for unit in UNITS))


def fits(asked: Amounts | Limit, room: Limit) -> bool:
    return all(
        getattr(room, unit) is None or (getattr(asked, unit) or 0) <= max(0, getattr(room, unit)) for unit in UNITS
    )


class Histories(RuleBasedStateMachine):
    """The rules are what may happen; the invariants recount everything from the list of attempts."""

    accounts: Bundle[str] = Bundle("accounts")
    customers: Bundle[str] = Bundle("customers")
    unsent: Bundle[str] = Bundle("unsent")
    sent: Bundle[str] = Bundle("sent")
    resolved: Bundle[str] = Bundle("resolved")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.owned = ExitStack()
        self.told: dict[str, Told] = {}
        self.attempts: dict[str, Attempt] = {}
        self.windows: dict[tuple[str, Scope], Limit] = {}
        self.soft: dict[str, tuple[SoftLimit, ...]] = {}
        self.resets: Counter[tuple[str, Span | None, str]] = Counter()
        self.forgotten: dict[tuple[str, Scope, str], Amounts] = {}
        self.now = NOON
        self.start()
        self._open()

    def start(self) -> None:
        """Make an empty database."""
        raise NotImplementedError

    def at(self) -> str | Path:
        """Where the database is."""
        raise NotImplementedError

    def die(self) -> None:
        """Leave the database as the death of the server would at this moment."""
        raise NotImplementedError

    def _open(self) -> None:
        self.database = self.runner.run(Database.open(self.at(), MIGRATIONS))
        self.ledger = Ledger(self.database, clock=lambda: self.now)
        self.book = CustomerBook(self.database, self.ledger, lambda _: 1_000)

    def teardown(self) -> None:
        self.runner.run(self.database.close())
        self.runner.close()
        self.owned.close()

    @initialize(target=accounts, limit=tenants_limits, of_child=st.integers(4, 10), spare=st.integers(0, 6))
    def a_tenant_a_run_and_its_child(self, limit: Limit, of_child: int, spare: int) -> MultipleResults[str]:
        self.told = {
            "acme": Told(None, limit, carve=False),
            TOP: Told("acme", limit, carve=False, customer=True),
            UNDER: Told(TOP, limit, carve=False, customer=True),
            "run": Told(UNDER, Limit(nano_usd=of_child + spare), carve=False),
            "child": Told("run", Limit(nano_usd=of_child), carve=True),
        }
        for name, told in self.told.items():
            if told.customer:
                above = "top" if told.parent == TOP else ""
                self.runner.run(self.book.create(Customer("acme", name.rpartition(":")[2], above, limit=told.limit)))
                continue
            opening = self.ledger.open_account(
                name, tenant="acme", parent=told.parent, limit=told.limit, carve=told.carve
            )
            self.runner.run(opening)
        return multiple("acme", "run", "child")

    @initialize(target=customers)
    def the_customers_above_the_run(self) -> MultipleResults[str]:
        return multiple(TOP, UNDER)

    @rule(target=accounts, parent=accounts, limit=limits, carve=st.booleans())
    def open_account(self, parent: str, limit: Limit, carve: bool) -> str | MultipleResults[str]:
        if self.told[parent].closed:
            return multiple()
        name = f"account-{len(self.told)}"
        opening = self.ledger.open_account(name, tenant="acme", parent=parent, limit=limit, carve=carve)
        room = self._room(parent, "")
        try:
            self.runner.run(opening)
        except BudgetExceeded:
            assert carve
            assert not fits(limit, room)
            return multiple()
        assert not carve or fits(limit, room)
        self.told[name] = Told(parent, limit, carve)
        return name

    @rule(target=customers, parent=customers | st.just("acme"), limit=limits)
    def make_a_customer(self, parent: str, limit: Limit) -> str | MultipleResults[str]:
        id = f"customer-{len(self.told)}"
        above = parent.rpartition(":")[2] if parent != "acme" else ""
        making = self.book.create(Customer("acme", id, above, limit=limit))
        if self.told[parent].closed or len(self._path(parent)) > 4:
            self._refuses(making, LedgerError)
            return multiple()
        account = self.runner.run(making).account
        self.told[account] = Told(parent, limit, carve=False, customer=True)
        return account

    @rule(target=accounts, parent=customers, limit=limits)
    def open_account_of_a_customer(self, parent: str, limit: Limit) -> str | MultipleResults[str]:
        return self.open_account(parent, limit, carve=False)

    @rule(account=customers, limit=limits)
    def change_a_customers_limit(self, account: str, limit: Limit) -> None:
        """It may be below what was spent."""
        if not self.told[account].closed:
            self._change(account, lambda now: replace(now, limit=limit))
            self.told[account].limit = limit

    @rule(account=customers, span=st.sampled_from(Span), limit=st.none() | some_limits)
    def limit_a_customers_window(self, account: str, span: Span, limit: Limit | None) -> None:
        if self.told[account].closed:
            return
        limits = {one: of for one, of in self._limits(account).items() if not one.model}
        wanted = {one.span: of for one, of in limits.items() if one.span is not None and one.span is not span}
        if limit is not None:
            wanted[span] = limit
        self._change(account, lambda now: replace(now, windows=wanted))
        self._told_window(account, Scope(span), limit)

    @rule(
        account=customers,
        span=st.none() | st.sampled_from(Span),
        model=st.sampled_from(PATTERNS),
        limit=st.none() | some_limits,
    )
    def limit_a_customers_models(self, account: str, span: Span | None, model: str, limit: Limit | None) -> None:
        if self.told[account].closed:
            return
        scope = Scope(span, model)
        kept = {one: of for one, of in self._limits(account).items() if one.model and one != scope}
        wanted = kept | ({} if limit is None else {scope: limit})
        model_limits = tuple(ModelLimit(one, of) for one, of in wanted.items())
        self._change(account, lambda now: replace(now, model_limits=model_limits))
        self._told_window(account, scope, limit)

    def _limits(self, account: str) -> dict[Scope, Limit]:
        return {one: of for (whose, one), of in self.windows.items() if whose == account}

    @rule(account=customers, span=st.sampled_from((Span.DAY, Span.MONTH)))  # which are kept for all of a history
    def reset_a_customers_window(self, account: str, span: Span) -> None:
        kept = {*self.windows, *self._watched()}
        scopes = [scope for whose, scope in kept if whose == account and scope.span is span]
        if self.told[account].closed or not scopes:
            return
        self._change(account, lambda now: now, [span])
        self.resets[account, span, self._label(span, self.now)] += 1
        for scope in scopes:
            spent = total(attempt.actual for attempt in self._inside(account, scope) if attempt.state == "posted")
            self.forgotten[account, scope, self._label(span, self.now)] = spent

    @rule(
        account=customers,
        span=st.sampled_from((None, Span.DAY, Span.MONTH)),
        model=st.sampled_from(("", *PATTERNS)),
        at=st.integers(1, 100) | some_limits,
    )
    def have_a_customers_spending_told(self, account: str, span: Span | None, model: str, at: int | Limit) -> None:
        if self.told[account].closed:
            return
        scope = Scope(span, model)
        soft = SoftLimit(scope, at) if isinstance(at, int) else SoftLimit(scope, amount=at)
        self.soft[account] = (*self.soft.get(account, ())[-2:], soft)
        self._change(account, lambda now: replace(now, soft_limits=self.soft[account]))
        self._recounted()
        self._check_told(lambda place: self._reached(place) and place[0] == account)

    def _places(self, at: int) -> list[Place]:
        """Every soft limit in every unit, in its window around a time: what it is of, and at how much it is told."""
        return [
            (account, one.scope, self._label(one.scope.span, at), unit, threshold)
            for account, soft in self.soft.items()
            for one in soft
            for unit, threshold in one.thresholds(self._limit_of(account, one.scope))
        ]

    def _limit_of(self, account: str, scope: Scope) -> Limit:
        return self.told[account].limit if scope == Scope(None) else self.windows.get((account, scope), Limit())

    def _reached(self, place: Place) -> bool:
        account, scope, label, unit, threshold = place
        inside = [one for one in self._under(account) if counts(scope.model, one.hold.model)]
        posted = [one for one in inside if self._label(scope.span, one.at) == label and one.state == "posted"]
        spent = total(one.actual for one in posted) - self.forgotten.get((account, scope, label), Amounts())
        return bool(getattr(spent, unit) >= threshold)

    def _check_told(self, must: Callable[[Place], bool], at: int | None = None) -> None:
        """Check that what must have been told was, each once and once more after each reset."""
        events = self.runner.run(self.ledger.events(EventFilter("acme"), 0, 10_000))
        told = Counter((one.account, one.scope, one.label, one.unit, one.threshold) for one in events)
        for place in self._places(self.now if at is None else at):
            assert not must(place) or told[place]
        for (account, scope, label, _, _), times in told.items():
            assert times <= 1 + self.resets[account, scope.span, label]

    @rule(account=customers, seldom=st.integers(0, 4))
    def close_a_customer(self, account: str, seldom: int) -> None:
        if account in (TOP, UNDER) and seldom:  # most of what happens would end with them
            return
        self.runner.run(self.book.close("acme", account.rpartition(":")[2]))
        for name, told in self.told.items():
            told.closed |= told.customer and account in self._path(name)

    def _change(self, account: str, change: Callable[[Customer], Customer], resets: Sequence[Span] = ()) -> None:
        self.runner.run(self.book.update("acme", account.rpartition(":")[2], change, resets))

    def _refuses(self, work: Coroutine[Any, Any, object], error: type[Exception]) -> None:
        try:
            self.runner.run(work)
        except error:
            return
        raise AssertionError("it was accepted")

    @rule(account=accounts)
    def close_account(self, account: str) -> None:
        in_use = self._children(account) or any(
            attempt.hold.account == account and attempt.state in ("pending", "dispatched")
            for attempt in self.attempts.values()
        )
        if account == "acme":
            return
        try:
            self.runner.run(self.ledger.close_account(account))
        except AccountInUse:
            assert in_use
        else:
            assert not in_use
            self.told[account].closed = True

    @rule(account=accounts, limit=limits)
    def set_limit(self, account: str, limit: Limit) -> None:
        told = self.told[account]
        if told.carve or told.closed:
            return
        used = self._posted(account) + self._pending(account) + self._carved(account)
        try:
            self.runner.run(self.ledger.set_limit(account, limit))
        except LimitTooLow:
            assert not fits(used, limit)
        else:
            assert fits(used, limit)
            told.limit = limit

    @rule(target=unsent, account=accounts, asked=amounts, model=st.sampled_from(MODELS))
    def reserve(self, account: str, asked: Amounts, model: str) -> str | MultipleResults[str]:
        return self._reserve(account, asked, model, dispatch=False)

    @rule(target=sent, account=accounts, asked=amounts, model=st.sampled_from(MODELS))
    def reserve_and_dispatch(self, account: str, asked: Amounts, model: str) -> str | MultipleResults[str]:
        return self._reserve(account, asked, model, dispatch=True)

    def _reserve(self, account: str, asked: Amounts, model: str, *, dispatch: bool) -> str | MultipleResults[str]:
        if self.told[account].closed:
            return multiple()
        hold = replace(a_hold(account, asked, id=f"hold-{len(self.attempts)}"), model=model)
        room, pace = self._room(account, model), self._room(account, model, (Span.MINUTE,))
        assert self.runner.run(self.ledger.left(account)) == self._room(account, "")
        shut = any(self.told[above].closed for above in self._path(account))
        try:
            self.runner.run(self.ledger.reserve(hold, deadline=at_once(), dispatch=dispatch))
        except BudgetError:
            assert shut or not fits(asked, room) or not fits(asked, pace)
            return multiple()
        assert fits(asked, room)
        assert fits(asked, pace)
        assert not shut
        self.attempts[hold.id] = Attempt(hold, self.now, state="dispatched" if dispatch else "pending")
        return hold.id

    @rule(account=accounts, asked=st.lists(st.tuples(amounts, st.booleans()), min_size=2, max_size=8))
    def reserve_many_at_once_and_give_up(self, account: str, asked: list[tuple[Amounts, bool]]) -> None:
        if self.told[account].closed:
            return
        self.runner.run(self._rush(account, asked))

    async def _rush(self, account: str, asked: list[tuple[Amounts, bool]]) -> None:
        async def one(amounts: Amounts, dispatch: bool) -> None:
            hold = a_hold(account, amounts)
            try:
                await self.ledger.reserve(hold, deadline=at_once() + 0.001, dispatch=dispatch)
            except BudgetError:
                return
            if not dispatch:
                await self.ledger.dispatch(hold.id)
            await self.ledger.void(hold.id)

        async with asyncio.TaskGroup() as rush:
            for amounts, dispatch in asked:
                rush.create_task(one(amounts, dispatch))

    @rule(target=sent, id=consumes(unsent))
    def dispatch(self, id: str) -> str | MultipleResults[str]:
        if self.attempts[id].state != "pending":
            return multiple()
        self.runner.run(self.ledger.dispatch(id))
        self.attempts[id].state = "dispatched"
        return id

    @rule(target=resolved, id=consumes(sent), actual=amounts, reported=st.booleans())
    def post(self, id: str, actual: Amounts, reported: bool) -> str:
        attempt = self.attempts[id]
        if attempt.state == "dispatched":
            usage = Usage(input=actual.tokens) if reported else None
            before = [place for place in self._places(attempt.at) if not self._reached(place)]
            self.runner.run(self.ledger.post(id, actual, usage))
            attempt.state, attempt.actual, attempt.usage = "posted", actual, usage
            self._check_told(lambda place: place in before and self._reached(place), attempt.at)
        return id

    @rule(target=resolved, id=consumes(sent))
    def post_in_full(self, id: str) -> str:
        attempt = self.attempts[id]
        if attempt.state == "dispatched":
            self.runner.run(self.ledger.post_in_full(id))
            attempt.state, attempt.actual = "posted", attempt.hold.amounts
        return id

    @rule(target=resolved, id=consumes(unsent))
    def void_unsent(self, id: str) -> str:
        return self._void(id)

    @rule(target=resolved, id=consumes(sent))
    def void_sent(self, id: str) -> str:
        return self._void(id)

    def _void(self, id: str) -> str:
        attempt = self.attempts[id]
        if attempt.state in ("pending", "dispatched"):
            self.runner.run(self.ledger.void(id))
            attempt.state = "voided"
        return id

    @rule(id=resolved, other=amounts)
    def replay(self, id: str, other: Amounts) -> None:
        """The same resolution again is accepted and any other refused; the invariants see that nothing changed."""
        attempt = self.attempts[id]
        self.runner.run(self.ledger.reserve(attempt.hold, deadline=at_once()))
        if attempt.state == "posted":
            self.runner.run(self.ledger.post(id, attempt.actual, attempt.usage))
            self._refused(self.ledger.void(id))
        else:
            self.runner.run(self.ledger.void(id))
            self._refused(self.ledger.post_in_full(id))
        self._refused(self.ledger.dispatch(id))
        self._refused(self.ledger.reserve(attempt.hold, deadline=at_once(), dispatch=True))
        if (other, None) != (attempt.actual, attempt.usage) or attempt.state != "posted":
            self._refused(self.ledger.post(id, other, None))

    def _refused(self, move: object) -> None:
        try:
            self.runner.run(move)  # type: ignore[arg-type]
        except MoveRefused:
            return
        raise AssertionError("the move was accepted")

    @rule(account=accounts)
    def open_again(self, account: str) -> None:
        told = self.told[account]
        if not told.closed:
            self.runner.run(
                self.ledger.open_account(account, tenant="acme", parent=told.parent, limit=told.limit, carve=told.carve)
            )

    @rule(minutes=st.sampled_from([-50_000, -1500, -61, -1, 1, 30, 61, 1500, 50_000]))
    def the_clock_jumps(self, minutes: int) -> None:
        self.now += minutes * MINUTES

    @rule(span=st.sampled_from(Span), limit=st.none() | limits)
    def limit_a_window(self, span: Span, limit: Limit | None) -> None:
        self.runner.run(self.ledger.set_window("acme", span, limit))
        self._told_window("acme", Scope(span), limit)

    @rule(span=st.none() | st.sampled_from(Span), model=st.sampled_from(PATTERNS), limit=st.none() | limits)
    def limit_models(self, span: Span | None, model: str, limit: Limit | None) -> None:
        self.runner.run(self.ledger.set_window("acme", span, limit, model))
        self._told_window("acme", Scope(span, model), limit)

    def _told_window(self, account: str, scope: Scope, limit: Limit | None) -> None:
        self.windows.pop((account, scope), None)
        if limit is not None:
            self.windows[account, scope] = limit
        self._recounted()

    def _watched(self) -> list[tuple[str, Scope]]:
        """The windows, and models, that have soft limits."""
        scopes = [(account, one.scope) for account, soft in self.soft.items() for one in soft]
        return [(account, scope) for account, scope in scopes if scope != Scope(None)]

    def _recounted(self) -> None:
        """What is neither limited nor watched any more is counted from the start where it is again."""
        kept = {*self.windows, *self._watched()}
        self.forgotten = {key: spent for key, spent in self.forgotten.items() if key[:2] in kept}

    @rule()
    def crash(self) -> None:
        self.die()
        self.runner.run(self.database.close())
        self._open()
        states = [attempt.state for attempt in self.attempts.values()]
        expected = Recovery(voided=states.count("pending"), posted=states.count("dispatched"))
        assert self.runner.run(self.ledger.recover()) == expected
        for attempt in self.attempts.values():
            if attempt.state == "pending":
                attempt.state = "voided"
            elif attempt.state == "dispatched":
                attempt.state, attempt.actual = "posted", attempt.hold.amounts

    @invariant()
    def the_books_agree_with_the_history_and_no_limit_is_passed(self) -> None:
        for name, balance in self.runner.run(self._balances()).items():
            told = self.told[name]
            assert balance.limit == told.limit
            assert balance.posted == self._posted(name)
            assert balance.pending == self._pending(name)
            assert balance.carved == self._carved(name)
            assert balance.overrun == self._overrun(name)
            assert told.customer or fits(balance.posted + balance.pending + balance.carved, told.limit)

    @invariant()
    def windows_count_what_was_reserved_in_them(self) -> None:
        found = [window for name in self.told for window in self.runner.run(self.ledger.windows(name))]
        scopes = {(window.account, Scope(window.span, window.model)): window for window in found}
        watched = dict.fromkeys(self._watched(), Limit())
        assert {key: window.balance.limit for key, window in scopes.items()} == watched | self.windows
        for (account, scope), window in scopes.items():
            assert window.begins <= self.now < window.ends
            balance, inside = window.balance, self._inside(account, scope)
            spent = balance.posted + balance.overrun
            forgotten = self.forgotten.get((account, scope, self._label(scope.span, self.now)), Amounts())
            assert spent + forgotten == total(a.actual for a in inside if a.state == "posted")
            assert balance.pending == total(a.hold.amounts for a in inside if a.state in ("pending", "dispatched"))

    def _inside(self, account: str, scope: Scope) -> list[Attempt]:
        now = self._label(scope.span, self.now)
        return [
            attempt
            for attempt in self._under(account)
            if self._label(scope.span, attempt.at) == now and counts(scope.model, attempt.hold.model)
        ]

    def _label(self, span: Span | None, at: int) -> str:
        return datetime.fromtimestamp(at / 1000, UTC).strftime(LABELS[span])

    async def _balances(self) -> dict[str, Balance]:
        return {name: await self.ledger.balance(name) for name in self.told}

    @invariant()
    def every_posted_hold_is_one_entry(self) -> None:
        entries = self.runner.run(self.ledger.entries(Query(tenant="acme")))
        posted = {id: attempt for id, attempt in self.attempts.items() if attempt.state == "posted"}
        assert len(entries) == len(posted)
        assert all(entry.actual == posted[entry.hold.id].actual for entry in entries)
        over = sum(attempt.actual != within(attempt.actual, attempt.hold.amounts) for attempt in posted.values())
        assert self.runner.run(self.ledger.overruns()) == over

    def _children(self, account: str) -> list[str]:
        return [name for name, told in self.told.items() if told.parent == account and not told.closed]

    def _under(self, account: str) -> list[Attempt]:
        """The attempts on this account and on every one below it."""

        def below(name: str | None) -> bool:
            return name is not None and (name == account or below(self.told[name].parent))

        return [attempt for attempt in self.attempts.values() if below(attempt.hold.account)]

    def _posted(self, account: str) -> Amounts:
        posted = (a for a in self._under(account) if a.state == "posted")
        return sum((within(a.actual, a.hold.amounts) for a in posted), Amounts())

    def _overrun(self, account: str) -> Amounts:
        posted = (a for a in self._under(account) if a.state == "posted")
        return sum((a.actual - within(a.actual, a.hold.amounts) for a in posted), Amounts())

    def _pending(self, account: str) -> Amounts:
        open_ones = (a for a in self._under(account) if a.state in ("pending", "dispatched"))
        return sum((a.hold.amounts for a in open_ones), Amounts())

    def _path(self, account: str) -> list[str]:
        above = self.told[account].parent
        return [account] if above is None else [account, *self._path(above)]

    def _room(self, account: str, model: str, spans: Sequence[Span | None] = (None, *BUDGET_SPANS)) -> Limit:
        """The most that could be held on this account, told unit by unit on the way up."""
        room: dict[str, int | None] = {}
        for unit in UNITS:
            rooms = []
            at: str | None = account
            promised = False  # whether the account above keeps this unit for the one below
            while at is not None:
                told = self.told[at]
                limit = getattr(told.limit, unit)
                if limit is not None and not promised:
                    used = self._posted(at) + self._pending(at) + self._carved(at) + self._overrun(at)
                    rooms.append(max(0, limit - getattr(used, unit)))
                promised = told.carve and limit is not None
                at = told.parent
            for whose in self._path(account):
                for scope, limit in self._limits(whose).items():
                    most = getattr(limit, unit)
                    if most is not None and scope.span in spans and counts(scope.model, model):
                        rooms.append(max(0, most - getattr(self._in_window(whose, scope), unit)))
            room[unit] = min(rooms, default=None)
        return Limit(**room)

    def _in_window(self, account: str, scope: Scope) -> Amounts:
        used = Amounts() - self.forgotten.get((account, scope, self._label(scope.span, self.now)), Amounts())
        for attempt in self._inside(account, scope):
            used += attempt.actual if attempt.state == "posted" else Amounts()
            used += attempt.hold.amounts if attempt.state in ("pending", "dispatched") else Amounts()
        return used

    def _carved(self, account: str) -> Amounts:
        carved = Amounts()
        for name in self._children(account):
            limit = self.told[name].limit
            used = self._posted(name) + self._pending(name)
            if self.told[name].carve:
                unused = (0 if getattr(limit, u) is None else getattr(limit, u) - getattr(used, u) for u in UNITS)
                carved += Amounts(*unused)
        return carved


def counts(limited: str, model: str) -> bool:
    """Whether a limit on a model, a pattern, or with "" on whatever is spent, counts what is spent with a model."""
    pattern = limited.replace("*", ".*")
    return not limited or (model != "" and re.fullmatch(pattern, model) is not None)


def total(amounts: Iterable[Amounts]) -> Amounts:
    return sum(amounts, Amounts())


class OnSQLite(Histories):
    """A death leaves the file and its log as they are at that moment."""

    def start(self) -> None:
        self.lives = 0
        self.directory = Path(tempfile.mkdtemp())
        self.owned.callback(shutil.rmtree, self.directory)

    def at(self) -> Path:
        return self.directory / f"{self.lives}.db"

    def die(self) -> None:
        for file in list(self.directory.glob(f"{self.lives}.db*")):
            if not file.name.endswith((".lock", "-shm")):
                shutil.copy(file, file.with_name(file.name.replace(str(self.lives), str(self.lives + 1), 1)))
        self.lives += 1


class OnPostgres(Histories):
    """A death cuts the connections; the database rolls back what was not committed."""

    server = ""

    def start(self) -> None:
        self.url = self.owned.enter_context(postgres_database(self.server))

    def at(self) -> str:
        return self.url

    def die(self) -> None:
        def dead(*_: object) -> NoReturn:
            raise psycopg.OperationalError("the server is dead")

        engine = self.database._engine
        assert isinstance(engine, postgres_engine.Postgres)
        engine.connect = dead  # type: ignore[method-assign]
        cut_off(self.url)


HISTORIES = settings(max_examples=20, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])


def test_on_sqlite_the_laws_hold_in_every_history() -> None:
    run_state_machine_as_test(OnSQLite, settings=HISTORIES)


def test_on_postgres_the_laws_hold_in_every_history(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_engine, "PATIENCE_SECONDS", 0.0)
    OnPostgres.server = postgres
    run_state_machine_as_test(OnPostgres, settings=HISTORIES)
