"""Whatever a worker says of a turn, the server has a turn that can have been, or an error that ends the worker."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.corpora.corpus import BLOCK, Corpus, in_memory
from sandbox.corpora.corpus import Kind as CorpusKind
from sandbox.limits import Limits
from sandbox.memory.pages import PageFile
from sandbox.turn import MAX_COUNT, MAX_NAME, MAX_TRACEBACK, MAX_VARIABLES, Status, Stop, Turn, TurnError, Variable
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.files import Files
from sandbox.vm.instance import Image
from sandbox.vm.mappings import Layout
from sandbox.wire.frames import Frame, Kind, Parser, WireError
from sandbox.wire.sessions import read_end
from sandbox.wire.turns import Observed, read_failure, read_turn, write_failure, write_turn
from tests.sandbox.wire.claims import ANYTHING, OBSERVED, SIZE, TRUE, claims, header

LIMITS = Limits(file_bytes=10, files=3, open_files=3)
DATA = array("I", [1, 2, 1, 4, 3, 2]).tobytes() + b"xyz"


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    with in_memory(["x" * 3 * BLOCK], CorpusKind.TEXT) as made:
        yield made


@contextmanager
def state() -> Iterator[Checkpoint]:
    image = Image("core", -1, SIZE, Files(Limits(), {}))
    made = Checkpoint(image, SIZE, PageFile(), Files(Limits(), {}), Layout())
    yield made
    made.close()


def check(turn: Turn, observed: Observed) -> None:
    """All that the rest of the server relies on."""
    assert type(turn.status) is Status
    assert (turn.stdout, turn.stderr) == observed.texts
    assert type(turn.output_bytes) is type(turn.door_calls) is int
    assert 0 <= turn.output_bytes <= MAX_COUNT
    assert 0 <= turn.door_calls <= MAX_COUNT
    assert type(turn.truncated) is bool
    assert turn.truncated or turn.output_bytes == observed.output_bytes
    assert type(turn.running_seconds) is float
    assert math.isfinite(turn.running_seconds)
    assert 0 <= turn.running_seconds <= observed.seconds
    assert (turn.error is None) is (turn.status is Status.OK)
    if turn.error is not None:
        assert isinstance(turn.error.type, Stop) is (turn.status is Status.ROLLED_BACK)
        assert turn.error.type is not Stop.WORKER_LOST
        for part in (turn.error.type, turn.error.message, turn.error.traceback):
            assert len(part.encode()) <= 4 * MAX_TRACEBACK
    assert len(turn.variables) <= MAX_VARIABLES
    for variable in turn.variables:
        assert max(len(variable.name.encode()), len(variable.type.encode())) <= 4 * MAX_NAME
        assert type(variable.length) is int
        assert -1 <= variable.length <= MAX_COUNT


@given(claims())
@settings(max_examples=500)
def test_a_claim_is_a_turn_that_can_have_been_or_an_error_that_changes_nothing(
    corpus: Corpus, told: dict[str, Any]
) -> None:
    with state() as checkpoint:
        before = list(checkpoint.pages.table), checkpoint.size, checkpoint.files, checkpoint.layout
        refusal = ""
        try:
            (frame,) = Parser().feed(b"".join(Frame(Kind.DONE, 1, header=told, data=DATA, turn=1).encode()))
            ended = read_end(frame, checkpoint, LIMITS, OBSERVED, corpus)
        except WireError as error:
            refusal = str(error)
        if refusal:
            assert len(refusal) < 300
            assert refusal.isprintable()
            after = list(checkpoint.pages.table), checkpoint.size, checkpoint.files, checkpoint.layout
            assert after == before
            return
        ended.apply(checkpoint)
        check(ended.turn, OBSERVED)
        assert all(0 <= blocks < 1 << corpus.blocks for blocks in ended.seen)
        assert checkpoint.files.used_bytes <= LIMITS.file_bytes
        assert len(checkpoint.files.writable) <= LIMITS.files


@given(ANYTHING, ANYTHING)
def test_anything_at_all_is_a_turn_or_an_error(fields: Any, message: Any) -> None:
    turn, failure = None, ""
    with suppress(TypeError, ValueError):
        turn = read_turn(fields, OBSERVED)
    with suppress(WireError):
        failure = read_failure(Frame(Kind.FAILED, header={"message": message}))
    if turn is not None:
        check(turn, OBSERVED)
    assert len(failure.encode()) <= 4 * MAX_TRACEBACK


@pytest.mark.parametrize("turn", TRUE)
def test_what_is_true_is_taken(corpus: Corpus, turn: Turn) -> None:
    with state() as checkpoint:
        frame = Frame(Kind.DONE, 1, header=header(turn), data=DATA)
        ended = read_end(frame, checkpoint, LIMITS, OBSERVED, corpus)
        ended.apply(checkpoint)
        taken, seen = ended.turn, ended.seen
        assert (taken.status, taken.error, taken.variables) == (turn.status, turn.error, turn.variables)
        assert (taken.stdout, taken.stderr) == ("printed\n", "oh\n")
        assert seen == [0b101]
        assert (checkpoint.layout.corpora == (corpus,)) is (turn.status is not Status.ROLLED_BACK)


def changed(**parts: Any) -> list[Any]:
    names = ("status", "output_bytes", "truncated", "running_seconds", "door_calls", "error", "variables")
    return [parts.get(name, value) for name, value in zip(names, write_turn(TRUE[0]), strict=True)]


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a running time that is not a number": {"running_seconds": float("nan")},
    "an infinite running time": {"running_seconds": float("inf")},
    "a negative running time": {"running_seconds": -0.001},
    "more running time than passed": {"running_seconds": 2.51},
    "a running time that is a text": {"running_seconds": "1"},
    "a running time that is true": {"running_seconds": True},
    "negative output": {"output_bytes": -1},
    "more output than came": {"output_bytes": 12},
    "less output than came": {"output_bytes": 10},
    "output that was cut to more than there was": {"output_bytes": 0, "truncated": True, "observed": b"x" * 100},
    "output that is half a byte": {"output_bytes": 11.5},
    "output beyond counting": {"output_bytes": 1 << 60, "truncated": True},
    "truncation that is a number": {"truncated": 0},
    "negative calls": {"door_calls": -1},
    "calls that are true": {"door_calls": True},
    "calls beyond counting": {"door_calls": 1 << 60},
    "a status in another type": {"status": ["ok"]},
    "an error of a turn that ended well": {"error": ["E", "m", ""]},
    "no error of a turn that failed": {"status": "error"},
    "no error of a turn that was undone": {"status": "rolled_back"},
    "a stop that does not exist": {"status": "rolled_back", "error": ["NOTHING", "m", ""]},
    "a worker that says it was lost": {"status": "rolled_back", "error": ["WORKER_LOST", "m", ""]},
    "an endless traceback": {"status": "error", "error": ["E", "m", "x" * (MAX_TRACEBACK + 1)]},
    "a message that cannot be encoded": {"status": "error", "error": ["E", "\ud800", ""]},
    "a message that is a number": {"status": "error", "error": ["E", 1, ""]},
    "too many variables": {"variables": [["x", "int", -1]] * (MAX_VARIABLES + 1)},
    "a variable of endless name": {"variables": [["x" * (MAX_NAME + 1), "int", -1]]},
    "a variable whose name cannot be encoded": {"variables": [["\udfff", "int", -1]]},
    "a variable of impossible length": {"variables": [["x", "int", -2]]},
    "a variable of a length beyond counting": {"variables": [["x", "int", 1 << 63]]},
    "a variable whose length is no number": {"variables": [["x", "int", None]]},
    "variables that are an object": {"variables": {"x": 1}},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_refused(case: str) -> None:
    parts = dict(IMPOSSIBLE[case])
    observed = Observed(parts.pop("observed", b"printed\noh\n"), b"", 2.5)
    with pytest.raises((TypeError, ValueError)):
        read_turn(changed(**parts), observed)


@given(
    st.sampled_from(Status), st.integers(0, MAX_COUNT), st.floats(0, 2.5), st.text(max_size=9), st.text(max_size=20_000)
)
def test_what_was_written_is_read_again_cut_to_what_may_be(
    status: Status, calls: int, seconds: float, name: str, message: str
) -> None:
    kind = Stop.TRAP if status is Status.ROLLED_BACK else name
    error = None if status is Status.OK else TurnError(kind, message, message)
    turn = Turn(status, "", "", 0, False, seconds, calls, error, (Variable(name, "int", -1),))
    read = read_turn(write_turn(turn), Observed(seconds=2.5))
    assert (read.status, read.running_seconds, read.door_calls, read.variables) == (
        status, seconds, calls, turn.variables,
    )  # fmt: skip
    if error is not None:
        cut = message[:MAX_TRACEBACK]
        assert read.error == TurnError(kind, cut, cut)
    failure = write_failure(1, 2, MemoryError(message))
    assert (read_failure(failure), failure.turn) == (message[:MAX_TRACEBACK], 2)
