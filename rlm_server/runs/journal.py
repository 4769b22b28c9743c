"""What is kept of runs: as they were asked for, the nodes of their trees, and every event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database import labels, requests
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.requests import Request
from rlm_server.ledger.amounts import Limit
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from rlm_server.repl.coverage import Coverage
from rlm_server.runs.asked import Asked, from_row, to_row
from rlm_server.runs.cuts import CutText, beginning_of, cuts_from_json, cuts_to_json, size_of
from rlm_server.runs.events import Event, EventOrigin, WrittenEvent, read
from rlm_server.runs.state import RunState, move

MOST_EVENTS_BYTES = 128 << 10
"""Of events that are read at once, where more than one is."""
MOST_NODES = 1_000
"""Of a run's tree, that are read at once."""
PATIENCE = 0.02
"""Seconds for which a write waits that another follows soon."""
CREATING = "CreateRun"
"""The call whose request ids runs have in their rows."""
LABELS = "run"
"""The kind of runs' labels."""
NOTHING_ASKED = Asked()
"""Nothing besides the question."""
DELETED_AT_ONCE = 200
"""Events of a run that is deleted, in one transaction."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it was asked for. Times are Unix milliseconds; `ended_at` is None while it goes on.

    `customer` is the path of the customer who pays, empty where the tenant itself does.
    """

    id: str
    tenant: str
    request_id: str | None
    context: str | None
    model: str
    sub_model: str
    budget: Limit
    created_at: int
    ended_at: int | None = None
    customer: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One RLM of a run's tree. The root's id is the run's, its parent None.

    `question_bytes` and `answer_bytes` are what the whole texts have of UTF-8, of which only the beginning may be here.
    `redacted` are texts of which nothing is kept.
    """

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
    question_bytes: int = 0
    answer_bytes: int = 0
    redacted: tuple[CutText, ...] = ()

    @property
    def cut(self) -> tuple[CutText, ...]:
        """Which of its texts are not whole."""
        texts = (("question", self.question, self.question_bytes), ("answer", self.answer, self.answer_bytes))
        redacted = {one.field for one in self.redacted}
        whole = [(name, text, size) for name, text, size in texts if name not in redacted]
        return self.redacted + tuple(CutText(name, size) for name, text, size in whole if size_of(text) < size)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many runs wait and are at work, and how many RLMs there are in them."""

    pending_runs: int
    running_runs: int
    nodes: int


class Journal:
    """Reads and writes runs. What was written is durable when the call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        run: RunRow,
        question: str,
        request: Request | None = None,
        *,
        asked: Asked = NOTHING_ASKED,
        redacted: tuple[CutText, ...] = (),
        patience: float = 0.0,
    ) -> RunRow:
        """Keep a new run with its root node, pending; a repeated request returns the run it made first.

        `redacted` says what the texts of it were that are not to be kept. With `patience` it waits so many seconds for
        another write, to be kept with it.

        Raises:
            RequestIdReused: the request asked for another run before.
        """

        def write(connection: Connection) -> RunRow:
            known = _asked_before(connection, request)
            if known is not None:
                return known
            connection.execute(
                "INSERT INTO run (id, tenant, request_id, context, model, sub_model, limit_nano_usd, limit_tokens, "
                "limit_calls, limit_cpu_ms, created_at, ended_at, customer, answer_schema, instructions, sampling, "
                "strategy) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, run.tenant, run.request_id, run.context, run.model, run.sub_model, run.budget.nano_usd,
                 run.budget.tokens, run.budget.calls, run.budget.cpu_ms, run.created_at, run.ended_at, run.customer,
                 *to_row(asked)),
            )  # fmt: skip
            requests.answer(connection, request, run.id, run.created_at, thing=run.id)
            labels.put(connection, LABELS, run.id, run.labels)
            _insert_node(connection, NodeRow(run.id, run.id, None, 0, RunState.PENDING, question, redacted=redacted))
            _count(connection, run.id, size_of(question) + asked.size)
            return run

        return await self._database.write(write, patience=patience)

    async def asked(self, run: str) -> Asked:
        """Return what a run is asked for besides its question: nothing where it is not there."""

        def read(connection: Connection) -> Asked:
            query = "SELECT answer_schema, instructions, sampling, strategy FROM run WHERE id = ?"
            row = connection.execute(query, (run,)).fetchone()
            return NOTHING_ASKED if row is None else from_row(*row)

        return await self._database.read(read)

    async def by_request(self, request: Request | None) -> RunRow | None:
        """Return the run that a request made, if one did.

        Raises:
            RequestIdReused: it asked for another run then.
        """
        if request is None:
            return None
        return await self._database.read(lambda connection: _asked_before(connection, request))

    async def was_asked(self, request: Request | None) -> bool:
        """Whether a request came before.

        Raises:
            RequestIdReused: it asked for something else then.
        """
        if request is None:
            return False
        return await self._database.read(lambda connection: requests.answered(connection, request) is not None)

    async def note(self, request: Request | None, run: str, *, deletes: bool = False) -> None:
        """Remember what is asked of a run before it is done, as long as the run, or where it `deletes` it for a day.

        So the same request, should the server die before it is done, does it then.

        Raises:
            RequestIdReused: it asked for something else before.
        """

        def write(connection: Connection) -> None:
            if requests.answered(connection, request) is not None:
                return
            if deletes:
                requests.answer_deletion(connection, request, now())
            else:
                requests.answer(connection, request, run, now(), thing=run)

        if request is not None:
            await self._database.write(write)

    async def get(self, tenant: str, run: str) -> RunRow | None:
        """Return a tenant's run, or None: another tenant's does not exist for this one."""
        found = await self._database.read(lambda connection: _runs(connection, "id = ? AND tenant = ?", (run, tenant)))
        return found[0] if found else None

    async def row(self, run: str) -> RunRow:
        """Return a run, which must be there."""
        return await self._database.read(lambda connection: find_runs(connection, [run])[run])

    async def succeeded(self, runs: Sequence[str]) -> list[tuple[str, str]]:
        """Return those of some runs that have succeeded, as tenants and runs, in the order of their ends."""
        if not runs:
            return []
        query = (
            "SELECT run.tenant, run.id FROM run JOIN node ON node.id = run.id "  # noqa: S608 - of marks alone
            f"WHERE run.id IN ({', '.join('?' * len(runs))}) AND node.state = 'succeeded' ORDER BY run.ended_at"
        )
        return await self._database.read(lambda db: [(row[0], row[1]) for row in db.execute(query, runs).fetchall()])

    async def add_node(self, node: NodeRow) -> None:
        """Keep a child's node."""

        def write(connection: Connection) -> None:
            _insert_node(connection, node)
            _count(connection, node.run, size_of(node.question))

        await self._database.write(write)

    async def nodes(
        self, run: str, first: int = 0, most: int = MOST_NODES, text_bytes: int = MAX_EVENT_TEXT
    ) -> list[NodeRow]:
        """Return up to `most` nodes of a run's tree, in the order of their start, from its node number `first` on.

        The root is number 0. Of each question and each answer there are at most `text_bytes` of UTF-8.
        """

        def read(connection: Connection) -> list[NodeRow]:
            rows = connection.execute(
                f"{_NODE} WHERE run = ? AND number >= ? ORDER BY number LIMIT ?",
                (text_bytes, text_bytes, run, first, most),
            ).fetchall()
            return [_node(row, text_bytes) for row in rows]

        return await self._database.read(read)

    async def root(self, run: str, text_bytes: int | None = None) -> NodeRow | None:
        """Return a run's root, of its question and its answer at most `text_bytes` of UTF-8, or the whole."""
        return await self._database.read(lambda connection: find_roots(connection, [run], text_bytes).get(run))

    async def owner(self, run: str) -> str:
        """Return the tenant of a run, which must be there."""
        return (await self.row(run)).tenant

    async def ended(self, node: str) -> NodeRow | None:
        """Return a node that has ended, whole; None for one that goes on, or is not there."""
        row = await self.root(node)
        return row if row is not None and row.state.ended else None

    async def answer_piece(self, run: str, node: str, start: int, most: int) -> tuple[str, int] | None:
        """Return up to `most` characters of a node's answer from character `start` on, and the bytes of the whole.

        None where the run has no such node.
        """

        def read(connection: Connection) -> tuple[str, int] | None:
            row = connection.execute(
                "SELECT substr(answer, ?, ?), answer_bytes FROM node WHERE run = ? AND id = ?",
                (start + 1, most, run, node),
            ).fetchone()
            return None if row is None else (str(row[0]), int(row[1]))

        return await self._database.read(read)

    async def begin(self, node: str, *, patience: float = 0.0) -> None:
        """Note that a node is at work; nothing is done where it is already."""

        def write(connection: Connection) -> None:
            connection.execute(
                "UPDATE node SET state = ? WHERE id = ? AND state = ?", (RunState.RUNNING, node, RunState.PENDING)
            )

        await self._database.write(write, patience=patience)

    async def has_node(self, node: str) -> bool:
        """Return whether a node is there."""
        query = "SELECT 1 FROM node WHERE id = ?"
        return await self._database.read(lambda db: db.execute(query, (node,)).fetchone() is not None)

    async def node_count(self, run: str) -> int:
        """Return how many nodes a run's tree has."""
        query = "SELECT count(*) FROM node WHERE run = ?"
        return await self._database.read(lambda db: int(db.execute(query, (run,)).fetchone()[0]))

    async def event_bytes(self, run: str) -> int:
        """Return how many bytes the events of a run have."""

        def read(connection: Connection) -> int:
            return int(connection.execute("SELECT sum(size) FROM event WHERE run = ?", (run,)).fetchone()[0] or 0)

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
        redacted: tuple[CutText, ...] = (),
        patience: float = 0.0,
    ) -> None:
        """Move a node to another state; `redacted` says what of answer and reason is not to be kept.

        With `patience` it waits so many seconds for another write, to be kept with it.

        Raises:
            ValueError: its present state does not allow that.
        """

        def write(connection: Connection) -> None:
            row = connection.execute("SELECT state, run, redacted FROM node WHERE id = ?", (node,)).fetchone()
            kept = cuts_to_json(cuts_from_json(row[2]) + redacted)
            connection.execute(
                "UPDATE node SET state = ?, answer = ?, answer_bytes = ?, reason = ?, turns = ?, "
                "coverage_fraction = ?, redacted = ? WHERE id = ?",
                (move(RunState(row[0]), state), answer, _whole_size("answer", answer, redacted), reason, turns,
                 coverage_fraction, kept, node),
            )  # fmt: skip
            if answer:
                _count(connection, row[1], size_of(answer))
            if state.ended:
                connection.execute("UPDATE run SET ended_at = ? WHERE id = ?", (now(), node))

        await self._database.write(write, patience=patience)

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
        """Return the nodes that a former process left unfinished, children before their parents, without texts."""

        def read(connection: Connection) -> list[NodeRow]:
            left = f"{_NODE} WHERE state IN ('pending', 'running') ORDER BY depth DESC"
            return [_node(row) for row in connection.execute(left, (0, 0)).fetchall()]

        return await self._database.read(read)

    async def progress(self) -> Progress:
        """Return how much is under way."""

        def read(connection: Connection) -> Progress:
            unfinished = "SELECT state, parent IS NULL, count(*) FROM node WHERE state IN ('pending', 'running') "
            found = connection.execute(unfinished + "GROUP BY state, parent IS NULL").fetchall()
            counts = {(state, bool(root)): number for state, root, number in found}
            runs = [counts.get((state, True), 0) for state in (RunState.PENDING, RunState.RUNNING)]
            return Progress(runs[0], runs[1], sum(counts.values()))

        return await self._database.read(read)

    async def append(self, run: str, events: Sequence[WrittenEvent], *, patience: float = 0.0) -> int:
        """Keep events; their numbers must follow those kept. Returns the bytes that are kept of the tenant's runs.

        With `patience` they wait so many seconds for another write, to be kept with it.
        """

        def write(connection: Connection) -> int:
            connection.executemany(
                "INSERT INTO event (run, sequence, at, node, parent, depth, turn, body, cut, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (run, one.event.sequence, one.event.at, one.event.origin.node, one.event.origin.parent,
                     one.event.origin.depth, one.event.origin.turn, one.body, one.cut, one.size)
                    for one in events
                ],
            )  # fmt: skip
            return _count(connection, run, sum(one.size for one in events))

        return await self._database.write(write, patience=patience)

    def hurry(self, patience: float) -> None:
        """Have what waits for another write kept within so many seconds."""
        self._database.hurry(patience)

    async def events(self, run: str, from_sequence: int, most: int, most_bytes: int = MOST_EVENTS_BYTES) -> list[Event]:
        """Return up to `most` events from a number on, or fewer: so many bytes of them, and one at least."""

        def load(connection: Connection) -> list[Event]:
            sizes = connection.execute(
                "SELECT size FROM event WHERE run = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
                (run, from_sequence, most),
            ).fetchall()
            totals = accumulate(size for (size,) in sizes)
            number = max(1, sum(total <= most_bytes for total in totals))
            rows = connection.execute(
                "SELECT sequence, at, node, parent, depth, turn, body, cut FROM event "
                "WHERE run = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
                (run, from_sequence, number),
            ).fetchall()
            return [read(row[0], row[1], EventOrigin(*row[2:6]), row[6], row[7]) for row in rows]

        return await self._database.read(load)

    async def kept_bytes(self, tenant: str) -> int:
        """Return the bytes that are kept of a tenant's runs: events, questions and answers."""

        def read(connection: Connection) -> int:
            row = connection.execute("SELECT kept_bytes FROM tenant_usage WHERE tenant = ?", (tenant,)).fetchone()
            return int(row[0]) if row else 0

        return await self._database.read(read)

    async def delete_events(self, run: str, most: int = DELETED_AT_ONCE) -> bool:
        """Forget some events of a run that has ended, the last first; returns whether there are more.

        In portions, so that other writes get their turn.
        """

        def write(connection: Connection) -> bool:
            (last,) = connection.execute("SELECT max(sequence) FROM event WHERE run = ?", (run,)).fetchone()
            if last is None:
                return False
            these = "FROM event WHERE run = ? AND sequence > ?"
            (size,) = connection.execute(f"SELECT sum(size) {these}", (run, last - most)).fetchone()
            connection.execute(f"DELETE {these}", (run, last - most))
            _count(connection, run, -size)
            return bool(last > most)

        return await self._database.write(write)

    async def delete(self, run: str) -> None:
        """Forget a run and its nodes. Its events must be gone."""

        def write(connection: Connection) -> None:
            row = connection.execute("SELECT kept_bytes, tenant FROM run WHERE id = ?", (run,)).fetchone()
            if row is None:
                return
            size, tenant = row
            _count(connection, run, -size)
            requests.forget_about(connection, tenant, run)
            # Children first: a node refers to its parent, and SQLite looks at that row by row.
            for (depth,) in connection.execute(
                "SELECT DISTINCT depth FROM node WHERE run = ? ORDER BY depth DESC", (run,)
            ).fetchall():
                connection.execute("DELETE FROM node WHERE run = ? AND depth = ?", (run, depth))
            connection.execute("DELETE FROM run WHERE id = ?", (run,))

        await self._database.write(write)

    async def forget(self, run: str) -> None:
        """Forget a run that has ended, its nodes and its events. What it spent stays in the ledger, with its labels."""
        while await self.delete_events(run):
            pass
        await self.delete(run)

    async def tenants(self) -> list[str]:
        """Return the tenants that have, or had, runs."""
        query = "SELECT tenant FROM tenant_usage"
        return await self._database.read(lambda db: [tenant for (tenant,) in db.execute(query).fetchall()])

    async def ended_before(self, tenant: str, at: int, most: int) -> list[str]:
        """Return some of a tenant's runs that ended before a time (Unix milliseconds)."""
        query = "SELECT id FROM run WHERE tenant = ? AND ended_at < ? LIMIT ?"
        return await self._database.read(
            lambda db: [run for (run,) in db.execute(query, (tenant, at, most)).fetchall()]
        )

    async def last_sequence(self, run: str) -> int:
        """Return the number of a run's newest event, 0 for none."""

        def read(connection: Connection) -> int:
            return int(connection.execute("SELECT max(sequence) FROM event WHERE run = ?", (run,)).fetchone()[0] or 0)

        return await self._database.read(read)

    async def unannounced(self) -> list[str]:
        """Return the runs that have ended whose last event is not kept."""
        return await self._database.read(lambda db: [run for (run,) in db.execute(_UNANNOUNCED).fetchall()])


_coverages = TypeAdapter(Coverage)

_NODE = (
    "SELECT id, run, parent, depth, state, substr(question, 1, ?), substr(answer, 1, ?), reason, turns, "
    "coverage_fraction, question_bytes, answer_bytes, redacted FROM node"
)
_WHOLE = (1 << 30, 1 << 30)
"""The characters of a question and of an answer, where all are wanted."""
_UNANNOUNCED = """
SELECT id FROM run WHERE ended_at IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM event WHERE event.run = run.id AND body LIKE '%"kind":"run_finished"}'
    AND sequence = (SELECT max(sequence) FROM event AS newest WHERE newest.run = run.id)
)
"""


def _node(row: tuple[Any, ...], most: int | None = None) -> NodeRow:
    node, run, parent, depth, state, question, answer, *others, redacted = row
    if most is not None:
        question, answer = beginning_of(question, most), beginning_of(answer, most)
    rest = (*others, cuts_from_json(redacted))
    return NodeRow(node, run, parent, depth, RunState(state), question, answer, *rest)


def _whole_size(name: str, kept: str, redacted: Sequence[CutText]) -> int:
    """Return the bytes of the whole of a text of which this is kept."""
    return next((one.size_bytes for one in redacted if one.field == name), size_of(kept))


def _count(connection: Connection, run: str, size: int) -> int:
    """Count bytes that are kept of a run, or no more; returns those of its tenant's runs."""
    tenant, _ = connection.execute(
        "UPDATE run SET kept_bytes = kept_bytes + ? WHERE id = ? RETURNING tenant, kept_bytes", (size, run)
    ).fetchone()
    (kept,) = connection.execute(
        "INSERT INTO tenant_usage (tenant, kept_bytes) VALUES (?, ?) ON CONFLICT (tenant) DO UPDATE "
        "SET kept_bytes = tenant_usage.kept_bytes + excluded.kept_bytes RETURNING kept_bytes",
        (tenant, size),
    ).fetchone()
    return int(kept)


def _insert_node(connection: Connection, node: NodeRow) -> None:
    connection.execute(
        "INSERT INTO node (id, run, parent, depth, state, question, question_bytes, redacted, number) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT count(*) FROM node WHERE run = ?))",
        (node.id, node.run, node.parent, node.depth, node.state, node.question,
         _whole_size("question", node.question, node.redacted), cuts_to_json(node.redacted), node.run),
    )  # fmt: skip


def _asked_before(connection: Connection, request: Request | None) -> RunRow | None:
    run = requests.answered(connection, request)
    return None if run is None else find_runs(connection, [run]).get(run)


def find_roots(connection: Connection, runs: Sequence[str], text_bytes: int | None) -> dict[str, NodeRow]:
    """Return runs' roots by their ids, of each question and answer at most `text_bytes` of UTF-8, or the whole."""
    texts = _WHOLE if text_bytes is None else (text_bytes, text_bytes)
    rows = connection.execute(f"{_NODE} WHERE id IN ({', '.join('?' * len(runs))})", (*texts, *runs)).fetchall()
    return {row[0]: _node(row, text_bytes) for row in rows}


def find_runs(connection: Connection, runs: Sequence[str]) -> dict[str, RunRow]:
    """Return runs by their ids, of any tenant."""
    return {run.id: run for run in _runs(connection, f"id IN ({', '.join('?' * len(runs))})", runs)}


def _runs(connection: Connection, which: str, values: Sequence[Any]) -> list[RunRow]:
    rows = connection.execute(
        "SELECT id, tenant, request_id, context, model, sub_model, limit_nano_usd, limit_tokens, limit_calls, "  # noqa: S608
        f"limit_cpu_ms, created_at, ended_at, customer FROM run WHERE {which}",
        values,
    ).fetchall()
    named = labels.of(connection, LABELS, [row[0] for row in rows])
    return [_run(row, named[row[0]]) for row in rows]


def _run(row: tuple[Any, ...], named: Mapping[str, str]) -> RunRow:
    id, tenant, request_id, context, model, sub_model, *limits, created_at, ended_at, customer = row
    asked = (id, tenant, request_id, context, model, sub_model, Limit(*limits), created_at, ended_at, customer, named)
    return RunRow(*asked)
