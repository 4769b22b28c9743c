"""What ends a run, and what its answer becomes."""

from __future__ import annotations

import pytest

from tests.compatibility.theatre import Case, Theatre, blocks, case, played
from tests.system.stage import code

CASES = (
    blocks(
        "answer_begins_empty_and_not_ready",
        "print(answer['content'] == '', answer['ready'] is False)\nFINAL('seen')",
        printed="True True\n",
    ),
    blocks(
        "ready_ends_the_run_with_the_content", "answer['content'] = 'it'\nanswer['ready'] = True", answer="it", turns=1
    ),
    blocks(
        "content_without_ready_ends_nothing",
        "answer['content'] = 'a draft'",
        "answer['content'] += ', and more'; answer['ready'] = True",
        answer="a draft, and more",
        turns=2,
    ),
    blocks(
        "an_answer_bound_anew_with_both_keys_counts",
        "answer = {'content': 'new', 'ready': True}",
        answer="new",
        turns=1,
    ),
    blocks(
        "an_answer_bound_anew_can_be_made_ready_later",
        "answer = {'content': 'between', 'ready': False}",
        "answer['content'] = 'done'; answer['ready'] = True",
        answer="done",
        turns=2,
    ),
    blocks("numbers_in_a_list_are_written_as_python_does", "FINAL([1, 2, 3])", answer="[1, 2, 3]"),
    *(
        blocks(f"{name}_is_written_as_python_does", f"FINAL({value})", answer=written)
        for name, value, written in (("a_number", "42", "42"), ("a_float", "2.0", "2.0"), ("a_boolean", "True", "True"))
    ),
    blocks(
        "content_set_after_ready_in_the_same_block_counts",
        "answer['ready'] = True\nanswer['content'] = 'after'",
        answer="after",
    ),
    case(
        "blocks_after_the_one_with_the_answer_do_not_run",
        code("print('first')", "FINAL('it')", "print('third')"),
        answer="it",
        printed="first\n",
    ),
    blocks(
        "a_loop_variable_called_answer_ends_nothing",
        "for answer in ['a', 'b']:\n    pass",
        "answer['content'] = 'it'; answer['ready'] = True",
        answer="it",
        turns=2,
    ),
    blocks("final_in_code_gives_a_value", "FINAL('it')", answer="it", turns=1),
    blocks("final_var_in_code_gives_a_variable", "found = 'it'\nFINAL_VAR('found')", answer="it", turns=1),
    blocks("submit_in_code_gives_a_value", "SUBMIT('it')", answer="it", turns=1),
    blocks(
        "texts_in_a_list_are_written_as_json",
        "FINAL([\"it's\", 'ä'])",
        answer='["it\'s", "ä"]',
    ),
    blocks("a_dict_is_written_as_json", "FINAL({'a': None, 'b': [True]})", answer='{"a": null, "b": [true]}'),
    blocks(
        "what_has_no_text_of_its_own_is_refused",
        "FINAL(object())",
        "FINAL('it')",
        answer="it",
        turns=2,
        told=["object"],
    ),
    blocks("an_answer_without_content_is_refused", "answer['ready'] = True", "FINAL('it')", answer="it", turns=2),
    blocks(
        "ready_before_an_exception_ends_nothing",
        "answer['content'] = 'early'\nanswer['ready'] = True\n1 / 0",
        "x = 1",
        "FINAL('late')",
        answer="late",
        turns=3,
        told=["ready", "ZeroDivisionError"],
    ),
    blocks(
        "a_dict_called_answer_with_other_keys_ends_nothing",
        "answer = {'ready': True, 'name': 'another'}",
        "FINAL('it')",
        answer="it",
        turns=2,
    ),
    blocks(
        "final_var_in_code_of_no_variable_lists_those_there_are",
        "found = 1\nFINAL_VAR('fuond')",
        "FINAL_VAR('found')",
        answer="1",
        turns=2,
        told=["fuond", "found"],
    ),
    blocks("final_var_of_a_value_gives_the_value", "x, y = 'secret', 'x'\nFINAL_VAR(y)", answer="x", turns=1),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_an_answer(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
