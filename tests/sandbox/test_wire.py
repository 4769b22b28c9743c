"""Frames arrive whole however they are cut up, and what a worker sends is taken only if it can be."""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.files import Files
from sandbox.instance import Image, Mapped
from sandbox.limits import Limits
from sandbox.memory import PAGE, sealed
from sandbox.stored import Stored
from sandbox.text import Form, Text
from sandbox.turn import Status, Turn
from sandbox.wire import MOST_BYTES, MOST_JSON, Channel, Frame, Kind, Parser, WireError, send_descriptor

NUMBERS = st.integers(0, (1 << 32) - 1)
SAID = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=4)
FRAMES = st.builds(Frame, st.sampled_from(Kind), NUMBERS, NUMBERS, SAID, st.binary(max_size=200))


def written(frame: Frame) -> bytes:
    return b"".join(frame.encode())


def raw(kind: int = Kind.DONE, said: bytes = b"", data_bytes: int = 0, said_bytes: int | None = None) -> bytes:
    return struct.pack("<BIIIQ", kind, 1, 1, len(said) if said_bytes is None else said_bytes, data_bytes) + said


# ---- frames ----------------------------------------------------------------------------------------------------------


@given(st.lists(FRAMES, max_size=4), st.data())
def test_frames_arrive_as_they_were_sent_however_they_are_cut_up(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(written, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser, arrived = Parser(), list[Frame]()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived += parser.feed(stream[start:end])
    assert arrived == frames


@given(FRAMES)
def test_a_frame_is_told_of_only_when_its_last_byte_is_there(frame: Frame) -> None:
    stream, parser = written(frame), Parser()
    for at in range(len(stream) - 1):
        assert parser.feed(stream[at : at + 1]) == []
    assert parser.feed(stream[-1:]) == [frame]


@pytest.mark.parametrize("kind", [kind for kind in range(256) if kind not in set(Kind)])
def test_a_kind_that_does_not_exist_is_an_error(kind: int) -> None:
    with pytest.raises(WireError, match=f"kind {kind}"):
        Parser().feed(raw(kind))


@pytest.mark.parametrize(
    ("said_bytes", "data_bytes"), [(MOST_JSON + 1, 0), ((1 << 32) - 1, 0), (0, MOST_BYTES + 1), (0, (1 << 64) - 1)]
)
def test_a_frame_that_is_too_large_is_an_error_before_any_of_it_is_kept(said_bytes: int, data_bytes: int) -> None:
    with pytest.raises(WireError, match="bytes"):
        Parser().feed(raw(said_bytes=said_bytes, data_bytes=data_bytes))


def test_the_largest_frame_is_no_error() -> None:
    assert Parser().feed(raw(said_bytes=MOST_JSON, data_bytes=MOST_BYTES)) == []


@pytest.mark.parametrize(
    "said",
    [
        b"{", b"{}}", b"\0\0", b"\xff\xff", b"{'a': 1}", b'{"a":}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_json_that_cannot_be_read_is_an_error(said: bytes) -> None:
    with pytest.raises(WireError, match="cannot be read"):
        Parser().feed(raw(said=said))


@pytest.mark.parametrize("said", [b"1", b"null", b'"a"', b"[]", b"true", b"NaN"])
def test_json_that_is_no_object_is_an_error(said: bytes) -> None:
    with pytest.raises(WireError, match="no object"):
        Parser().feed(raw(said=said))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_an_error(piece: bytes) -> None:
    try:
        frames = Parser().feed(piece)
    except WireError:
        return
    assert all(isinstance(frame.said, dict) for frame in frames)


# ---- the worker's end ------------------------------------------------------------------------------------------------


def test_a_channel_takes_frames_in_order_and_descriptors_in_any() -> None:
    ours, theirs = socket.socketpair()
    our_descriptors, their_descriptors = socket.socketpair()
    with ours, theirs, our_descriptors, their_descriptors:
        channel = Channel(theirs, their_descriptors)
        for number, content in ((1, b"one"), (2, b"two"), (3, b"three")):
            fd = sealed(content, "test")
            send_descriptor(our_descriptors, number, fd)
            os.close(fd)
        ours.sendall(written(Frame(Kind.PING)) + written(Frame(Kind.EXECUTE, 1, 2, data=b"x")))
        assert channel.receive() == Frame(Kind.PING)
        assert channel.receive() == Frame(Kind.EXECUTE, 1, 2, data=b"x")
        for number, content in ((3, b"three"), (1, b"one"), (2, b"two")):
            got = channel.descriptor(number)
            assert os.pread(got, 10, 0) == content
            os.close(got)
        channel.send(Frame(Kind.READY, said={"unconfined": ""}))
        assert Parser().feed(ours.recv(1000)) == [Frame(Kind.READY, said={"unconfined": ""})]
        ours.shutdown(socket.SHUT_WR)
        assert channel.receive() is None


def test_a_descriptor_that_does_not_come_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    our_descriptors, their_descriptors = socket.socketpair()
    with ours, theirs, our_descriptors, their_descriptors:
        our_descriptors.sendall(b"\1\0\0\0")
        with pytest.raises(WireError, match="descriptor"):
            Channel(theirs, their_descriptors).descriptor(1)


# ---- turns -----------------------------------------------------------------------------------------------------------

SIZE = 16 * PAGE
TURN = asdict(Turn(Status.OK, "out", "", 3, False, 0.5, 0))


def stored() -> Stored:
    return Stored(Image("core", -1, SIZE, Files(Limits(), {})), Limits(), SIZE, {0: b"a" * PAGE, PAGE: b"b" * PAGE})


def done(data: bytes = b"", /, **said: Any) -> Frame:
    whole = {"turn": TURN, "size": SIZE, "runs": [], "gone": [], "mapped": []} | said
    return Frame(Kind.DONE, 1, 1, {key: value for key, value in whole.items() if value is not ...}, data)


def test_the_end_of_a_turn_brings_pages_size_and_files() -> None:
    state = stored()
    files = {"writable": [], "directories": ["/tmp"], "open": [], "next": 100, "sizes": [3]}
    pages = b"c" * PAGE + b"d" * 2 * PAGE
    turn = state.take(
        done(pages + b"xyz", size=2 * SIZE, runs=[[0, PAGE], [4 * PAGE, 2 * PAGE]], gone=[[PAGE, PAGE]], files=files),
        None,
    )
    assert turn == Turn(Status.OK, "out", "", 3, False, 0.5, 0)
    assert state.pages == {0: b"c" * PAGE, 4 * PAGE: b"d" * PAGE, 5 * PAGE: b"d" * PAGE}
    assert (state.size, state.files, state.contents) == (2 * SIZE, files, b"xyz")
    said, data = state.written()
    assert said["runs"] == [(0, PAGE), (4 * PAGE, 2 * PAGE)]
    assert data == pages + b"xyz"


def test_a_text_that_was_attached_is_kept_with_its_address() -> None:
    state, text = stored(), Text(-1, Form.ASCII, 10)
    state.take(done(mapped=[8 * PAGE]), text)
    assert state.mapped == [Mapped(8 * PAGE, text)]


def test_an_attachment_that_failed_keeps_nothing() -> None:
    state = stored()
    state.take(done(), Text(-1, Form.ASCII, 10))
    assert state.mapped == []


FOUR_GIB = 1 << 32
MALFORMED: dict[str, Frame] = {
    **{f"without {key}": done(**{key: ...}) for key in ("turn", "size", "runs", "gone", "mapped")},
    **{
        f"turn without {key}": done(turn={k: v for k, v in TURN.items() if k != key})
        for key in TURN
    },
    "turn is a list": done(turn=[]),
    "turn is nothing": done(turn=None),
    "a status that does not exist": done(turn=TURN | {"status": "fine"}),
    "an error that is a text": done(turn=TURN | {"error": "x"}),
    "an error without a message": done(turn=TURN | {"error": {"type": "a", "traceback": ""}}),
    "variables that are none": done(turn=TURN | {"variables": [1]}),
    "infinitely much output": done(turn=TURN | {"output_bytes": float("inf")}),
    "output that is not a number": done(turn=TURN | {"output_bytes": float("nan")}),
    "a size that is not aligned": done(size=SIZE + 1),
    "a negative size": done(size=-PAGE),
    "a size beyond 4 GiB": done(size=FOUR_GIB + PAGE),
    "a size that is a text": done(size=str(SIZE)),
    "a size that is a float": done(size=float(SIZE)),
    "a size that is true": done(size=True),
    "a run that is not aligned": done(bytes(PAGE), runs=[[1, PAGE]]),
    "a run of half a page": done(bytes(PAGE), runs=[[0, PAGE // 2]]),
    "a run before the memory": done(bytes(PAGE), runs=[[-PAGE, PAGE]]),
    "a run of negative length": done(bytes(PAGE), runs=[[0, -PAGE]]),
    "a run that begins beyond 4 GiB": done(bytes(PAGE), runs=[[FOUR_GIB + PAGE, PAGE]]),
    "a run that begins at 4 GiB": done(bytes(PAGE), runs=[[FOUR_GIB, PAGE]]),
    "a run that ends beyond the memory": done(bytes(2 * PAGE), runs=[[SIZE - PAGE, 2 * PAGE]]),
    "a run longer than 4 GiB": done(bytes(PAGE), runs=[[0, FOUR_GIB + PAGE]]),
    "a run without bytes": done(b"", runs=[[0, PAGE]]),
    "fewer bytes than named": done(bytes(2 * PAGE - 1), runs=[[0, PAGE], [PAGE, PAGE]]),
    "the same pages again and again": done(b"", gone=[[0, 1 << 32], [0, 1 << 32]]),
    "a run of three numbers": done(bytes(PAGE), runs=[[0, PAGE, 1]]),
    "runs that are numbers": done(bytes(PAGE), runs=[0]),
    "runs that are nothing": done(runs=None),
    "gone that is not aligned": done(gone=[[1, PAGE]]),
    "gone that is negative": done(gone=[[-PAGE, PAGE]]),
    "gone beyond 4 GiB": done(gone=[[0, FOUR_GIB + PAGE]]),
    "a text nobody attached": done(mapped=[PAGE]),
    "an address that is a text": done(mapped=["x"]),
    "files that are no object": done(files=[1]),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_turn_is_refused_and_changes_nothing(case: str) -> None:
    state, before = stored(), stored()
    with pytest.raises(WireError):
        state.take(MALFORMED[case], None)
    assert state == before


def test_a_mapped_address_that_is_not_aligned_is_refused() -> None:
    state = stored()
    for address in (1, -PAGE, FOUR_GIB + PAGE, float(PAGE), str(PAGE)):
        with pytest.raises(WireError):
            state.take(done(mapped=[address]), Text(-1, Form.ASCII, 10))
    assert state.mapped == []


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-PAGE, FOUR_GIB + PAGE) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3), max_leaves=8,
), st.sampled_from(["turn", "size", "runs", "gone", "mapped", "files"]))  # fmt: skip
def test_whatever_a_worker_says_it_is_taken_or_refused(value: Any, key: str) -> None:
    frame = done(bytes(PAGE), **{key: json.loads(json.dumps(value))})
    state = stored()
    try:
        state.take(frame, None)
    except WireError:
        assert state == stored()
    assert all(at % PAGE == 0 and 0 <= at < state.size for at in state.pages)
