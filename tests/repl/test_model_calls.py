"""The model calls of guest code: a slot for each prompt, identical ones asked once, and every call reported."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.broker.routes import Route
from rlm_server.broker.worst_case import worst_case
from rlm_server.ledger import Amounts, Limit
from rlm_server.repl.call_request import PLAIN, CallForm
from rlm_server.repl.events import CallStarted
from sandbox.door import DoorRefusal, HostCall
from tests.broker.books import PAYER, Books
from tests.broker.stage import PRICE
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


@pytest.mark.parametrize("size", [0, 3, 4, 100])
async def test_a_batch_may_be_larger_than_its_parts_and_empty(books: Books, size: int) -> None:
    stage = Stage(books, batch=3)
    slots = await stage.calls.ask([f"p{number}" for number in range(size)], None)
    assert slots == [{"ok": f"P{number}"} for number in range(size)]


async def test_of_a_batch_in_parts_that_can_no_longer_be_paid_the_rest_is_not_made(books: Books) -> None:
    await books.set_limit(PAYER.account, Limit(calls=4))
    stage = Stage(books, batch=3, run_calls=1)
    slots = await stage.calls.ask([f"p{number}" for number in range(20)], None)
    assert ["ok" in slot for slot in slots] == [True] * 4 + [False] * 16
    assert len({message for _, message in errors(slots[4:])}) == 1
    assert stage.failures.count == 1, "one failure for what cannot be paid"


async def test_every_call_is_told_as_it_starts_and_as_it_ends_with_what_it_cost(books: Books) -> None:
    stage = Stage(books)
    await stage.calls.ask(["four", "eleven char"], None)
    started = {body.call_id: body for body in stage.told if isinstance(body, CallStarted)}
    assert sorted((body.model, body.prompt_characters) for body in started.values()) == [("small", 4), ("small", 11)]
    assert {call.call_id for call in stage.finished} == started.keys()
    costs = await stage.costs()
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
    assert errors(await stage.calls.ask(["same"], None)) == [("ModelError", "small: not this")]
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
    assert errors([b]) == [("ModelError", "small: the prompt is too long")]
    assert [call.error for call in stage.finished if call.error] == ["the prompt is too long"]


async def test_a_call_that_fails_and_may_be_billed_is_told_with_its_cost(books: Books) -> None:
    async def in_doubt(prompt: str) -> str:
        raise ProviderError(Failure.TIMED_OUT, "no answer in time", billed=True)

    stage = Stage(books, in_doubt)
    assert errors(await stage.calls.ask(["a"], None)) == [("ModelError", "small: no answer in time")]
    (call,) = stage.finished
    assert {f"{call.call_id}.1": call.spent} == await stage.costs()
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
    assert {f"{call.call_id}.1": call.spent for call in stage.finished} == await stage.costs()
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


# ---- how prompts are asked about -------------------------------------------------------------------------------------


def form(**said: Any) -> CallForm:
    return PLAIN.said_in(HostCall("llm_query", said))


async def test_a_call_is_asked_with_what_the_code_says_and_held_at_its_own_max_tokens(books: Books) -> None:
    stage = Stage(books)
    asked = form(system="be brief", max_tokens=7, temperature=0)
    assert await stage.calls.ask(["hello"], None, asked) == [{"ok": "HELLO"}]
    (request,) = stage.script.requests
    assert (request.system, request.max_tokens, request.temperature) == ("be brief", 7, 0.0)
    assert books.held == [worst_case(request, PRICE)]


@pytest.mark.parametrize(
    "other", [{"system": "be brief"}, {"max_tokens": 7}, {"temperature": 0.5}, {"temperature": 0}, {"fresh": True}]
)
async def test_calls_that_are_asked_otherwise_are_not_identical(books: Books, other: dict[str, Any]) -> None:
    stage = Stage(books)
    await stage.calls.ask(["same"], None)
    await stage.calls.ask(["same"], None, form(**other))
    await stage.calls.ask(["same"], None)
    assert stage.script.asked == {"same": 2}


async def test_fresh_calls_of_a_batch_are_each_asked(books: Books) -> None:
    stage = Stage(books)
    assert await stage.calls.ask(["same"] * 5, None, form(fresh=True)) == [{"ok": "SAME"}] * 5
    assert stage.script.asked == {"same": 5}
    assert [call.memo for call in stage.finished] == [False] * 5


async def test_an_answer_that_is_cut_off_is_told_and_asked_for_again(books: Books) -> None:
    stage = Stage(books)
    tally = stage.calls.begin_turn()
    for _ in range(2):
        assert await stage.calls.ask(["abcdefghij"] * 2, None, form(max_tokens=2)) == [{"ok": "ABCDEFGH", "cut": 2}] * 2
    assert stage.script.asked == {"abcdefghij": 2}
    assert tally.notes == {"the answer of small was cut off at 2 tokens: its end is missing, and `.cut` is True": 4}


@pytest.mark.parametrize("said", ["", " \n"])
async def test_an_answer_without_content_is_an_error_and_asked_for_again(books: Books, said: str) -> None:
    async def nothing(prompt: str) -> str:
        return said

    stage = Stage(books, nothing)
    for _ in range(2):
        (slot,) = await stage.calls.ask(["a"], None)
        assert slot == {"error": {"type": "ModelError", "message": "small: the answer is empty", "kind": "empty"}}
    assert stage.script.asked == {"a": 2}
    assert all(call.spent.calls == 1 for call in stage.finished), "it cost what it cost"
    assert stage.failures.count == 2


async def test_an_answer_that_was_cut_off_before_it_said_anything_says_so(books: Books) -> None:
    async def thinking(prompt: str) -> str:
        return " " * 1_000

    (slot,) = await Stage(books, thinking).calls.ask(["a"], None)
    message = (
        "small: the answer is empty: all 50 tokens it may have were used before it said anything; raise max_tokens"
    )
    assert slot == {"error": {"type": "AnswerCut", "message": message, "kind": "empty"}}


async def test_a_max_tokens_above_the_limit_is_the_limit_and_said(books: Books) -> None:
    stage = Stage(books)
    tally = stage.calls.begin_turn()
    await stage.calls.ask(["a", "b"], None, form(max_tokens=1_000_000))
    assert [request.max_tokens for request in stage.script.requests] == [50, 50]
    assert tally.notes == {"max_tokens may be 50 at most (sub_tokens), so it was that": 2}


async def test_a_model_that_takes_no_temperature_is_asked_without_and_that_is_said(books: Books) -> None:
    route = Route("openai", ScriptedProvider({}), "gpt-6-luna", PRICE)
    assert form(temperature=0.5).notes("luna", route, 50) == ["luna takes no temperature, so it was asked without"]
    older = replace(route, upstream="gpt-4.1")
    assert form(temperature=0.5).notes("old", older, 50) == []
    claude = Route("anthropic", ScriptedProvider({}), "claude-sonnet-4-5", PRICE)
    assert form(temperature=1.5).notes("claude", claude, 50) == [
        "claude takes a temperature of 1 at most, so it was asked with that"
    ]


async def test_a_system_prompt_that_is_too_long_is_refused(books: Books) -> None:
    with pytest.raises(DoorRefusal, match="system may have 100000 characters, not 100001") as refusal:
        form(system="x" * 100_001)
    assert refusal.value.type == "LimitExceeded"


async def test_each_prompt_may_have_a_model_and_one_that_is_not_there_fails_alone(books: Books) -> None:
    stage = Stage(books)
    passage = "It was the best of times, it was the worst of times. " * 100
    call = HostCall("llm_query", {"prompts": list("abcd"), "model": ["small", "nobody", None, passage]})
    answered: Any = await stage.calls.llm_query(call)
    a, b, c, d = answered
    assert (a, c) == ({"ok": "A"}, {"ok": "C"})
    assert errors([b]) == [("ValueError", "there is no model 'nobody'; the models are: large, small")]
    ((_, message),) = errors([d])
    assert passage[:60] in message
    assert passage[:61] not in message
    with pytest.raises(DoorRefusal, match="there is no model"):
        await stage.calls.ask_each(["a", "b"], ["nobody", "either"])
    with pytest.raises(DoorRefusal, match="2 prompts but 1 models"):
        await stage.calls.llm_query(HostCall("llm_query", {"prompts": ["a", "b"], "model": ["small"]}))


# ---- small budgets ---------------------------------------------------------------------------------------------------


async def test_an_answer_that_the_budget_cut_off_is_asked_for_again_with_room_for_more(books: Books) -> None:
    async def longer(prompt: str) -> str:
        return "x" * (4 * 150 if prompt == "long" else 4)

    stage = Stage(books, longer, sub_tokens=4_096)
    await stage.calls.ask(["a", "b"], None)
    await stage.owed.settled()
    spent = (await books.balance(PAYER.account)).posted.nano_usd
    await books.set_limit(PAYER.account, Limit(nano_usd=spent + 5_000 * 1_000))
    assert await stage.calls.ask(["long"], None) == [{"ok": "x" * 600}]
    assert [request.max_tokens for request in stage.script.requests][2:] == [64, 256]
    cut, whole = stage.finished[2:]
    assert cut.error == "cut off at 64 tokens for want of room in the budget"
    assert {f"{call.call_id}.1": call.spent for call in stage.finished} == await stage.costs()
    assert not whole.error


async def test_an_answer_that_cannot_be_paid_in_full_is_given_as_far_as_it_went(books: Books) -> None:
    async def longer(prompt: str) -> str:
        return "x" * (4_000 if prompt == "long" else 4)

    stage = Stage(books, longer, sub_tokens=4_096)
    await stage.calls.ask(["a", "b"], None)
    await stage.owed.settled()
    spent = (await books.balance(PAYER.account)).posted.nano_usd
    await books.set_limit(PAYER.account, Limit(nano_usd=spent + 1_000 * 1_000))
    (slot,) = await stage.calls.ask(["long"], None)
    assert slot == {"ok": "x" * 256, "cut": 64}
