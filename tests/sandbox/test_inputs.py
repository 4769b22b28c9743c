"""What a turn was told by chance is kept as it was noted, and nothing is taken for it that was not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.inputs import (
    BEGUN,
    FULL,
    MAX_LOG,
    MAX_REFUSED,
    OTHER,
    SAME,
    SEED_BYTES,
    WAITED,
    Inputs,
    number,
    read_number,
    read_signed,
    signed,
)

BEGINS = bytes([OTHER, BEGUN]) + number(300) + b"\1"
CLOCKS = number(70 << 2) + signed(-5) + number(1) + number(1 << 48) + number(2 << 2 | 2) + number(0)
WAITS = number(9 << 2 | OTHER) + bytes([WAITED]) + signed(3) + signed(-2) + signed(200) + b"\0"
IN_VAIN = bytes([OTHER, WAITED, 0])
REST = number(5 << 2 | OTHER) + bytes([SAME])
ENDS = number(1 << 2 | OTHER) + bytes([FULL])
ENTRIES = [CLOCKS, WAITS, IN_VAIN, REST]

WRONG = {
    "nothing": b"",
    "no beginning": CLOCKS,
    "a beginning twice": BEGINS + BEGINS,
    "a beginning that is neither": bytes([OTHER, BEGUN, 0, 2]),
    "a beginning with readings before it": number(1 << 2 | OTHER) + BEGINS[1:],
    "something unknown": BEGINS + bytes([OTHER, 4]),
    "a clock that does not say": BEGINS + number(1),
    "a wait that does not end": BEGINS + WAITS[:-1],
    "a number that does not end": BEGINS + number(1) + b"\x80",
    "a number that is too long": BEGINS + number(1) + b"\xff" * 7 + b"\1",
    "readings that are too many": BEGINS + b"\x81" + b"\xff" * 6 + b"\1\1",
    "something after the end": BEGINS + ENDS + CLOCKS,
}


@given(st.integers(0, (1 << 49) - 1))
def test_numbers_are_read_as_they_were_written(value: int) -> None:
    assert read_number(b"x" + number(value), 1) == (value, 1 + len(number(value)))
    for either in value >> 1, -(value >> 1):
        assert read_signed(signed(either), 0) == (either, len(signed(either)))


@given(st.lists(st.sampled_from(ENTRIES)), st.booleans(), st.data())
def test_inputs_are_read_as_they_were_stored_whole_or_piece_by_piece(
    entries: list[bytes], ends: bool, data: st.DataObject
) -> None:
    inputs, pieces = Inputs.new(), list[bytes]()
    for request, entry in enumerate([BEGINS, *entries, *[ENDS] * ends], start=1):
        pieces.append(inputs.note(len(inputs.log), entry, request))
        if data.draw(st.booleans()):
            pieces.append(inputs.refuse(request, b"refused %d" % request))
    again = Inputs(inputs.seed)
    for piece in pieces:
        again.add(piece)
    for read in again, Inputs.from_bytes(inputs.to_bytes()):
        assert (read.seed, read.log, read.complete) == (inputs.seed, inputs.log, not ends)
        assert read.to_bytes() == inputs.to_bytes()


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_entry_is_refused(wrong: bytes) -> None:
    inputs = Inputs.new()
    with pytest.raises(ValueError, match=r"entries|bytes from byte 0"):
        inputs.note(0, wrong, 1)
    assert inputs.log == b""


@pytest.mark.parametrize("wrong", [b"", BEGINS, bytes([OTHER, 4]), number(1), WAITS[:-1], WAITS[1:], ENDS + CLOCKS])
def test_what_is_no_entry_is_refused_behind_others_as_well(wrong: bytes) -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS, 1)
    with pytest.raises(ValueError, match=r"entries|bytes from byte"):
        inputs.note(len(BEGINS), wrong, 2)
    assert inputs.log == BEGINS


@pytest.mark.parametrize("at", [-1, 1, len(BEGINS) - 1, len(BEGINS) + 1, len(BEGINS + CLOCKS) + 1, 1 << 40])
def test_entries_stand_only_behind_others(at: int) -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS + CLOCKS, 1)
    with pytest.raises(ValueError, match=r"entries|bytes from byte"):
        inputs.note(at, WAITS, 2)


def test_a_turn_that_leaves_its_path_drops_what_it_was_told_on_it_and_nothing_before() -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS + CLOCKS, 1)
    for request in 1, 2, 3:
        inputs.refuse(request, b"%d" % request)
    inputs.note(len(BEGINS + CLOCKS), WAITS + ENDS, 4)
    pieces = [inputs.to_bytes(), inputs.note(len(BEGINS + CLOCKS), b"", 2)]
    assert inputs.log == BEGINS + CLOCKS
    assert inputs.complete
    assert [inputs.refusal(request) for request in (1, 2, 3)] == [b"1", None, None]
    inputs.note(len(inputs.log), REST, 3)
    again = Inputs.from_bytes(pieces[0])
    again.add(pieces[1])
    assert again.log + REST == inputs.log


def test_a_log_is_bounded() -> None:
    inputs = Inputs.new()
    room = (MAX_LOG - len(BEGINS)) // len(IN_VAIN)
    inputs.note(0, BEGINS + IN_VAIN * room, 1)
    with pytest.raises(ValueError, match="3 bytes from byte"):
        inputs.note(len(inputs.log), IN_VAIN, 2)


def test_refusals_are_bounded_and_it_is_told_where_one_was_not_noted() -> None:
    inputs = Inputs.new()
    assert inputs.refuse(1, b"x" * (MAX_REFUSED - 1))
    assert inputs.complete
    assert inputs.refuse(2, b"xx") == b""
    assert inputs.refusal(2) is None
    assert not inputs.complete
    assert not Inputs.from_bytes(inputs.to_bytes()).complete


def test_a_seed_has_one_length() -> None:
    assert len({Inputs.new().seed for _ in range(100)}) == 100
    for size in 0, SEED_BYTES - 1, SEED_BYTES + 1:
        with pytest.raises(ValueError, match=f"{size} bytes, not 32"):
            Inputs(bytes(size))


def test_whatever_else_is_stored_is_refused_or_read_as_inputs() -> None:
    inputs = Inputs.new()
    inputs.note(0, BEGINS + CLOCKS + WAITS, 1)
    inputs.refuse(3, b"no")
    stored = inputs.to_bytes()
    for size in range(len(stored) - 1):
        if size not in (2 + SEED_BYTES, len(stored) - 15):  # where a piece ends
            with pytest.raises(ValueError, match=r"."):
                Inputs.from_bytes(stored[:size])
    chance = random.Random(1)
    refused = 0
    for _ in range(2000):
        altered = bytearray(stored)
        altered[chance.randrange(len(stored))] ^= 1 << chance.randrange(8)
        try:
            read = Inputs.from_bytes(bytes(altered))
        except ValueError:
            refused += 1
        else:
            assert len(read.log) <= MAX_LOG
    assert 0 < refused < 2000
    for piece in (b"", b"x", bytes(9), bytes([2]) + bytes(8) + b"x"):
        with pytest.raises(ValueError, match=r"."):
            inputs.add(piece)
