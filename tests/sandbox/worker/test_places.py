"""Places of turns: never more are held than there are, each in line gets one, and who is stopped waits no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

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


def test_one_who_held_its_place_for_long_goes_behind_those_in_line() -> None:
    places, order = Places(1, nothing), list[str]()
    long, short = Place(places), Place(places)
    long.take()

    def other() -> None:
        short.take()
        order.append("short")
        short.give()

    def busy() -> None:
        until(lambda: places.wanted)
        waited = 0.0
        while not waited:
            time.sleep(SLICE_SECONDS / 5)
            waited = long.pass_on()
        order.append("long")
        assert long.held

    on_threads(other, busy)
    assert order == ["short", "long"]


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
