"""Sessions between the server and a worker: how a session is brought there, and what comes back after each turn.

The writer and the reader of each frame stand side by side here. Pages are not sent: both sides have their file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox.corpora.corpus import BLOCK, Corpus
from sandbox.limits import Limits
from sandbox.memory.memory import PAGE
from sandbox.memory.pages import EXTENT_BYTES, Change, PageFile
from sandbox.turn import Status, Turn
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.files import Files
from sandbox.vm.guest_memory import ADDRESSES
from sandbox.vm.instance import Image
from sandbox.vm.mappings import MAX_MAPPED, REGION, Layout, Mapped
from sandbox.wire.files import read_files, write_files
from sandbox.wire.frames import Frame, Kind, WireError
from sandbox.wire.turns import Observed, read_turn, write_turn

HandOver = Callable[[int], int]
"""Gives a descriptor to the other side, and returns the number it goes by there."""


def write_corpus(corpus: Corpus, hand_over: HandOver) -> list[int]:
    """Write a corpus for a worker.

    Raises:
        OSError: a file of it cannot be opened.
    """
    with corpus.opened() as (source, index):
        return [hand_over(source), hand_over(index)]


def read_corpus(header: list[int], descriptor: HandOver) -> Corpus:
    """Read a corpus in the worker. `descriptor` returns the descriptor of a number. Raises `CorpusDamaged`."""
    source, index = map(descriptor, header)
    try:
        return Corpus(source, index)
    except BaseException:
        os.close(source)
        raise
    finally:
        os.close(index)


def write_layout(layout: Layout) -> dict[str, Any]:
    """Write which documents are mapped over memory, and where. The corpora are not included."""
    mapped = [[at.address, at.corpus, at.document] for at in layout.mapped]
    return {"regions": [list(region) for region in layout.regions], "mapped": mapped}


def read_layout(header: dict[str, Any], corpora: tuple[Corpus, ...], size: int) -> Layout:
    """Read which documents are mapped over `size` bytes of memory.

    Raises:
        ValueError, KeyError, TypeError, IndexError: no guest can have such a layout.
    """
    regions = tuple((_whole(address, size), _whole(length, size - address)) for address, length in header["regions"])
    mapped = []
    for address, number, document in header["mapped"]:
        corpus = corpora[_whole(number, len(corpora) - 1)]
        length = corpus.text(_whole(document, len(corpus))).size
        if _whole(address, size - length) % BLOCK:
            raise ValueError(f"{address} is no address of a document")
        mapped.append(Mapped(address, number, document))
    if len(mapped) > MAX_MAPPED + len(corpora) or len(regions) > len(mapped) + ADDRESSES // REGION:
        raise ValueError("more is mapped than may be")
    return Layout(corpora, regions, tuple(mapped))


def write_session(number: int, checkpoint: Checkpoint, limits: Limits, hand_over: HandOver) -> Frame:
    """Write a session for a worker.

    Raises:
        OSError: a file of its corpora cannot be opened.
    """
    files, contents = write_files(checkpoint.files)
    written = Change(tuple(checkpoint.pages.table)).encode()
    header = {
        "image": checkpoint.image.name,
        "limits": asdict(limits),
        "size": checkpoint.size,
        "clock": checkpoint.clock_offset,
        "pages": hand_over(checkpoint.pages.fd),
        "written": len(written),
        "files": files,
        "corpora": [write_corpus(corpus, hand_over) for corpus in checkpoint.layout.corpora],
        "layout": write_layout(checkpoint.layout),
    }
    return Frame(Kind.OPEN, number, header=header, data=written + contents)


def read_session(frame: Frame, images: Mapping[str, Image], descriptor: HandOver) -> tuple[Checkpoint, Limits]:
    """Read a session in the worker."""
    header, split = frame.header, frame.header["written"]
    image = images[header["image"]]
    table = Change.decode(frame.data[:split], whole=True).written
    pages = PageFile(descriptor(header["pages"]), table)
    corpora = tuple(read_corpus(corpus, descriptor) for corpus in header["corpora"])
    layout = read_layout(header["layout"], corpora, header["size"])
    files = read_files(header["files"], frame.data[split:], image.files)
    return Checkpoint(image, header["size"], pages, files, layout, header["clock"]), Limits(**header["limits"])


@dataclass(slots=True)
class SentState:
    """What was already sent to the server of a session, beside its pages. Only changes are sent again."""

    files: Files
    layout: Layout
    seen: list[int] = field(default_factory=list)
    """Of each corpus, the blocks that code has looked at."""


def write_end(session: int, number: int, turn: Turn, now: Checkpoint, change: Change, sent: SentState) -> Frame:
    """Write how the turn of a number ended, and what differs from what was sent before.

    `sent.seen` holds only the new blocks.
    """
    written = change.encode()
    header: dict[str, Any] = {
        "turn": write_turn(turn),
        "size": now.size,
        "whole": change.whole,
        "written": len(written),
    }
    if now.layout is not sent.layout:
        header["corpora"], header["layout"] = len(now.layout.corpora), write_layout(now.layout)
    if any(sent.seen):
        header["seen"] = write_seen(sent.seen)
    if now.files is not sent.files:
        header["files"], contents = write_files(now.files)
        written += contents
    return Frame(Kind.DONE, session, header=header, data=written, turn=number)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a turn ended, and what it changed."""

    turn: Turn
    seen: list[int]
    """For each corpus the blocks that code has looked at, even if the turn was undone."""
    change: Change
    size: int
    layout: Layout
    files: Files | None
    """None where they are as before."""

    def apply(self, checkpoint: Checkpoint) -> None:
        """Apply what it changed to the checkpoint that it was read for. A turn that was undone changes nothing."""
        if self.turn.status is Status.ROLLED_BACK:
            return
        checkpoint.pages.take(self.change)
        checkpoint.size, checkpoint.layout = self.size, self.layout
        if self.files is not None:
            checkpoint.files = self.files


def read_end(
    frame: Frame, checkpoint: Checkpoint, limits: Limits, observed: Observed, attached: Corpus | None = None
) -> Ended:  # fmt: skip
    """Read, in the server, how a turn ended and what it changed of the checkpoint.

    `attached` is the corpus that the turn was to attach. What the worker claims must agree with the session's limits
    and with what was observed of the turn.

    Raises:
        WireError: no turn can have ended like this.
    """
    header, data = frame.header, frame.data
    corpora_sent = checkpoint.layout.corpora + ((attached,) if attached is not None else ())
    try:
        turn = read_turn(header["turn"], observed)
        size = _offset(header["size"])
        written = _whole(header["written"], min(len(data), size // PAGE * EXTENT_BYTES))
        change = Change.decode(data[:written], whole=header["whole"] is True)
        corpora = (
            corpora_sent[: _whole(header["corpora"], len(corpora_sent))]
            if "layout" in header
            else checkpoint.layout.corpora
        )
        layout = read_layout(header["layout"], corpora, size) if "layout" in header else checkpoint.layout
        seen = read_seen(header.get("seen", ()), corpora_sent)
        files = read_files(header["files"], data[written:], checkpoint.files) if "files" in header else None
        if files is not None:
            _check_files(files, checkpoint.files, limits)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise WireError(f"a turn that cannot be read: {error!r:.200}") from None
    if size < checkpoint.size:
        raise WireError("a turn whose memory has shrunk")
    if len(corpora) < len(checkpoint.layout.corpora):
        raise WireError("a turn that has lost a corpus")
    if change.written and (change.written[-1].page + change.written[-1].length) * PAGE > size:
        raise WireError("a turn with pages outside its memory")
    if not checkpoint.pages.holds(change):
        raise WireError("a turn with pages that were not written")
    return Ended(turn, seen, change, size, layout, files)


def _check_files(files: Files, before: Files, limits: Limits) -> None:
    """Refuse files beyond the limits, unless there were as many before: an image may come with more."""
    for what, value, had, limit in (
        ("files", len(files.writable), len(before.writable), limits.files),
        ("descriptors", len(files.open), len(before.open), limits.open_files),
        ("bytes of files", files.used_bytes, before.used_bytes, limits.file_bytes),
    ):
        if value > max(had, limit):
            raise ValueError(f"{value} {what}, the limit is {limit}")


def _whole(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not within {most}")
    return value


def write_seen(seen: Sequence[int]) -> list[str]:
    """Write, for each corpus, a set of its blocks."""
    return [f"{blocks:x}" for blocks in seen]


def read_seen(values: Iterable[object], corpora: Iterable[Corpus]) -> list[int]:
    """Read what `write_seen` wrote. Raises `TypeError` or `ValueError` where it did not."""
    return [_blocks(blocks, corpus.blocks) for blocks, corpus in zip(values, corpora, strict=False)]


def _blocks(value: object, most: int) -> int:
    """Read a set of blocks: the bits of a number in base 16."""
    if not isinstance(value, str) or len(value) > most // 4 + 1:
        raise TypeError(f"blocks that are no text, or are not among {most}")
    blocks = int(value, 16)
    if not 0 <= blocks < 1 << most:
        raise ValueError(f"blocks that are not among {most}")
    return blocks


def _offset(value: object) -> int:
    offset = _whole(value, 1 << 32)
    if offset % PAGE:
        raise ValueError(f"{offset} is no offset of a page in guest memory")
    return offset
