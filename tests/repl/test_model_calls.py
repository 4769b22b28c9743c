"""The model calls of guest code: a slot for each prompt, identical ones asked once, and every call reported."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.ledger import Amounts, Limit
from rlm_server.repl.events import CallStarted
from sandbox.door import DoorRefusal, HostCall
from tests.broker.books import PAYER, Books
from tests.repl.stage import Stage, errors


async def test_answers_come_in_the_order_of_the_prompts_whichever_is_ready_first(books: Books) -> None:
    turns = [asyncio.Event() for _ in range(4)]
    turns[3].set()

    async def the_last_first(prompt: str) -> str:
        await turns[int(prompt)].wait()
        if int(prompt):
            turns[int(prompt) - 1].set()
        return f"answer {prompt}"

    stage = Stage(books, the_last_first)
    slots = await stage.calls.ask(["0", "1", "2", "3"], None)
    assert slots == [{"ok": f"answer {number}"} for number in range(4)]


async def test_a_request_of_the_guest_names_prompts_and_perhaps_a_model(books: Books) -> None:
    stage = Stage(books)
    assert await stage.calls.llm_query(HostCall("llm_query", {"prompts": ["a", "b"]})) == [{"ok": "A"}, {"ok": "B"}]
    assert await stage.calls.llm_query(HostCall("llm_query", {"prompts": ["c"], "model": "small"})) == [{"ok": "C"}]
    for wrong in ({"prompts": "a"}, {"prompts": [1]}, {}, {"prompts": ["a"], "model": 7}):
        with pytest.raises(DoorRefusal) as refusal:
            await stage.calls.llm_query(HostCall("llm_query", wrong))
        assert refusal.value.type == "TypeError"


@pytest.mark.parametrize("size", [0, 4, 1000])
async def test_a_batch_beyond_its_bounds_is_refused_before_anything_is_asked(books: Books, size: int) -> None:
    stage = Stage(books, batch=3)
    with pytest.raises(DoorRefusal, match=f"{size} prompts in one batch; the limit is 1 to 3") as refusal:
        await stage.calls.ask([str(number) for number in range(size)], None)
    assert refusal.value.type == "LimitExceeded"
    assert (stage.told, stage.script.asked, stage.calls.count) == ([], Counter(), 0)
    assert len(await stage.calls.ask(["a", "b", "c"], None)) == 3


async def test_every_call_is_told_as_it_starts_and_as_it_ends_with_what_it_cost(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["four", "eleven char"], None)
    started = {body.call_id: body for body in stage.told if isinstance(body, CallStarted)}
    assert sorted((body.model, body.prompt_characters) for body in started.values()) == [("small", 4), ("small", 11)]
    assert {call.call_id for call in stage.finished} == started.keys()
    costs = await books.costs()
    assert {f"{call.call_id}.1": call.spent for call in stage.finished} == costs
    assert all(call.spent.calls == 1 and not call.memo and not call.error for call in stage.finished)
    assert stage.calls.count == 2


# ---- identical calls -------------------------------------------------------------------------------------------------


async def test_an_identical_call_is_answered_from_memory_and_free(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["again"], None)
    assert await stage.calls.ask(["again"], "small") == [{"ok": "AGAIN"}]
    first, second = stage.finished
    assert (first.memo, second.memo) == (False, True)
    assert (second.spent, second.model) == (Amounts(), "small")
    assert first.call_id != second.call_id
    assert stage.script.asked == {"again": 1}


async def test_identical_calls_at_once_wait_for_one_answer(books: Books) -> None:
    stage = Stage(books)
    assert await stage.calls.ask(["same"] * 50 + ["other"], None) == [{"ok": "SAME"}] * 50 + [{"ok": "OTHER"}]
    assert stage.script.asked == {"same": 1, "other": 1}
    assert Counter(call.memo for call in stage.finished) == {True: 49, False: 2}


async def test_the_memory_is_that_of_the_whole_run(books: Books) -> None:
    stage = Stage(books)
    await asyncio.gather(*(node.ask(["same"], None) for node in (stage.calls, stage.more(), stage.more())))
    assert stage.script.asked == {"same": 1}


async def test_calls_of_another_model_or_length_are_not_identical(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["same"], "small")
    await stage.calls.ask(["same"], "large")
    await stage.more(sub_tokens=60).ask(["same"], "small")
    assert stage.script.asked == {"same": 3}
    assert [call.memo for call in stage.finished] == [False] * 3


async def test_what_failed_is_asked_again(books: Books) -> None:
    async def at_first_not(prompt: str) -> str:
        if stage.script.asked[prompt] == 1:
            raise ProviderError(Failure.REFUSED, "not this", billed=False)
        return "fine"

    stage = Stage(books, at_first_not)
    assert errors(await stage.calls.ask(["same"], None)) == [("RuntimeError", "small: not this")]
    assert await stage.calls.ask(["same"], None) == [{"ok": "fine"}]


# ---- calls that fail -------------------------------------------------------------------------------------------------


async def test_a_call_that_fails_fails_in_its_own_slot(books: Books) -> None:
    async def not_b(prompt: str) -> str:
        if prompt == "b":
            raise ProviderError(Failure.TOO_LONG, "the prompt is too long", billed=False)
        return prompt.upper()

    stage = Stage(books, not_b)
    a, b, c = await stage.calls.ask(["a", "b", "c"], None)
    assert (a, c) == ({"ok": "A"}, {"ok": "C"})
    assert errors([b]) == [("RuntimeError", "small: the prompt is too long")]
    assert [call.error for call in stage.finished if call.error] == ["the prompt is too long"]


async def test_a_call_that_fails_and_may_be_billed_is_told_with_its_cost(books: Books) -> None:
    async def in_doubt(prompt: str) -> str:
        raise ProviderError(Failure.TIMED_OUT, "no answer in time", billed=True)

    stage = Stage(books, in_doubt)
    assert errors(await stage.calls.ask(["a"], None)) == [("RuntimeError", "small: no answer in time")]
    (call,) = stage.finished
    assert {f"{call.call_id}.1": call.spent} == await books.costs()
    assert call.spent.nano_usd > 0


async def test_what_the_budget_does_not_allow_is_a_limit(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(nano_usd=1))
    stage = Stage(books)
    with pytest.raises(DoorRefusal, match=r"of the limit of \$0.000000001 of account 'run-1'") as refusal:
        await stage.calls.ask(["a"], None)
    assert refusal.value.type == "LimitExceeded"
    assert stage.script.asked == Counter()


async def test_the_model_that_is_told_is_the_one_that_answered(books: Books) -> None:
    stage = Stage(books)
    assert await stage.calls.ask(["a"], "large") == [{"ok": "A"}]
    assert await stage.calls.ask(["a"], "large") == [{"ok": "A"}]
    assert [body.model for body in stage.told if isinstance(body, CallStarted)] == ["large", "large"]
    assert [(call.model, call.memo) for call in stage.finished] == [("small", False), ("small", True)]


# ---- calls that are given up -----------------------------------------------------------------------------------------


async def test_calls_that_are_given_up_are_told_with_what_they_cost(books: Books) -> None:
    reached = asyncio.Event()

    async def hang(prompt: str) -> str:
        if len(stage.script.asked) == 2:
            reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    stage = Stage(books, hang)
    asking = asyncio.create_task(stage.calls.ask(["a", "b", "b"], None))
    async with asyncio.timeout(30):
        await reached.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert [call.error for call in stage.finished] == ["cancelled"] * 2
    assert {f"{call.call_id}.1": call.spent for call in stage.finished} == await books.costs()
    assert [call.spent.calls for call in stage.finished] == [1, 1]


async def test_a_call_that_is_given_up_leaves_another_the_turn_to_ask(books: Books) -> None:
    reached, let = asyncio.Event(), asyncio.Event()

    async def wait(prompt: str) -> str:
        reached.set()
        await let.wait()
        return "answered"

    stage = Stage(books, wait)
    async with asyncio.timeout(30):
        first = asyncio.create_task(stage.calls.ask(["same"], None))
        await reached.wait()
        second = asyncio.create_task(stage.more().ask(["same"], None))
        await asyncio.sleep(0)
        first.cancel()
        let.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == [{"ok": "answered"}]
    assert stage.script.asked == {"same": 2}
