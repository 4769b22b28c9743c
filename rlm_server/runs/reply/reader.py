"""Reads a reply from its beginning to its end: prose, reasoning, and blocks.

Where a block's end is in doubt, the guest is asked which of its possible programs is Python: it is the guest's to
compile what a model wrote. All reading takes time in proportion to the reply.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlm_server.runs.reply import finals, programs, seen
from rlm_server.runs.reply.fences import REPL, Closing, Containers, Opening, closing, outdented
from rlm_server.runs.reply.finals import Finals
from rlm_server.runs.reply.programs import Program
from rlm_server.runs.reply.reasoning import Kind, Mark, marks, without_end_marks

READINGS = 12
"""Possible programs of one block, at most."""
READING_CHARACTERS = 1 << 19
"""Of all possible programs of one block but the first."""
MOST_BLOCKS = 256
"""Blocks of a reply that are read. The model is told that what follows them was not."""
LINES_AT_ONCE, BLOCKS_AT_ONCE = 200, 8
"""Of a reply, what is looked at before others have their turn."""
DOUBTS = 16
"""Blocks of one reply about which the guest is asked, at most. Of others the first reading holds."""
_AHEAD = 64
"""Fences that are looked at in search of a block's possible ends."""
_MULTILINE = re.compile(r"\"\"\"|'''|\\\n*\Z")
"""What a program has before a fence that may be part of it."""
_BLOCK = "\ufffc"
"""Stands in prose for a block."""
_BARE_FINAL = re.compile(r"\s*+FINAL(?:_VAR)?+\s*+\(")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a block's possible programs is Python, and which of its lines, from 0, are a notebook's and are not."""

    number: int = 0
    magics: tuple[int, ...] = ()


Choose = Callable[[Sequence[str]], Awaitable[Choice]]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a reply. `word` is its language as it was written, or the cell of a notebook that it is."""

    word: str
    program: Program
    runs: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self.program.code.strip()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as its author meant it.

    `codes` are to run, in order; `final` is the answer that it gives in prose, where it has no code. `told` is for
    the model. `seen` says what there was in place of code. `spoken` is the reply without its reasoning.
    """

    codes: tuple[str, ...]
    finals: Finals
    told: tuple[str, ...]
    seen: str
    spoken: str
    runs: bool = False
    """Whether a block is marked as code to run, and not only as Python."""


async def read(text: str, choose: Choose) -> Reply:
    """Read a reply. `choose` is asked where only the guest can say which program a block holds.

    Others have their turn every few lines and blocks.
    """
    reader = _Reader(text)
    for _ in reader.look_over():
        await asyncio.sleep(0)
    doubts = DOUBTS
    while (found := reader.next_block(doubting=doubts > 0)) is not None:
        choice = Choice()
        if found.doubtful:
            doubts -= 1
            choice = await choose([one.program.code for one in found.readings])
        reader.take(found, choice)
        if not reader.blocks % BLOCKS_AT_ONCE:
            await asyncio.sleep(0)
    return reader.reply()


async def spoken(text: str) -> str:
    """Return what a model says in a reply: all of it but its reasoning."""
    return (await read(text, first)).spoken


async def first(_: Sequence[str]) -> Choice:
    """Choose the first program of every block: for `read` where no guest can be asked."""
    return Choice()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A program that a block may hold, and the line at which the reply goes on then."""

    program: Program
    after: int


@dataclass(frozen=True, slots=True)
class _Found:
    opening: Opening
    start: int
    readings: tuple[_Reading, ...]
    doubting: bool

    @property
    def doubtful(self) -> bool:
        magic = self.opening.runs and self.readings[0].program.magic
        return self.doubting and (len(self.readings) > 1 or magic)


class _Reader:
    def __init__(self, text: str) -> None:
        text = without_end_marks(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
        self._lines = text.split("\n")
        self._marks: list[Mark] = []
        self._mark = 0
        self._last_closing = -1, 0
        self._fences: list[tuple[int, Closing | None]] = []
        """Lines that begin with a fence: those that may close a block, and (None) those that only open one."""
        self._unread = False
        self._line = 0
        self._at = 0
        self._begin()
        self._reasoned = self._reasoning_open = False

    def look_over(self) -> Iterator[None]:
        """Find the lines with marks and fences, which must be known before the first block. Yields every few lines."""
        for number, line in enumerate(self._lines):
            if number and not number % LINES_AT_ONCE:
                yield
            for mark in marks(line, number):
                self._marks.append(mark)
                if mark.kind is Kind.CLOSING:
                    self._last_closing = mark.line, mark.start
            if line.lstrip(" \t")[:3] in ("```", "~~~"):
                self._fences.append((number, closing(line)))

    @property
    def blocks(self) -> int:
        """How many there were so far."""
        return len(self._blocks)

    def _begin(self) -> None:
        """Begin with what the model says: what came before was none of it."""
        self._prose: list[str] = []
        self._spoken: list[str] = []
        self._blocks: list[Block] = []
        self._containers = Containers()

    # ---- prose and reasoning -------------------------------------------------------------------------------------

    def next_block(self, *, doubting: bool) -> _Found | None:
        """Go on to the next block, or to the end. A block has more readings than one only where they are asked for."""
        if len(self._blocks) >= MOST_BLOCKS and self._line < len(self._lines):
            self._unread = True
            self._spoken += self._lines[self._line :]
            self._line = len(self._lines)
        while self._line < len(self._lines):
            line = self._lines[self._line]
            opening = self._containers.opening(line, self._at)
            if opening is not None:
                found = self._block(opening, doubting=doubting)
                if opening.runs or not self._in_reasoning(found.readings[0].after):
                    return found
                continue
            mark = self._next_mark()
            if mark is None:
                self._say(line[self._at :])
                self._line, self._at = self._line + 1, 0
            else:
                self._pass(mark)
        return None

    def _say(self, text: str) -> None:
        self._prose.append(text)
        self._spoken.append(text)

    def _next_mark(self) -> Mark | None:
        """Return the next mark of this line that says what follows, if there is one."""
        while (mark := self._mark_ahead()) is not None and mark.line == self._line:
            self._mark += 1
            if mark.kind is Kind.CLOSING:
                counts = mark.first or mark.last
            elif mark.kind is Kind.OPENING:
                counts = mark.first or self._last_closing > (mark.line, mark.start)
            else:
                counts = True
            if counts:
                return mark
        return None

    def _mark_ahead(self) -> Mark | None:
        """Return the first mark from here on."""
        while self._mark < len(self._marks):
            mark = self._marks[self._mark]
            if (mark.line, mark.start) >= (self._line, self._at):
                return mark
            self._mark += 1
        return None

    def _in_reasoning(self, end: int) -> bool:
        """Go on behind the mark that closes reasoning, where a fence that was left open in it hides that mark."""
        while (mark := self._mark_ahead()) is not None and mark.line < end:
            if mark.kind is Kind.CLOSING and mark.first and mark.last:
                self._line, self._at = mark.line, 0
                self._begin()
                self._pass(mark)
                return True
            self._mark += 1
        return False

    def _pass(self, mark: Mark) -> None:
        """Go on behind a mark, and behind the reasoning that it opens."""
        before = self._lines[self._line][self._at : mark.start]
        if mark.kind is Kind.CLOSING:
            self._begin()
            self._reasoned = True
        elif before.strip():
            self._say(before)
        self._at = mark.end
        if mark.kind is Kind.OPENING:
            self._skip_to(Kind.CLOSING)
        elif mark.kind is Kind.ASIDE:
            self._skip_to(Kind.END, Kind.MESSAGE, Kind.ASIDE)

    def _skip_to(self, *kinds: Kind) -> None:
        """Skip reasoning, to behind the mark that closes it, or to the next part of the message, or to the end."""
        self._reasoned = True
        while (mark := self._mark_ahead()) is not None:
            self._line, self._at = mark.line, mark.start
            if mark.kind in (Kind.MESSAGE, Kind.ASIDE) and mark.kind in kinds:
                return
            self._at = mark.end
            if mark.kind in kinds:
                return
        self._line, self._reasoning_open = len(self._lines), True

    # ---- blocks --------------------------------------------------------------------------------------------------

    def _block(self, opening: Opening, *, doubting: bool) -> _Found:
        start = self._line + 1
        begin = bisect_left(self._fences, start, key=lambda fence: fence[0])
        first = self._closing(opening, begin)
        readings = [self._reading(opening, start, first)]
        if opening.runs and doubting:
            ahead = self._fences[begin : begin + _AHEAD]
            ends = self._openings_before(ahead, first)
            if _MULTILINE.search(readings[0].program.code):
                ends += [end for end, fence in ahead if end > first and fence is not None and opening.closes(fence)]
            room = READING_CHARACTERS
            for end in ends[: READINGS - 1]:
                reading = self._reading(opening, start, end)
                room -= len(reading.program.code)
                if room < 0:
                    break
                readings.append(reading)
            if first == len(self._lines) > start and self._lines[-1].rstrip().endswith(opening.fence):
                readings.append(self._closed_in_line(opening, start))
        return _Found(opening, self._line, tuple(readings), doubting)

    def _closing(self, opening: Opening, begin: int) -> int:
        """Find the line of the first fence that closes a block, or the end of the reply."""
        for number in range(begin, len(self._fences)):
            line, fence = self._fences[number]
            if fence is not None and opening.closes(fence):
                return line
        return len(self._lines)

    def _openings_before(self, ahead: Sequence[tuple[int, Closing | None]], end: int) -> list[int]:
        """Find the lines in which another block of code opens: the one before it may have been left open."""
        found = []
        for number, fence in ahead:
            if number >= end:
                break
            opening = Containers().opening(self._lines[number].lstrip(" \t"), 0) if fence is None else None
            if opening is not None and opening.runs:
                found.append(number)
        return found

    def _reading(self, opening: Opening, start: int, end: int) -> _Reading:
        ended = end < len(self._lines)
        after = end + 1 if ended and closing(self._lines[end]) is not None else end
        return _Reading(self._program(opening, self._lines[start:end], ended=ended), after)

    def _closed_in_line(self, opening: Opening, start: int) -> _Reading:
        """Read a block whose closing fence stands at the end of its last line."""
        last = self._lines[-1].rstrip()[: -len(opening.fence)]
        return _Reading(self._program(opening, [*self._lines[start:-1], last], ended=True), len(self._lines))

    def _program(self, opening: Opening, lines: list[str], *, ended: bool) -> Program:
        if not opening.runs:
            return Program("\n".join(lines))
        if opening.column:
            lines = [outdented(line, opening.column) for line in lines]
        return programs.program([opening.code, *lines] if opening.code else lines, ended=ended)

    def take(self, found: _Found, choice: Choice) -> None:
        """Take a block in the reading that was chosen, and go on behind it."""
        reading = found.readings[choice.number] if choice.number < len(found.readings) else found.readings[0]
        program, opening = reading.program, found.opening
        if choice.magics:
            taken = [program.code.split("\n")[number].strip()[:60] for number in choice.magics]
            code = programs.without_magics(program.code, list(choice.magics))
            program = replace(program, code=code, told=seen.magics(taken))
        self._spoken += [self._lines[found.start][self._at :], *self._lines[found.start + 1 : reading.after]]
        if not opening.word and (not program.code.strip() or _BARE_FINAL.match(program.code)):
            self._prose += [opening.fence, program.code, opening.fence] if program.code.strip() else [opening.fence]
        else:
            self._prose.append(_BLOCK)
        self._blocks.append(Block(program.cell or opening.word, program, opening.runs and not program.cell))
        self._line, self._at = reading.after, 0

    # ---- the whole -----------------------------------------------------------------------------------------------

    @property
    def spoken(self) -> str:
        """What was said so far."""
        return "\n".join(self._spoken).strip() if self._reasoned else "\n".join(self._spoken)

    def reply(self) -> Reply:
        """Sum up the reply."""
        run, told = self._chosen()
        if self._unread:
            told.append(seen.unread(MOST_BLOCKS))
        prose = "\n".join(self._prose)
        there = finals.find(prose)
        told += [block.program.told for block in run if block.program.told]
        if run and there.stated:
            told.append(seen.FINAL_BESIDE_CODE)
        spoken = self.spoken
        what = seen.instead_of_code(
            prose.replace(_BLOCK, ""), self._blocks, there, self._reasoned, self._reasoning_open
        )
        codes = tuple(block.program.code for block in run)
        runs = any(block.word == REPL for block in run)
        return Reply(codes, there, tuple(dict.fromkeys(told)), what, spoken, runs)

    def _chosen(self) -> tuple[list[Block], list[str]]:
        """Return the blocks that run: those marked `repl`, or where there are none those marked as Python."""
        code = [block for block in self._blocks if block.runs and block.program.code.strip()]
        run = [block for block in code if block.word == REPL] or code
        left = [block for block in code if block.word != REPL] if len(run) < len(code) else []
        told = [seen.beside_repl(left[0].word, len(left))] if left else []
        cells = [block.word for block in self._blocks if block.program.cell]
        if run and cells:
            told.append(seen.cell(cells[0]))
        return run, told
