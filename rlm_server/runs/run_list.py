"""A tenant's runs as a list, the newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.listing import Conditions, place
from rlm_server.ledger.work_filter import WorkFilter
from rlm_server.runs.journal import NodeRow, RunRow, find_roots, find_runs
from rlm_server.runs.state import RunState

LIST_TEXT = 1 << 10
"""Bytes of UTF-8 of a question, and of an answer, in a list."""


@dataclass(frozen=True, slots=True)
class RunFilter(WorkFilter[RunState]):
    """Which of a tenant's runs are listed."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run of a list, and its root, of whose texts there is only the beginning."""

    run: RunRow
    root: NodeRow
    last_sequence: int
    """The number of its newest event, 0 for none."""
    node_count: int
    """How many nodes there have been in its tree."""

    @property
    def place(self) -> str:
        """Where it stands in the list: later ones have a lesser one."""
        return place(self.run.created_at, self.run.id)


class RunList:
    """Shows runs with what there is of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, asked: RunFilter, before: str | None, most: int) -> list[ListedRun]:
        """Return up to `most` runs, the newest first, from the one after the place `before` on."""

        def read(connection: Connection) -> list[ListedRun]:
            found = _where(asked, before)
            order = "ORDER BY run.created_at DESC, run.id DESC LIMIT ?"
            return _listed(connection, f"{found.where} {order}", (*found.values, most), LIST_TEXT)

        return await self._database.read(read)

    async def one(self, run: str, text_bytes: int) -> ListedRun | None:
        """Return a run, of its question and its answer at most `text_bytes` of UTF-8; None where it is not there."""
        found = await self._database.read(lambda connection: _listed(connection, "run.id = ?", (run,), text_bytes))
        return next(iter(found), None)


def _listed(connection: Connection, which: str, values: Sequence[Any], text_bytes: int) -> list[ListedRun]:
    rows = connection.execute(
        "SELECT run.id, (SELECT coalesce(max(sequence), 0) FROM event WHERE event.run = run.id), "  # noqa: S608
        f"(SELECT count(*) FROM node WHERE node.run = run.id) FROM run WHERE {which}",
        values,
    ).fetchall()
    if not rows:
        return []
    ids = [id for id, *_ in rows]
    runs, roots = find_runs(connection, ids), find_roots(connection, ids, text_bytes)
    return [ListedRun(runs[id], roots[id], *counts) for id, *counts in rows if id in runs and id in roots]


def _where(asked: RunFilter, before: str | None) -> Conditions:
    found = asked.conditions("run", before)
    if asked.states:
        places = ", ".join("?" * len(asked.states))
        found.must(
            f"EXISTS (SELECT 1 FROM node WHERE node.id = run.id AND node.state IN ({places}))",  # noqa: S608
            *sorted(asked.states),
        )
    return found
