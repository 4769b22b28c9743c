"""Reads a model's reply: the code to run, and an answer given outside code.

Patterns take what they can and never give it back (`*+`), so that reading takes time in proportion to the reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ ]{0,3}(`{3,}+|~{3,}+)[ \t]*+(\w*+)[^\n]*+\n(.*?)(?:^[ ]{0,3}\1[`~]*+[ \t]*+$|\Z)", re.DOTALL | re.MULTILINE
)
_FINAL = re.compile(r"^[ \t]*+(FINAL|FINAL_VAR)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's code blocks, in order, and the answer it gives in plain text.

    `final` is the text of `FINAL(...)`, `final_variable` the name in `FINAL_VAR(...)`; both count only where the
    reply has no code, as they may depend on what code has yet to find.
    """

    blocks: tuple[str, ...]
    final: str | None = None
    final_variable: str | None = None


def read(text: str) -> Reply:
    """Read a reply: its `repl` blocks, or where it has none its `python` blocks."""
    fenced = [(language.lower(), code) for _, language, code in _FENCE.findall(text)]
    for languages in (("repl",), ("python", "py")):
        blocks = tuple(code for language, code in fenced if language in languages and code.strip())
        if blocks:
            return Reply(blocks)
    prose = _FENCE.sub("", text).rstrip(" \t")
    final = _FINAL.search(prose)
    if final is None or not prose.endswith(")"):
        return Reply(())
    argument = prose[final.end() : -1].strip()
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "\"'":
        argument = argument[1:-1]
    if final[1] == "FINAL":
        return Reply((), final=argument)
    return Reply((), final_variable=argument) if argument else Reply(())  # no variable has an empty name
