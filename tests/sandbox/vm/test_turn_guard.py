"""A turn's running time is what it did not wait, however pauses and waits overlap."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from sandbox.vm.poll_page import PollPage
from sandbox.vm.turn_guard import TurnGuard


class Page(PollPage):
    """A poll page that does what it is told, without a memory."""

    def __init__(self) -> None:
        super().__init__(0)

    def block(self) -> None:
        pass

    def pause(self) -> bool:
        return True

    def resume(self) -> None:
        pass


@given(st.lists(st.tuples(st.sampled_from(["pause", "resume", "wait", "answer"]), st.integers(0, 100)), max_size=30))
def test_time_that_stands_still_for_two_reasons_is_counted_once(steps: list[tuple[str, int]]) -> None:
    clock = [0.0]
    with patch("sandbox.vm.turn_guard.time.monotonic", lambda: clock[0]):
        guard = TurnGuard(1e9, Page())
        guard.begin()
        waits: AbstractContextManager[None] | None = None
        paused, ran = False, 0.0
        for step, then in steps:
            match step:
                case "pause":
                    paused = guard.pause()
                case "resume":
                    guard.resume()
                    paused = False
                case "wait" if waits is None:
                    waits = guard.waiting()
                    waits.__enter__()
                case "answer" if waits is not None:
                    waits.__exit__(None, None, None)
                    waits = None
            clock[0] += then
            ran += 0 if paused or waits is not None else then
            assert guard.running_seconds == ran


def test_a_turn_that_waits_in_the_host_is_not_paused() -> None:
    guard = TurnGuard(1.0, Page())
    guard.begin()
    with guard.waiting():
        assert not guard.pause()
    assert guard.pause()
