"""What a key that is bound to a customer's account may name: that account and those under it, and nothing else."""

from __future__ import annotations

from contextvars import ContextVar

from rlm_server.api.errors import KeyBound
from rlm_server.ledger import names

_bound: ContextVar[str] = ContextVar("bound", default="")


def bind(path: str) -> None:
    """Have the call that is being served be made with a key that is bound to the customer of a path, or to none."""
    _bound.set(path)


def path() -> str:
    """Return the path of the customer that the key is bound to; empty where it is its tenant's as a whole."""
    return _bound.get()


def own() -> str:
    """Return the id of that customer; empty where there is none."""
    return names.last_of(path(), "")


def hides(account: str, tenant: str) -> bool:
    """Whether an account, by its public id, is one above the customer: what is spent there is others' as well."""
    return bool(path()) and account in (tenant, *path().split("/")[:-1])


def covers(customer: str) -> bool:
    """Whether the customer of a path, empty for the tenant itself, is that one or under it."""
    return not path() or f"{customer}/".startswith(f"{path()}/")


def check(customer: str) -> None:
    """Refuse an account that the key is not for, by its customer's path; an unknown one's is empty.

    Raises:
        KeyBound: the key is bound to another.
    """
    if not covers(customer):
        raise KeyBound(own())


def check_change(customer: str) -> None:
    """Refuse to change the account that the key is bound to, as any that it is not for.

    Raises:
        KeyBound: it may not be changed with this key.
    """
    check(customer)
    if path() and customer == path():
        raise KeyBound(own(), "cannot change that account itself")
