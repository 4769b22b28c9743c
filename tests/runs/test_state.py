"""A run, and each node of its tree, is pending, runs, and ends once."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.runs.state import MOVES, RunState, move

PENDING, RUNNING, *ENDS = RunState

ALLOWED = {
    (PENDING, RUNNING),
    (PENDING, RunState.FAILED),
    (PENDING, RunState.CANCELLED),
    *((RUNNING, end) for end in ENDS),
}


@pytest.mark.parametrize(("now", "then"), list(product(RunState, RunState)))
def test_a_state_is_left_for_those_of_the_table_only(now: RunState, then: RunState) -> None:
    if (now, then) in ALLOWED:
        assert move(now, then) is then
    else:
        with pytest.raises(ValueError, match=f"a run that is {now} cannot become {then}"):
            move(now, then)


def test_what_has_ended_is_what_nothing_can_follow() -> None:
    assert {state for state in RunState if state.ended} == set(ENDS)
    assert MOVES.keys() == set(RunState)


@given(st.lists(st.sampled_from(RunState), max_size=8))
def test_whatever_is_asked_of_it_a_run_ends_at_most_once_and_begins_at_most_once(wishes: list[RunState]) -> None:
    state, was = PENDING, [PENDING]
    for wish in wishes:
        try:
            state = move(state, wish)
        except ValueError:
            continue
        was.append(state)
    assert len(was) == len(set(was)) <= 3
    assert not any(before.ended for before in was[:-1])
