"""What a model is told after its code ran: what each block printed, how it ended, and which variables are news."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlm_server.runs.told.environment import Environment
from rlm_server.runs.told.quantities import counted, cut, seconds
from rlm_server.runs.told.variables import Variables
from sandbox.turn import Status, Stop, Turn

FEEDBACK_CHARACTERS = 8_000
"""Shown of one block's output; the middle of a longer one is cut out."""

PRINTED_CHARACTERS = 1 << 20
"""Kept by the program of what one block printed (`rlm_server/repl/guest/_printed.py`): of a longer text both ends."""

ERROR_CHARACTERS = 3_000
"""The same of an exception, with its traceback."""

WAITED_SECONDS = 0.05
"""Waiting for models that took less is not told."""

_TO_DO: dict[str, str] = {
    Stop.TURN_TIME: "Do less in one block: split the work, look for text with `search`, and keep results in variables.",
    Stop.STACK: "Recurse less deep, or use a loop.",
    Stop.EXIT: "Do not exit: the block ends by itself.",
    Stop.WORKER_LOST: "Run it again; if that happens again, do less in one block.",
    Stop.DAMAGED: "Do not replace what runs the code (`builtins`, `sys`, the frames of others).",
    "MemoryError": "`del` what you no longer need, and work on parts of the text, not on copies of all of it.",
}
"""What to do about an end, by its type."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code that ran: what came of it, and how long it waited for what it asked of models, in seconds."""

    code: str
    result: Turn
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Feedback:
    """A message after a turn; `shown` counts the characters of output in it."""

    text: str
    shown: int


def feedback(ran: Sequence[Block], blocks: int, variables: Variables) -> Feedback:
    """Compose what is told of a turn of so many blocks, of which some ran. `variables` are those of the node."""
    parts, shown = [], 0
    kept = sum(block.result.status is not Status.ROLLED_BACK for block in ran)
    for number, block in enumerate(ran, start=1):
        printed = _printed(block.result)
        where = _where(block.result, kept - number + 1)
        out = cut(printed, FEEDBACK_CHARACTERS, where)
        shown += min(len(printed), FEEDBACK_CHARACTERS)
        heading = f"Block {number} of {blocks}" if blocks > 1 else "Your code"
        parts.append("\n".join(filter(None, (f"{heading} {_ending(block, where)}", out, _error(block.result)))))
    if len(ran) < blocks:
        parts.append(f"{counted(blocks - len(ran), 'block')} after it did not run.")
    if ran:
        news = variables.news([block.code for block in ran], ran[-1].result.variables)
        parts.append(f"Variables that are new or changed: {news}")
    return Feedback("\n\n".join(parts), shown)


def after_turn(told: str, environment: Environment) -> str:
    """Compose the message after a turn: what is told of it, and the state of the environment."""
    return "\n\n".join(filter(None, (told, f"Environment:\n{environment.describe()}")))


def call_notes(notes: Mapping[str, int]) -> list[str]:
    """Say what there is to say of model calls of the code, given how many each note is about."""
    return [f"{counted(calls, 'model call')} of your code: {note}." for note, calls in notes.items()]


def _where(result: Turn, index: int) -> str:
    """Say where the whole of an output is: nowhere, where the block was undone."""
    if result.status is Status.ROLLED_BACK:
        return ""
    has = "all of it" if result.output_bytes <= PRINTED_CHARACTERS else "its beginning and its end"
    return f"; `printed[-{index}]`, a str, has {has}"


def _printed(result: Turn) -> str:
    return "\n".join(part.removesuffix("\n") for part in (result.stdout, result.stderr) if part)


def _ending(block: Block, where: str) -> str:
    result = block.result
    printed = len(result.stdout) + len(result.stderr)
    if result.status is Status.ROLLED_BACK:
        return "was stopped and undone: all variables are as they were before it."
    took = f"ran {seconds(result.running_seconds)}"
    if block.waited >= WAITED_SECONDS:
        took += f", waited {seconds(block.waited)} for models,"
    if result.truncated:
        out = f"printed more than is kept here{where}:"
    else:
        out = f"printed {counted(printed, 'character')}:" if printed else "printed nothing."
    if result.status is Status.ERROR:
        return f"{took} and raised an exception; what it had set before is kept. It {out}"
    return f"{took} and {out}"


def _error(result: Turn) -> str:
    error = result.error
    if error is None:
        return ""
    shown = cut(own_lines(error.traceback).rstrip() or f"{error.type}: {error.message}", ERROR_CHARACTERS)
    advice = _TO_DO.get(error.type, "")
    return f"{shown}\n{advice}" if advice else shown


def own_lines(traceback: str) -> str:
    """Leave out of a traceback the frames of libraries, where there are some of the model's own code.

    A frame is a line that names a file, and the lines that are indented deeper below it.
    """
    lines = traceback.splitlines(keepends=True)
    if not any(map(_is_own, lines)):
        return traceback
    kept, own = [], True
    for line in lines:
        if line.startswith('  File "'):
            own = _is_own(line)
        elif not line.startswith("    "):
            own = True
        if own:
            kept.append(line)
    return "".join(kept)


def _is_own(line: str) -> bool:
    return line.startswith('  File "<turn ')
