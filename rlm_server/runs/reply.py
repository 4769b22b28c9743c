"""Reads a model's reply: the code to run, and an answer given outside code."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ ]{0,3}\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_FINAL = re.compile(r"^[ \t]*(FINAL|FINAL_VAR)\((.*)\)[ \t]*\Z", re.DOTALL | re.MULTILINE)


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
    for wanted in (("repl",), ("python", "py")):
        blocks = tuple(code for language, code in fenced if language in wanted and code.strip())
        if blocks:
            return Reply(blocks)
    found = _FINAL.search(_FENCE.sub("", text))
    if found is None:
        return Reply(())
    given = found[2].strip()
    unquoted = given[1:-1] if len(given) > 1 and given[0] == given[-1] and given[0] in "\"'" else given
    if found[1] == "FINAL":
        return Reply((), final=unquoted)
    return Reply((), final_variable=unquoted) if unquoted else Reply(())  # no variable has an empty name
