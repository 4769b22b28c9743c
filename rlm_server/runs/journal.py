"""What is kept of runs: as they were asked for, the nodes of their trees, and every event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.ledger.amounts import Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.runs.events import Event, EventOrigin, from_json, to_json
from rlm_server.runs.state import RunState, move


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it was asked for. Times are Unix milliseconds; `ended_at` is None while it goes on."""

    id: str
    tenant: str
    request_id: str | None
    context: str | None
    model: str
    sub_model: str
    budget: Limit
    created_at: int
    ended_at: int | None = None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One RLM of a run's tree. The root's id is the run's, its parent None."""

    id: str
    run: str
    parent: str | None
    depth: int
    state: RunState
    question: str
    answer: str = ""
    reason: str = ""
    turns: int = 0
    coverage_fraction: float = 0.0
    """The part of its own text that it has looked at."""


class Journal:
    """Reads and writes runs. What was written is durable when the call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, run: RunRow, question: str) -> RunRow:
        """Keep a new run with its root node, pending; a repeated request id returns the run it made first."""

        def write(connection: Connection) -> RunRow:
            known = _by_request(connection, run.tenant, run.request_id)
            if known:
                return known
            connection.execute(
                "INSERT INTO run (id, tenant, request_id, context, model, sub_model, limit_nano_usd, limit_tokens, "
                "limit_calls, limit_cpu_ms, created_at, ended_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, run.tenant, run.request_id, run.context, run.model, run.sub_model, run.budget.nano_usd,
                 run.budget.tokens, run.budget.calls, run.budget.cpu_ms, run.created_at, run.ended_at),
            )  # fmt: skip
            _insert_node(connection, NodeRow(run.id, run.id, None, 0, RunState.PENDING, question))
            return run

        return await self._database.write(write)

    async def by_request(self, tenant: str, request_id: str) -> RunRow | None:
        """Return the run that a request made, if one did."""
        return await self._database.read(lambda connection: _by_request(connection, tenant, request_id))

    async def get(self, tenant: str, run: str) -> RunRow | None:
        """Return a tenant's run, or None: another tenant's does not exist for this one."""
        return await self._database.read(lambda connection: _run(connection, "tenant = ? AND id = ?", (tenant, run)))

    async def add_node(self, node: NodeRow) -> None:
        """Keep a child's node."""
        await self._database.write(lambda connection: _insert_node(connection, node))

    async def nodes(self, run: str) -> list[NodeRow]:
        """Return a run's tree, the root first, in the order of their start."""

        def read(connection: Connection) -> list[NodeRow]:
            rows = connection.execute(f"{_NODE} WHERE run = ? ORDER BY number", (run,)).fetchall()
            return [_node(row) for row in rows]

        return await self._database.read(read)

    async def move(
        self,
        node: str,
        state: RunState,
        *,
        answer: str = "",
        reason: str = "",
        turns: int = 0,
        coverage_fraction: float = 0.0,
    ) -> None:
        """Move a node to another state.

        Raises:
            ValueError: its present state does not allow that.
        """

        def write(connection: Connection) -> None:
            row = connection.execute("SELECT state FROM node WHERE id = ?", (node,)).fetchone()
            connection.execute(
                "UPDATE node SET state = ?, answer = ?, reason = ?, turns = ?, coverage_fraction = ? WHERE id = ?",
                (move(RunState(row[0]), state), answer, reason, turns, coverage_fraction, node),
            )
            if state.ended:
                connection.execute("UPDATE run SET ended_at = ? WHERE id = ?", (now(), node))

        await self._database.write(write)

    async def cover(self, run: str, coverage: Coverage) -> None:
        """Keep how much of its context a run's whole tree has looked at."""
        kept = (_coverages.dump_json(coverage).decode(), run)
        await self._database.write(lambda db: db.execute("UPDATE run SET coverage = ? WHERE id = ?", kept))

    async def coverage(self, run: str) -> Coverage:
        """Return how much of its context a run that has ended has looked at."""

        def read(connection: Connection) -> Coverage:
            row = connection.execute("SELECT coverage FROM run WHERE id = ?", (run,)).fetchone()
            return _coverages.validate_json(row[0]) if row and row[0] else Coverage()

        return await self._database.read(read)

    async def unfinished(self) -> list[NodeRow]:
        """Return the nodes that a former process left unfinished, children before their parents."""

        def read(connection: Connection) -> list[NodeRow]:
            rows = connection.execute(f"{_NODE} WHERE state IN ('pending', 'running') ORDER BY depth DESC").fetchall()
            return [_node(row) for row in rows]

        return await self._database.read(read)

    async def append(self, run: str, events: Sequence[Event]) -> None:
        """Keep events; their numbers must follow those kept."""

        def write(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        run,
                        e.sequence,
                        e.at,
                        e.origin.node,
                        e.origin.parent,
                        e.origin.depth,
                        e.origin.turn,
                        to_json(e.body),
                    )
                    for e in events
                ],
            )

        await self._database.write(write)

    async def events(self, run: str, from_sequence: int, most: int) -> list[Event]:
        """Return up to `most` events from a number on."""

        def read(connection: Connection) -> list[Event]:
            rows = connection.execute(
                "SELECT sequence, at, node, parent, depth, turn, body FROM event "
                "WHERE run = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
                (run, from_sequence, most),
            ).fetchall()
            return [Event(row[0], row[1], EventOrigin(*row[2:6]), from_json(row[6])) for row in rows]

        return await self._database.read(read)

    async def last_sequence(self, run: str) -> int:
        """Return the number of a run's newest event, 0 for none."""

        def read(connection: Connection) -> int:
            return int(connection.execute("SELECT max(sequence) FROM event WHERE run = ?", (run,)).fetchone()[0] or 0)

        return await self._database.read(read)

    async def unannounced(self) -> list[NodeRow]:
        """Return the roots that have ended in runs whose last event is not kept."""

        def read(connection: Connection) -> list[NodeRow]:
            return [_node(row) for row in connection.execute(_UNANNOUNCED).fetchall()]

        return await self._database.read(read)


_coverages = TypeAdapter(Coverage)

_NODE = "SELECT id, run, parent, depth, state, question, answer, reason, turns, coverage_fraction FROM node"
_UNANNOUNCED = f"""
{_NODE} WHERE id IN (SELECT id FROM run WHERE ended_at IS NOT NULL) AND NOT EXISTS (
    SELECT 1 FROM event WHERE run = node.id AND body LIKE '%"kind":"run_finished"}}'
    AND sequence = (SELECT max(sequence) FROM event AS newest WHERE newest.run = node.id)
)
"""  # noqa: S608


def _node(row: tuple[Any, ...]) -> NodeRow:
    node, run, parent, depth, state, *rest = row
    return NodeRow(node, run, parent, depth, RunState(state), *rest)


def _insert_node(connection: Connection, node: NodeRow) -> None:
    connection.execute(
        "INSERT INTO node (id, run, parent, depth, state, question, answer, reason, turns, number) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT count(*) FROM node WHERE run = ?))",
        (node.id, node.run, node.parent, node.depth, node.state, node.question, node.answer, node.reason, node.turns,
         node.run),
    )  # fmt: skip


def _by_request(connection: Connection, tenant: str, request_id: str | None) -> RunRow | None:
    if request_id is None:
        return None
    return _run(connection, "tenant = ? AND request_id = ?", (tenant, request_id))


def _run(connection: Connection, where: str, values: tuple[str, str]) -> RunRow | None:
    row = connection.execute(
        "SELECT id, tenant, request_id, context, model, sub_model, limit_nano_usd, limit_tokens, limit_calls, "  # noqa: S608
        f"limit_cpu_ms, created_at, ended_at FROM run WHERE {where}", values,
    ).fetchone()  # fmt: skip
    if row is None:
        return None
    run_id, tenant, request_id, context, model, sub_model, *limits, created_at, ended_at = row
    budget = Limit(*limits)
    return RunRow(run_id, tenant, request_id, context, model, sub_model, budget, created_at, ended_at)
