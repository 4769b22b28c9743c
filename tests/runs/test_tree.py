"""What the nodes of one run share: warnings about its budget, the places at each depth, what was looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_server.ledger import UNITS, Amounts, Limit
from rlm_server.repl.coverage import Coverage, Looked
from rlm_server.repl.limits import RunLimits
from rlm_server.runs.events import BudgetWarning, EventOrigin
from rlm_server.runs.node_context import NodeContext, whole_context
from rlm_server.runs.tree import Tree
from rlm_server.shares.shares import Shares
from sandbox.corpora.corpus import BLOCK, Corpus, Kind, in_memory, part_of
from sandbox.corpora.coverage import Range
from tests.runs.stage import ROOT, a_run


class Warnings:
    """An event log that only listens."""

    def __init__(self) -> None:
        self.told: list[tuple[EventOrigin, BudgetWarning]] = []

    def emit(self, origin: EventOrigin, body: BudgetWarning) -> None:
        self.told.append((origin, body))


def a_tree(budget: Limit | None = None, context: Corpus | None = None, children: int = 16) -> tuple[Tree, Warnings]:
    anything: Any = None
    log: Any = Warnings()
    run = a_run(budget=budget or Limit())
    services: Any = SimpleNamespace(shares=Shares.of())
    limits = RunLimits(children=children)
    return Tree(services, run, limits, "core", 0.0, log, context, anything, anything, anything, anything), log


# ---- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_a_run_is_warned_once_at_each_share_of_its_budget_in_every_unit(unit: str) -> None:
    tree, log = a_tree(Limit(**{unit: 1000}))
    for _ in range(100):
        tree.count(ROOT, Amounts(**{unit: 10}))
    assert [body for _, body in log.told] == [
        BudgetWarning(unit, percent, percent * 10, 1000) for percent in (50, 80, 95)
    ]


def test_who_passes_several_shares_at_once_is_warned_of_the_highest() -> None:
    tree, log = a_tree(Limit(calls=10))
    tree.count(ROOT, Amounts(calls=9))
    tree.count(ROOT, Amounts(calls=1))
    assert [(body.percent, body.spent) for _, body in log.told] == [(80, 9), (95, 10)]


def test_a_warning_says_which_node_passed_the_share() -> None:
    tree, log = a_tree(Limit(calls=4))
    child = EventOrigin("node_1", "run", 1, 3)
    tree.count(ROOT, Amounts(calls=1))
    tree.count(child, Amounts(calls=1))
    assert log.told == [(child, BudgetWarning("calls", 50, 2, 4))]


def test_what_has_no_limit_or_one_of_nothing_is_not_warned_of() -> None:
    tree, log = a_tree(Limit(tokens=0))
    tree.count(ROOT, Amounts(1_000, 1_000, 1_000, 1_000))
    assert log.told == []
    assert tree.spent == Amounts(1_000, 1_000, 1_000, 1_000)


# ---- places ----------------------------------------------------------------------------------------------------------


async def test_so_many_children_are_at_work_at_each_depth_and_none_waits_for_a_place_at_another() -> None:
    tree, _ = a_tree(children=2)
    async with tree.level(1), tree.level(1):
        assert tree.level(1).locked()
        async with asyncio.timeout(30), tree.level(2), tree.level(2):
            assert tree.level(2).locked()
    assert not tree.level(1).locked()


# ---- what was looked at ----------------------------------------------------------------------------------------------

TEXT = "x" * (4 * BLOCK)


async def saw(tree: Tree, node_context: NodeContext, blocks: int) -> Coverage:
    return await tree.saw(node_context, Looked(node_context.corpus), blocks)


@pytest.fixture
def text() -> Iterator[Corpus]:
    with in_memory([TEXT], Kind.TEXT) as corpus:
        yield corpus


async def test_what_nodes_looked_at_adds_up_in_the_runs_own_text(text: Corpus) -> None:
    tree, _ = a_tree(context=text)
    await saw(tree, whole_context(text), 0b0001)
    with part_of(text, [text[0].part(2 * BLOCK, 3 * BLOCK)], Kind.TEXT) as part:
        await saw(tree, NodeContext(part, lambda document: (document, 2 * BLOCK)), 0b1)
    assert await tree.coverage() == Coverage(0.5, 1, (Range(0, 0, BLOCK), Range(0, 2 * BLOCK, 3 * BLOCK)))


async def test_what_a_node_looked_at_of_a_text_of_its_own_does_not_count(text: Corpus) -> None:
    tree, _ = a_tree(context=text)
    with in_memory(["another text"], Kind.TEXT) as another:
        await saw(tree, NodeContext(another), 0b1)
    assert (await tree.coverage()).fraction == 0.0


async def test_a_run_without_a_text_has_looked_at_nothing(text: Corpus) -> None:
    tree, _ = a_tree()
    await saw(tree, whole_context(text), 0b1)
    assert await tree.coverage() == Coverage()
