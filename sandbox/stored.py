"""A session as the server keeps it: enough to bring it back in any worker process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox import memory
from sandbox.instance import Image, Mapped
from sandbox.limits import Limits
from sandbox.snapshot import write_files
from sandbox.text import Text
from sandbox.turn import Turn, read_turn
from sandbox.wire import Frame, WireError


@dataclass(slots=True)
class Stored:
    """The last checkpoint of a session. `pages` are its own pages of memory, by their offset."""

    image: Image
    limits: Limits
    size: int
    pages: dict[int, bytes] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    contents: bytes = b""
    mapped: list[Mapped] = field(default_factory=list)

    @classmethod
    def of(cls, image: Image, limits: Limits) -> Stored:
        """Return a session that has not run yet."""
        files, contents = write_files(image.files)
        return cls(image, limits, image.size, files=files, contents=contents)

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        return len(self.pages) * memory.PAGE

    def written(self) -> tuple[dict[str, Any], bytes]:
        """Write the state for a worker: what it is as JSON, and the pages and file contents one after another."""
        offsets = sorted(self.pages)
        runs = memory.runs(offsets)
        said: dict[str, Any] = {"image": self.image.name, "limits": asdict(self.limits)}
        said |= {"size": self.size, "runs": runs, "files": self.files}
        return said, b"".join([*(self.pages[at] for at in offsets), self.contents])

    def take(self, frame: Frame, attached: Text | None) -> Turn:
        """Take the end of a turn: the pages that changed, and how it ended.

        Raises:
            WireError: the worker sent something that cannot be.
        """
        said, data = frame.said, memoryview(frame.data)
        try:
            turn = read_turn(said["turn"])
            runs, gone = ([(_offset(at), _offset(size)) for at, size in said[name]] for name in ("runs", "gone"))
            size, addresses = _offset(said["size"]), [_offset(address) for address in said["mapped"]]
            files = dict(said["files"]) if "files" in said else None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WireError(f"a turn that cannot be read: {error!r}") from None
        taken, dropped = (sum(length for _, length in pages) for pages in (runs, gone))
        if taken > len(data) or len(addresses) > len(self.mapped) + (attached is not None):
            raise WireError("a turn without the pages it names")
        if dropped > 1 << 32 or any(start + length > size for start, length in runs):
            raise WireError("a turn with pages outside its memory")
        for start, length in gone:
            for offset in range(0, length, memory.PAGE):
                self.pages.pop(start + offset, None)
        self._take_pages(runs, data)
        self.size = size
        if attached is not None and len(addresses) > len(self.mapped):
            self.mapped.append(Mapped(addresses[-1], attached))
        if files is not None:
            self.files, self.contents = files, bytes(data[taken:])
        return turn

    def _take_pages(self, runs: list[tuple[int, int]], data: memoryview) -> None:
        at = 0
        for start, length in runs:
            for offset in range(0, length, memory.PAGE):
                self.pages[start + offset] = bytes(data[at : at + memory.PAGE])
                at += memory.PAGE


def _offset(value: object) -> int:
    if type(value) is not int or value % memory.PAGE or not 0 <= value <= 1 << 32:
        raise ValueError(f"{value!r} is no offset in guest memory")
    return value
