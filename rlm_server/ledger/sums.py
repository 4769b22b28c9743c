"""Sums over rows, a column for each unit: as SQL, and as the amounts that come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlm_server.ledger.amounts import UNITS, Amounts


def sums(terms: Iterable[str]) -> str:
    """The columns that sum these terms; a sum over no rows is 0."""
    return ", ".join(f"coalesce(sum({term}), 0)" for term in terms)


def amounts(columns: Sequence[int]) -> list[Amounts]:
    """The amounts in a row's columns, each of which has one for every unit, in the order of `UNITS`."""
    return [Amounts(*columns[at : at + len(UNITS)]) for at in range(0, len(columns), len(UNITS))]
