"""What is kept aside of a budget and of a run's time for a closing call, and what such a call may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker.prices.table import FREE, Price, Rates
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.broker.routes import Route
from rlm_server.broker.worst_case import bound, input_bound, worst_case
from rlm_server.ledger import NANO, Amounts, Limit
from rlm_server.repl.limits import RunLimits
from rlm_server.runs import closing
from rlm_server.runs.closing import LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS, PART
from rlm_server.runs.told import last_word
from rlm_server.runs.told.last_word import Conversation, Ending

PRICE = Price(Rates(input=NANO, output=5 * NANO))
"""$1 and $5 for a million tokens."""

limits = st.one_of(st.none(), st.integers(1, 10 * NANO))


@given(limits, limits, st.one_of(st.none(), st.integers(1, 100)))
def test_a_reserve_is_a_small_part_of_a_budget_and_always_pays_for_a_call(
    money: int | None, tokens: int | None, calls: int | None
) -> None:
    kept = closing.reserve(Limit(nano_usd=money, tokens=tokens, calls=calls), PRICE)
    if kept is None:
        return
    least = bound(LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS, PRICE)
    for has, part, needs in (
        (money, kept.nano_usd, least.nano_usd), (tokens, kept.tokens, least.tokens),
    ):  # fmt: skip
        assert (has is None) == (part is None)
        assert has is None or part is None or needs <= part <= has // PART
    assert kept.calls in ((None,) if calls is None else (1,))


@pytest.mark.parametrize("budget", [Limit(), Limit(nano_usd=1000), Limit(tokens=100), Limit(nano_usd=NANO, calls=3)])
def test_of_a_budget_too_small_for_it_nothing_is_kept(budget: Limit) -> None:
    assert closing.reserve(budget, PRICE) is None


def test_a_dollar_keeps_enough_for_eight_thousand_tokens_and_an_answer_of_a_thousand() -> None:
    assert closing.reserve(Limit(nano_usd=NANO), PRICE) == Limit(nano_usd=(8_192 + 5 * 1_024) * 1_000)


def test_a_short_run_keeps_a_twelfth_of_its_time_and_a_long_one_half_a_minute() -> None:
    assert closing.seconds(RunLimits(wall_seconds=1.2)) == pytest.approx(0.1)
    assert closing.seconds(RunLimits(wall_seconds=3_600)) == 30


@pytest.mark.parametrize("wall_seconds", [1.2, 60, 360, 3_600])
def test_the_work_of_children_ends_and_they_are_asked_once_more_before_the_work_of_their_parents_ends(
    wall_seconds: float,
) -> None:
    limits = RunLimits(wall_seconds=wall_seconds)
    assert closing.closed(limits, 0) == 0
    for depth in range(1, 5):
        assert closing.seconds(limits, depth - 1) < closing.closed(limits, depth) < closing.seconds(limits, depth)
    assert closing.seconds(limits, 4) <= wall_seconds / 4


def a_route(price: Price = PRICE, window: int | None = None) -> Route:
    return Route("scripted", ScriptedProvider({}), "model", price, window)


@given(st.integers(0, NANO), st.integers(0, 100_000), st.integers(1, 10_000))
def test_a_closing_call_never_has_more_than_what_is_left(money: int, tokens: int, most: int) -> None:
    left = Limit(nano_usd=money, tokens=tokens)
    for room in closing.rooms(left, a_route(), most, messages=1):
        text = "x" * room.input_bytes
        asked = worst_case(ModelRequest("model", (Message("user", text),), max_tokens=room.output_tokens), PRICE)
        assert asked.nano_usd <= money
        assert asked.tokens <= tokens
        assert room.output_tokens <= most


def test_where_no_call_is_left_there_is_no_closing_one() -> None:
    assert list(closing.rooms(Limit(calls=0), a_route(), 1_000, 1)) == []
    assert list(closing.rooms(Limit(nano_usd=1_000), a_route(), 1_000, 1)) == []


def test_a_closing_call_fits_into_the_models_window() -> None:
    (room, *_) = closing.rooms(Limit(), a_route(FREE, window=8_000), 2_000, 1)
    assert (room.input_bytes, room.output_tokens) == (18_000, 2_000)


def test_an_own_call_has_less_output_where_only_the_reserve_is_in_its_way() -> None:
    request = ModelRequest("model", (Message("user", "x" * 1_000),), max_tokens=8_192)
    kept = Amounts(nano_usd=10_000_000)
    whole = worst_case(request, PRICE).nano_usd
    left = Limit(nano_usd=whole - 5_000_000)
    assert not closing.fits(request, left, PRICE)
    lowered = closing.lowered(request, left, kept, PRICE)
    assert 7_000 < lowered.max_tokens < 8_192
    assert closing.fits(lowered, left, PRICE)
    assert closing.lowered(request, Limit(nano_usd=whole - 10_000_001), kept, PRICE) == request


# ---- what is asked ---------------------------------------------------------------------------------------------------

TALK = Conversation(
    "The rules.",
    (
        Message("user", "Question:\nHow many?"),
        Message("assistant", "Code 1." + "x" * 5_000),
        Message("user", "It printed 1." + "y" * 5_000),
        Message("assistant", "Code 2."),
        Message("user", "It printed 2."),
    ),
)
END = Ending("How many?", "max_turns: no answer after 2 turns", "")


def test_where_all_of_the_conversation_has_room_it_is_asked_at_its_end() -> None:
    asked = last_word.fitting(TALK, END, [(20_000, 1_024)])
    assert asked is not None
    conversation, tokens = asked
    assert (conversation.system, conversation.messages[:-1], tokens) == (TALK.system, TALK.messages[:-1], 1_024)
    assert conversation.messages[-1].content.startswith(
        "It printed 2.\n\nNo more code will run: this was the last turn"
    )


def test_after_a_reply_whose_code_was_stopped_it_is_asked_in_a_message_of_its_own() -> None:
    asked = last_word.fitting(Conversation("", TALK.messages[:-1]), END, [(20_000, 1_024)])
    assert asked is not None
    assert [message.role for message in asked[0].messages[-2:]] == ["assistant", "user"]


def test_otherwise_what_was_seen_last_has_the_room() -> None:
    asked = last_word.fitting(TALK, END, [(100, 4_096), (2_000, 256)])
    assert asked is not None
    ((message,), tokens) = asked[0].messages, asked[1]
    assert tokens == 256
    assert message.content.startswith("Question:\nHow many?\n\nWhat you have seen so far")
    assert message.content.index("[... cut out ...]") < message.content.index("Code 2.")
    assert "You were told:\nIt printed 2.\n\nNo more code will run" in message.content


@given(
    st.text(max_size=3_000),
    st.text(max_size=3_000),
    st.lists(st.text(max_size=3_000), max_size=4),
    st.integers(0, 12_000),
)
def test_it_never_has_more_bytes_than_there_is_room_for(question: str, draft: str, said: list[str], room: int) -> None:
    talk = Conversation("rules", (Message("user", question), *(Message("assistant", text) for text in said)))
    asked = last_word.fitting(talk, Ending(question, "budget.nano_usd: gone", draft), [(room, 256)])
    if asked is not None:
        assert asked[0].size <= room
        assert asked[0].messages[0].role == "user"
        assert input_bound(ModelRequest("model", asked[0].messages, asked[0].system, 256)) > 0


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("max_turns: no answer after 30 turns", "this was the last turn (max_turns)"),
        ("budget.tokens: this needs up to", "what is left of the budget pays for no other turn (budget.tokens)"),
        ("errors_in_a_row: 5 turns", "too many turns in a row have failed (errors_in_a_row)"),
        ("no progress: the same", "the same code gave the same result again and again (no progress)"),
        ("wall_seconds: the run", "the time is over, and code that still ran was stopped (wall_seconds)"),
    ],
)
def test_the_model_is_told_which_limit_it_was_and_what_its_code_had_begun(reason: str, said: str) -> None:
    text = last_word.asked(Ending("", reason, "so far"), "so far")
    assert text.startswith(f"No more code will run: {said}. Give your best answer")
    assert text.endswith('answer["content"] holds so far:\nso far')


def test_of_what_children_said_the_first_are_told_in_part_and_the_others_are_counted() -> None:
    said = last_word.ChildrenSaid()
    assert said.messages() == ()
    said.asked = 50
    for number in range(40):
        said.add(f"{number}" * 1_000, "x" * 10_000)
    (message,) = said.messages()
    assert len(message.content) < last_word.MOST_SAID * 1_300
    assert "What 8 others said is lost." in message.content
    assert "10 had not ended, and said nothing." in message.content
