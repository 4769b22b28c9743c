"""An answer ends a run when the block that gave it ran to its end, and never later."""

from __future__ import annotations

import pytest
from rlm.v1 import run_pb2

from rlm_server.broker.provider import Failure, ProviderError
from tests.servers import Served
from tests.system.stage import Play, code

GIVEN = "import _door; _ = _door.call('answer', content='draft', ready=True)\n"
"""As code can tell it in the middle of a turn."""
ENDS = ProviderError(Failure.AUTH, "the key is wrong", billed=False)
"""Ends a run, whose answer then is the draft."""


@pytest.mark.parametrize(
    ("block", "draft"),
    [
        ("FINAL('draft')\n1 / 0", "draft"),
        ("answer['content'] = 'draft'; answer['ready'] = True\nexit()", "draft"),
        (GIVEN + "1 / 0", "draft"),
        (GIVEN + "import os; os._exit(0)", ""),
        (GIVEN + "while True: pass", ""),
    ],
    ids=["raised", "exited", "told and raised", "told and undone", "told and stopped"],
)
async def test_an_answer_of_a_block_that_did_not_run_to_its_end_ends_nothing(
    server: Served, block: str, draft: str
) -> None:
    play = Play(code(block), code("print('on')"), code("print('and on')"), ENDS)
    async with server(play, sandbox={"turn_seconds": 0.5}) as served:
        ended = await served.caller.ask()
    assert ended.bodies("answer") == []
    assert ended.printed.endswith("on\nand on\n")
    assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_FAILED, draft)


async def test_the_model_is_told_that_its_answer_was_not_taken_and_its_next_counts(server: Served) -> None:
    play = Play(code("FINAL('too early')\n1 / 0"), code("FINAL({1, 2})"), code("FINAL([1, 2])"))
    async with server(play) as served:
        ended = await served.caller.ask()
    told = [request.messages[-1].content for request in play.asked]
    assert '[answer["ready"] is False again: the block that set it did not run to its end]' in told[1]
    assert "TypeError: an answer cannot be a set: make it a list with sorted(value) or list(value)" in told[2]
    assert ended.run.answer == "[1, 2]"


async def test_a_child_answers_by_the_same_rules(server: Served) -> None:
    play = Play(
        code("print(rlm_query_batched(['loop', 'number']))", "FINAL('done')"),
        loop=code("for answer in ['a', 'b']: pass\nFINAL_VAR('answer')"),
        number=code("import decimal; FINAL(decimal.Decimal('2.50'))"),
    )
    async with server(play) as served:
        ended = await served.caller.ask()
    assert ended.printed.endswith("['b', '2.50']\n")


async def test_code_catches_failures_by_name_in_runs_and_sessions(server: Served) -> None:
    def busy(prompt: str) -> str:
        raise ProviderError(Failure.REFUSED, "it will not", billed=False)

    ask = "try: llm_query('x')\nexcept ModelError as error: print(error.kind)"
    slots = "print([error.kind for error in llm_query_batched(['a', 'b'], return_exceptions=True)])"
    awaited = "try: await llm_query_async('y')\nexcept ModelError as error: print(error.kind)"
    async with server(Play(code(f"{ask}\n{slots}\n{awaited}\nFINAL(1)"), sub=busy)) as served:
        assert (await served.caller.ask()).printed == "refused\n['refused', 'refused']\nrefused\n"
        session = await served.caller.open_session()
        printed = (await served.caller.turn(session, f"{ask}\n{slots}\n{awaited}")).printed
        assert printed == "refused\n['refused', 'refused']\nrefused\n"


async def test_names_are_put_back_in_a_session_too_and_its_caller_is_told(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        assert (
            'what your code gave that name is in kept["answer"]'
            in (await served.caller.turn(session, "for answer in ['a', 'b']: pass")).printed
        )
        assert (await served.caller.turn(session, "kept['answer'], answer['ready']")).printed == "('b', False)\n"
