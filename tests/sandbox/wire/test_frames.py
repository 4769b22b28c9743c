"""Frames arrive whole however they are cut up, and what a worker sends is taken only if it can be."""

from __future__ import annotations

import json
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.corpora.corpus import BLOCK, Corpus, in_memory
from sandbox.corpora.corpus import Kind as CorpusKind
from sandbox.limits import Limits
from sandbox.memory.memory import PAGE, sealed
from sandbox.memory.pages import PageFile
from sandbox.turn import Status, Stop, Turn, TurnError
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.files import CREATE, Files
from sandbox.vm.instance import Image
from sandbox.vm.mappings import Layout, Mapped
from sandbox.wire.files import write_files
from sandbox.wire.frames import MAX_BYTES, MAX_JSON, Channel, Frame, Kind, Parser, WireError, send_descriptor
from sandbox.wire.sessions import read_end
from sandbox.wire.turns import Observed, write_turn

NUMBERS = st.integers(0, (1 << 32) - 1)
SAID = st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=4)
FRAMES = st.builds(Frame, st.sampled_from(Kind), NUMBERS, NUMBERS, SAID, st.binary(max_size=200), NUMBERS)


def written(frame: Frame) -> bytes:
    return b"".join(frame.encode())


def raw(kind: int = Kind.DONE, header: bytes = b"", data_bytes: int = 0, header_bytes: int | None = None) -> bytes:
    said = len(header) if header_bytes is None else header_bytes
    return struct.pack("<BIIIIQ", kind, 1, 1, 1, said, data_bytes) + header


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
    ("header_bytes", "data_bytes"), [(MAX_JSON + 1, 0), ((1 << 32) - 1, 0), (0, MAX_BYTES + 1), (0, (1 << 64) - 1)]
)
def test_a_frame_that_is_too_large_is_an_error_before_any_of_it_is_kept(header_bytes: int, data_bytes: int) -> None:
    with pytest.raises(WireError, match="bytes"):
        Parser().feed(raw(header_bytes=header_bytes, data_bytes=data_bytes))


def test_the_largest_frame_is_no_error() -> None:
    assert Parser().feed(raw(header_bytes=MAX_JSON, data_bytes=MAX_BYTES)) == []


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"{}}", b"\0\0", b"\xff\xff", b"{'a': 1}", b'{"a":}', b"[" * 100_000, b'{"a":NaN}',
        b'{"a":[-Infinity]}',
        b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_json_that_cannot_be_read_is_an_error(header: bytes) -> None:
    with pytest.raises(WireError, match="cannot be read"):
        Parser().feed(raw(header=header))


@pytest.mark.parametrize("header", [b"1", b"null", b'"a"', b"[]", b"true"])
def test_json_that_is_no_object_is_an_error(header: bytes) -> None:
    with pytest.raises(WireError, match="no object"):
        Parser().feed(raw(header=header))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_an_error(piece: bytes) -> None:
    try:
        frames = Parser().feed(piece)
    except WireError:
        return
    assert all(isinstance(frame.header, dict) for frame in frames)


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
        channel.send(Frame(Kind.READY, header={"unconfined": ""}))
        assert Parser().feed(ours.recv(1000)) == [Frame(Kind.READY, header={"unconfined": ""})]
        assert channel.receive(0.001) is None
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            channel.receive()


def test_a_descriptor_that_does_not_come_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    our_descriptors, their_descriptors = socket.socketpair()
    with ours, theirs, our_descriptors, their_descriptors:
        our_descriptors.sendall(b"\1\0\0\0")
        with pytest.raises(WireError, match="descriptor"):
            Channel(theirs, their_descriptors).descriptor(1)


# ---- turns -----------------------------------------------------------------------------------------------------------

SIZE = 16 * PAGE
TURN = write_turn(Turn(Status.OK, "out", "", 3, False, 0.5, 0))


@pytest.fixture
def state() -> Iterator[Checkpoint]:
    image = Image("core", -1, SIZE, Files(Limits(), {}))
    made = Checkpoint(image, SIZE, PageFile(), Files(Limits(), {}), Layout())
    made.pages.fill([(0, 2 * PAGE)], [b"a" * PAGE + b"b" * PAGE])
    yield made
    made.close()


def taken(
    frame: Frame, state: Checkpoint, attached: Corpus | None = None, heard: bytes = b"out"
) -> tuple[Turn, list[int]]:
    """Take a turn of which so much was heard, and which took a second."""
    ended = read_end(frame, state, Limits(), Observed(heard, b"", 1.0), attached)
    ended.apply(state)
    return ended.turn, ended.seen


def extents(*numbers: int) -> bytes:
    return array("I", numbers).tobytes()


def done(data: bytes = b"", /, **header: Any) -> Frame:
    everything = {"turn": TURN, "size": SIZE, "whole": False, "written": len(data)} | header
    return Frame(Kind.DONE, 1, 1, {key: value for key, value in everything.items() if value is not ...}, data)


def seen(state: Checkpoint) -> tuple[Any, ...]:
    return list(state.pages.table), state.size, state.files, state.layout


def test_the_end_of_a_turn_brings_pages_size_and_files(state: Checkpoint) -> None:
    made = Files(Limits(), {})
    made.write(made.at(made.open_path("/tmp/f", CREATE, 0)).inode, 0, b"xyz")
    files, contents = write_files(made)
    data = extents(1, 2, 1, 4, 3, 2)
    turn, _ = taken(done(data + contents, size=2 * SIZE, written=len(data), files=files), state)
    assert turn == Turn(Status.OK, "out", "", 3, False, 0.5, 0)
    assert state.pages.table == [(0, 0, 1), (1, 2, 1), (4, 3, 2)]
    assert state.size == 2 * SIZE
    assert state.files == made


def test_where_all_pages_are_told_of_the_others_are_gone(state: Checkpoint) -> None:
    taken(done(extents(4, 2, 1), whole=True), state)
    assert list(state.pages.table) == [(4, 2, 1)]


def test_a_turn_that_was_undone_changes_nothing(state: Checkpoint) -> None:
    before = seen(state)
    undone = write_turn(Turn(Status.ROLLED_BACK, "", "", 0, False, 0.5, 0, TurnError(Stop.EXIT, "x")))
    turn, _ = taken(done(extents(0, 2, 2), turn=undone, size=2 * SIZE), state, heard=b"")
    assert turn.error is not None
    assert turn.error.type is Stop.EXIT
    assert seen(state) == before


def laid(*mapped: list[Any], regions: object = (), corpora: object = 1) -> dict[str, Any]:
    return {"layout": {"regions": regions, "mapped": mapped}, "corpora": corpora}


@pytest.fixture
def corpus() -> Iterator[Corpus]:
    with in_memory(["x" * 3 * BLOCK], CorpusKind.TEXT) as made:
        yield made


LARGE = 8 * BLOCK


def test_a_corpus_that_was_attached_is_kept_with_its_addresses(state: Checkpoint, corpus: Corpus) -> None:
    taken(done(size=LARGE, **laid([BLOCK, 0, 0], regions=[[PAGE, 7 * BLOCK]])), state, corpus)
    assert state.layout == Layout((corpus,), ((PAGE, 7 * BLOCK),), (Mapped(BLOCK, 0, 0),))


def test_an_attachment_that_failed_keeps_nothing(state: Checkpoint, corpus: Corpus) -> None:
    taken(done(), state, corpus)
    assert state.layout == Layout()


def test_what_was_looked_at_is_told_even_if_the_turn_was_undone(state: Checkpoint, corpus: Corpus) -> None:
    undone = write_turn(Turn(Status.ROLLED_BACK, "", "", 0, False, 0.5, 0, TurnError(Stop.EXIT, "x")))
    _, blocks = taken(done(turn=undone, seen=["9"]), state, corpus, b"")
    assert blocks == [0b1001]
    assert state.layout == Layout()


def changed(at: int, value: Any) -> list[Any]:
    return [*TURN[:at], value, *TURN[at + 1 :]]


FOUR_GIB = 1 << 32
MALFORMED: dict[str, Frame] = {
    **{f"without {key}": done(**{key: ...}) for key in ("turn", "size", "written", "whole")},
    "a turn without its end": done(turn=TURN[:-1]),
    "a turn with too much": done(turn=[*TURN, 1]),
    "turn is an object": done(turn={"status": "ok"}),
    "turn is nothing": done(turn=None),
    "a status that does not exist": done(turn=changed(0, "fine")),
    "an error that is a text": done(turn=changed(5, "x")),
    "an error without a message": done(turn=changed(5, ["a", ""])),
    "variables that are none": done(turn=changed(6, [1])),
    "infinitely much output": done(turn=changed(1, float("inf"))),
    "output that is not a number": done(turn=changed(1, float("nan"))),
    "a memory that has shrunk": done(size=SIZE - PAGE),
    "a size that is not aligned": done(size=SIZE + 1),
    "a negative size": done(size=-PAGE),
    "a size beyond 4 GiB": done(size=FOUR_GIB + PAGE),
    "a size that is a text": done(size=str(SIZE)),
    "a size that is a float": done(size=float(SIZE)),
    "a size that is true": done(size=True),
    "part of a number": done(b"123"),
    "part of an extent": done(extents(1, 2)),
    "an extent of nothing": done(extents(1, 2, 0)),
    "an extent that begins beyond the memory": done(extents(16, 2, 1)),
    "an extent that ends beyond the memory": done(extents(15, 2, 2)),
    "an extent that ends beyond 4 GiB": done(extents((1 << 20) - 1, 2, 2), size=FOUR_GIB),
    "an extent of endless length": done(extents(1, 2, (1 << 32) - 1)),
    "a slot where no file is so long": done(extents(1, (1 << 32) - 1, 1)),
    "a slot where the file has ended": done(extents(1, 1 << 20, 1)),
    "more extents than there are pages": done(extents(*(0, 2, 1) * 17)),
    "pages out of order": done(extents(4, 2, 1, 1, 3, 1)),
    "pages told of twice": done(extents(1, 2, 2, 2, 4, 1)),
    "more extents than came": done(extents(1, 2, 1), written=24),
    "fewer than none": done(extents(1, 2, 1), written=-12),
    "a count that is true": done(extents(1, 2, 1), written=True),
    "a corpus nobody attached": done(size=LARGE, **laid([BLOCK, 0, 0])),
    "files that are no object": done(files=[1]),
    "more files than there may be": done(files={"inodes": [[99, True, 0, 0, 0, 0, 1]],
                                          "writable": [["/tmp", 0]], "next": 102,
                                          "open": [[fd, "/tmp", 0, 0, 0, 0] for fd in range(65)]}),
    "files without contents": done(files={"inodes": [[101, False, 3, 0, 0, 0, 1]], "writable": [["/tmp/f", 0]],
                                          "open": [], "next": 102}),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_turn_is_refused_and_changes_nothing(state: Checkpoint, case: str) -> None:
    before = seen(state)
    with pytest.raises(WireError):
        taken(MALFORMED[case], state)
    assert seen(state) == before


LAID: dict[str, dict[str, Any]] = {
    "an address that is not aligned": laid([BLOCK + PAGE, 0, 0]),
    "a negative address": laid([-BLOCK, 0, 0]),
    "an address beyond the memory": laid([LARGE, 0, 0]),
    "a document that ends beyond the memory": laid([LARGE - BLOCK, 0, 0]),
    "an address that is a float": laid([float(BLOCK), 0, 0]),
    "an address that is a text": laid(["x", 0, 0]),
    "a corpus that is not there": laid([BLOCK, 1, 0]),
    "a corpus before the first": laid([BLOCK, -1, 0]),
    "a document that is not there": laid([BLOCK, 0, 2]),
    "a document without an address": laid([0, 0]),
    "more corpora than there are": laid(corpora=2),
    "corpora that are true": laid(corpora=True),
    "no number of corpora": {"layout": {"regions": [], "mapped": []}},
    "a region beyond the memory": laid(regions=[[0, LARGE + PAGE]]),
    "a region that is a number": laid(regions=[1]),
    "endlessly many regions": laid(regions=[[0, PAGE]] * 10_000),
    "endlessly many documents": laid(*[[BLOCK, 0, 0]] * 10_000),
    "a layout that is a list": {"layout": [], "corpora": 1},
    "blocks that are not there": {"seen": ["40000000"]},
    "blocks before the first": {"seen": ["-1"]},
    "no blocks at all": {"seen": [""]},
    "blocks that are no number": {"seen": ["x"]},
    "blocks that are a number": {"seen": [1]},
    "blocks that are runs": {"seen": [[[0, 1]]]},
    "endlessly many blocks": {"seen": ["f" * 100_000]},
}


@pytest.mark.parametrize("case", LAID)
def test_a_malformed_layout_is_refused_and_changes_nothing(state: Checkpoint, corpus: Corpus, case: str) -> None:
    before = seen(state)
    with pytest.raises(WireError):
        taken(done(size=LARGE, **LAID[case]), state, corpus)
    assert seen(state) == before


def test_a_corpus_is_not_lost(state: Checkpoint, corpus: Corpus) -> None:
    taken(done(size=LARGE, **laid([BLOCK, 0, 0])), state, corpus)
    with pytest.raises(WireError, match="lost"):
        taken(done(size=LARGE, **laid(corpora=0)), state)


SCALARS = st.none() | st.booleans() | st.integers(-PAGE, FOUR_GIB + PAGE) | st.floats() | st.text(max_size=5)
LISTS = st.lists(SCALARS, max_size=3)


PARTS = st.sampled_from(["turn", "size", "written", "whole", "mapped", "files"])


@given(SCALARS | LISTS | st.lists(SCALARS | LISTS, max_size=3), PARTS)
def test_whatever_a_worker_says_it_is_taken_or_refused(value: Any, key: str) -> None:
    frame = done(extents(1, 2, 3), **{key: json.loads(json.dumps(value))})
    state = Checkpoint(Image("core", -1, SIZE, Files(Limits(), {})), SIZE, PageFile(), Files(Limits(), {}), Layout())
    before = seen(state)
    try:
        taken(frame, state)
    except WireError:
        assert seen(state) == before
    assert all(extent.page + extent.length <= state.size // PAGE for extent in state.pages.table)
    state.close()
