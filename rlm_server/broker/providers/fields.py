"""Reads the fields of an answer from its JSON.

What a provider answers is checked, field by field: `true` is no number of tokens.
"""

from __future__ import annotations

from rlm_server.broker.providers.faults import unreadable


def field(said: object, name: str) -> object:
    """A field of a JSON object; None where it is absent, and where there is no object."""
    return said.get(name) if isinstance(said, dict) else None


def text(said: object, name: str) -> str:
    """A field that is a string; empty where it is absent.

    Raises:
        ProviderError: it is something else.
    """
    value = field(said, name)
    if value is not None and not isinstance(value, str):
        raise unreadable()
    return value or ""


def count(report: object, name: str) -> int | None:
    """A field that is a whole number; None where it is absent.

    Raises:
        ValueError: it is something else, so that nothing in the report can be relied on.
    """
    value = field(report, name)
    if value is not None and type(value) is not int:  # True would pass for 1
        raise ValueError(name)
    return value
