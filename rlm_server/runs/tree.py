"""What all the nodes of one run share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from rlm_server.broker.broker import Broker
from rlm_server.ledger import UNITS, Amounts, Ledger
from rlm_server.repl.call_tally import Failures
from rlm_server.repl.coverage import Coverage, summary
from rlm_server.repl.functions import Functions
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import Memo
from rlm_server.repl.tracing import Tracer
from rlm_server.runs.event_log import EventLog
from rlm_server.runs.events import BudgetWarning, EventOrigin
from rlm_server.runs.journal import Journal, RunRow
from rlm_server.runs.node_context import NodeContext, traced_back
from rlm_server.runs.state import RunState
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.corpora.corpus import Corpus
from sandbox.corpora.coverage import of_range
from sandbox.pool.pool import Pool

WARN_AT_PERCENT = (50, 80, 95)

CHILD = "node_"
"""Of the ids of child nodes, and of their accounts."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a run works with: rooms of the server, and the functions that its code may call."""

    broker: Broker
    ledger: Ledger
    pool: Pool
    journal: Journal
    functions: Functions
    shares: Shares


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
    seen: int = 0
    """The blocks of the run's context that its whole tree has looked at."""
    memo: Memo = field(init=False)
    failures: Failures = field(default_factory=Failures)
    spent: Amounts = field(default_factory=Amounts)
    _warned: dict[str, int] = field(default_factory=dict)
    _levels: defaultdict[int, asyncio.Semaphore] = field(init=False)

    def __post_init__(self) -> None:
        self.memo = Memo(self.run.tenant, self.limits.memo_bytes, self.services.shares.held)
        self._levels = defaultdict(lambda: asyncio.Semaphore(self.limits.children))

    def level(self, depth: int) -> asyncio.Semaphore:
        """Return the places at a depth. A node waits only for deeper ones, so nodes never wait for each other."""
        return self._levels[depth]

    def saw(self, node_context: NodeContext, blocks: int) -> None:
        """Note that a node has looked at blocks of what it reads."""
        if self.context is not None:
            for part in traced_back(node_context, blocks):
                self.seen |= of_range(self.context, part)

    async def coverage(self) -> Coverage:
        """Sum up how much of the run's context the whole tree has looked at."""
        if self.context is None:
            return Coverage()
        return await self.summary(self.context, self.seen)

    async def summary(self, corpus: Corpus, blocks: int) -> Coverage:
        """Sum up how much of a corpus blocks are."""
        threads = self.services.shares.threads
        return await threads.run(Purpose.COVERAGE, self.run.tenant, lambda _: summary(corpus, blocks))

    def count(self, origin: EventOrigin, spent: Amounts) -> None:
        """Add to what the run has spent, and warn where it passes a share of its budget."""
        self.spent += spent
        for unit in UNITS:
            limit, used = getattr(self.run.budget, unit), getattr(self.spent, unit)
            passed = max((p for p in WARN_AT_PERCENT if limit and used * 100 >= limit * p), default=0)
            if passed > self._warned.get(unit, 0):
                self._warned[unit] = passed
                self.event_log.emit(origin, BudgetWarning(unit, passed, used, limit))
