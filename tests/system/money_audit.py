"""Reads the server's database of either kind from outside, and holds its holds against the provider's bill.

A request and its hold are matched by the job that both were made for, and by their worst case in tokens: jobs ask
prompts of different lengths only.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from rlm_server.broker.prices.table import Price, Rates
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.worst_case import worst_case
from rlm_server.config.settings import Settings
from tests.fake_provider.server import FakeProvider, Received
from tests.system.books import UNITS
from tests.system.stage import USD

PRICE = Price(Rates(1 * USD, 5 * USD))
"""What `tests.system.test_process.process` states."""
JOB = re.compile(r"job-\d+")

Key = tuple[str, int]
"""A job, and the worst case of one of its calls in tokens."""
Rows = list[dict[str, Any]]


def rows(at: str | Path, question: str) -> Rows:
    """Ask a database, whether a server has it or none."""
    if isinstance(at, str):
        # The rows' types are Postgres's own.
        with psycopg.connect(at, row_factory=dict_row) as connection:
            return connection.execute(question).fetchall()
    with closing(sqlite3.connect(f"file:{at}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(question)]


@dataclass
class Billed:
    """What the provider says of one call's requests."""

    costs: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Bill:
    """Everything a provider received and billed so far. It must not forget."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self._received: list[Received] = []

    def jobs(self) -> list[str]:
        """The job of every request, in the order they came."""
        while not self._provider.received.empty():
            self._received.append(self._provider.received.get_nowait())
        return [_job(received) for received in self._received]

    def by_call(self) -> dict[Key, Billed]:
        jobs = self.jobs()
        calls: defaultdict[Key, Billed] = defaultdict(Billed)
        for bill in self._provider.billed:
            number = int(bill.id.removeprefix("req-")) - 1
            call = calls[jobs[number], _worst(self._received[number])]
            call.costs.append(PRICE.cost(bill.usage))
            call.faults.append(str(bill.fault))
        return calls


def _job(received: Received) -> str:
    found = JOB.search("\n".join(message["content"] for message in reversed(received.messages)))
    assert found, received
    return found[0]


def _worst(received: Received) -> int:
    said = [(message["role"], message["content"]) for message in received.messages]
    system = said.pop(0)[1] if said[0][0] == "system" else ""
    messages = tuple(Message(role, content) for role, content in said)
    return worst_case(ModelRequest("fake", messages, system, received.body["max_tokens"]), PRICE).tokens


def within_limits(at: str | Path) -> None:
    """No account has spent, holds and promises more than its limit."""
    for account in rows(at, "SELECT * FROM account"):
        for unit in UNITS:
            used = account[f"posted_{unit}"] + account[f"pending_{unit}"] + account[f"carved_{unit}"]
            limit = account[f"limit_{unit}"]
            assert limit is None or used <= limit, account
            assert account[f"overrun_{unit}"] == 0 or unit == "cpu_ms", account


def check_killed(at: str | Path, bill: Bill, job_of: Mapping[str, str]) -> int:
    """Check what a killed server left: nothing was sent that is not in the books as sent, or as paid.

    `job_of` tells the job of a run or session. Returns how many holds wait to be resolved.
    """
    within_limits(at)
    holds = _by_call(at, job_of)
    for call, billed in bill.by_call().items():
        sent = [hold for hold in holds[call] if hold["state"] in ("dispatched", "posted")]
        assert len(billed.costs) == len(sent) == 1, (call, billed, holds[call])
        assert sent[0]["state"] == "dispatched" or _agrees(sent[0], billed), (call, billed, sent)
    return len(rows(at, "SELECT id FROM hold WHERE state IN ('pending', 'dispatched')"))


@dataclass(frozen=True)
class Audited:
    """What an audit found. Money is in nano-US-dollars."""

    certain: int
    ambiguous: int
    over: int
    """By how much the ambiguous holds are above what was billed."""


def check_recovered(at: str | Path, bill: Bill, job_of: Mapping[str, str]) -> Audited:
    """Check the books of a server at rest: every hold is resolved once, and is what the provider billed."""
    within_limits(at)
    assert rows(at, "SELECT * FROM hold WHERE state IN ('pending', 'dispatched')") == []
    bills = bill.by_call()
    certain = ambiguous = over = 0
    for call, holds in _by_call(at, job_of).items():
        posted = [hold for hold in holds if hold["state"] == "posted"]
        billed = bills.pop(call, Billed())
        assert len(posted) <= 1, ("paid twice", call, holds)
        assert len(billed.costs) <= len(posted), ("billed and not paid, or sent again", call, billed, holds)
        for hold in posted:
            assert _agrees(hold, billed), (hold, billed)
            certain += hold["input"] is not None
            ambiguous += hold["input"] is None
            over += hold["actual_nano_usd"] - sum(billed.costs)
    assert bills == {}, "billed and not in the books"
    _check_sums(at)
    return Audited(certain, ambiguous, over)


def spent(at: str | Path) -> dict[str, int]:
    """What every run and session has cost by its holds, in nano-US-dollars."""
    question = "SELECT run, sum(actual_nano_usd) AS spent FROM hold WHERE state = 'posted' GROUP BY run"
    return {row["run"]: int(row["spent"]) for row in rows(at, question)}


def _by_call(at: str | Path, job_of: Mapping[str, str]) -> defaultdict[Key, Rows]:
    calls: defaultdict[Key, Rows] = defaultdict(list)
    for hold in rows(at, "SELECT * FROM hold WHERE model <> ''"):
        calls[job_of[hold["run"]], hold["tokens"]].append(hold)
    return calls


def _agrees(hold: dict[str, Any], billed: Billed) -> bool:
    """Whether a posted hold is what was billed; where that is not known, the whole, which is no less."""
    if hold["input"] is not None:
        return bool(sum(billed.costs) == hold["actual_nano_usd"] and billed.costs)
    return bool(hold["actual_nano_usd"] == hold["nano_usd"] >= sum(billed.costs))


def _check_sums(at: str | Path) -> None:
    def sums(question: str, key: Callable[[dict[str, Any]], str]) -> dict[str, int]:
        return {key(row): int(row["spent"]) for row in rows(at, question)}

    own = sums(
        "SELECT account, sum(actual_nano_usd) AS spent FROM hold WHERE state = 'posted' GROUP BY account",
        lambda row: str(row["account"]),
    )
    under = sums(
        "SELECT parent, sum(posted_nano_usd) AS spent FROM account WHERE parent IS NOT NULL GROUP BY parent",
        lambda row: str(row["parent"]),
    )
    for account in rows(at, "SELECT * FROM account"):
        id = account["id"]
        assert account["posted_nano_usd"] == own.get(id, 0) + under.get(id, 0), account
        assert account["pending_nano_usd"] == account["carved_nano_usd"] == 0, account


def database(data_dir: Path) -> str | Path:
    """Where a server with this data directory, and this environment, has its database."""
    return Settings.load(data_dir=data_dir).database
