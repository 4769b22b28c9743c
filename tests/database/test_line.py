"""Who waits before the writer goes in turn: by what each one's writes took, and not by who came first."""

from __future__ import annotations

import threading

import pytest

from rlm_server.database.line import Line


def line_of(*owners: str) -> Line[str]:
    line: Line[str] = Line()
    for owner in owners:
        line.put(owner, owner, 0.0)
    return line


def taken(line: Line[str], seconds: dict[str, float]) -> list[str]:
    """All that wait, in their turns, where a write of each owner takes so long."""
    order = []
    while (write := line.take()) is not None:
        order.append(write)
        line.took(seconds[write])
    return order


def test_one_write_does_not_wait_for_a_thousand_of_another() -> None:
    line = line_of(*["many"] * 1_000)
    assert line.take() == "many"
    line.put("one", "one", 0.0)
    line.took(0.001)
    assert line.take() == "one"


def test_owners_take_turns_by_the_time_their_writes_take() -> None:
    order = taken(line_of(*["slow"] * 10, *["quick"] * 40), {"slow": 0.04, "quick": 0.01})
    assert 4 <= order[:20].count("slow") <= 5
    assert order.count("slow") == 10


def test_writes_of_one_owner_keep_their_order() -> None:
    line: Line[int] = Line()
    for number in range(100):
        line.put("owner", number, 0.0)
    order = []
    while (write := line.take()) is not None:
        order.append(write)
        line.took(1.0)
    assert order == list(range(100))


def test_who_waited_for_nothing_has_no_turns_saved_up() -> None:
    line = line_of("busy", "busy")
    for _ in range(50):
        assert line.take() == "busy"
        line.put("busy", "busy", 0.0)
        line.took(1.0)
    for owner in ("late", "late", "late"):
        line.put(owner, owner, 0.0)
    order = taken(line, {"busy": 1.0, "late": 1.0})
    assert order[:3].count("late") == 2, "and not all three before the one who was there"


def test_who_takes_waits_until_a_write_is_due_or_there_are_many_or_no_more() -> None:
    line: Line[str] = Line()
    line.put("a", "first", float("inf"))
    line.put("a", "second", float("inf"))
    assert line.wait(2), "there are as many as were asked for"
    thread = threading.Thread(target=line.hurry, args=(0.0,))
    thread.start()
    assert line.wait(3), "they were hurried"
    thread.join()
    line.close()
    assert line.wait(3), "what is there is still to be taken"
    taken(line, {"first": 0.0, "second": 0.0})
    assert not line.wait(3)


@pytest.mark.parametrize("owners", [1, 3])
def test_what_is_due_is_known_again_once_all_was_taken(owners: int) -> None:
    line = line_of(*map(str, range(owners)))
    assert line.wait(10)
    taken(line, {str(number): 0.0 for number in range(owners)})
    line.put("a", "a", float("inf"))
    line.close()
    assert line.wait(10)
