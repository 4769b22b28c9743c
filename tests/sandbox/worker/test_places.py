"""Places of turns: never more are held than there are, each in line gets one, and who is stopped waits no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from sandbox.worker.places import SLICE_SECONDS, Place, Places


def nothing() -> None:
    pass


def on_threads(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_never_more_run_than_there_are_places_and_every_one_gets_its_turn() -> None:
    places, running, most, lock = Places(3, nothing), set[int](), [0], threading.Lock()

    def turn(number: int) -> Callable[[], None]:
        place = Place(places)

        def work() -> None:
            for _ in range(300):
                place.take()
                with lock:
                    running.add(number)
                    most[0] = max(most[0], len(running))
                time.sleep(0)
                with lock:
                    running.discard(number)
                place.give()

        return work

    on_threads(*(turn(number) for number in range(12)))
    assert most[0] <= 3
    assert not places.wanted


def test_one_who_waits_has_another_thread_read_first() -> None:
    called: list[None] = []
    places = Places(1, lambda: called.append(None))
    held, other = Place(places), Place(places)
    assert held.take() == 0.0
    assert not called
    waiting = threading.Thread(target=other.take, daemon=True)
    waiting.start()
    until(lambda: places.wanted)
    assert len(called) == 1
    held.give()
    waiting.join(60)
    assert other.held


def test_one_who_is_stopped_leaves_the_line_without_a_place() -> None:
    places = Places(1, nothing)
    held, other = Place(places), Place(places)
    held.take()
    waiting = threading.Thread(target=other.take, daemon=True)
    waiting.start()
    until(lambda: places.wanted)
    other.stop()
    waiting.join(60)
    assert not waiting.is_alive()
    assert not other.held
    assert not places.wanted
    other.take()  # and does not wait again, until its next turn
    assert not other.held
    held.give()
    other.begin()
    assert other.take() == 0.0
    assert other.held


class Turn:
    """A turn that may be paused, and says whether it is."""

    def __init__(self, *, pausable: bool = True, at_a_loop: bool = True) -> None:
        self.pausable, self.at_a_loop, self.paused = pausable, at_a_loop, False

    def pause(self) -> bool:
        self.paused = self.at_a_loop
        return self.at_a_loop

    def resume(self) -> None:
        self.paused = False


def in_line(place: Place) -> threading.Thread:
    """Have a place wait in line, on a thread of its own."""
    waiting = threading.Thread(target=place.take, daemon=True)
    waiting.start()
    until(lambda: place._places.wanted)
    return waiting


def passed_on(place: Place, turn: Turn) -> None:
    """Have a place passed on once its turn had it for long."""

    def gone() -> bool:
        place.pass_on(turn)
        return not place.held

    until(gone)


def test_one_who_held_its_place_for_long_is_paused_and_goes_behind_those_in_line() -> None:
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn()
    long.take()
    long.pass_on(turn)
    assert long.held  # nobody is in line
    waiting = in_line(short)
    passed_on(long, turn)
    waiting.join(60)
    assert short.held
    assert turn.paused
    short.give()
    assert long.held
    assert not turn.paused


def test_one_who_took_a_free_place_keeps_it_for_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.worker.places.SLICE_SECONDS", 60.0)
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn()
    long.take()
    waiting = in_line(short)
    long.pass_on(turn)
    assert long.held
    assert not turn.paused
    long.give()
    waiting.join(60)
    assert short.held


def test_one_who_cannot_be_paused_just_now_keeps_its_place() -> None:
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn(at_a_loop=False)
    long.take()
    waiting = in_line(short)
    time.sleep(SLICE_SECONDS)
    long.pass_on(turn)
    assert long.held
    long.give()
    waiting.join(60)
    assert short.held


def test_where_turns_cannot_be_paused_one_goes_on_beside_those_in_line() -> None:
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn(pausable=False)
    long.take()
    waiting = in_line(short)
    passed_on(long, turn)
    waiting.join(60)
    assert short.held
    assert not turn.paused
    long.give()
    short.give()
    assert long.take() == 0.0
    assert not places.wanted


def test_one_who_ends_or_waits_while_it_is_paused_leaves_the_line() -> None:
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn()
    long.take()
    waiting = in_line(short)
    passed_on(long, turn)
    waiting.join(60)
    long.give()
    assert not turn.paused
    assert not places.wanted
    short.give()
    assert not long.held
    assert short.take() == 0.0


def test_one_who_is_stopped_while_it_is_paused_goes_on_to_its_end() -> None:
    places = Places(1, nothing)
    long, short, turn = Place(places), Place(places), Turn()
    long.take()
    waiting = in_line(short)
    passed_on(long, turn)
    waiting.join(60)
    long.stop()
    assert not turn.paused
    assert not long.held
    long.give()
    short.give()
    assert short.take() == 0.0


def test_who_keeps_giving_and_taking_does_not_pass_those_in_line() -> None:
    places = Places(1, nothing)
    quick, patient = Place(places), Place(places)
    quick.take()
    waiting = threading.Thread(target=patient.take, daemon=True)
    waiting.start()
    until(lambda: places.wanted)
    quick.give()
    again = threading.Thread(target=quick.take, daemon=True)
    again.start()
    waiting.join(60)
    assert patient.held
    patient.give()
    again.join(60)
    assert quick.held
