"""Lists of what a tenant has, the newest first: what is in them, and where the next page begins."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

PLACE = re.compile(r"[0-9]{16} \S{1,100}", re.ASCII)
"""Where a thing stands in a list: when it was made, and its id."""


def place(created_at: int, id: str) -> str:
    """Return where a thing stands that was made at a time in Unix milliseconds: later ones have a lesser place."""
    return f"{created_at:016} {id}"


@dataclass(slots=True)
class Conditions:
    """What must hold of the rows of a list, and the values in it."""

    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def must(self, condition: str, *values: Any) -> None:
        """Have a condition hold, which has a `?` for each of the values."""
        self.conditions.append(condition)
        self.values.extend(values)

    def made(self, table: str, since: int | None, until: int | None) -> None:
        """Have things be made at `since` or later and before `until`, where these are given, in Unix milliseconds."""
        if since is not None:
            self.must(f"{table}.created_at >= ?", since)
        if until is not None:
            self.must(f"{table}.created_at < ?", until)

    def after(self, table: str, before: str | None) -> None:
        """Have things come after a place in the list, where one is given."""
        if before is not None:
            at, _, id = before.partition(" ")
            self.must(f"({table}.created_at < ? OR ({table}.created_at = ? AND {table}.id < ?))", int(at), int(at), id)

    @property
    def where(self) -> str:
        """All conditions as SQL."""
        return " AND ".join(self.conditions)
