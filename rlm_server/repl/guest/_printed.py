"""`printed`: what each block printed, for a program whose author was shown less of it. Runs inside the sandbox."""

import collections
import functools
import io
import sys

import _runner

MOST = 1 << 20
"""Characters that are kept of one block: of a longer text both ends."""

MOST_IN_ALL = 4 << 20
"""Characters that are kept of all blocks: the last ones."""

MOST_BLOCKS = 20

printed = []
"""As the program finds it: a str for each block that ran to its end or raised, the last one last."""


class _Block:
    """What a block has printed so far: its beginning, and after a gap, if any, its end."""

    def __init__(self):
        self.head, self.tail = [], collections.deque()
        self.head_room, self.tail_size, self.cut = MOST // 2, 0, 0

    def add(self, text):
        if self.head_room:
            kept, text = text[: self.head_room], text[self.head_room :]
            self.head.append(kept)
            self.head_room -= len(kept)
        if text:
            self.cut += max(0, len(text) - MOST // 2)
            self.tail.append(text[-(MOST // 2) :])
            self.tail_size += len(self.tail[-1])
            while self.tail_size > MOST // 2:
                first = self.tail.popleft()
                over = min(len(first), self.tail_size - MOST // 2)
                self.tail_size -= over
                self.cut += over
                if over < len(first):
                    self.tail.appendleft(first[over:])

    def text(self):
        gap = [f"\n[... {self.cut} characters not kept ...]\n"] if self.cut else []
        return "".join((*self.head, *gap, *self.tail))


_blocks = collections.deque()
_current = []


def _begin():
    """Before a block: what the one before printed is whole now."""
    if _current:
        _blocks.append(_current.pop().text())
        while len(_blocks) > MOST_BLOCKS or sum(map(len, _blocks)) > MOST_IN_ALL:
            _blocks.popleft()
        printed[:] = _blocks
    _current.append(_Block())


def _forget():
    """Forget every block so far."""
    for kept in (_blocks, _current, printed):
        kept.clear()


def _write(stream, text):
    """Write to a stream as it does, and keep what is written."""
    written = io.TextIOWrapper.write(stream, text)
    if _current:
        _current[0].add(text)
    return written


for _stream in (sys.stdout, sys.stderr):
    _stream.write = functools.partial(_write, _stream)

_runner.before.append(_begin)
_runner.forgetting.append(_forget)
_runner.reserved["printed"] = printed
_runner.internal.add("<_printed>")
