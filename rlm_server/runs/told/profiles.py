"""What models of some families are told besides, as data: a pattern of names, and a sentence or two.

Each says what that family was seen to need. What every model needs is in the rules that all are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

PROFILES: tuple[tuple[str, str], ...] = (
    (
        "*qwen*",
        "Calls are easily made too many: put as much into each prompt as the model reads well, rather than one line, "
        "and first count how many calls a batch will be.",
    ),
    (
        "*deepseek*",
        "Think little before you write code: running it tells more. The code goes into the reply itself.",
    ),
    ("*gpt-oss*", "Write code in the reply itself, in a fenced `repl` block: there are no tools to call."),
    ("*llama*", "Write one short block a reply, and wait for what it printed."),
    ("*mistral*", "Write one short block a reply, and wait for what it printed."),
    ("*gemini*", "Write code in fenced `repl` blocks only: nothing else runs it."),
)
"""By patterns of `fnmatch`, over the name in small letters. All that match are told, in this order."""


def advice(model: str, more: Mapping[str, str]) -> str:
    """Return what a model of this name is told besides: by the table above, and by `more`.

    A pattern of `more` that is one of the table replaces its sentence; an empty sentence takes it away.
    """
    table: dict[str, str] = {**dict(PROFILES), **more}
    return "\n".join(_matching(model.lower(), table.items()))


def _matching(model: str, table: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (sentence for pattern, sentence in table if sentence and fnmatchcase(model, pattern.lower()))
