"""What to do with a reply: the code to run, or why there is none to run and what the model is told of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rlm_server.broker.provider import ModelReply
from rlm_server.runs.events import Guard
from rlm_server.runs.reply import reader, seen
from rlm_server.runs.reply.finals import Final
from rlm_server.runs.reply.reader import Choice, Reply
from sandbox.turn import Status, Turn

Execute = Callable[[str], Awaitable[Turn]]
"""Has the guest run code of the server's, unseen by watchers."""

_CHOICE = re.compile(r"\[(\d{1,3}), \[((?:\d{1,7}(?:, )?){0,8})\]\]\n")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a reply.

    `codes` are to run. `told` is for the model, beside what comes of them. `nothing` says why nothing runs, where it is
    not that the answer was given. `said` is the reply as it stays in the conversation: without its reasoning.
    """

    said: str
    codes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    nothing: Guard | None = None


async def decide(reply: ModelReply, max_tokens: int, execute: Execute) -> Decision:
    """Read a reply, and have the guest give the answer that it has in prose."""
    if reply.stopped != "end":
        said = await reader.spoken(reply.text)
        if reply.stopped == "refusal":
            return Decision(said, told=(seen.REFUSED,), nothing=Guard("refusal", "the model refused to reply"))
        tokens = reply.usage.output if reply.usage is not None else max_tokens
        return Decision(
            said,
            told=(seen.cut_off(tokens, max_tokens),),
            nothing=Guard("cut_off", f"the reply was cut off at {tokens} tokens"),
        )
    if not reply.text.strip():
        return Decision("", told=(seen.EMPTY,), nothing=Guard("no_code", "the reply is empty"))
    read = await reader.read(reply.text, lambda programs: _choose(programs, execute))
    if read.codes:
        return Decision(read.spoken, read.codes, read.told)
    if read.finals.final is not None:
        return await _answer(read, read.finals.final, execute)
    nothing = Guard("no_code", "the reply held no code to run")
    return Decision(read.spoken, told=(seen.no_code(read.seen),), nothing=nothing)


async def closing_answer(text: str) -> str | None:
    """Return the answer that a reply is to the request for a last word: what it says, or gives as `FINAL`.

    None where it has code that was to run.
    """
    read = await reader.read(text, reader.first)
    if read.runs:
        return None
    final = read.finals.final
    return final.argument if final is not None and final.name == "FINAL" else read.spoken.strip()


async def _choose(programs: Sequence[str], execute: Execute) -> Choice:
    """Ask the guest which of a block's programs is Python. What it says is a claim, about its own code."""
    turn = await execute(f"__import__('_reply').choose({list(programs)!r})")
    found = _CHOICE.fullmatch(turn.stdout) if turn.status is Status.OK else None
    if found is None or int(found[1]) >= len(programs):
        return Choice()
    last = programs[int(found[1])].count("\n")
    magics = tuple(int(number) for number in found[2].split(", ") if number)
    return Choice(int(found[1]), magics) if all(number <= last for number in magics) else Choice()


async def _answer(read: Reply, final: Final, execute: Execute) -> Decision:
    """Have the guest give an answer that stands in prose, and say why where it does not."""
    if final.name == "FINAL":
        code = f"__import__('_reply').final({final.argument!r})"
    else:
        name = final.argument.strip("\"'`").strip()
        if not name.isidentifier():
            told = seen.no_name(name)
            return Decision(read.spoken, told=(told,), nothing=Guard("no_answer", told))
        code = f"__import__('_reply').final_var({name!r})"
    turn = await execute(code)
    if turn.error is None:
        return Decision(read.spoken)
    told = f"Your {final.name}(...) was not taken: {turn.error.message}"
    return Decision(
        read.spoken, told=(told,), nothing=Guard("no_answer", f"{turn.error.type}: an answer was not taken")
    )
