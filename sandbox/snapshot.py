"""The state of a session between turns: the pages that are its own, its files, and the texts mapped into it.

Between turns no guest frame is on the stack and every global has its first value again, so memory and files are all
there is. One mechanism serves checkpoint, rollback and fork.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandbox import memory
from sandbox.engine import Program
from sandbox.files import Files, Inode, OpenFile
from sandbox.instance import Image, Instance, Mapped
from sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session's state. `runs` names its own pages, (offset, bytes), and `own` holds them one after another."""

    image: Image
    size: int
    runs: tuple[tuple[int, int], ...]
    own: bytes
    files: Files
    mapped: tuple[Mapped, ...]

    @classmethod
    def of(cls, image: Image) -> Snapshot:
        """Return the state of a session that has not run yet."""
        return cls(image, image.size, (), b"", image.files, ())

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        return len(self.own)


def capture(instance: Instance) -> Snapshot:
    """Take the state of an instance that is between turns.

    Raises:
        ValueError: the instance was not made from an image.
    """
    if instance.image is None:
        raise ValueError("only a session made from an image can be captured")
    runs = memory.own_pages(instance.base, instance.size, instance.image.fd)
    whole = instance.view()
    own = b"".join([whole[at : at + size] for at, size in runs])
    return Snapshot(instance.image, instance.size, tuple(runs), own, instance.files.copy(), tuple(instance.mapped))


def restore(program: Program, snapshot: Snapshot, limits: Limits) -> Instance:
    """Make a new instance in the captured state; the snapshot can be used again."""
    files = snapshot.files.copy()
    files.limits = limits
    instance = Instance(program, snapshot.image, limits, files)
    instance.mapped = list(snapshot.mapped)
    instance.grow(snapshot.size)
    for mapped in snapshot.mapped:
        memory.lay_over(instance.base + mapped.address, memory.pages(mapped.text.size), mapped.text.fd)
    whole, own, taken = instance.view(), memoryview(snapshot.own), 0
    for at, size in snapshot.runs:
        whole[at : at + size] = own[taken : taken + size]
        taken += size
    return instance


@dataclass(frozen=True, slots=True)
class Difference:
    """What a holder of one snapshot needs to have a later one.

    `changed` and `gone` are runs of pages, (offset, bytes); `contents` holds the changed ones one after another. A page
    is gone where a text was mapped over it.
    """

    changed: list[tuple[int, int]]
    gone: list[tuple[int, int]]
    contents: bytes


def difference(before: Snapshot, now: Snapshot) -> Difference:
    """Compare two snapshots of one session."""
    old, new = before.own, now.own  # as bytes: memoryviews compare one item at a time
    known = dict(_pages(before))
    changed, places = [], []
    for at, place in _pages(now):
        was = known.pop(at, None)
        if was is None or old[was : was + memory.PAGE] != new[place : place + memory.PAGE]:
            changed.append(at)
            places.append(place)
    contents = b"".join([new[place : place + memory.PAGE] for place in places])
    return Difference(memory.runs(changed), memory.runs(known), contents)


def _pages(snapshot: Snapshot) -> Iterator[tuple[int, int]]:
    """Yield (offset in guest memory, offset in `own`) of every page."""
    taken = 0
    for at, size in snapshot.runs:
        yield from zip(range(at, at + size, memory.PAGE), range(taken, taken + size, memory.PAGE), strict=True)
        taken += size


def write_files(files: Files) -> tuple[dict[str, Any], bytes]:
    """Write files for another process: what there is as JSON, and the contents one after another."""
    numbers: dict[int, int] = {}
    contents: list[bytes] = []

    def number(inode: Inode) -> int:
        if id(inode) not in numbers:
            numbers[id(inode)] = len(contents)
            contents.append(bytes(inode.data))
        return numbers[id(inode)]

    writable = [[path, inode.number, number(inode)] for path, inode in files.writable.items()]
    opened = []
    for fd, file in files.open.items():
        own = file.inode is not None and isinstance(file.inode.data, bytearray)
        held = number(file.inode) if own and file.inode else None
        opened.append([fd, file.path, file.inode.number if file.inode else None, held, file.position, file.append])
    said = {
        "writable": writable,
        "directories": sorted(files.directories),
        "open": opened,
        "next": files.next_number,
        "sizes": [len(content) for content in contents],
    }
    return said, b"".join(contents)


def read_files(said: dict[str, Any], contents: bytes, first: Files) -> Files:
    """Read what `write_files` wrote, over the read-only files of `first`."""
    made = first.copy()
    inodes: list[Inode] = []
    taken = 0
    for size in said["sizes"]:
        inodes.append(Inode(0, bytearray(contents[taken : taken + size])))
        taken += size
    made.writable = {}
    for path, number, held in said["writable"]:
        inodes[held].number = number
        made.writable[path] = inodes[held]
    made.directories = set(said["directories"])
    made.next_number = said["next"]
    made.open = {}
    for fd, path, number, held, position, append in said["open"]:
        inode = first.read_only.get(path) if held is None and number is not None else None
        if held is not None:
            inode = inodes[held]
            inode.number = number
        made.open[fd] = OpenFile(path, inode, position, append)
    return made
