"""The guards of a node: what its model is told of turns that lead nowhere, and when they end it."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rlm_server.repl.limits import RunLimits
from rlm_server.runs.events import Guard
from rlm_server.runs.guards import Guards
from rlm_server.runs.state import NodeEnded, RunState
from rlm_server.runs.told.notes import failing, repeated
from sandbox.turn import TurnError
from tests.runs.stage import a_turn

FAILED = a_turn(error=TurnError("ValueError", "no"))


class Watched(NamedTuple):
    guards: Guards
    noticed: list[Guard]

    @property
    def names(self) -> list[str]:
        return [guard.name for guard in self.noticed]


def watched(errors_in_a_row: int = 100, repeats: int = 100) -> Watched:
    noticed: list[Guard] = []
    return Watched(Guards(RunLimits(errors_in_a_row=errors_in_a_row, repeats=repeats), noticed.append), noticed)


def test_turns_that_differ_are_told_nothing() -> None:
    node = watched()
    for number in range(10):
        assert node.guards.look([f"print({number})"], [a_turn(str(number))]) == []
    assert node.noticed == []


def test_a_reply_without_code_is_noticed_with_its_reason() -> None:
    node = watched()
    assert node.guards.look([], [], Guard("cut_off", "the reply was cut off")) == []
    assert node.names == ["cut_off"]


def test_the_same_code_with_the_same_outcome_is_told_once_it_comes_again_and_then_ends_the_node() -> None:
    node = watched(repeats=3)
    assert node.guards.look(["x"], [a_turn("1")]) == []
    assert node.guards.look(["y"], [a_turn("1")]) == []
    assert node.guards.look(["x"], [a_turn("1")]) == [repeated(2, 3)]
    with pytest.raises(NodeEnded, match="no progress: the same code gave the same result 3 times") as ended:
        node.guards.look(["x"], [a_turn("1")])
    assert ended.value.state is RunState.EXHAUSTED
    assert node.names == ["repeated", "repeated"]


def test_the_same_code_with_another_outcome_is_no_repetition() -> None:
    node = watched(repeats=2)
    outcomes = [a_turn("1"), a_turn("2"), FAILED, a_turn(error=TurnError("ValueError", "yes"))]
    for outcome in outcomes:
        assert node.guards.look(["poll()"], [outcome]) == []


def test_how_long_the_code_ran_makes_no_other_outcome() -> None:
    node = watched(repeats=2)
    node.guards.look(["x"], [a_turn("1", running_seconds=0.1)])
    with pytest.raises(NodeEnded):
        node.guards.look(["x"], [a_turn("1", running_seconds=0.2)])


def test_the_same_text_in_other_blocks_is_other_code() -> None:
    node = watched(repeats=2)
    assert node.guards.look(["a", "b"], [a_turn(), a_turn()]) == []
    assert node.guards.look(["ab"], [a_turn()]) == []
    assert node.guards.look(["a"], [a_turn(), a_turn()]) == []


@pytest.mark.parametrize("blocks", [[], ["raise ValueError('no')"]])
def test_turns_that_fail_in_a_row_end_the_node(blocks: list[str]) -> None:
    node = watched(errors_in_a_row=3)
    results = [FAILED] if blocks else []
    for _ in range(2):
        node.guards.look(blocks, results)
    with pytest.raises(NodeEnded, match="errors_in_a_row: 3 turns in a row failed") as ended:
        node.guards.look(blocks, results)
    assert ended.value.state is RunState.EXHAUSTED


def test_a_turn_that_does_not_fail_begins_the_count_anew() -> None:
    node = watched(errors_in_a_row=2)
    for number in range(10):
        node.guards.look([f"fail({number})"], [FAILED])
        node.guards.look([f"work({number})"], [a_turn(str(number))])


def test_a_turn_failed_where_its_last_block_did() -> None:
    node = watched(errors_in_a_row=1)
    with pytest.raises(NodeEnded):
        node.guards.look(["a", "b", "c"], [a_turn("fine"), FAILED])


def test_turns_that_fail_are_told_the_limit_and_what_is_left_of_it() -> None:
    node = watched(errors_in_a_row=5)
    assert node.guards.look(["a"], [FAILED]) == []
    (said,) = node.guards.look(["b"], [FAILED])
    assert said == failing(2, 5)
    assert "2 turns in a row have failed. At 5 the run ends (errors_in_a_row), so 3 are left." in said


def test_a_repetition_is_told_the_limit_and_what_is_left_of_it() -> None:
    assert "2 times now. At 3 the run ends (repeats), so 1 is left." in repeated(2, 3)
