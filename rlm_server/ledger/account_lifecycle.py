"""How accounts begin, change their limit and end. Each function is one transaction's work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from rlm_server.database.engine import Connection, following
from rlm_server.ledger import events
from rlm_server.ledger.accounts import ZERO, Account, Tree, refuse_uncountable, shortage, taking
from rlm_server.ledger.amounts import UNITS, Limit
from rlm_server.ledger.errors import (
    AccountClosed,
    AccountConflict,
    AccountInUse,
    AccountUnknown,
    BudgetExceeded,
    LimitTooLow,
)
from rlm_server.ledger.windows import Limited, Scope, SoftLimit, Span, account_of, is_pace, keep, parts, terms_of


def reserve_of(id: str) -> str:
    """Return the name of the account that keeps the reserve of an account."""
    return f"{id}.reserve"


def open_account(connection: Connection, wanted: Account, at: int, reserve: Limit | None = None) -> None:
    """Add `wanted` to the tree, and under it its reserve; see `Ledger.open_account`."""
    refuse_uncountable(limit=wanted.limit, reserve=reserve or Limit())
    if wanted.parent is None and wanted.carve:
        raise AccountConflict(wanted.id, "has no parent to carve its limit from")
    tree = Tree(connection)
    existing = tree.find(wanted.id)
    if existing is not None:
        _refuse_different(existing, wanted)
        return
    if wanted.parent is not None:
        _carve(tree, wanted, wanted.parent, at)
    tree.add(wanted)
    if reserve is not None:
        kept = Account(reserve_of(wanted.id), wanted.tenant, wanted.id, True, reserve)
        with suppress(BudgetExceeded):  # what is above leaves too little, so there is nothing to keep
            _carve(tree, kept, wanted.id, at)
            tree.add(kept)
    tree.save()


def _refuse_different(existing: Account, wanted: Account) -> None:
    if (existing.tenant, existing.parent, existing.carve) != (wanted.tenant, wanted.parent, wanted.carve):
        raise AccountConflict(wanted.id, "exists with another tenant, parent or kind; choose another name")
    if existing.closed:
        raise AccountClosed(wanted.id)
    # A tenant's limit is what `set_limit` last said, so that a server may open its tenants at every start.
    if existing.parent is not None and existing.limit != wanted.limit:
        raise AccountConflict(wanted.id, "exists with another limit; choose another name, or set its limit")


def _carve(tree: Tree, wanted: Account, parent: str, at: int) -> None:
    path = tree.path(parent, at, "")
    if path[0].tenant != wanted.tenant:
        raise AccountUnknown(parent)
    if path[0].closed:
        raise AccountClosed(parent)
    promise = wanted.promise
    if promise == ZERO:
        return
    for account, part in taking(path, promise):
        if is_pace(account.id):
            continue
        short = shortage(account, part, account.used)
        if short is not None:
            raise BudgetExceeded(short.account, short.unit, short.limit, short.used, short.asked)
    path[0].carved += promise
    tree.change(path[0])


def close_account(connection: Connection, id: str) -> Account:
    """Close an account and give back its promise; see `Ledger.close_account`."""
    if not Tree(connection).get(id).closed:
        release_reserve(connection, id)
    tree = Tree(connection)
    account = tree.get(id)
    if account.closed:
        return account
    if connection.execute("SELECT 1 FROM account WHERE parent = ? AND closed = 0 LIMIT 1", (id,)).fetchone():
        raise AccountInUse(id, "accounts under it are open; close those first")
    unresolved = "SELECT 1 FROM hold WHERE state IN ('pending', 'dispatched') AND account = ? LIMIT 1"
    if connection.execute(unresolved, (id,)).fetchone():
        raise AccountInUse(id, "holds on it are unresolved; post or void those first")
    if account.parent is not None:
        parent = tree.get(account.parent)
        parent.carved -= account.promise
        tree.change(parent)
    account.closed = True
    tree.change(account)
    tree.save()
    return account


def release_reserve(connection: Connection, id: str) -> Account | None:
    """Give an account back what is left of its reserve, where it has one; see `Ledger.release_reserve`."""
    kept = Tree(connection).find(reserve_of(id))
    return close_account(connection, kept.id) if kept is not None and not kept.closed else kept


_OPEN_LEAVES = """
SELECT id FROM account WHERE closed = 0 AND id >= ? AND id < ?
AND NOT EXISTS (SELECT 1 FROM account AS child WHERE child.parent = account.id AND child.closed = 0)
"""


def open_leaves(connection: Connection, prefix: str) -> list[str]:
    """The open accounts with no open one under them whose names begin with `prefix`, which is not empty."""
    return [id for (id,) in connection.execute(_OPEN_LEAVES, (prefix, following(prefix))).fetchall()]


def set_limit(connection: Connection, id: str, limit: Limit) -> Account:
    """Change the limit of an account that is not carved; see `Ledger.set_limit`."""
    refuse_uncountable(limit=limit)
    tree = Tree(connection)
    account = tree.get(id)
    if account.closed:
        raise AccountClosed(id)
    if account.carve:
        raise AccountConflict(id, "is carved from its parent, so its limit is fixed until it is closed")
    used = account.posted + account.pending + account.carved
    for unit in UNITS:
        unit_limit, unit_used = getattr(limit, unit), getattr(used, unit)
        if unit_limit is not None and unit_used > unit_limit:
            raise LimitTooLow(id, unit, unit_limit, unit_used)
    account.limit = limit
    tree.change(account)
    tree.save()
    return account


def set_limits(
    connection: Connection, id: str, wanted: Mapping[Scope, Limit], at: int, soft: Sequence[SoftLimit] | None = None
) -> None:
    """Limit an account in these scopes and in no others, besides its limit for good, from the present windows on.

    Scopes that are limited in this way already stay as they are; see `Ledger.set_window`. What of it is told of is
    `soft`, and without that as before; where so much is spent already, it is told now.
    """
    tree = Tree(connection)
    account = tree.get(id)
    if not account.has_windows:
        raise AccountConflict(id, "is no tenant's and no customer's, and only theirs have windows")
    before = {one.scope: replace(one, since=0) for one in terms_of(connection, (id,))[id]}
    told = [one for terms in before.values() for one in terms.soft] if soft is None else soft
    terms = {
        scope: Limited(scope, 0, wanted.get(scope, Limit()), tuple(one for one in told if one.scope == scope))
        for scope in {**wanted, **{one.scope: None for one in told}}
    }
    changed = [scope for scope in {**before, **terms} if before.get(scope) != terms.get(scope)]
    for scope in changed:
        refuse_uncountable(limit=wanted.get(scope, Limit()), **_amounts(terms.get(scope)))
        keep(connection, account.tenant, id, terms.get(scope), scope, at)
    present = {account_of(id, scope, at) for scope in changed}
    for window in tree.windows(account, at):
        if window.id in present:
            tree.change(window)
    tree.save()
    if told:
        events.record(connection, tree.crossed_already([account, *tree.windows(account, at)]), at)


def _amounts(terms: Limited | None) -> dict[str, Limit]:
    return {f"soft[{place}]": one.amount for place, one in enumerate(terms.soft)} if terms is not None else {}


def reset_window(connection: Connection, id: str, span: Span, at: int) -> None:
    """Forget what was spent in an account's present windows of a span, of whichever models. What is held stays.

    Its soft limits are told of anew.
    """
    tree = Tree(connection)
    for window in tree.windows(tree.get(id), at):
        name = parts(window.id)
        if name is not None and name.scope.span is span:
            window.posted, window.overrun = ZERO, ZERO
            tree.change(window)
            events.tell_anew(connection, window.id)
    tree.save()
