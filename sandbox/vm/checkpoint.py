"""The state of a session after its last finished turn: the pages that are its own, its files, and what is mapped.

Between turns no guest frame is on the stack and every global has its first value again. So memory and files are the
whole state. One mechanism serves rollback, fork, hibernation and a session's move to another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from sandbox.limits import Limits
from sandbox.memory import memory
from sandbox.memory.pages import Change, PageFile
from sandbox.vm import clocks
from sandbox.vm.engine import Program
from sandbox.vm.files import Files
from sandbox.vm.guest_memory import WATCHED_FROM
from sandbox.vm.instance import Image, Instance
from sandbox.vm.mappings import Layout
from sandbox.vm.waiting import Waiting


@dataclass(slots=True)
class Checkpoint:
    """A session's state. Its memory has `size` bytes in all. It owns the file of its pages, but not the corpora."""

    image: Image
    size: int
    pages: PageFile
    files: Files
    layout: Layout
    clock_offset: int = field(default_factory=clocks.new_offset)

    @classmethod
    def of(cls, image: Image) -> Self:
        """Return the state of a session that has not run yet."""
        return cls(image, image.size, PageFile(), image.files, Layout())

    @property
    def private_bytes(self) -> int:
        """Bytes of memory that are the session's own."""
        return len(self.pages) * memory.PAGE

    def capture(self, instance: Instance) -> Change:
        """Take the state of the session's instance after a turn, and return which pages changed."""
        runs, whole = instance.memory.changed_pages()
        change = self.pages.write(instance.memory.base, runs, whole=whole)
        self.pages.take(change)
        self.size = instance.memory.size
        files = instance.changed_files()
        if files is not None:
            self.files = files
        self.layout = instance.mappings.layout
        return change

    def restore(self, program: Program, limits: Limits, waiting: Waiting | None = None) -> Instance:
        """Make an instance in this state. Its guest waits by means of `waiting`.

        Raises:
            EOFError: the file of pages is cut short.
            OSError: a document cannot be opened.
        """
        files = self.files.copy()
        files.limits = limits
        instance = Instance(program, self.image, limits, files, waiting)
        try:
            instance.unnoted.offset = self.clock_offset
            instance.memory.grow(self.size, self.layout.reserved)
            instance.mappings.restore(self.layout)
            self.pages.read_into(instance.memory.view())
            if len(self.pages) > WATCHED_FROM:
                instance.memory.watch()
        except BaseException:
            instance.close()
            raise
        return instance

    def fork(self) -> Checkpoint:
        """Return an independent copy."""
        return replace(self, pages=self.pages.copy(), files=self.files.copy())

    def close(self) -> None:
        """Free the pages."""
        self.pages.close()
