"""What is stored with a session's state about its turns: which have run, and what came of the last.

So a request that comes again does not run again, also where another server has taken the session up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from rlm_server.repl.events import CodeFinished
from sandbox.turn import Status, Stop, Turn


@dataclass(frozen=True, slots=True)
class RanTurn:
    """A turn that has run: its id, what its request said, and what came of it where that is remembered."""

    turn: str
    content_sha256: str
    result: CodeFinished | None = None


def write(ran: Sequence[RanTurn]) -> bytes:
    """Write turns, the last of them with what came of it, but for what it printed."""
    last = len(ran) - 1
    return _noted.dump_json(
        [
            (one.turn, one.content_sha256, _kept(one.result) if number == last else None)
            for number, one in enumerate(ran)
        ]
    )


def read(notes: Iterable[bytes]) -> list[RanTurn]:
    """Read what was written, the oldest turn first."""
    return [
        RanTurn(turn, content, CodeFinished(_as_it_was(result)) if result is not None else None)
        for note in notes
        for turn, content, result in _noted.validate_json(note)
    ]


def _kept(result: CodeFinished | None) -> Turn | None:
    return None if result is None else replace(result.result, stdout="", stderr="")


def _as_it_was(turn: Turn) -> Turn:
    if turn.status is not Status.ROLLED_BACK or turn.error is None:
        return turn
    return replace(turn, error=replace(turn.error, type=Stop(turn.error.type)))


_noted = TypeAdapter(list[tuple[str, str, Turn | None]])
