"""`llm_query` and its batches."""

from __future__ import annotations

import asyncio

import pytest

from tests.compatibility.conftest import BATCH
from tests.compatibility.theatre import Case, Theatre, blocks, case, played
from tests.system.stage import Ended, Play, code

CAUGHT = (
    "try:\n    found = {}\nexcept Exception as error:\n    found = f'caught: {{type(error).__name__}}'\nFINAL(found)"
)


def caught(call: str) -> str:
    return CAUGHT.format(call)


class Backwards:
    """Answers a prompt once the one after it is answered: the last first."""

    def __init__(self, prompts: int) -> None:
        self.answered = [asyncio.Event() for _ in range(prompts)]

    async def __call__(self, prompt: str) -> str:
        number = int(prompt)
        if number + 1 < len(self.answered):
            await self.answered[number + 1].wait()
        self.answered[number].set()
        return f"answer {number}"


def asked(*prompts: str) -> object:
    def check(_: Ended, play: Play) -> None:
        assert sorted(play.subcalls) == sorted(prompts)

    return check


def of_their_own_turns(ended: Ended, _: Play) -> None:
    events = [event for event in ended.events if event.WhichOneof("body") == "call_finished"]
    assert [event.turn for event in events] == [1, 1, 2]


def told_with_their_errors(ended: Ended, _: Play) -> None:
    failed = {bool(body.call.error) for body in ended.bodies("call_finished")}
    assert failed == {True, False}


def no_children(ended: Ended, _: Play) -> None:
    assert not ended.bodies("child_started")


CASES = (
    blocks("llm_query_returns_the_answer", "FINAL(llm_query('how?'))", answer="HOW?", check=no_children),
    blocks("llm_query_takes_a_model", "FINAL(llm_query('how?', model='second'))", answer="the second"),
    blocks("llm_query_takes_the_model_second", "FINAL(llm_query('how?', 'second'))", answer="the second"),
    blocks("an_unknown_model_is_refused", caught("llm_query('how?', model='no-such')"), answer="caught: ValueError"),
    blocks(
        "a_call_that_fails_raises_what_code_can_catch",
        "try:\n    llm_query('fail')\nexcept RuntimeError:\n    FINAL('caught')",
        answer="caught",
    ),
    blocks("a_prompt_is_a_text", caught("llm_query(['how?'])"), answer="caught: TypeError"),
    blocks("any_text_can_be_a_prompt", "FINAL(llm_query('äöü 日本語 🙂'))", answer="ÄÖÜ 日本語 🙂"),
    blocks(
        "a_batch_goes_out_together_and_comes_back_in_order",
        "FINAL(' '.join(llm_query_batched([str(n) for n in range(8)])))",
        answer=" ".join(f"answer {number}" for number in range(8)),
        sub=Backwards(8),
    ),
    blocks(
        "a_prompt_of_a_batch_that_fails_has_its_error_in_its_slot",
        "a, b, c = llm_query_batched(['a', 'fail', 'c'])\nFINAL(f'{a} {b.startswith(\"Error\")} {c}')",
        answer="A True C",
    ),
    blocks(
        "every_prompt_of_a_batch_may_fail",
        "FINAL(all(slot.startswith('Error') for slot in llm_query_batched(['fail 1', 'fail 2', 'fail 3'])))",
        answer="True",
    ),
    blocks(
        "the_errors_of_a_batch_can_be_had_as_exceptions",
        "a, b = llm_query_batched(['a', 'fail'], return_exceptions=True)\nFINAL(f'{a} {isinstance(b, Exception)}')",
        answer="A True",
    ),
    blocks("a_batch_takes_a_model", "FINAL(llm_query_batched(['a'], model='second')[0])", answer="the second"),
    blocks(
        "more_prompts_than_go_out_at_once_are_all_answered",
        f"FINAL(llm_query_batched(['p%d' % n for n in range({BATCH})]) == ['P%d' % n for n in range({BATCH})])",
        answer="True",
    ),
    blocks(
        "identical_prompts_are_asked_once",
        "a = llm_query_batched(['q', 'q'])\nb = llm_query('q')\nFINAL(' '.join([*a, b]))",
        answer="Q Q Q",
        check=asked("q"),
    ),
    blocks(
        "calls_are_told_with_the_turn_that_made_them",
        "llm_query_batched(['a', 'b'])",
        "FINAL(llm_query('c'))",
        answer="C",
        check=of_their_own_turns,
    ),
    blocks("failed_calls_are_told_too", "FINAL(llm_query_batched(['a', 'fail'])[0])", check=told_with_their_errors),
    blocks(
        "calls_in_a_pool_of_threads_go_out_together",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n"
        "    FINAL(' '.join(pool.map(llm_query, [str(n) for n in range(4)])))",
        answer="answer 0 answer 1 answer 2 answer 3",
        sub=Backwards(4),
    ),
    blocks(
        "calls_can_be_awaited_together",
        "import asyncio\nFINAL(' '.join(await asyncio.gather(*[llm_query_async(str(n)) for n in range(4)])))",
        answer="answer 0 answer 1 answer 2 answer 3",
        sub=Backwards(4),
    ),
    case(
        "a_failed_call_that_is_not_caught_is_told_and_the_loop_goes_on",
        code("x = 'kept'\nllm_query('fail')"),
        code("FINAL(x)"),
        answer="kept",
        told=["it was asked to"],
    ),
    blocks(
        "an_empty_batch_gives_an_empty_list", "FINAL([llm_query_batched([]), rlm_query_batched([])])", answer="[[], []]"
    ),
    blocks(
        "a_text_is_no_list_of_prompts", caught("llm_query_batched('how?')"), answer="caught: TypeError", check=asked()
    ),
    blocks(
        "a_prompt_of_a_batch_that_is_no_text_fails_in_its_slot",
        "a, b, c = llm_query_batched(['a', 3, 'c'])\nFINAL(f'{a} {b.startswith(\"Error\")} {c}')",
        answer="A True C",
    ),
    blocks(
        "a_batch_above_the_limit_is_split",
        f"FINAL(len(llm_query_batched(['p%d' % n for n in range({2 * BATCH + 1})])))",
        answer=str(2 * BATCH + 1),
    ),
    blocks(
        "fresh_asks_again",
        "llm_query('q')\nllm_query('q', fresh=True)\nFINAL('asked')",
        check=asked("q", "q"),
    ),
    blocks("an_empty_answer_raises", caught("llm_query('nothing')"), answer="caught: ModelError"),
    blocks(
        "failures_can_be_caught_by_name",
        "try:\n    llm_query('fail')\nexcept ModelError as error:\n    FINAL(bool(error.kind))",
        answer="True",
    ),
    blocks(
        "a_cut_answer_is_a_text_that_says_so",
        "found = llm_query('x' * 20_000)\nFINAL(f'{isinstance(found, str)} {len(found) < 20_000} {bool(found.cut)}')",
        answer="True True True",
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_calls(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
