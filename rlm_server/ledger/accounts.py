"""The tree of accounts: what each may spend, has spent, holds, and has promised to its children."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rlm_server.database.engine import Connection
from rlm_server.ledger.amounts import UNITS, Amounts, Limit, numbers
from rlm_server.ledger.errors import MAX, AccountUnknown, AmountRefused
from rlm_server.ledger.names import CUSTOMER
from rlm_server.ledger.sums import amounts
from rlm_server.ledger.windows import (
    PREFIX,
    Limited,
    Scope,
    SoftLimit,
    account_of,
    bounds,
    counted,
    is_pace,
    limited,
    parts,
    remove_old,
    removed_before,
)

ZERO = Amounts()


@dataclass(frozen=True, slots=True)
class Balance:
    """Where an account stands.

    `posted` is spent, and `pending` is held by calls in flight; both include every account below this one. `carved` is
    promised to open carved children, and neither spent nor held by them. `overrun` is what calls cost beyond their
    holds.
    """

    account: str
    limit: Limit
    posted: Amounts
    pending: Amounts
    carved: Amounts
    overrun: Amounts

    @property
    def left(self) -> Limit:
        """What this account alone still allows; None in a unit it does not limit. Its ancestors may allow less."""
        return Limit(*(self._left(unit) for unit in UNITS))

    def _left(self, unit: str) -> int | None:
        limit: int | None = getattr(self.limit, unit)
        used: int = getattr(self.posted + self.pending + self.carved + self.overrun, unit)
        return None if limit is None else max(0, limit - used)


@dataclass(slots=True)
class Account:
    """A row of the tree, as a transaction works on it."""

    id: str
    tenant: str
    parent: str | None
    carve: bool
    limit: Limit
    closed: bool = False
    posted: Amounts = ZERO
    pending: Amounts = ZERO
    carved: Amounts = ZERO
    overrun: Amounts = ZERO
    path: str | None = None
    """Of a customer's account, the customer's path."""

    @property
    def has_windows(self) -> bool:
        """Whether it is an account that may have windows: a tenant's or a customer's."""
        return self.path is not None or (self.parent is None and not self.is_window)

    @property
    def is_window(self) -> bool:
        """Whether it counts what was spent in a window."""
        return self.id.startswith(PREFIX)

    @property
    def used(self) -> Amounts:
        """What takes room. An overrun takes room too, though it stands beside the limit: it was spent."""
        return self.posted + self.pending + self.carved + self.overrun

    @property
    def promise(self) -> Amounts:
        """What the parent still keeps for this account: nothing, unless it is carved and open."""
        if self.closed:
            return ZERO
        limits = Amounts(*(getattr(self.limit, unit) or 0 for unit in UNITS))
        return self.covered(limits - self.posted - self.pending)

    @property
    def balance(self) -> Balance:
        """The row as others see it."""
        return Balance(self.id, self.limit, self.posted, self.pending, self.carved, self.overrun)

    def covered(self, amounts: Amounts) -> Amounts:
        """The part of `amounts` that was promised by the parent: the units in which this account is carved."""
        if not self.carve:
            return ZERO
        return Amounts(*(getattr(amounts, unit) if self.carved_in(unit) else 0 for unit in UNITS))

    def carved_in(self, unit: str) -> bool:
        """Whether this account's limit is carved from its parent's in `unit`: without a limit nothing is."""
        return self.carve and getattr(self.limit, unit) is not None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A soft limit that was crossed: `used` is `threshold` or more, in one unit of an account or a window."""

    account: Account
    owner: Account
    """The account itself, or the one whose window it is."""
    soft: SoftLimit
    unit: str
    threshold: int
    used: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """One unit that does not fit: `asked` more, where `used` of `limit` is taken."""

    account: str
    unit: str
    limit: int
    used: int
    asked: int


def shortage(account: Account, asked: Amounts, used: Amounts) -> Shortage | None:
    """The first unit of `asked` that does not fit beside `used` under the account's limit."""
    for unit in UNITS:
        limit: int | None = getattr(account.limit, unit)
        ceiling = MAX if limit is None else limit
        wanted, taken = getattr(asked, unit), getattr(used, unit)
        if wanted > 0 and taken + wanted > ceiling:
            return Shortage(account.id, unit, ceiling, taken, wanted)
    return None


def taking(path: Sequence[Account], amounts: Amounts) -> Iterator[tuple[Account, Amounts]]:
    """What spending `amounts` at the leaf takes from the room of each account of its path, leaf first.

    Where the account below is carved the room was taken when it was opened, and nothing more is.
    """
    below: Account | None = None
    for account in path:
        yield account, amounts - below.covered(amounts) if below is not None else amounts
        below = account


def left(path: Sequence[Account]) -> Limit:
    """The most that can be held at the leaf of `path`; None in a unit that no account of it limits.

    What a minute leaves is not considered, since there is another soon.
    """
    least: dict[str, int | None] = dict.fromkeys(UNITS)
    for account, taken in taking(path, Amounts(*(1 for _ in UNITS))):
        if is_pace(account.id):
            continue
        room = account.balance.left
        for unit in UNITS:
            here: int | None = getattr(room, unit)
            so_far = least[unit]
            if getattr(taken, unit) and here is not None:
                least[unit] = here if so_far is None else min(so_far, here)
    return Limit(*(least[unit] for unit in UNITS))


def customer_of(path: Sequence[Account]) -> str:
    """The path of the nearest customer of an account's ancestry; empty where there is none."""
    return next((account.path for account in path if account.path is not None), "")


def raised(limit: Limit, used: Amounts) -> Limit:
    """A limit, but in no unit below what is used."""
    limits = {unit: getattr(limit, unit) for unit in UNITS}
    return Limit(**{unit: None if most is None else max(most, getattr(used, unit)) for unit, most in limits.items()})


def refuse_uncountable(**values: Any) -> None:
    """Refuse numbers the ledger cannot count: each value is a dataclass of integers, its fields named in the error.

    Raises:
        AmountRefused: one is negative or above 2^62.
    """
    for name, value in values.items():
        for part in value.__match_args__:  # the names of its fields
            number = getattr(value, part)
            if number is not None and not 0 <= number <= MAX:
                raise AmountRefused(f"{name}.{part}", number)


_WHOLE = Scope(None)
_GROUPS = ("limit", "posted", "pending", "carved", "overrun")
_NUMBERS = tuple(f"{group}_{unit}" for group in _GROUPS for unit in UNITS)
_COLUMNS = f"id, tenant, parent, carve, closed, {', '.join(_NUMBERS)}"
_CARVED = "SELECT id FROM account WHERE parent = ? AND closed = 0 AND carve = 1"
_ASKED = f"SELECT path, {', '.join(f'limit_{unit}' for unit in UNITS)} FROM customer WHERE account = ?"  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Statements:
    find: str
    insert: str
    update: str


def _statements(table: str) -> _Statements:
    places = ", ".join("?" * (5 + len(_NUMBERS)))
    return _Statements(
        f"SELECT {_COLUMNS} FROM {table} WHERE id = ?",  # noqa: S608 - column names only
        f"INSERT INTO {table} ({_COLUMNS}) VALUES ({places})",  # noqa: S608
        f"UPDATE {table} SET closed = ?, {', '.join(f'{name} = ?' for name in _NUMBERS)} WHERE id = ?",  # noqa: S608
    )


_ACCOUNTS, _WINDOWS = _statements("account"), _statements("window_account")


def _table_of(id: str) -> _Statements:
    return _WINDOWS if id.startswith(PREFIX) else _ACCOUNTS


@dataclass(slots=True)
class Tree:
    """The accounts one transaction touches, read once and written back by `save`."""

    connection: Connection
    _known: dict[str, Account] = field(default_factory=dict)
    _changed: dict[str, Account] = field(default_factory=dict)
    crossed: list[Crossing] = field(default_factory=list)
    """Soft limits that what was posted has crossed."""
    _soft: dict[str, tuple[Account, tuple[SoftLimit, ...]]] = field(default_factory=dict)  # of these accounts
    _limits: dict[str, list[Limited]] = field(default_factory=dict)
    _windows: dict[tuple[str, int, str | None], list[Account]] = field(default_factory=dict)
    _new: dict[str, int] = field(default_factory=dict)  # windows without a row, and at what time they were asked for

    def find(self, id: str) -> Account | None:
        """The account of this name, if there is one."""
        if id not in self._known:
            row = self.connection.execute(_table_of(id).find, (id,)).fetchone()
            if row is None:
                return None
            account = self._known[id] = _account(row)
            if id.startswith(CUSTOMER):
                account.path, *asked = self.connection.execute(_ASKED, (id,)).fetchone()
                account.limit = Limit(*asked)
        return self._known[id]

    def get(self, id: str) -> Account:
        """The account of this name.

        Raises:
            AccountUnknown: there is none.
        """
        account = self.find(id)
        if account is None:
            raise AccountUnknown(id)
        return account

    def path(self, id: str, at: int, model: str) -> list[Account]:
        """The account and its ancestors up to the tenant's, and then those of all their windows around `at`.

        `at` is in Unix milliseconds. With the windows come the limits on a model, where one is given.

        Raises:
            AccountUnknown: there is none of this name.
        """
        path = self.ancestry(id)
        return path + [window for account in path if account.has_windows for window in self.windows(account, at, model)]

    def ancestry(self, id: str) -> list[Account]:
        """The account and its ancestors up to the tenant's.

        Raises:
            AccountUnknown: there is none of this name.
        """
        path: list[Account] = []
        above: str | None = id
        while above is not None:
            account = self.get(above)
            path.append(account)
            above = account.parent
        return path

    def windows(self, account: Account, at: int, model: str | None = None) -> list[Account]:
        """The accounts of an account's limited windows around a time; one not opened yet is summed from holds.

        They are those in which the spending with a model counts, empty for a turn; with None they are all there are.
        """
        known = self._windows.get((account.id, at, model))
        if known is None:
            known = self._windows[account.id, at, model] = [
                self._window(account, one, at)
                for one in self._limits_of(account)
                if model is None or one.scope.covers(model)
            ]
        return known

    def _limits_of(self, account: Account) -> list[Limited]:
        """The limits of an account in windows and on models; what is said of it as a whole is kept aside."""
        found = self._limits.get(account.id)
        if found is None:
            found = self._limits[account.id] = []
            for one in limited(self.connection, account.id):
                if one.scope == _WHOLE:
                    self._soft[account.id] = account, one.soft
                else:
                    found.append(one)
        return found

    def _window(self, of: Account, limited: Limited, at: int) -> Account:
        scope = limited.scope
        id = account_of(of.id, scope, at)
        account = self.find(id)
        if account is None:
            account = Account(id, of.tenant, None, False, limited.limit)
            begin, _ = bounds(scope.span, at)
            if begin < max(limited.since, removed_before(self.connection, scope.span)):
                account.posted, account.pending, account.overrun = counted(
                    self.connection, of.tenant, of.path, scope, at
                )
            self._known[id] = account
            self._new[id] = at
        account.limit = limited.limit
        if limited.soft:
            self._soft[id] = of, limited.soft
        return account

    def crossed_already(self, accounts: Iterable[Account]) -> list[Crossing]:
        """The soft limits of accounts and windows that what is spent there has reached."""
        return [one for account in accounts for one in self._crossings(account, None)]

    def _crossings(self, account: Account, before: Amounts | None) -> Iterator[Crossing]:
        """The soft limits that were crossed since so much was spent; with None all that are."""
        owner, soft = self._soft.get(account.id, (account, ()))
        spent = account.posted + account.overrun
        for one in soft:
            for unit, threshold in one.thresholds(account.limit):
                used = getattr(spent, unit)
                if threshold <= used and (before is None or getattr(before, unit) < threshold):
                    yield Crossing(account, owner, one, unit, threshold, used)

    def carved_children(self, id: str) -> list[Account]:
        """The open accounts carved from this one."""
        rows = self.connection.execute(_CARVED, (id,)).fetchall()
        return [child for (name,) in rows if (child := self.find(name)) is not None]

    def lasting(self, account: Account) -> Amounts:
        """What of `account.used` would stay if every pending hold vanished: a carved child's goes back to its carve."""
        kept = ZERO
        for child in self.carved_children(account.id):
            kept += child.covered(child.pending)
        return account.used - account.pending + kept

    def add(self, account: Account) -> None:
        """Write a new account."""
        self._known[account.id] = account
        numbers = _numbers(account)
        self.connection.execute(
            _table_of(account.id).insert,
            (account.id, account.tenant, account.parent, account.carve, account.closed, *numbers),
        )

    def change(self, account: Account) -> None:
        """Mark an account as changed."""
        self._changed[account.id] = account

    def apply(
        self, path: Sequence[Account], *, pending: Amounts = ZERO, posted: Amounts = ZERO, overrun: Amounts = ZERO
    ) -> None:
        """Add to every account of `path`. What an account uses of its carve leaves its parent's `carved`.

        Raises:
            AmountRefused: the overruns of an account are more than can be counted; nothing was changed.
        """
        for account in path if overrun != ZERO else ():
            refuse_uncountable(overrun=account.overrun + overrun)
        below: Account | None = None
        for account in path:
            before = account.posted + account.overrun if account.id in self._soft else None
            account.pending += pending
            account.posted += posted
            account.overrun += overrun
            if before is not None:
                self.crossed += self._crossings(account, before)
            if below is not None:
                account.carved -= below.covered(pending + posted)
            below = account
            self.change(account)

    def save(self) -> None:
        """Write back what changed."""
        for account in self._changed.values():
            if account.id in self._new:
                self.add(account)
            else:
                self.connection.execute(_table_of(account.id).update, (account.closed, *_numbers(account), account.id))
        began = {
            (window.scope.span, self._new[id]) for id in self._changed if id in self._new and (window := parts(id))
        }
        for span, at in began:
            remove_old(self.connection, span, at)
        self._new.clear()
        self._changed.clear()


def _numbers(account: Account) -> tuple[int | None, ...]:
    limit = account.limit
    if account.path is not None or account.is_window:
        # Where it was set below what had been used by then, it is what is used, for as long as that is more.
        limit = raised(limit, account.posted + account.pending + account.carved)
    groups: tuple[Amounts | Limit, ...] = (limit, account.posted, account.pending, account.carved, account.overrun)
    return tuple(chain.from_iterable(map(numbers, groups)))


def _account(row: tuple[Any, ...]) -> Account:
    id, tenant, parent, carve, closed, *numbers = row
    limit = Limit(*numbers[: len(UNITS)])
    posted, pending, carved, overrun = amounts(numbers[len(UNITS) :])
    return Account(id, tenant, parent, bool(carve), limit, bool(closed), posted, pending, carved, overrun)
