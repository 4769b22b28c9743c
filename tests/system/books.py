"""Reads the server's database from outside, as an auditor would, and checks what must hold there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlm_server.ledger import names
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from tests.system.stage import ENDED, Ended

UNITS = ("nano_usd", "tokens", "calls", "cpu_ms")
_KEPT = (("runs", ".run"), ("sessions", ".session"))


@contextmanager
def opened(data_dir: Path) -> Iterator[sqlite3.Connection]:
    """Open the books as they are at one moment: a server that goes on posts its own time, whenever it likes."""
    with closing(sqlite3.connect(f"file:{data_dir / 'rlm.sqlite'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        yield connection


def answers(books: sqlite3.Connection, question: str, *values: object) -> list[dict[str, Any]]:
    return [dict(row) for row in books.execute(question, values)]


def rows(data_dir: Path, question: str, *values: object) -> list[dict[str, Any]]:
    with opened(data_dir) as books:
        return answers(books, question, *values)


def check_within_limits(data_dir: Path) -> None:
    """No account has spent, holds and promises more than its limit."""
    with opened(data_dir) as books:
        _check_within_limits(books)


def _check_within_limits(books: sqlite3.Connection) -> None:
    for account in answers(books, "SELECT * FROM account") + answers(books, "SELECT * FROM window_account"):
        for unit in UNITS:
            used = account[f"posted_{unit}"] + account[f"pending_{unit}"] + account[f"carved_{unit}"]
            limit = account[f"limit_{unit}"]
            assert limit is None or used <= limit, account
            assert account[f"overrun_{unit}"] == 0, account


def check_settled(data_dir: Path) -> None:
    """Nothing is in flight and nothing is promised; every sum agrees with what is under it; only tenants are open."""
    with opened(data_dir) as books:
        _check_within_limits(books)
        assert answers(books, "SELECT * FROM hold WHERE state IN ('pending', 'dispatched')") == []
        assert answers(books, "SELECT * FROM node WHERE state IN ('pending', 'running')") == []
        open_ones = {row["account"] for row in answers(books, "SELECT account FROM customer")}
        open_ones |= {row["id"] for row in answers(books, "SELECT id FROM session WHERE state <> 'ended'")}
        for account in answers(books, "SELECT * FROM account"):
            assert account["closed"] or account["parent"] is None or account["id"] in open_ones, account
            for unit in UNITS:
                assert account[f"pending_{unit}"] == account[f"carved_{unit}"] == 0, account
                assert account[f"posted_{unit}"] == _own_and_under(books, account["id"], unit), (account, unit)


def kept_in_vain(data_dir: Path) -> set[str]:
    """Return the nodes of which a file or a session is kept though nothing goes on from it and none can continue it."""
    kept = {path.stem for folder, kind in _KEPT for path in (data_dir / folder).glob(f"*{kind}")}
    of_use = {
        row["id"]
        for row in rows(data_dir, "SELECT id FROM node WHERE state IN ('pending', 'running')")
        + rows(data_dir, "SELECT id FROM node WHERE state = 'succeeded' AND parent IS NULL")
    }
    return {name for name in kept if name.startswith((names.RUN, names.NODE))} - of_use


def _own_and_under(books: sqlite3.Connection, account: str, unit: str) -> int:
    (own,) = answers(books, f"SELECT sum(actual_{unit}) AS n FROM hold WHERE account = ?", account)
    (under,) = answers(books, f"SELECT sum(posted_{unit}) AS n FROM account WHERE parent = ?", account)
    return (own["n"] or 0) + (under["n"] or 0)


def check_customers(data_dir: Path) -> None:
    """What is posted on a customer is what its runs' holds cost."""
    with opened(data_dir) as books:
        holds = answers(books, "SELECT * FROM hold WHERE state = 'posted'")
        found = answers(books, "SELECT * FROM customer JOIN account ON account.id = customer.account")
    for customer in found:
        own = [one for one in holds if f"{one['customer']}/".startswith(f"{customer['path']}/")]
        for unit in UNITS:
            assert customer[f"posted_{unit}"] == sum(one[f"actual_{unit}"] for one in own), (customer, unit)


def check_story(ended: Ended) -> None:
    """A run's events are numbered without a gap, begin and end as they must, and agree with its tree."""
    run, events = ended.run, ended.events
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert run.last_sequence == len(events)
    assert ended.kinds[0] == "run_started"
    assert ended.kinds[-1] == "run_finished"
    assert ended.kinds.count("run_finished") == 1
    assert run.state in ENDED
    last = events[-1].run_finished
    assert (last.state, last.end_message, last.spent) == (run.state, run.end_message, run.spent)
    assert last.answer == run.answer[:MAX_EVENT_TEXT]
    calls = [call.call_id for call in ended.bodies("call_started")]
    assert sorted(calls) == sorted(body.call.call_id for body in ended.bodies("call_finished"))
    assert len(set(calls)) == len(calls)
    children = [child.child_id for child in ended.bodies("child_started")]
    assert sorted(children) == sorted(child.child_id for child in ended.bodies("child_finished"))
    assert sorted([run.run_id, *children]) == sorted(node.node_id for node in ended.nodes)
    assert all(node.state in ENDED for node in ended.nodes)
    _check_tree(ended)


def _check_tree(ended: Ended) -> None:
    nodes = {node.node_id: node for node in ended.nodes}
    assert ended.nodes[0].node_id == ended.run.run_id
    for node in ended.nodes:
        parent = nodes.get(node.parent_id)
        assert node.depth == (parent.depth + 1 if parent else 0)
    for event in ended.events:
        node = nodes[event.node_id]
        assert (event.parent_id, event.depth) == (node.parent_id, node.depth)
        if event.WhichOneof("body") == "child_started":
            assert nodes[event.child_started.child_id].parent_id == event.node_id
        if event.WhichOneof("body") == "child_finished":
            child = nodes[event.child_finished.child_id]
            assert (event.child_finished.state, event.child_finished.spent) == (child.state, child.spent)
