"""What many calls make the server do is bounded before it is done: names, failures, events, memory, tasks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from rlm_server.broker.learned_cap import RESERVED, START
from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.ledger import Amounts, Limit
from rlm_server.repl.bounds import MAX_ERROR, MAX_NAME
from rlm_server.repl.call_tally import TOLD_SINGLY
from rlm_server.repl.events import CallStarted, UntoldCalls
from rlm_server.repl.model_calls import CANCELLED_AT_ONCE
from sandbox.door import DoorRefusal, HostCall
from tests.broker.books import PAYER, Books, reserving
from tests.repl.stage import Stage, errors


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def untouched(stage: Stage) -> bool:
    """Whether nothing was told, asked or held."""
    return (stage.told, stage.script.asked, stage.books.orders, stage.calls.count) == ([], Counter(), [], 0)


async def refusal(stage: Stage, asked: list[str], model: str | None = None) -> tuple[str, str]:
    with pytest.raises(DoorRefusal) as caught:
        await stage.calls.llm_query(HostCall("llm_query", {"prompts": asked, "model": model}))
    return caught.value.type, str(caught.value)


def refuse(message: str, failure: Failure = Failure.REFUSED, *, billed: bool = False) -> ProviderError:
    return ProviderError(failure, message, billed=billed)


# ---- names -----------------------------------------------------------------------------------------------------------


async def test_a_model_that_is_not_offered_is_one_refusal_of_the_request(books: Books) -> None:
    stage = Stage(books)
    kind, message = await refusal(stage, prompts(2_000), "nobody")
    assert kind == "ValueError"
    assert message == "there is no model 'nobody'; the models are: large, small"
    assert await refusal(stage, ["a"], "") == ("ValueError", "there is no model ''; the models are: large, small")
    assert untouched(stage)


async def test_a_name_of_a_model_that_is_too_long_is_refused_and_not_repeated(books: Books) -> None:
    stage = Stage(books)
    assert await refusal(stage, prompts(2_000), "x" * 1_000_000) == (
        "ValueError",
        f"llm_query: model may have {MAX_NAME} characters, not 1000000: it is {'x' * 60!r}…",
    )
    assert "there is no model" in (await refusal(stage, ["a"], "x" * MAX_NAME))[1]
    assert untouched(stage)


# ---- what cannot be paid or sent -------------------------------------------------------------------------------------


async def test_a_batch_of_which_nothing_can_be_paid_is_one_refusal_and_leaves_no_trace(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=1))
    stage = Stage(books)
    kind, message = await refusal(stage, prompts(2_000))
    assert kind == "LimitExceeded"
    assert "this needs up to" in message
    assert untouched(stage)


async def test_what_is_known_is_answered_though_nothing_else_can_be_paid(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["known"], None)
    await books.set_limit(PAYER.account, Limit(calls=1))
    await stage.owed.settled()
    orders = list(books.orders)
    known, *rest = await stage.calls.ask(["known", *prompts(500)], None)
    assert known == {"ok": "KNOWN"}
    assert {kind for kind, _ in errors(rest)} == {"LimitExceeded"}
    assert books.orders == orders


async def test_one_call_that_cannot_be_paid_leaves_no_trace_beside_an_answer_that_is_known(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["known"], None)
    await books.set_limit(PAYER.account, Limit(calls=1))
    told, count = list(stage.told), stage.calls.count
    with pytest.raises(DoorRefusal, match="this needs up to"):
        await stage.calls.ask(["unknown"], None)
    assert (stage.told, stage.calls.count) == (told, count)
    known, unknown = await stage.calls.ask(["known", "unknown"], None)
    assert known == {"ok": "KNOWN"}
    assert errors([unknown])[0][0] == "LimitExceeded"
    assert [done.memo for done in stage.finished] == [False, True]
    assert stage.failures.count == 2


async def test_a_call_is_told_to_start_once_it_is_paid_for(books: Books) -> None:
    async def answer(prompt: str) -> str:
        told.append(len(stage.told))
        return prompt

    stage, told = Stage(books, answer), list[int]()
    books.before[reserving(dispatch=True)] = lambda: told.append(len(stage.told))
    await stage.calls.ask(["a"], None)
    assert told == [0, 1]
    assert [body.kind for body in stage.told] == ["call_started", "call_finished"]


async def test_the_first_call_that_cannot_be_paid_ends_its_batch(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(calls=10))
    stage = Stage(books, run_calls=4)
    tally = stage.calls.begin_turn()
    slots = await stage.calls.ask(prompts(2_000), None)
    assert sum("ok" in slot for slot in slots) == 10
    words = {message for kind, message in errors([slot for slot in slots if "error" in slot])}
    assert len(words) == 1, "those that were not sent have the same error"
    assert sum(order.startswith("reserve") for order, _ in books.orders) <= 10 + 2 * 4
    assert len(stage.finished) <= 10 + 4
    assert len(stage.finished) + tally.untold.failed == 2_000
    assert tally.untold.from_memory == 0


@pytest.mark.parametrize("failure", [Failure.AUTH, Failure.INTERNAL])
async def test_a_route_that_is_broken_ends_the_batch(books: Books, failure: Failure) -> None:
    async def broken(prompt: str) -> str:
        raise refuse("nobody gets in", failure)

    stage = Stage(books, broken, run_calls=2)
    tally = stage.calls.begin_turn()
    slots = errors(await stage.calls.ask(prompts(1_000), None))
    assert slots == [("ModelError", "small: nobody gets in")] * 1_000
    assert stage.script.asked.total() <= 2
    assert len(stage.finished) <= 2
    assert len(stage.finished) + tally.untold.failed == 1_000


async def test_a_route_that_is_left_alone_refuses_the_whole_request(books: Books) -> None:
    async def gone(prompt: str) -> str:
        raise refuse("it is gone", Failure.GONE)

    stage = Stage(books, gone, run_calls=2)
    slots = errors(await stage.calls.ask(prompts(1_000), None))
    assert stage.script.asked.total() <= 8 + 2, "a breaker opens after eight"
    assert {kind for kind, _ in slots} == {"ModelError"}
    told, asked = len(stage.told), stage.script.asked.total()
    kind, message = await refusal(stage, prompts(1_000))
    assert kind == "ModelError"
    assert "left alone" in message
    assert (len(stage.told), stage.script.asked.total()) == (told, asked)


async def test_calls_after_the_deadline_end_their_batch(books: Books) -> None:
    async def wait(prompt: str) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    stage = Stage(books, wait, run_calls=2)
    stage.calls = stage.more(deadline=time.monotonic() + 0.1)
    slots = errors(await stage.calls.ask(prompts(1_000), None))
    assert len(slots) == 1_000
    assert stage.script.asked.total() <= 2
    assert len(stage.finished) <= 2


# ---- calls that fail -------------------------------------------------------------------------------------------------


async def test_calls_that_fail_are_bounded_in_each_turn(books: Books) -> None:
    async def no(prompt: str) -> str:
        raise refuse("not this")

    stage = Stage(books, no, run_calls=4, failed_calls=20)
    slots = errors(await stage.calls.ask(prompts(1_000), None))
    asked = stage.script.asked.total()
    assert 20 <= asked < 20 + 4
    await stage.owed.settled()
    orders = list(books.orders)
    kind, message = await refusal(stage, prompts(2_000))
    assert kind == "LimitExceeded"
    assert message.endswith("the limit is 20 (failed_calls)")
    assert (stage.script.asked.total(), books.orders) == (asked, orders)
    assert Counter(kind for kind, _ in slots) == {"ModelError": asked, "LimitExceeded": 1_000 - asked}
    stage.calls.begin_turn()
    assert errors(await stage.calls.ask(["again"], None)) == [("ModelError", "small: not this")]


async def test_calls_that_fail_are_bounded_in_the_whole_run(books: Books) -> None:
    async def no(prompt: str) -> str:
        raise refuse("not this")

    stage = Stage(books, no, run_calls=1, failed_calls=4, run_failed_calls=6)
    for node in (stage.calls, stage.more()):
        await node.ask(prompts(10), None)
    assert stage.script.asked.total() == 6
    stage.calls = stage.more()
    kind, message = await refusal(stage, ["a"])
    assert kind == "LimitExceeded"
    assert message.endswith("the limit is 6 (run_failed_calls)")


async def test_requests_that_cannot_be_paid_count_as_calls_that_failed(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=1))
    stage = Stage(books, failed_calls=2)
    assert ["this needs" in (await refusal(stage, ["a"]))[1] for _ in range(3)] == [True, True, False]
    assert (await refusal(stage, ["a"]))[1].endswith("(failed_calls)")


async def test_calls_that_fail_for_nothing_are_told_singly_up_to_a_bound_and_then_counted(books: Books) -> None:
    async def no(prompt: str) -> str:
        raise refuse("not this")

    stage = Stage(books, no, run_calls=4, failed_calls=1_000)
    tally = stage.calls.begin_turn()
    await stage.calls.ask(prompts(500), None)
    assert TOLD_SINGLY <= len(stage.finished) < TOLD_SINGLY + 4
    assert {call.call_id for call in stage.finished} == {
        one.call_id for one in stage.told if isinstance(one, CallStarted)
    }
    assert tally.untold == UntoldCalls(failed=500 - len(stage.finished))
    stage.calls.begin_turn()
    await stage.calls.ask(["another turn"], None)
    assert len(stage.finished) > TOLD_SINGLY


async def test_a_call_that_cost_something_is_told_whatever_failed_before(books: Books) -> None:
    async def at_first_not(prompt: str) -> str:
        asked = stage.script.asked.total()
        if asked <= TOLD_SINGLY + 50:
            raise refuse("not this")
        if asked <= TOLD_SINGLY + 55:
            raise refuse("perhaps", Failure.TIMED_OUT, billed=True)
        return "fine"

    stage = Stage(books, at_first_not, run_calls=1, failed_calls=1_000)
    await stage.calls.ask(prompts(TOLD_SINGLY + 60), None)
    paid = [call for call in stage.finished if call.spent.calls]
    assert len(paid) == 10
    assert {f"{call.call_id}.1": call.spent for call in paid} == await stage.costs()
    started = [one.call_id for one in stage.told if isinstance(one, CallStarted)]
    assert sorted(started) == sorted(call.call_id for call in stage.finished)


async def test_the_error_of_a_slot_and_of_its_event_is_short(books: Books) -> None:
    async def talkative(prompt: str) -> str:
        raise refuse(prompt * 1_000)

    stage = Stage(books, talkative)
    ((_, message),) = errors(await stage.calls.ask(["no! " * 100], None))
    (call,) = stage.finished
    assert len(message.encode()) == len(call.error.encode()) == MAX_ERROR


# ---- identical calls -------------------------------------------------------------------------------------------------


async def test_identical_prompts_of_a_batch_are_one_call_and_its_error_is_theirs(books: Books) -> None:
    async def no(prompt: str) -> str:
        raise refuse("not this")

    stage = Stage(books, no)
    slots = await stage.calls.ask(["same"] * 2_000, None)
    assert errors(slots) == [("ModelError", "small: not this")] * 2_000
    assert len({id(slot) for slot in slots}) == 2_000, "what is noted in one slot is not in another"
    assert (stage.script.asked, len(stage.told), stage.failures.count) == ({"same": 1}, 2, 1)


async def test_answers_from_memory_are_told_singly_up_to_a_bound_and_then_counted(books: Books) -> None:
    stage = Stage(books)
    tally = stage.calls.begin_turn()
    assert await stage.calls.ask(["same"] * 2_000, None) == [{"ok": "SAME"}] * 2_000
    assert await stage.calls.ask(["same"] * 2_000, None) == [{"ok": "SAME"}] * 2_000
    first, *memo = stage.finished
    assert not first.memo
    assert len(memo) == TOLD_SINGLY
    assert all(call.memo for call in memo)
    assert tally.untold == UntoldCalls(from_memory=3_999 - TOLD_SINGLY)
    assert len(stage.told) == 2 * (TOLD_SINGLY + 1)
    assert stage.calls.count == 4_000


async def test_the_answers_to_one_request_fit_into_a_reply_or_are_not_made(books: Books) -> None:
    async def long(prompt: str) -> str:
        return '"' * 199  # each of which takes two bytes in JSON

    stage = Stage(books, long, run_calls=1, reply_bytes=1024)
    slots = await stage.calls.ask(prompts(10), None)
    assert ["ok" in slot for slot in slots] == [True] * 2 + [False] * 8
    assert set(errors(slots[2:])) == {("LimitExceeded", "the answers to one request may have 1024 bytes (frame_bytes)")}
    assert stage.script.asked.total() == 3, "what cannot be delivered is not asked for"
    assert errors(await stage.calls.ask(["prompt 0"] * 2_000, None)) == errors([slots[2]]) * 2_000


# ---- many at once ----------------------------------------------------------------------------------------------------


async def test_a_batch_has_no_more_tasks_than_a_run_may_have_calls(books: Books) -> None:
    most = 0

    async def look(prompt: str) -> str:
        nonlocal most
        most = max(most, len(asyncio.all_tasks()))
        return "ok"

    stage = Stage(books, look, run_calls=8)
    before = len(asyncio.all_tasks())
    batches = [prompts(300), [f"other {number}" for number in range(300)]]
    await asyncio.gather(*(stage.calls.ask(batch, None) for batch in batches))
    assert stage.script.asked.total() == 600
    assert most <= before + 40, "a task a call under way, and a few of the ledger's and its queue's"


async def test_calls_that_were_not_sent_are_given_up_without_a_word_and_without_the_ledger(books: Books) -> None:
    reached = asyncio.Event()

    async def hang(prompt: str) -> str:
        if stage.script.asked.total() == 4:
            reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    stage = Stage(books, hang, run_calls=4)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        asking = [
            group.create_task(stage.calls.ask(prompts(2_000), None)),
            *(group.create_task(stage.calls.ask([f"later {number}"], None)) for number in range(1_000)),
        ]
        await reached.wait()
        for task in asking:
            task.cancel()
    assert [call.error for call in stage.finished] == ["cancelled"] * 4
    assert len(stage.told) == 8
    await stage.owed.settled()
    assert len(books.orders) == 8, "each that was sent is held and resolved"


async def test_calls_of_a_batch_that_are_under_way_are_given_up_a_few_at_a_time(books: Books) -> None:
    reached, given_up = asyncio.Event(), 0

    async def hang(prompt: str) -> str:
        nonlocal given_up
        if stage.script.asked.total() == 200:
            reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up += 1
        raise AssertionError

    stage = Stage(books, hang, run_calls=200)
    asking = asyncio.create_task(stage.calls.ask(prompts(200), None))
    await asyncio.wait_for(reached.wait(), 60)
    asking.cancel()
    before = most = 0
    while not asking.done():
        await asyncio.sleep(0)
        most, before = max(most, given_up - before), given_up
    assert asking.cancelled()
    assert given_up == 200
    assert most <= 2 * CANCELLED_AT_ONCE
    await stage.owed.settled()
    assert len(books.orders) == 400, "each is held and resolved"


async def test_of_calls_that_are_given_up_none_is_sent_any_more_and_what_had_no_hold_is_not_looked_up(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, looked_up = asyncio.Event(), list[str]()
    in_flight = START - START // RESERVED

    async def hang(prompt: str) -> str:
        if stage.script.asked.total() == in_flight:
            reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def posted(call: str) -> Amounts:
        looked_up.append(call)
        return await Books.posted(books, call)

    monkeypatch.setattr(books, "posted", posted)
    stage = Stage(books, hang, run_calls=START + 40)
    tally = stage.calls.begin_turn()
    asking = asyncio.create_task(stage.calls.ask(prompts(START + 40), None))
    await asyncio.wait_for(reached.wait(), 60)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert stage.script.asked.total() == in_flight, "none took the place of one that was given up"
    assert len(set(looked_up)) == len(looked_up) == in_flight
    assert len(stage.finished) + tally.untold.failed == START + 40
    assert [call.spent.calls for call in stage.finished].count(1) == in_flight
