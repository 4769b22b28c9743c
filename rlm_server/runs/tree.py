"""What all the nodes of one run share."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from rlm_server.broker.broker import Broker
from rlm_server.contexts.context_table import Content
from rlm_server.ledger import UNITS, Amounts, Ledger
from rlm_server.repl.call_tally import Failures
from rlm_server.repl.coverage import Coverage, Looked, SentText
from rlm_server.repl.functions import Functions
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import CachedAnswer, Memo
from rlm_server.repl.model_calls import seconds_left
from rlm_server.repl.tracing import Tracer
from rlm_server.runs.asked import Asked
from rlm_server.runs.child_context import ChildContexts
from rlm_server.runs.cuts import CutText
from rlm_server.runs.event_log import EventLog
from rlm_server.runs.events import BudgetWarning, EventOrigin
from rlm_server.runs.journal import Journal, RunRow
from rlm_server.runs.node_context import NodeContext, blocks_of
from rlm_server.runs.past.past import RunPast
from rlm_server.runs.past.recorder import Recorder
from rlm_server.runs.past.run_file import RunFile, RunFiles
from rlm_server.runs.places import Place
from rlm_server.runs.redaction import Redaction, RunRedaction
from rlm_server.runs.state import RunState
from rlm_server.shares.host_time import HostTime
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Cancelled, Purpose
from rlm_server.tools.tool_calls import RunTools
from rlm_server.tools.waiting import WaitingCalls
from sandbox.corpora.corpus import Corpus
from sandbox.door import DoorRefusal
from sandbox.pool.pool import Pool

_NOTHING = Amounts()

NO_DATABASE = "the server could not reach its database"
"""Why runs go on that were left for that time."""

WARN_AT_PERCENT = (50, 80, 95)


@dataclass(frozen=True, slots=True)
class Services:
    """What a run works with: rooms of the server, and the functions that its code may call."""

    broker: Broker
    ledger: Ledger
    pool: Pool
    journal: Journal
    functions: Functions
    shares: Shares
    redaction: Redaction
    files: RunFiles
    waiting: WaitingCalls
    """Calls that clients answer."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What models are told besides, by patterns of their names."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """What models are told of the numbers in an image, by its name."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a node has to do: its id is also its account's. `parent` is empty for the root."""

    id: str
    parent: str
    depth: int
    question: str
    node_context: NodeContext | None
    model: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a node ended. `reason` says why, where it did not succeed; `answer` is the best there was."""

    state: RunState
    answer: str = ""
    reason: str = ""


def kept_form(outcome: Outcome, redaction: RunRedaction, *, root: bool) -> tuple[Outcome, tuple[CutText, ...]]:
    """Return what is kept of how a node ended, and what is redacted. The answer of a root is what was asked for."""
    return redaction.redacted(outcome, leaving=("answer",) if root else ())


async def kept_outcome(journal: Journal, node: str) -> Outcome | None:
    """Return how a node ended as it is kept, or None where it goes on."""
    row = await journal.ended(node)
    return None if row is None else Outcome(row.state, row.answer, row.reason)


async def _not_left(_: str) -> None:
    """Do nothing: the run cannot go on later."""


@dataclass(slots=True)
class Tree:
    """One run's shared state. `deadline` is on `time.monotonic()`."""

    services: Services
    run: RunRow
    limits: RunLimits
    image: str
    deadline: float
    event_log: EventLog
    context: Corpus | None
    tracer: Tracer
    place: Place
    tools: RunTools
    file: RunFile
    """Where it is written down what happens, so that another process can go on with the run."""
    asked: Asked = field(default_factory=Asked)
    content: Content | None = None
    """Of the run's context."""
    past: RunPast | None = None
    """What a former process, or this one earlier, left of it."""
    resumed: str = ""
    """Why it goes on, where it has a past."""
    leave: Callable[[str], Awaitable[None]] = _not_left
    """Has all that works for the run stop, so that it can go on later; called with why."""
    left: bool = False
    """Whether all that works for it is to stop, and leave it as it is."""
    memo: Memo = field(init=False)
    failures: Failures = field(default_factory=Failures)
    looked: Looked | None = field(init=False)
    """What the whole tree has looked at of the run's context, where there is one."""
    sent: SentText = field(default_factory=SentText)
    """What of the run's context stood in prompts of the whole tree, but for the root's own."""
    spent: Amounts = field(default_factory=Amounts)
    nodes: int = 1
    """How many there have been, the root included."""
    contexts: ChildContexts = field(init=False)
    pause: asyncio.Future[None] | None = None
    """While the run has no place: done when it has one again. The deadline stands still meanwhile."""
    _warned: dict[str, int] = field(default_factory=dict)
    _levels: defaultdict[int, asyncio.Semaphore] = field(init=False)

    def __post_init__(self) -> None:
        self.memo = Memo(self.run.tenant, self.limits.memo_bytes, self.services.shares.held)
        self.looked = Looked(self.context) if self.context is not None else None
        self.contexts = ChildContexts(self.services.shares, self.run.tenant)
        self._levels = defaultdict(lambda: asyncio.Semaphore(self.limits.children))

    async def go_on(self, past: RunPast) -> None:
        """Take up what the run has behind it."""
        try:
            await self._take_up(past)
        except BaseException:
            self.memo.close()
            raise

    async def _take_up(self, past: RunPast) -> None:
        self.spent = (await self.services.ledger.balance(self.run.id)).posted
        self._warned = {unit: percent for unit in UNITS if (percent := self._passed(unit))}
        self.nodes = await self.services.journal.node_count(self.run.id)
        for key, reply in past.answers.items():
            self.memo.put(bytes.fromhex(key), CachedAnswer(reply.text, reply.model))
        root = past.nodes.get(self.run.id)
        if root is not None and root.standing is not None:
            self.failures.count = root.standing.failures
            self.sent.restore(root.standing.sent, more=root.standing.sent_more)

    def recorder(self, node: str) -> Recorder:
        """Return what writes down what a node is told; of one that was there before, it knows what it was told."""
        past = None if self.past is None else self.past.nodes.get(node)
        return Recorder(node, self.file, past, self._read_past, self.no_database)

    async def no_database(self) -> None:
        """Have the run left until the database is there again; returns where it cannot go on later."""
        await self.leave(NO_DATABASE)

    async def _read_past(self) -> RunPast:
        run, files = self.run, self.services.files
        entries = await self.services.shares.threads.run(
            Purpose.READING, run.tenant, lambda _: files.read(run.id, run.tenant)
        )
        past = RunPast.of(entries)
        assert past is not None  # noqa: S101 - this process wrote it
        return past

    async def renew_place(self) -> None:
        """Between turns of the root: let another tenant's run work that has a better right to, and wait meanwhile."""
        if not self.place.owed:
            return
        left, self.pause = seconds_left(self.deadline), asyncio.get_running_loop().create_future()
        try:
            await self.place.renew()
        finally:
            self.deadline = time.monotonic() + left
            self.pause.set_result(None)
            self.pause = None

    def add_nodes(self, number: int) -> None:
        """Count children before they start.

        Raises:
            DoorRefusal: the run would have more nodes than it may. None is counted.
        """
        most = self.limits.nodes
        if self.nodes + number > most:
            raise DoorRefusal(
                "LimitExceeded", f"nodes: a run may have {most} RLMs in all; it has had {self.nodes}, and {number} more"
            )
        self.nodes += number

    @property
    def redaction(self) -> RunRedaction:
        """What redacts contents of the run."""
        return self.services.redaction.of(self.run.tenant, self.run.id)

    @property
    def bill(self) -> HostTime:
        """What the work for its nodes is charged to, outside of turns and of what turns ask for."""
        return self.services.shares.host_times.of(self.run.tenant)

    def level(self, depth: int) -> asyncio.Semaphore:
        """Return the places at a depth. A node waits only for deeper ones, so nodes never wait for each other."""
        return self._levels[depth]

    async def saw(self, node_context: NodeContext, looked: Looked, blocks: int) -> Coverage:
        """Note that a node, which has `looked` at some of what it reads, looked at blocks; returns the sum of all."""

        def work(_: Cancelled) -> Coverage:
            if self.looked is not None and self.context is not None:
                self.looked.add(blocks_of(self.context, node_context, blocks & ~looked.blocks))
            looked.add(blocks)
            return looked.coverage()

        return await self.services.shares.threads.run(Purpose.COVERAGE, self.run.tenant, work)

    async def coverage(self) -> Coverage:
        """Sum up how much of the run's context the whole tree has looked at."""
        looked = self.looked
        if looked is None:
            return Coverage()
        known = looked.known
        if known is not None:
            return known
        return await self.services.shares.threads.run(Purpose.COVERAGE, self.run.tenant, lambda _: looked.coverage())

    def count(self, origin: EventOrigin, spent: Amounts) -> None:
        """Add to what the run has spent, and warn where it passes a share of its budget."""
        if spent == _NOTHING:
            return
        self.spent += spent
        for unit in UNITS:
            limit, used = getattr(self.run.budget, unit), getattr(self.spent, unit)
            passed = self._passed(unit)
            if passed > self._warned.get(unit, 0):
                self._warned[unit] = passed
                self.event_log.emit(origin, BudgetWarning(unit, passed, used, limit))

    def _passed(self, unit: str) -> int:
        """Return which share of its budget in a unit the run has spent, of those that are told; 0 for none."""
        limit, used = getattr(self.run.budget, unit), getattr(self.spent, unit)
        return max((p for p in WARN_AT_PERCENT if limit and used * 100 >= limit * p), default=0)
