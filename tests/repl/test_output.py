"""What code prints is told in its order, whole, and not a byte at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.repl import output
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from rlm_server.repl.events import Printed, TurnRestarted
from rlm_server.repl.output import CHANGES, OutputBatcher

STDOUT, STDERR = 1, 2
FLUSH = None
"""In a history of what is printed: so much time passes that what there is is told."""

texts = st.text(st.sampled_from("ab\n\xe9\u4e2d\U0001f600"), max_size=8)
printed = st.tuples(st.sampled_from([STDOUT, STDERR]), texts | st.binary(max_size=8))
histories = st.lists(printed | st.just(FLUSH), max_size=40)


def gathered(history: list[tuple[int, str | bytes] | None]) -> list[Printed]:
    """Play a history and return what was told."""

    async def play() -> list[Printed]:
        told: list[Any] = []
        with OutputBatcher(told.append) as batcher:
            for act in history:
                if act is FLUSH:
                    batcher._flush()
                else:
                    stream, data = act
                    batcher.take(stream, data if isinstance(data, bytes) else data.encode())
        return told

    return asyncio.run(play())


def printed_to(stream: str, told: list[Printed]) -> str:
    return "".join(part.text for part in told if part.stream == stream)


@given(histories)
def test_each_stream_is_told_whole_and_nothing_else_is(history: list[tuple[int, str | bytes] | None]) -> None:
    told = gathered(history)
    for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        data = b"".join(
            act[1] if isinstance(act[1], bytes) else act[1].encode() for act in history if act and act[0] == stream
        )
        assert printed_to(name, told) == data.decode("utf-8", "replace")
    assert all(part.text for part in told)


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), texts) | st.just(FLUSH), max_size=40))
def test_whole_characters_are_told_in_the_order_in_which_they_were_printed(
    history: list[tuple[int, str] | None],
) -> None:
    told = gathered([*history])
    names = {STDOUT: "stdout", STDERR: "stderr"}
    in_order = [(names[act[0]], character) for act in history if act for character in act[1]]
    assert [(part.stream, character) for part in told for character in part.text] == in_order


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), texts), max_size=40))
def test_what_one_stream_prints_without_the_other_is_told_as_one(history: list[tuple[int, str]]) -> None:
    told = gathered([*history])
    assert all(before.stream != after.stream for before, after in pairwise(told))


class Clock:
    """Stands for the event loop, whose time passes as told, to the next thing that is due."""

    def __init__(self) -> None:
        self.now, self._due = 0.0, list[tuple[float, Handle]]()

    def call_soon(self, function: Callable[[], None]) -> Handle:
        return self.call_later(0, function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Handle:
        handle = Handle(function)
        self._due.append((self.now + seconds, handle))
        return handle

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what is due meanwhile."""
        until = self.now + seconds
        while due := sorted((at, n) for n, (at, handle) in enumerate(self._due) if at <= until and not handle.off):
            self.now, (_, handle) = due[0][0], self._due.pop(due[0][1])
            handle.function()
        self.now = until


@dataclass
class Handle:
    function: Callable[[], None]
    off: bool = False

    def cancel(self) -> None:
        self.off = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def test_what_comes_after_a_silence_is_told_at_once_and_what_follows_it_within_the_tick(clock: Clock) -> None:
    told: list[Any] = []
    with OutputBatcher(told.append) as batcher:
        for _ in range(2):
            batcher.take(STDOUT, b"first ")
            batcher.take(STDOUT, b"line\n")
            clock.advance(0)
            assert told == [Printed("stdout", "first line\n")]
            for _ in range(50):
                batcher.take(STDOUT, b".")
                clock.advance(output.EVERY_SECONDS / 100)
            assert len(told) == 1
            clock.advance(output.EVERY_SECONDS)
            assert told[1:] == [Printed("stdout", "." * 50)]
            told.clear()
            clock.advance(2 * output.EVERY_SECONDS)


def test_output_a_byte_at_a_time_is_told_once_a_tick(clock: Clock) -> None:
    told: list[Any] = []
    with OutputBatcher(told.append) as batcher:
        for _ in range(1_000):
            batcher.take(STDOUT, b".")
            clock.advance(output.EVERY_SECONDS / 100)
    assert printed_to("stdout", told) == "." * 1_000
    assert len(told) <= 12


def test_output_is_told_less_often_the_more_of_it_there_was(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(output, "SLOWER_AFTER", 4)
    times: list[float] = []
    with OutputBatcher(lambda _: times.append(clock.now / output.EVERY_SECONDS)) as batcher:
        while len(times) < 12:
            batcher.take(STDOUT, b"x")
            clock.advance(output.EVERY_SECONDS / 16)
        pauses = [after - before for before, after in pairwise(times)]
    assert pauses == pytest.approx([1] * 3 + [2] * 4 + [4] * 4)


def test_a_long_text_is_told_in_pieces_that_fit_into_an_event() -> None:
    text = "\U0001f600" * 40_000
    told = gathered([(STDOUT, text)])
    assert "".join(part.text for part in told) == text
    assert len(told) == 3
    assert all(len(part.text.encode()) <= MAX_EVENT_TEXT for part in told)


def test_a_character_that_comes_in_pieces_is_told_once_it_is_whole() -> None:
    head, tail = "\u4e2d".encode()[:1], "\u4e2d".encode()[1:]
    told = gathered([(STDOUT, b"a" + head), FLUSH, (STDERR, b"!"), (STDOUT, tail), FLUSH])
    assert told == [Printed("stdout", "a"), Printed("stderr", "!"), Printed("stdout", "\u4e2d")]


def test_a_character_that_never_becomes_whole_is_told_as_one_that_is_none() -> None:
    assert gathered([(STDOUT, b"a\xe4\xb8")]) == [Printed("stdout", "a\ufffd")]


class Counted(list[tuple[int, str]]):
    """A list that counts the items that are looked at, or copied, in it and in its slices."""

    looks = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for item in super().__iter__():
            Counted.looks += 1
            yield item

    def __getitem__(self, index: Any) -> Any:
        Counted.looks += len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1
        found = super().__getitem__(index)
        return Counted(found) if isinstance(index, slice) else found


def test_what_there_is_to_tell_is_looked_at_once_even_where_the_streams_take_turns() -> None:
    told: list[Any] = []
    batcher = OutputBatcher(told.append)
    batcher._parts = Counted([(STDOUT, "a"), (STDERR, "b")] * 1000)
    batcher._flush()
    assert Counted.looks == 2000
    assert len(told) == CHANGES + 2
    assert (printed_to("stdout", told), printed_to("stderr", told)) == ("a" * 1000, "b" * 1000)


async def test_output_is_told_while_the_turn_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "EVERY_SECONDS", 0.001)
    told: asyncio.Queue[Any] = asyncio.Queue()
    with OutputBatcher(told.put_nowait) as batcher:
        for text in ("one", "two"):
            batcher.take(STDOUT, text.encode())
            async with asyncio.timeout(30):
                assert await told.get() == Printed("stdout", text)
    assert told.empty()


async def test_what_was_printed_before_a_turn_begins_again_is_void() -> None:
    told: list[Any] = []
    with OutputBatcher(told.append) as batcher:
        batcher.take(STDOUT, b"told before")
        batcher._flush()
        batcher.take(STDERR, b"lost")
        batcher.take(STDOUT, "\u4e2d".encode()[:1])
        batcher.restarted("the worker was lost")
        batcher.take(STDOUT, b"again")
    assert told == [
        Printed("stdout", "told before"),
        TurnRestarted("the worker was lost"),
        Printed("stdout", "again"),
    ]


async def test_nothing_is_told_after_the_turn() -> None:
    told: list[Any] = []
    with OutputBatcher(told.append) as batcher:
        batcher.take(STDOUT, b"last")
        timer = batcher._timer
    assert told == [Printed("stdout", "last")]
    assert timer is not None
    assert timer.cancelled()
