"""The corpus of replies, read alone: tests/system/test_replies.py plays it to a server."""

from __future__ import annotations

import pytest

from rlm_server.broker.provider import ModelReply
from rlm_server.ledger import Usage
from rlm_server.runs.reply.decision import Decision, decide
from rlm_server.runs.reply.seen import no_code
from sandbox.turn import Turn
from tests.runs.reading import reply
from tests.runs.replies import ANSWERS, READ, Said


@pytest.mark.parametrize("said", READ, ids=lambda said: ascii(said.text)[:60])
def test_a_reply_is_read_as_its_author_meant_it_or_told_why_not(said: Said) -> None:
    read = reply(said.text)
    assert read.codes == said.runs
    assert said.told in (" ".join(read.told) if said.runs else no_code(read.seen))
    if not said.runs:
        assert read.finals.final is None


@pytest.mark.parametrize("said", ANSWERS, ids=lambda said: ascii(said.text)[:60])
def test_an_answer_in_prose_is_found(said: Said) -> None:
    read = reply(said.text)
    assert read.codes == ()
    assert read.finals.final is not None


async def nothing_runs(code: str) -> Turn:
    raise AssertionError(f"{code} was run")


async def decided(text: str, stopped: str) -> Decision:
    return await decide(ModelReply(text, Usage(output=77), stopped), 100, nothing_runs)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["```repl\nprint(1)\n```", "```repl\nprint(", "FINAL(1)", "FINAL_VAR(x)", ""])
async def test_nothing_runs_of_a_reply_that_was_cut_off_and_the_model_is_told_where(text: str) -> None:
    decision = await decided(text, "length")
    assert decision.codes == ()
    assert "cut off at 77 tokens" in decision.told[0]
    assert "smaller steps" in decision.told[0]
    assert decision.nothing is not None
    assert decision.nothing.name == "cut_off"


@pytest.mark.parametrize("text", ["```repl\nprint(1)\n```", "FINAL(1)", ""])
async def test_nothing_runs_of_a_refusal_and_the_model_is_told(text: str) -> None:
    decision = await decided(text, "refusal")
    assert decision.codes == ()
    assert "refusal" in decision.told[0]


@pytest.mark.parametrize("text", ["", " \n"])
async def test_an_empty_reply_is_told_as_one(text: str) -> None:
    assert "empty" in (await decided(text, "end")).told[0]
