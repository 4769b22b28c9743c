"""`rlm_query` and its batches: RLMs below the root."""

from __future__ import annotations

import asyncio

import pytest
from rlm.v1 import run_pb2

from rlm_server.broker.provider import Failure, ProviderError
from tests.compatibility.conftest import CHILDREN
from tests.compatibility.theatre import Case, Theatre, blocks, played, tokens
from tests.system.stage import Ended, Play, code

LOOK = {"first": code("FINAL('1 ' + context)"), "other": code("FINAL('2 ' + context)")}
REFUSED = ProviderError(Failure.BAD_REQUEST, "not today", billed=False)
"""What a child's model says that ends the child without an answer."""


class AtOnce:
    """Counts the sub-calls that are in flight, and answers none before there are so many."""

    def __init__(self, most: int) -> None:
        self.most, self.here, self.highest = most, 0, 0
        self.enough = asyncio.Event()

    async def __call__(self, prompt: str) -> str:
        self.here += 1
        self.highest = max(self.highest, self.here)
        if self.here == self.most:
            self.enough.set()
        await self.enough.wait()
        self.here -= 1
        return prompt


at_once = AtOnce(CHILDREN)


def never_more(_: Ended, __: Play) -> None:
    assert at_once.highest == CHILDREN


def depths(*expected: int) -> object:
    def check(ended: Ended, _: Play) -> None:
        assert [node.depth for node in ended.nodes] == list(expected)

    return check


def ended_by_its_errors(ended: Ended, _: Play) -> None:
    (child,) = [node for node in ended.nodes if node.depth]
    assert (child.state, child.turn_count) == (run_pb2.RUN_STATE_EXHAUSTED, 5)
    assert "errors_in_a_row" in child.end_message


def asked_plainly(ended: Ended, play: Play) -> None:
    assert not ended.bodies("child_started")
    assert play.subcalls == ["why?"]


def all_is_told_and_paid(ended: Ended, _: Play) -> None:
    codes = [event.depth for event in ended.events if event.WhichOneof("body") == "code_started"]
    assert codes == [0, 1]
    assert ended.run.spent.call_count == 3
    assert ended.run.spent.nano_usd == sum(node.spent.nano_usd for node in ended.nodes if not node.parent_id)


CASES = (
    blocks(
        "a_child_has_a_repl_of_its_own_with_its_prompt_as_the_context",
        "FINAL(rlm_query('first'))",
        answer="1 first",
        children=LOOK,
        check=depths(0, 1),
    ),
    blocks(
        "a_child_can_be_given_a_text_to_read",
        "FINAL(rlm_query('first', context[:3]))",
        answer="1 abc",
        context="abcdef",
        children=LOOK,
    ),
    blocks(
        "parent_and_child_share_no_names",
        "secret = 'the parents'\nfound = rlm_query('first')\nFINAL(f'{found} {\"own\" in globals()}')",
        answer="False False",
        children={"first": code("own = 1\nFINAL('secret' in globals())")},
    ),
    blocks("a_child_takes_a_model", "FINAL(rlm_query('first', model='second'))", answer="the second as a child"),
    blocks(
        "children_of_a_batch_answer_in_order",
        "FINAL(' | '.join(rlm_query_batched(['other', 'first', 'other'])))",
        answer="2 other | 1 first | 2 other",
        children=LOOK,
        check=depths(0, 1, 1, 1),
    ),
    blocks(
        "a_batch_of_one_child_is_a_list_of_one", "FINAL(len(rlm_query_batched(['first'])))", answer="1", children=LOOK
    ),
    blocks(
        "children_of_a_batch_can_each_be_given_a_text",
        "FINAL(' '.join(rlm_query_batched(['first', 'other'], ['one', 'two'])))",
        answer="1 one 2 two",
        children=LOOK,
    ),
    blocks(
        "a_child_that_fails_has_its_error_in_its_slot",
        "bad, good = rlm_query_batched(['bad', 'first'])\nFINAL(f'{bad.startswith(\"Error\")} {good}')",
        answer="True 1 first",
        children={**LOOK, "bad": REFUSED},
    ),
    blocks(
        "a_single_child_that_fails_raises",
        "try:\n    rlm_query('bad')\nexcept Exception:\n    FINAL('caught')",
        answer="caught",
        children={"bad": REFUSED},
    ),
    blocks(
        "a_child_has_limits_of_its_own_and_the_parent_goes_on",
        "try:\n    rlm_query('bad')\nexcept Exception:\n    pass\nFINAL('goes on')",
        answer="goes on",
        children={"bad": code("raise ValueError(budget()['turns'])")},
        check=ended_by_its_errors,
    ),
    blocks(
        "a_child_has_the_time_that_is_left",
        "before = budget()['seconds']\nFINAL(float(rlm_query('first')) <= before)",
        answer="True",
        children={"first": code("FINAL(budget()['seconds'])")},
    ),
    blocks(
        "children_at_work_at_once_are_capped_and_all_answer",
        f"FINAL(len(set(rlm_query_batched(['c%d' % n for n in range({2 * CHILDREN})]))))",
        answer=str(2 * CHILDREN),
        children={f"c{n}": code("FINAL(llm_query(context))") for n in range(2 * CHILDREN)},
        sub=at_once,
        check=never_more,
    ),
    blocks(
        "at_the_depth_cap_a_model_answers_without_a_repl",
        "FINAL(rlm_query('why?'))",
        answer="WHY?",
        asked={"limits": run_pb2.RunLimits(max_depth=0)},
        check=asked_plainly,
    ),
    blocks(
        "children_have_children_down_to_the_depth_cap",
        "FINAL(rlm_query('first'))",
        answer="below: IT",
        children={"first": code("FINAL('below: ' + rlm_query('other'))"), "other": code("FINAL(rlm_query('it'))")},
        asked={"limits": run_pb2.RunLimits(max_depth=2)},
        check=depths(0, 1, 2),
    ),
    blocks(
        "a_child_has_a_part_of_what_is_left_and_what_it_spends_is_gone",
        "before = budget()['tokens']\nmost = int(rlm_query('first'))\n"
        "FINAL(f'{0 < most < before} {budget()[\"tokens\"] < before}')",
        answer="True True",
        children={"first": code("FINAL(budget()['tokens'])")},
        asked={"budget": tokens(1_000_000)},
    ),
    blocks(
        "what_a_child_did_and_cost_is_told_with_the_run",
        "FINAL(rlm_query('first'))",
        children={"first": code("FINAL(llm_query('deep'))")},
        answer="DEEP",
        check=all_is_told_and_paid,
    ),
    blocks(
        "a_models_name_where_the_text_belongs_is_refused_with_the_right_spelling",
        "rlm_query('first', 'second')",
        "FINAL('it')",
        answer="it",
        turns=2,
        told=["model="],
    ),
    blocks(
        "data_given_to_a_child_becomes_json",
        "FINAL(rlm_query('first', {'number': 42, 'list': [1, None]}))",
        answer="42 None",
        children={
            "first": code('import json\nfound = json.loads(context)\nFINAL(f\'{found["number"]} {found["list"][1]}\')')
        },
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_children(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
