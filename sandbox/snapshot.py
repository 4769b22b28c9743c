"""The state of a session between turns: the pages that are its own, its files, and the texts mapped into it.

Between turns no guest frame is on the stack and every global has its first value again, so memory and files are all
there is. One mechanism serves checkpoint, rollback and fork.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox import memory
from sandbox.engine import Program
from sandbox.files import Files
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
