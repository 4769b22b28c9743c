"""Sessions between the server and a worker: how one is brought there, and what comes back after each turn.

Both sides of each frame stand side by side here. Pages themselves are not sent: both have the file they are in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sandbox.checkpoint import Checkpoint
from sandbox.files import Files
from sandbox.instance import Image, Mapped
from sandbox.limits import Limits
from sandbox.memory import PAGE
from sandbox.pages import Change, PageFile
from sandbox.text import Form, Text
from sandbox.turn import Status, Turn, read_turn, write_turn
from sandbox.wire import Frame, Kind, WireError
from sandbox.written_files import read_files, write_files

HandOver = Callable[[int], int]
"""Gives a descriptor to the other side, and returns the number it goes by there."""


def write_text(text: Text, hand_over: HandOver) -> dict[str, Any]:
    """Write a text for a worker.

    Raises:
        OSError: it cannot be opened.
    """
    with text.opened() as fd:
        return {"descriptor": hand_over(fd), "form": text.form.name, "characters": text.characters}


def read_text(said: dict[str, Any], descriptor: HandOver) -> Text:
    """Read a text in the worker; `descriptor` takes the one of a number."""
    return Text(descriptor(said["descriptor"]), Form[said["form"]], said["characters"])


def write_session(number: int, checkpoint: Checkpoint, limits: Limits, hand_over: HandOver) -> Frame:
    """Write a session for a worker.

    Raises:
        OSError: a text of it cannot be opened.
    """
    files, contents = write_files(checkpoint.files)
    written = Change(tuple(checkpoint.pages.table)).encode()
    said = {
        "image": checkpoint.image.name,
        "limits": asdict(limits),
        "size": checkpoint.size,
        "clock": checkpoint.clock_offset,
        "pages": hand_over(checkpoint.pages.fd),
        "written": len(written),
        "files": files,
        "mapped": [[mapped.address, write_text(mapped.text, hand_over)] for mapped in checkpoint.mapped],
    }
    return Frame(Kind.OPEN, number, said=said, data=written + contents)


def read_session(frame: Frame, images: Mapping[str, Image], descriptor: HandOver) -> tuple[Checkpoint, Limits]:
    """Read a session in the worker."""
    said, split = frame.said, frame.said["written"]
    image = images[said["image"]]
    table = Change.decode(frame.data[:split], whole=True).written
    pages = PageFile(descriptor(said["pages"]), table)
    mapped = [Mapped(address, read_text(text, descriptor)) for address, text in said["mapped"]]
    files = read_files(said["files"], frame.data[split:], image.files)
    return Checkpoint(image, said["size"], pages, files, mapped, said["clock"]), Limits(**said["limits"])


def write_end(number: int, request: int, turn: Turn, now: Checkpoint, change: Change, known: Files) -> Frame:
    """Write how a turn ended and what it changed; `known` are the files the server has."""
    written = change.encode()
    said: dict[str, Any] = {
        "turn": write_turn(turn),
        "size": now.size,
        "whole": change.whole,
        "written": len(written),
        "mapped": [mapped.address for mapped in now.mapped],
    }
    if now.files is not known:
        said["files"], contents = write_files(now.files)
        written += contents
    return Frame(Kind.DONE, number, request, said, written)


def take_end(frame: Frame, checkpoint: Checkpoint, attached: Text | None) -> Turn:
    """Take in the server how a turn ended and what it changed; `attached` is the text it was to map.

    Raises:
        WireError: it is nothing a turn can have done; nothing of it is taken.
    """
    said, data = frame.said, frame.data
    try:
        turn = read_turn(said["turn"])
        written = _whole(said["written"], len(data))
        change = Change.decode(data[:written], whole=said["whole"] is True)
        size = _offset(said["size"])
        addresses = [_offset(address) for address in said["mapped"]]
        files = read_files(said["files"], data[written:], checkpoint.files) if "files" in said else None
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise WireError(f"a turn that cannot be read: {error!r}") from None
    if size < checkpoint.size:
        raise WireError("a turn whose memory has shrunk")
    known = [mapped.address for mapped in checkpoint.mapped]
    new = addresses[len(known) :]
    if addresses[: len(known)] != known or len(new) > (attached is not None):
        raise WireError("a turn with texts nobody gave")
    if change.written and (change.written[-1].page + change.written[-1].length) * PAGE > size:
        raise WireError("a turn with pages outside its memory")
    if turn.status is Status.ROLLED_BACK:
        return turn
    checkpoint.pages.take(change)
    checkpoint.size = size
    if attached is not None and new:
        checkpoint.mapped.append(Mapped(new[0], attached))
    if files is not None:
        checkpoint.files = files
    return turn


def _whole(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not within {most}")
    return value


def _offset(value: object) -> int:
    offset = _whole(value, 1 << 32)
    if offset % PAGE:
        raise ValueError(f"{offset} is no offset of a page in guest memory")
    return offset
