"""What a model is told in a whole conversation, and that what it is told is there."""

from __future__ import annotations

import re
from pathlib import Path

from rlm.v1 import run_pb2

from tests.servers import Served
from tests.system.stage import Play, code

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED

LINES = "\n".join(f"line {n}: {'cat' if n % 3 else 'dog'} {n * 7919 % 10_007}" for n in range(2_000))

TURNS = (
    "Let me look.\n" + code("print(len(context))\nprint(context)"),
    code("whole = printed[-1]\nlines = whole.splitlines()[1:]\nprint(len(lines), lines[-1])"),
    code("import re\nfor line in lines:\n    word = line.split()[9]"),
    code("part = context[:20_000]\nreply = llm_query('How many dogs?\\n' + part)", "print(reply)\nn = 667"),
    "I am done.",
    code("FINAL(n)"),
)


async def test_a_whole_conversation_reads_like_this(server: Served) -> None:
    """The golden text is for people: read it aloud. Times differ from run to run and stand as `T s`."""
    play = Play(*TURNS, sub=lambda prompt: "I count 247 dogs.")
    async with server(play) as served:
        context = await served.caller.upload(LINES)
        ended = await served.caller.ask("How many dogs are there?", context_id=context.context_id)
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "667")
    asked = [request for request in play.asked if request.system]
    said = "\n\n".join(f"──── {message.role} ────\n{message.content}" for message in asked[-1].messages)
    golden = Path(__file__).parent / "conversation.txt"
    assert stable(said) == golden.read_text()


def stable(text: str) -> str:
    """Leave out what differs from run to run (times, costs, what was traced by then), and most of what is shown."""
    text = re.sub(r"[\d,]+(\.\d+)? s\b", "T s", text).replace(", waited T s for models,", "")
    text = re.sub(r"((?:line \d+: .*\n){3})(?:line \d+: .*\n){9,}", r"\1(and so on)\n", text)
    text = re.sub(r"Left: \$[\d.]+", "Left: $N", text)
    return re.sub(r"sub-models were sent (at least )?[\d.]+%", "sub-models were sent N%", text) + "\n"


async def test_an_operator_tells_models_more_by_their_names(server: Served) -> None:
    play = Play(code("FINAL('done')"))
    async with server(play, model_advice={"pl*": "Be brief.", "other*": "Be long."}) as served:
        await served.caller.ask()
    assert play.asked[0].system.endswith("\nBe brief.\n")


async def test_printed_has_the_whole_of_what_each_block_printed(server: Served) -> None:
    play = Play(
        code("print('a' * 10_000)", "import sys\nprint('b', file=sys.stderr)\nprint('c')", "pass"),
        code("raise ValueError(print('d'))"),
        code("print([len(one) for one in printed], repr(printed[-4]), repr(printed[-2]), repr(printed[-1]))"),
        code("print(printed[-1])"),
        code("printed = 1\nprint('x' * 3_000_000)"),
        code("print(len(printed[-1]), printed[-1][:1], printed[-1][-2:-1], 'not kept' in printed[-1])"),
        code("FINAL('done')"),
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED, ended.run.end_message
    told = [request.messages[-1].content for request in play.asked]
    assert "`printed[-3]`, a str, has all of it" in told[1]
    assert "[10001, 4, 0, 2] 'a" in told[3]
    assert "' '' 'd\\n'" in told[3]
    assert "[10001, 4, 0, 2]" in told[4]
    assert "its beginning and its end" in told[5]
    assert re.search(r"10486\d\d x \] True", told[6])  # at its end it is told what was put back


async def test_what_a_stopped_block_printed_is_nowhere_and_not_said_to_be(server: Served) -> None:
    loop = code("print('x' * 9_000)", "print('y' * 9_000)\nimport os\nos._exit(1)")
    play = Play(loop, code("print(len(printed), printed[-1][:1])"), code("FINAL('done')"))
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED, ended.run.end_message
    first, second = (play.asked[turn].messages[-1].content for turn in (1, 2))
    assert first.count("`printed[-1]`") == 1
    assert "was stopped and undone" in first
    assert "\n1 x\n" in second


async def test_what_sub_models_were_sent_is_told_of_the_whole_tree_and_counted_once(server: Served) -> None:
    play = Play(
        code("half = context[: len(context) // 2]\nllm_query(half)\nllm_query('Again: ' + half)"),
        code("import time\ntime.sleep(0.5)"),
        code("FINAL('done')"),
    )
    async with server(play) as served:
        context = await served.caller.upload(LINES)
        ended = await served.caller.ask(context_id=context.context_id)
        assert ended.run.state == SUCCEEDED
    sent = re.search(r"sub-models were sent (?:at least )?([\d.]+)%", play.asked[-1].messages[-1].content)
    assert sent is not None
    assert 49 <= float(sent[1]) <= 51
