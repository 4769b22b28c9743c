"""What all the nodes of one run share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from rlm_server.broker.broker import Broker
from rlm_server.ledger import UNITS, Amounts, Ledger
from rlm_server.runs.calls import Memo
from rlm_server.runs.events import BudgetWarning, Place
from rlm_server.runs.feed import Feed
from rlm_server.runs.journal import Journal, RunRow
from rlm_server.runs.reading import Coverage, Reading, summary, traced_back
from rlm_server.runs.state import RunState
from rlm_server.runs.tracing import Tracer
from sandbox.corpus import Corpus
from sandbox.coverage import of_range
from sandbox.limits import Limits
from sandbox.pool import Pool

WARN_AT_PERCENT = (50, 80, 95)

CHILD = "node_"
"""Of the ids of child nodes, and of their accounts."""


@dataclass(frozen=True, slots=True)
class Services:
    """The rooms of the server that a run works with."""

    broker: Broker
    ledger: Ledger
    pool: Pool
    journal: Journal


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a run may use besides its budget. Times are in seconds."""

    max_turns: int = 30
    """Turns of each node."""
    max_depth: int = 2
    """Levels of child RLMs below the root."""
    wall_seconds: float = 3600.0
    """The whole run."""
    batch: int = 2000
    """Prompts of one batched call."""
    children: int = 16
    """Child RLMs at work at once, at each depth."""
    errors_in_a_row: int = 5
    """Turns of a node that fail one after another."""
    repeats: int = 3
    """Turns of a node with the same code and the same result."""
    root_tokens: int = 8192
    """Output of one call of a node's own model."""
    sub_tokens: int = 4096
    """Output of one `llm_query`."""
    sandbox: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Task:
    """What a node has to do: its id is also its account's. `parent` is empty for the root."""

    id: str
    parent: str
    depth: int
    question: str
    reading: Reading | None
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
    feed: Feed
    context: Corpus | None
    tracer: Tracer
    seen: int = 0
    """The blocks of the run's context that its whole tree has looked at."""
    memo: Memo = field(default_factory=Memo)
    spent: Amounts = field(default_factory=Amounts)
    _warned: dict[str, int] = field(default_factory=dict)
    _levels: defaultdict[int, asyncio.Semaphore] = field(init=False)

    def __post_init__(self) -> None:
        self._levels = defaultdict(lambda: asyncio.Semaphore(self.limits.children))

    def level(self, depth: int) -> asyncio.Semaphore:
        """Return the places at a depth. A node waits only for deeper ones, so nodes never wait for each other."""
        return self._levels[depth]

    def saw(self, reading: Reading, blocks: int) -> None:
        """Note that a node has looked at blocks of what it reads."""
        if self.context is not None:
            for found in traced_back(reading, blocks):
                self.seen |= of_range(self.context, found)

    async def coverage(self) -> Coverage:
        """Sum up how much of the run's context the whole tree has looked at."""
        return Coverage() if self.context is None else await asyncio.to_thread(summary, self.context, self.seen)

    def count(self, place: Place, spent: Amounts) -> None:
        """Add to what the run has spent, and warn where it passes a share of its budget."""
        self.spent += spent
        for unit in UNITS:
            limit, used = getattr(self.run.budget, unit), getattr(self.spent, unit)
            passed = max((p for p in WARN_AT_PERCENT if limit and used * 100 >= limit * p), default=0)
            if passed > self._warned.get(unit, 0):
                self._warned[unit] = passed
                self.feed.emit(place, BudgetWarning(unit, passed, used, limit))
