"""Requests under way: each is told once, to whoever waits, whatever becomes of the others."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import CancelledError, Future

import pytest

from sandbox.door import DoorRefusal, Json, Reply
from sandbox.vm.waiting import TOLD_AT_ONCE, Requests, ThreadWaiter

Told = list[tuple[int, Json]]


@pytest.fixture
def requests() -> Requests:
    return Requests(ThreadWaiter())


def told(reply: Reply) -> Told:
    return [(number, said.get("ok", said.get("error"))) for number, said in json.loads(reply)["ok"]]


def add(requests: Requests) -> tuple[int, Future[Json]]:
    future = Future[Json]()
    return requests.add(future), future


def test_replies_are_told_in_the_order_in_which_they_came_each_once(requests: Requests) -> None:
    first, second, third = (add(requests) for _ in range(3))
    third[1].set_result("c")
    first[1].set_result("a")
    assert told(requests.next(0)) == [(third[0], "c"), (first[0], "a")]
    assert told(requests.next(0)) == []
    assert len(requests) == 1
    second[1].set_result("b")
    assert told(requests.next(None)) == [(second[0], "b")]
    assert len(requests) == 0


def test_one_that_had_ended_when_it_was_added_is_told_as_well(requests: Requests) -> None:
    future = Future[Json]()
    future.set_result(1)
    number = requests.add(future)
    assert told(requests.next(None)) == [(number, 1)]


def test_a_reply_from_another_thread_ends_the_waiting(requests: Requests) -> None:
    number, future = add(requests)
    threading.Timer(0.05, future.set_result, ["late"]).start()
    assert told(requests.next(None)) == [(number, "late")]


def test_every_reply_of_many_threads_is_told_once(requests: Requests) -> None:
    futures = dict(add(requests) for _ in range(400))
    numbers = list(futures)
    random.shuffle(numbers)

    def reply(some: list[int]) -> None:
        for number in some:
            futures[number].set_result(number)

    for i in range(8):
        threading.Thread(target=reply, args=[numbers[i::8]]).start()
    found: Told = []
    while len(found) < 400:
        found += told(requests.next(20))
    assert sorted(found) == [(number, number) for number in sorted(numbers)]


def test_a_request_that_is_waited_for_alone_does_not_end_another_waiting(requests: Requests) -> None:
    alone = Future[Json]()
    threading.Timer(0.05, alone.set_result, ["alone"]).start()
    number, other = add(requests)
    assert requests.only(alone) == "alone"
    assert told(requests.next(0)) == []
    other.set_result("other")
    assert told(requests.next(None)) == [(number, "other")]


def test_what_number_a_request_has_does_not_depend_on_how_fast_another_ended(requests: Requests) -> None:
    at_once, later = Future[Json](), Future[Json]()
    at_once.set_result(1)
    requests.only(at_once)
    threading.Timer(0.05, later.set_result, [1]).start()
    requests.only(later)
    assert add(requests)[0] == 3


def test_one_that_fails_fails_alone(requests: Requests, caplog: pytest.LogCaptureFixture) -> None:
    refused, broken, unfit, fine = (add(requests)[1] for _ in range(4))
    refused.set_exception(DoorRefusal("ValueError", "no"))
    broken.set_exception(OSError("/srv/secret"))
    unfit.set_result(float("nan"))
    fine.set_result("fine")
    fault = {"type": "RuntimeError", "message": "the host could not answer; this is a fault of the server's"}
    found = told(requests.next(0))
    assert found == [(1, {"type": "ValueError", "message": "no"}), (2, fault), (3, fault), (4, "fine")]
    assert "secret" in caplog.text


def test_a_reply_that_is_written_already_is_passed_on_as_it_is(requests: Requests) -> None:
    _, future = add(requests)
    future.set_result(Reply(b'{"ok": [1,  2]}'))  # type: ignore[arg-type]
    assert requests.next(0) == b'{"ok":[[1,{"ok": [1,  2]}]]}'


def test_large_replies_are_told_a_few_at_a_time(requests: Requests) -> None:
    futures = [add(requests)[1] for _ in range(5)]
    for future in futures:
        future.set_result("x" * (TOLD_AT_ONCE * 2 // 5))
    sizes = []
    while requests:
        sizes.append(len(told(requests.next(None))))
    assert sizes == [2, 2, 1]


def test_one_larger_than_all_together_is_told_alone(requests: Requests) -> None:
    small, large = (add(requests)[1] for _ in range(2))
    small.set_result("s")
    large.set_result("l" * 3 * TOLD_AT_ONCE)
    assert [number for number, _ in told(requests.next(None))] == [1]
    assert [number for number, _ in told(requests.next(None))] == [2]


def test_one_larger_than_a_frame_is_refused_alone() -> None:
    requests = Requests(ThreadWaiter(), 1000)
    large, small = (add(requests)[1] for _ in range(2))
    large.set_result("x" * 1000)
    small.set_result("s")
    (_, refusal), fine = told(requests.next(0))
    assert refusal == {"type": "LimitExceeded", "message": "the reply has 1009 bytes, the limit is 1000"}
    assert fine == (2, "s")


def test_those_told_together_fit_into_a_frame() -> None:
    requests = Requests(ThreadWaiter(), 1000)
    for _ in range(50):
        add(requests)[1].set_result("x" * 100)
    count = 0
    while requests:
        reply = requests.next(None)
        assert len(reply) <= 1000
        count += len(told(reply))
    assert count == 50


def test_stopping_cancels_those_under_way_and_those_to_come(requests: Requests) -> None:
    under_way, to_come, alone = add(requests)[1], Future[Json](), Future[Json]()
    requests.stop()
    requests.add(to_come)
    assert under_way.cancelled()
    assert to_come.cancelled()
    with pytest.raises(CancelledError):
        requests.only(alone)
    with pytest.raises(CancelledError):
        requests.next(None)


@pytest.mark.parametrize("alone", [True, False])
def test_stopping_ends_the_waiting(requests: Requests, alone: bool) -> None:
    future = Future[Json]()
    if not alone:
        requests.add(future)
    threading.Timer(0.05, requests.stop).start()
    with pytest.raises(CancelledError):
        requests.only(future) if alone else requests.next(None)
    assert future.cancelled()


def test_one_that_is_cancelled_ends_the_waiting(requests: Requests) -> None:
    _, future = add(requests)
    future.cancel()
    with pytest.raises(CancelledError):
        requests.next(None)
