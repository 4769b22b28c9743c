"""What code gave as its answer counts as its turn ends: ready only where it ran to its end, not if it was undone."""

from __future__ import annotations

import pytest

from rlm_server.runs.draft import Draft
from sandbox.turn import Status


@pytest.mark.parametrize(
    ("status", "text", "ready"),
    [(Status.OK, "new", True), (Status.ERROR, "new", False), (Status.ROLLED_BACK, "old", False)],
)
def test_what_a_turn_gave_counts_as_the_turn_ended(status: Status, text: str, ready: bool) -> None:
    draft = Draft("old")
    draft.begin()
    draft.take("new", True)
    assert (draft.text, draft.ready) == ("old", False), "not before the turn has ended"
    draft.end(status)
    assert (draft.text, draft.ready) == (text, ready)


def test_a_later_turn_that_gives_nothing_is_not_ready() -> None:
    draft = Draft()
    for given in (True, False):
        draft.begin()
        if given:
            draft.take("ready once", True)
        draft.end(Status.OK)
        assert (draft.text, draft.ready) == ("ready once", given)


def test_what_a_turn_gave_before_it_began_once_more_is_void() -> None:
    draft = Draft("old")
    draft.begin()
    draft.take("of the process that died", True)
    draft.begin()
    draft.end(Status.OK)
    assert (draft.text, draft.ready) == ("old", False)
