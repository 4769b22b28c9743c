"""One question over a large real text, through every part of the server, three levels deep and wide."""

from __future__ import annotations

import asyncio
import sysconfig
from pathlib import Path

from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.provider import ModelRequest
from tests.servers import Served
from tests.system.books import check_settled, check_story, check_within_limits, rows
from tests.system.stage import USD, code

AT_LEAST = 5_000_000
TOGETHER = 50

QUESTION = "How many lines of the text begin with `def ` or `class ` after their spaces?"
COUNT = "How many of the lines below do?\n"

LOOK = code("print(len(context), 'characters')")
WORK = code(f"""
def cut(text, pieces):
    found = []
    for left in range(pieces, 1, -1):
        end = text.index("\\n", len(text) // left) + 1
        found.append(text[:end])
        text = text[end:]
    return found + [text]

if budget()["depth"]:
    replies = rlm_query_batched([{QUESTION!r}] * 2, cut(context, 2))
else:
    replies = llm_query_batched([{COUNT!r} + part for part in cut(context, 8)])
FINAL(sum(int(reply) for reply in replies))
""")


def declarations(text: str) -> int:
    return sum(line.lstrip(" ").startswith(("def ", "class ")) for line in text.split("\n"))


def library() -> str:
    """The sources of this interpreter's standard library, one after another."""
    root = Path(sysconfig.get_path("stdlib"))
    found, size = [], 0
    for path in sorted(root.glob("**/*.py")):
        if "site-packages" in path.parts or "lib2to3" in path.parts:
            continue
        try:
            found.append(f"===== {path.relative_to(root)} =====\n{path.read_text(encoding='utf-8')}\n")
        except UnicodeDecodeError:
            continue
        size += len(found[-1])
        if size > AT_LEAST:
            break
    return "".join(found)


class Counting:
    """Counts exactly, and answers no sub-call before so many have come that they must be in flight together."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.enough = asyncio.Event()

    async def reply(self, request: ModelRequest) -> str:
        if request.system:
            turn = sum(message.role == "assistant" for message in request.messages)
            return (LOOK, WORK)[min(turn, 1)]
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        if self.in_flight >= TOGETHER:
            self.enough.set()
        await self.enough.wait()
        self.in_flight -= 1
        return str(declarations(request.messages[0].content.removeprefix(COUNT)))


async def test_a_question_over_a_large_text_is_answered_exactly_by_a_tree_of_models(server: Served) -> None:
    text = library()
    assert len(text) >= AT_LEAST
    script = Counting()
    async with server(script) as served, asyncio.timeout(150):
        caller = served.caller
        context = await caller.upload(text)
        assert context.character_count == len(text)
        run = await caller.create(
            QUESTION,
            context_id=context.context_id,
            budget=types_pb2.Budget(nano_usd=90 * USD, call_count=500),
            limits=run_pb2.RunLimits(max_depth=3),
        )

        async for event in caller.watch(run.run_id):
            if event.sequence % 5 == 0:
                now = await caller.get(run.run_id)
                assert now.spent.nano_usd + now.pending.nano_usd <= 90 * USD
                assert now.spent.call_count + now.pending.call_count <= 500
                check_within_limits(served.data_dir)

        ended = await caller.ended(run.run_id)
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
        assert int(ended.run.answer) == declarations(text)
        assert script.most >= TOGETHER
        assert {node.depth for node in ended.nodes} == {0, 1, 2, 3}
        assert len(ended.nodes) == 1 + 2 + 4 + 8
        assert len(ended.bodies("call_started")) == 64

        check_story(ended)
        check_settled(served.data_dir)
        billed = served.provider.billed
        assert ended.run.spent.call_count == len(billed) == 2 * 15 + 64
        assert ended.run.spent.nano_usd == sum(1000 * usage.input + 5000 * usage.output for _, usage in billed)
        assert ended.run.spent.token_count == sum(usage.input + usage.output for _, usage in billed)
        (tenant,) = rows(served.data_dir, "SELECT * FROM account WHERE parent IS NULL")
        assert tenant["posted_nano_usd"] == ended.run.spent.nano_usd
        assert all(event.spent.call_count for event in ended.bodies("model_replied"))  # each says what it cost
        told = [body.spent for body in ended.bodies("model_replied")]
        told += [body.call.spent for body in ended.bodies("call_finished")]
        assert sum(spent.nano_usd for spent in told) == ended.run.spent.nano_usd
