"""The corpus of replies, played to a server over gRPC: many to a run, and an answer last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from rlm.v1 import run_pb2

from rlm_server.broker.provider import ModelRequest
from rlm_server.shares.pace import Pace
from tests.runs.replies import ANSWERS, MAGICS, READ, UNTAKEN
from tests.servers import Served
from tests.system.stage import Ended, Play, code

FOUND = code("found = 'what was found'")
DONE = code("FINAL('done')")
PATIENT = {"errors_in_a_row": 1_000, "repeats": 1_000}


TOGETHER = 25
"""Replies of one run: its conversation is sent again with each."""


class Asked:
    """A script that says its lines by the question that is asked. `asked` are the requests by question and turn."""

    def __init__(self, lines: Mapping[str, Sequence[str]]) -> None:
        self.lines = lines
        self.asked: dict[tuple[str, int], ModelRequest] = {}

    async def reply(self, request: ModelRequest) -> str:
        question = request.messages[0].content.removeprefix("Question:\n").partition("\n")[0]
        turn = sum(message.role == "assistant" for message in request.messages)
        self.asked[question, turn] = request
        return self.lines[question][turn]


def ran_in(ended: Ended, turn: int) -> tuple[str, ...]:
    return tuple(
        event.code_started.code
        for event in ended.events
        if event.turn == turn and event.WhichOneof("body") == "code_started"
    )


async def test_replies_of_every_maker_run_what_they_mean_or_are_told_why_not(server: Served) -> None:
    said = [*READ, *MAGICS, *UNTAKEN]
    parts = {f"part {at}": said[at : at + TOGETHER] for at in range(0, len(said), TOGETHER)}
    play = Asked({question: [FOUND, *(one.text for one in part), DONE] for question, part in parts.items()})
    async with server(play, **PATIENT) as served:
        for question, part in parts.items():
            ended = await served.caller.ask(question)
            assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
            assert ended.run.answer == "done"
            for turn, one in enumerate(part, start=2):
                assert ran_in(ended, turn) == one.runs, one.text
                assert one.told in play.asked[question, turn].messages[-1].content, one.text


async def test_an_answer_in_prose_is_the_one_its_author_means(server: Served) -> None:
    questions = {f"question {number}": said for number, said in enumerate(ANSWERS)}
    play = Asked({question: [FOUND, said.text, DONE] for question, said in questions.items()})
    async with server(play) as served:
        for question, said in questions.items():
            ended = await served.caller.ask(question)
            assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
            assert ended.run.answer == said.answer, said.text


async def test_a_reply_that_was_cut_off_is_not_run_and_the_events_say_so(server: Served) -> None:
    long = code("wrong = 1\n#" + "x" * 400 + "\nFINAL('wrong')")
    play = Play(long, code("FINAL('done' if 'wrong' not in globals() else 'wrong')"))
    async with server(play, root_tokens=50) as served:
        ended = await served.caller.ask()
    assert ended.run.answer == "done"
    assert [reply.end for reply in ended.bodies("model_replied")] == [
        run_pb2.REPLY_END_LENGTH,
        run_pb2.REPLY_END_COMPLETE,
    ]
    assert "cut off at 50 tokens" in play.asked[1].messages[-1].content
    assert [guard.kind for guard in ended.bodies("guard")] == [run_pb2.GUARD_KIND_CUT_OFF]


async def test_reasoning_stays_in_the_event_and_leaves_the_conversation(server: Served) -> None:
    play = Play("<think>a long way</think>\n" + code("x = 1"), DONE)
    async with server(play) as served:
        ended = await served.caller.ask()
    assert "a long way" in ended.bodies("model_replied")[0].text
    assert "a long way" not in "".join(message.content for message in play.asked[1].messages)


async def test_a_last_word_is_the_answer_without_reasoning(server: Served) -> None:
    async with server(Play(code("x = 1"), "<think>hm</think>FINAL(42)"), max_turns=1) as served:
        ended = await served.caller.ask()
    assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
    assert ended.run.answer == "42"


async def test_the_blocks_of_a_reply_begin_at_their_tenants_pace(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced, wait = 0, Pace.wait

    async def counted(pace: Pace, tenant: str) -> None:
        nonlocal paced
        paced += 1
        await wait(pace, tenant)

    monkeypatch.setattr(Pace, "wait", counted)
    async with server(Play(code(*["1"] * 40), code("FINAL(1)"))) as served:
        assert (await served.caller.ask()).run.answer == "1"
    assert paced >= 41
