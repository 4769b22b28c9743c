"""Whatever limit ends a run without an answer, its model has a last word, and no budget is passed for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rlm.v1 import run_pb2, types_pb2
from rlm_client.durations import seconds

from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.stage import USD, Play, Said, Sub, code

EXHAUSTED, SUCCEEDED = run_pb2.RUN_STATE_EXHAUSTED, run_pb2.RUN_STATE_SUCCEEDED
ASKED = "No more code will run: "
GUESS = "My best guess is 3."


class Closing(Play):
    """Says its lines; to whoever asks for a last word, a guess."""

    def __init__(self, *lines: Said, guess: Said = GUESS, sub: Sub = lambda prompt: "ok", **children: Said) -> None:
        super().__init__(*lines, sub=sub, **children)
        self.guess, self.closing = guess, list[ModelRequest]()

    async def reply(self, request: ModelRequest) -> str:
        if ASKED in request.messages[-1].content:
            self.closing.append(request)
            if isinstance(self.guess, Exception):
                raise self.guess
            return self.guess
        return await super().reply(request)


SPEND = [code(f"print({i})\nfor i in range(1_000): llm_query(f'number {i}.{{i}}')") for i in range(30)]
LONG = "x" * 16_000


@pytest.mark.parametrize(
    ("lines", "asked", "limit"),
    [
        ([code(f"print({i})") for i in range(3)], {"limits": run_pb2.RunLimits(max_turn_count=3)}, "max_turns"),
        ([code(f"raise ValueError({i})") for i in range(9)], {}, "errors_in_a_row"),
        (["I think."], {}, "errors_in_a_row"),
        ([code("print(1)")], {}, "no progress"),
        (SPEND, {"budget": types_pb2.Budget(nano_usd=USD // 5)}, "budget.nano_usd"),
        (SPEND, {"budget": types_pb2.Budget(token_count=60_000)}, "budget.tokens"),
        (SPEND, {"budget": types_pb2.Budget(call_count=12)}, "budget.calls"),
        (
            [code("print('here')"), code("import time\nwhile True: time.sleep(0.01)")],
            {"limits": run_pb2.RunLimits(wall_time=seconds(4))},
            "wall_seconds",
        ),
        (
            [code("print('here')"), code("rlm_query('wait')"), code("import time\nwhile True: time.sleep(0.01)")],
            {"limits": run_pb2.RunLimits(wall_time=seconds(4))},
            "wall_seconds",
        ),
    ],
    ids=range(9),
)  # fmt: skip
async def test_a_run_that_a_limit_ends_has_a_last_word(
    server: Served, lines: list[str], asked: dict[str, Any], limit: str
) -> None:
    play = Closing(*lines, sub=lambda prompt: LONG, wait=code("import time\nwhile True: time.sleep(0.01)"))
    async with server(play) as served:
        ended = await served.caller.ask(**asked)
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, GUESS), ended.run.end_message
        assert ended.run.end_message.startswith(limit)
        (closing,) = [asked for asked in play.closing if not asked.messages[0].content.startswith("Question:\nwait\n")]
        assert f"({limit})" in closing.messages[-1].content
        budget = asked.get("budget")
        for unit in ("nano_usd", "token_count", "call_count"):
            most = getattr(budget, unit, 0)
            assert not most or getattr(ended.run.spent, unit) <= most
        check_story(ended)
        check_settled(served.data_dir)


async def test_where_the_conversation_has_grown_too_large_for_what_is_left_its_end_is_sent(server: Served) -> None:
    talk = code("print('x' * 7_000 + 'the last thing')")
    play = Closing(*[f"{i}\n{talk}".replace("x'", f"{i % 10}'") for i in range(30)])
    async with server(play) as served:
        ended = await served.caller.ask("How many are there?", budget=types_pb2.Budget(token_count=60_000))
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, GUESS)
        assert ended.run.end_message.startswith("budget.tokens")
        assert ended.run.spent.token_count <= 60_000
        (closing,) = play.closing
        assert len(closing.messages) == 1
        assert closing.messages[0].content.startswith("Question:\nHow many are there?\n")
        assert "the last thing" in closing.messages[0].content
        check_settled(served.data_dir)


async def test_a_child_that_used_up_what_it_had_says_what_it_knows_to_its_parent(server: Served) -> None:
    play = Closing(
        code("print('child:', rlm_query('spend', budget=0.3))", "FINAL('done')"),
        spend=SPEND[0],
        sub=lambda prompt: LONG,
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert f"child: {GUESS}" in ended.printed
        _, child = ended.nodes
        assert (child.state, child.answer) == (EXHAUSTED, GUESS)
        assert child.spent.nano_usd <= 3 * USD // 10
        check_story(ended)
        check_settled(served.data_dir)


async def test_where_the_last_word_fails_the_run_ends_with_the_answer_its_code_had_begun(server: Served) -> None:
    busy = ProviderError(Failure.GONE, "the provider's answer was cut off", billed=True)
    begun = code("answer['content'] = 'so far'\nprint(1)")
    async with server(Closing(begun, code("print(2)"), guess=busy)) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_turn_count=2))
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "so far")
        assert [one.kind for one in ended.bodies("guard") if one.kind != run_pb2.GUARD_KIND_ROOT_CALL] == [
            run_pb2.GUARD_KIND_LAST_WORD
        ]
        assert ended.run.end_message.startswith("max_turns")
        check_settled(served.data_dir)


async def test_a_last_word_that_is_code_again_is_no_answer(server: Served) -> None:
    async with server(Closing(code("print(1)"), guess=code("FINAL(3)"))) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_turn_count=2))
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "")


async def test_a_last_word_in_the_form_of_an_answer_is_one(server: Served) -> None:
    async with server(Closing(code("print(1)"), guess="I know.\nFINAL(3)")) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_turn_count=2))
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "3")


async def test_a_run_is_cancelled_in_its_last_word_too(server: Served) -> None:
    asked = asyncio.Event()

    class Silent(Closing):
        async def reply(self, request: ModelRequest) -> str:
            said = await super().reply(request)
            if self.closing:
                asked.set()
                await asyncio.Event().wait()
            return said

    async with server(Silent(code("print(1)"))) as served:
        run = await served.caller.create(limits=run_pb2.RunLimits(max_turn_count=2))
        await asked.wait()
        ended = await served.caller.cancel(run.run_id)
        assert ended.state == run_pb2.RUN_STATE_CANCELLED
        check_settled(served.data_dir)


WAIT = "import time\nwhile True: time.sleep(0.01)"
SHORT = {"limits": run_pb2.RunLimits(wall_time=seconds(12))}


class Family(Closing):
    """Each node's last word names the question that it was asked."""

    async def reply(self, request: ModelRequest) -> str:
        said = await super().reply(request)
        question = request.messages[0].content.removeprefix("Question:\n").partition("\n")[0]
        return f"{said} ({question})" if ASKED in request.messages[-1].content else said


@pytest.mark.parametrize("depth", [1, 2])
async def test_when_the_time_ends_children_say_what_they_know_to_code_that_still_runs(
    server: Served, depth: int
) -> None:
    deeper = code("print('the child was told', rlm_query('deepest'))", WAIT) if depth == 2 else code("print(1)", WAIT)
    play = Family(
        code("print('here')"), code("print('told:', rlm_query('child'))"), code(WAIT),
        child=deeper, deepest=code("print(2)", WAIT),
    )  # fmt: skip
    async with server(play) as served:
        ended = await served.caller.ask("root", **SHORT)
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, f"{GUESS} (root)")
        assert ended.run.end_message.startswith("wall_seconds")
        nodes = ended.nodes
        assert [node.answer for node in nodes[1:]] == [f"{GUESS} (child)", f"{GUESS} (deepest)"][:depth]
        assert {node.state for node in nodes} == {EXHAUSTED}
        root = play.closing[-1].messages
        assert f"told: {GUESS} (child)" in "\n".join(message.content for message in root)
        check_story(ended)
        check_settled(served.data_dir)


async def test_when_the_time_ends_each_child_of_a_batch_has_its_word_and_its_parent_is_told_them(
    server: Served,
) -> None:
    batch = "rlm_query_batched(['child', 'other', 'quick'])"
    play = Family(
        code("print('here')"), code(f"said = {batch}\n{WAIT}"),
        child=code("print(1)", WAIT), other=code("print(2)", WAIT), quick="FINAL(7)",
    )  # fmt: skip
    async with server(play) as served:
        ended = await served.caller.ask("root", **SHORT)
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, f"{GUESS} (root)")
        by_question = {node.question: node for node in ended.nodes}
        assert by_question["child"].answer == f"{GUESS} (child)"
        assert by_question["other"].answer == f"{GUESS} (other)"
        assert (by_question["quick"].state, by_question["quick"].answer) == (SUCCEEDED, "7")
        last = play.closing[-1].messages[-1].content
        for question, said in (("child", f"{GUESS} (child)"), ("other", f"{GUESS} (other)"), ("quick", "7")):
            assert f"To '{question}' one said:\n{said}" in last
        check_settled(served.data_dir)


async def test_a_parent_is_told_of_a_child_whose_last_word_never_came(server: Served) -> None:
    class Stuck(Family):
        async def reply(self, request: ModelRequest) -> str:
            said = await super().reply(request)
            if "(child)" in said:  # its last word never comes
                await asyncio.Event().wait()
            return said

    play = Stuck(
        code("print('here')"), code(f"said = rlm_query_batched(['child', 'quick'])\n{WAIT}"),
        child=code("print(1)", WAIT), quick="FINAL(7)",
    )  # fmt: skip
    async with server(play) as served:
        ended = await served.caller.ask("root", **SHORT)
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, f"{GUESS} (root)")
        last = play.closing[-1].messages[-1].content
        assert "To 'quick' one said:\n7" in last
        assert "To 'child' one said:\nthe child RLM ended exhausted: wall_seconds" in last
        check_settled(served.data_dir)
