"""What is pinned is in use, and when a context was last used is known until its row says so."""

from __future__ import annotations

import pytest

from rlm_server.contexts import pins as pins_module
from rlm_server.contexts.pins import Pins


class Clock:
    """A time that passes when it is told to."""

    now = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pins_module, "now", lambda: clock.now)
    return clock


def test_a_content_is_in_use_until_the_last_user_of_its_contexts_lets_go() -> None:
    pins = Pins()
    pins.pin("one", "a")
    pins.pin("another", "a")
    assert (pins.users("a"), pins.users("b")) == (2, 0)
    pins.unpin("one", "a")
    assert pins.users("a") == 1
    pins.unpin("another", "a")
    assert pins.users("a") == 0


def test_what_is_pinned_is_used_now_and_what_was_pinned_was_used_then(clock: Clock) -> None:
    pins = Pins()
    for context_id in ("a", "b"):
        pins.pin(context_id, "shared")
    clock.now = 1
    pins.unpin("a", "shared")
    clock.now = 2
    assert pins.unrecorded() == {"a": 1, "b": 2}
    assert [pins.used_at(context_id, recorded=0) for context_id in ("a", "b", "c")] == [1, 0, 0]


def test_a_use_that_came_while_another_was_recorded_is_not_lost(clock: Clock) -> None:
    pins = Pins()
    pins.touch("a")
    used = pins.unrecorded()
    clock.now = 1
    pins.touch("a")
    pins.recorded(used)
    assert pins.unrecorded() == {"a": 1}
    pins.recorded({"a": 1})
    assert pins.unrecorded() == {}
    assert pins.used_at("a", recorded=7) == 7
