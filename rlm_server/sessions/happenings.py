"""What happens in a turn, on its way to a caller who may be slow to read: a queue that is bounded in bytes."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from rlm_server.repl.events import CallFinished, CallTraced, CodeFinished, Printed, TurnRestarted, UntoldCalls
from rlm_server.shares.held import Held, TooMuchHeld
from sandbox.turn import Turn

WAITING_BYTES = 4 << 20
"""Bytes of a turn's calls, and what was traced of them, that have happened and were not read. More are left out."""

EVENT_BYTES = 512
"""Counted for a happening besides its texts."""

PASSAGE_BYTES = 256
"""Counted for a passage that was traced."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The caller read too slowly: so many calls and tracings, and so many characters of output, are not told."""

    events: int
    characters: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A detached turn was taken. Its first happening."""

    turn: str


Happening = Accepted | Printed | TurnRestarted | CallFinished | CallTraced | UntoldCalls | LeftOut | CodeFinished
"""What a caller sees of a turn while it runs; `CodeFinished` is the last."""


class Happenings:
    """Happenings of one turn, in their order, until `end`. What waits to be read is counted in `held`.

    Output is bounded by the turn's own limit, and left out only where the tenant may have no more of the server's
    memory. The result always comes, and before it how much was left out.
    """

    gathers_output = True

    def __init__(self, tenant: str, held: Held) -> None:
        self._tenant, self._held = tenant, held
        self._waiting: deque[tuple[Happening, int]] = deque()
        self._size = 0
        """Bytes that wait, output not counted."""
        self._left_out = LeftOut(0, 0)
        self._news = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, happening: Happening) -> None:
        """Take what has happened."""
        if isinstance(happening, UntoldCalls):
            self._waiting.append((happening, 0))
        elif isinstance(happening, CodeFinished):
            if self._left_out != LeftOut(0, 0):
                self._waiting.append((self._left_out, 0))
            self._waiting.append((happening, 0))
        elif not self._ended:
            self._take(happening, size_of(happening))
        self._news.set()

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more happens; with an error that the turn could not be run, or not to its end."""
        self._ended, self._error = True, error
        self._news.set()

    def close(self) -> None:
        """Let go of what nobody is going to read."""
        self._ended = True
        while self._waiting:
            self._pop()

    async def each(self, quiet_seconds: float | None = None) -> AsyncGenerator[Happening | None, None]:
        """Yield what happens, until the end, and None whenever nothing has for so long.

        Raises:
            Exception: why the turn could not be run, or not to its end.
        """
        while self._waiting or not self._ended:
            if self._waiting:
                yield self._pop()
                continue
            self._news.clear()
            try:
                async with asyncio.timeout(quiet_seconds):
                    await self._news.wait()
            except TimeoutError:
                yield None
        if self._error is not None:
            raise self._error

    def _take(self, happening: Happening, size: int) -> None:
        bounded = 0 if isinstance(happening, Printed) else size
        if self._size + bounded > WAITING_BYTES:
            self._leave_out(happening)
            return
        try:
            self._held.take(self._tenant, size, "what happened in a turn")
        except TooMuchHeld:
            self._leave_out(happening)
            return
        self._size += bounded
        self._waiting.append((happening, size))

    def _leave_out(self, happening: Happening) -> None:
        events, characters = self._left_out.events, self._left_out.characters
        if isinstance(happening, Printed):
            self._left_out = LeftOut(events, characters + len(happening.text))
        else:
            self._left_out = LeftOut(events + 1, characters)

    def _pop(self) -> Happening:
        happening, size = self._waiting.popleft()
        self._size -= 0 if isinstance(happening, Printed) else size
        self._held.give_back(self._tenant, size)
        return happening


def size_of(happening: Happening) -> int:
    """Return the bytes of memory that a happening takes."""
    match happening:
        case Printed() as printed:
            return EVENT_BYTES + sys.getsizeof(printed.text)
        case CallTraced() as traced:
            return EVENT_BYTES + PASSAGE_BYTES * len(traced.passages)
        case CallFinished() as finished:
            return EVENT_BYTES + sys.getsizeof(finished.call.error)
        case CodeFinished() as finished:
            return EVENT_BYTES + size_of_result(finished.result)
    return EVENT_BYTES


def size_of_result(turn: Turn) -> int:
    """Return the bytes of memory that the texts of a result take, what was printed not among them."""
    texts = [] if turn.error is None else [turn.error.type, turn.error.message, turn.error.traceback]
    for variable in turn.variables:
        texts += (variable.name, variable.type)
    return sum(map(sys.getsizeof, texts))


def without_output(finished: CodeFinished) -> CodeFinished:
    """Return a result without what was printed, as it is kept where that is told, or not wanted."""
    return replace(finished, result=replace(finished.result, stdout="", stderr=""))
