"""Which parts of a context stand in the prompts of calls: told for every call, and in the way of none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlm_server.contexts.lineage import Lineage
from rlm_server.contexts.passages import Passage, Traced
from rlm_server.repl.events import CallTraced
from rlm_server.repl.tracing import TracedContext, Tracer
from rlm_server.shares.shares import Shares


@dataclass
class Index:
    """Stands in for the index of a context: every "key" of a prompt is the document 7, from its start on."""

    asked: list[str] = field(default_factory=list)
    opened: int = 0
    broken: bool = False
    free: threading.Event = field(default_factory=threading.Event)
    """Set: an answer is given at once."""
    busy: int = 0
    most_busy: int = 0

    def find(self, prompt: str, _: Callable[[], bool]) -> Traced:
        self.asked.append(prompt)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        assert self.free.wait(30)
        self.busy -= 1
        if self.broken:
            raise OSError("the index cannot be read")
        start = prompt.find("key")
        return Traced((Passage(7, 0, 3, start),) if start >= 0 else (), more="more" in prompt)

    async def open(self) -> Lineage:
        self.opened += 1
        there: Any = self
        lineage: Lineage = there
        return lineage


@pytest.fixture
def index() -> Index:
    made = Index()
    made.free.set()
    return made


def passages(told: list[CallTraced]) -> dict[str, list[int]]:
    """Of each call, where in its prompts the passages begin."""
    return {body.call_id: [passage.prompt_start for passage in body.passages] for body in told}


def of_index(open_lineage: Callable[[], Coroutine[Any, Any, Lineage]]) -> TracedContext:
    return TracedContext("acme", Shares.of(), open_lineage)


async def test_a_call_is_told_with_what_of_the_context_its_prompt_holds(index: Index) -> None:
    told: list[CallTraced] = []
    async with Tracer(of_index(index.open)) as tracer:
        tracer.trace("one", ["a key"], told.append)
        tracer.trace("none", ["nothing of it"], told.append)
        tracer.trace("many", ["more of it"], told.append)
    assert {body.call_id: body for body in told} == {
        "one": CallTraced("one", (Passage(7, 0, 3, 2),), more=False),
        "none": CallTraced("none", (), more=False),
        "many": CallTraced("many", (), more=True),
    }
    assert index.opened == 1


async def test_several_prompts_are_one_text(index: Index) -> None:
    told: list[CallTraced] = []
    async with Tracer(of_index(index.open)) as tracer:
        tracer.trace("call", ["more key", "", "no", "my key"], told.append)
    assert told == [CallTraced("call", (Passage(7, 0, 3, 5), Passage(7, 0, 3, 13)), more=True)]


async def test_messages_that_come_again_with_each_turn_are_looked_at_once(index: Index) -> None:
    told: list[CallTraced] = []
    conversation = ["the task", "a reply"]
    async with Tracer(of_index(index.open)) as tracer:
        for turn in range(5):
            conversation += [f"feedback {turn} key", f"reply {turn}"]
            tracer.trace(f"turn {turn}", conversation[:], told.append)
    assert sorted(index.asked) == sorted(set(conversation))
    lengths = [len(message) for message in conversation]
    last = [sum(lengths[: 2 * turn + 2]) + len(f"feedback {turn} ") for turn in range(5)]
    assert passages(told) == {f"turn {turn}": last[: turn + 1] for turn in range(5)}


async def test_single_prompts_are_not_kept(index: Index) -> None:
    async with Tracer(of_index(index.open)) as tracer:
        for call in ("one", "two"):
            tracer.trace(call, ["a large passage"], lambda _: None)
    assert index.asked == ["a large passage"] * 2


async def test_the_index_is_asked_by_one_call_at_a_time(index: Index) -> None:
    async with Tracer(of_index(index.open)) as tracer:
        for number in range(20):
            tracer.trace(str(number), [f"prompt {number}"], lambda _: None)
    assert (len(index.asked), index.most_busy) == (20, 1)


async def test_to_settle_waits_for_every_call_so_far(index: Index) -> None:
    index.free.clear()
    told: list[CallTraced] = []
    tracer = Tracer(of_index(index.open))
    for call in ("one", "two", "three"):
        tracer.trace(call, ["key"], told.append)
    settling = asyncio.create_task(tracer.settle())
    await asyncio.sleep(0)
    assert not settling.done()
    index.free.set()
    async with asyncio.timeout(30):
        await settling
    assert sorted(body.call_id for body in told) == ["one", "three", "two"]
    await tracer.settle()


async def test_a_call_that_cannot_be_traced_is_logged_and_the_next_is_traced(
    index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[CallTraced] = []
    async with Tracer(of_index(index.open)) as tracer:
        index.broken = True
        with caplog.at_level(logging.ERROR):
            tracer.trace("broken", ["key"], told.append)
            await tracer.settle()
        index.broken = False
        tracer.trace("whole", ["key"], told.append)
    assert passages(told) == {"whole": [0]}
    (record,) = caplog.records
    assert record.getMessage() == "call broken could not be traced"
    assert record.exc_info is not None


async def test_an_index_that_cannot_be_opened_hurts_no_call(caplog: pytest.LogCaptureFixture) -> None:
    async def gone() -> Lineage:
        raise FileNotFoundError("the index is gone")

    told: list[CallTraced] = []
    with caplog.at_level(logging.ERROR):
        async with Tracer(of_index(gone)) as tracer:
            tracer.trace("one", ["key"], told.append)
            tracer.trace("two", ["key"], told.append)
    assert told == []
    assert len(caplog.records) == 2


async def test_without_a_context_nothing_is_traced() -> None:
    told: list[CallTraced] = []
    async with Tracer() as tracer:
        tracer.trace("call", ["key"], told.append)
        await tracer.settle()
    assert told == []
