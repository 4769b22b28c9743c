"""What a model is told of its reply: what was seen in place of code, and what was not done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from rlm_server.runs.reply.finals import Finals

FINAL_BESIDE_CODE = (
    "The FINAL beside the code of your reply was not taken: it was written before the code had run. Give the answer "
    "in code, or in a reply without code."
)
_KINDS = 5
"""Of blocks, that are told."""
_TOOL = re.compile(
    r"<\|?(?:tool_calls?|function_calls?|function|invoke|tool_use|tool_code|python_tag|execute|code|python|repl)\b"
    r"|^[ \t]*+[\[{][{\s]{0,20}+\"(?:name|tool|tool_calls|function|arguments|action|code|type)\"\s*+:",
    re.MULTILINE | re.IGNORECASE,
)
_INDENTED = re.compile(r"(?:\A|\n[ \t]*+\n)(?: {4}|\t)[ \t]*+\S")
_IN_LINE = re.compile(r"[^\s`~>][ \t]*+(?:`{3}|~{3})")
_QUOTED = re.compile(r"^[ \t]*+>[ \t]*+(?:`{3}|~{3})", re.MULTILINE)


class _Seen(Protocol):
    @property
    def word(self) -> str: ...
    @property
    def empty(self) -> bool: ...


def unread(most: int) -> str:
    """Say that a reply had more blocks than are read."""
    return f"Your reply has more than {most} blocks. What follows these was not read, and did not run."


def beside_repl(word: str, count: int) -> str:
    """Say that blocks beside those marked `repl` did not run."""
    what = f"{count} blocks" if count > 1 else "a block"
    return f"Your reply also had {what} marked `{word[:20]}`: beside `repl` blocks only these run."


def cell(word: str) -> str:
    """Say that a notebook's cell of another language did not run."""
    return f"A `{word}` cell did not run: there is only Python here."


def magics(lines: Iterable[str]) -> str:
    """Say that lines for a notebook did not run."""
    named = ", ".join(f"`{line}`" for line in lines)
    return (
        f"These lines were left out: {named}. There is no shell and no notebook here, and nothing can be installed; "
        "what can be imported is there already."
    )


def instead_of_code(prose: str, blocks: Sequence[_Seen], there: Finals, reasoned: bool, unclosed: bool) -> str:
    """Say what a reply without code has in its place."""
    found = [_named(block) for block in blocks]
    if _QUOTED.search(prose):
        found.append("a block in a quotation (`>`)")
    if _TOOL.search(prose):
        found.append("a call of a tool, and there are none here")
    if _INDENTED.search(prose):
        found.append("an indented block, which is no fenced one")
    if not found and _IN_LINE.search(prose):
        found.append("a fence within a line, where a fence needs a line of its own")
    kinds = list(dict.fromkeys(found))
    what = f"it has {_listed(kinds)}" if kinds else "it has no block at all"
    if unclosed:
        what += "; it opens reasoning that is never closed, and all after that counts as reasoning"
    elif reasoned:
        what += "; the reasoning before it does not count"
    if there.amiss:
        what += f"; it has a FINAL that was not taken, as {there.amiss}"
    return what


def _named(block: _Seen) -> str:
    if not block.word:
        return "a block without a language"
    named = f"`{block.word[:20]}`"
    if block.word.startswith("%%"):
        return f"a {named} cell"
    return f"an empty {named} block" if block.empty else f"a {named} block"


def _listed(kinds: Sequence[str]) -> str:
    shown = [*kinds[:_KINDS], "more"] if len(kinds) > _KINDS else list(kinds)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


EMPTY = "Your reply was empty, so nothing ran. Write code in a block marked `repl`, or give the answer."
REFUSED = (
    "Your reply ended as a refusal, so nothing of it ran. If a part of the text must not be dealt with, leave it out, "
    "go on with the rest, and say so in the answer."
)


def no_code(instead: str) -> str:
    """Say that a reply held no code, and how to write some."""
    return (
        f"Nothing ran, as your reply has no `repl` block with code: {instead}. Code runs from fenced blocks marked "
        "`repl`, with each fence on a line of its own; "
        'to finish, set answer["content"] and answer["ready"] = True in one.'
    )


def cut_off(tokens: int, most: int) -> str:
    """Say that a reply was cut off at so many tokens, of at most `most`."""
    return (
        f"Your reply was cut off at {tokens:,} tokens (a reply may have {most:,}, reasoning included), so nothing of "
        "it ran. Go on in smaller steps: shorter code, with long texts built up in variables over several replies."
    )


def no_name(argument: str) -> str:
    """Say that `FINAL_VAR` was given something else than a name."""
    what = f"not {argument[:60]!r}" if argument else "and there is none in it"
    return f"Your FINAL_VAR(...) was not taken: in plain text it takes the name of a variable, {what}."
