"""What accounts are called in the database, and to those who ask. A customer's id is its tenant's own choice."""

from __future__ import annotations

CUSTOMER = "customer:"
"""Of the names of customers' accounts. No other account has a colon in its name."""
RUN, NODE, SESSION = "run_", "node_", "ses_"
"""Of the names of what work spends from: they are the ids of runs, of child nodes and of sessions."""


def customer_account(tenant: str, id: str) -> str:
    """The account of a tenant's customer."""
    return f"{CUSTOMER}{tenant}:{id}"


def public(account: str) -> str:
    """An account as those who may see it call it."""
    return account.rsplit(":", 1)[-1] if account.startswith(CUSTOMER) else account


def last_of(path: str, tenant: str) -> str:
    """Who pays: the last customer of a path, or the tenant itself where it is empty."""
    return path.rsplit("/", 1)[-1] if path else tenant


def under(path: str) -> tuple[str, tuple[str, str, str]]:
    """The condition that `customer` is this path or one below it, and its values."""
    return "customer <> '' AND (customer = ? OR (customer >= ? AND customer < ?))", (path, f"{path}/", f"{path}0")
