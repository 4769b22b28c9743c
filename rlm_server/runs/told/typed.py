"""What a model is told of the JSON Schema that its answer must be, and of an answer that is not it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rlm_server.schemas.schema import MAX_VIOLATIONS, Violation


def task(schema: str) -> str:
    """Say what the answer must be, beside the question."""
    return (
        "The answer must be JSON that this JSON Schema takes:\n"
        f"{schema}\n"
        'Give it as a dict, a list or a str of JSON: answer["content"] = {...}, or FINAL({...}) in a block. An answer '
        "that is not what the schema takes comes back to you with what is wrong."
    )


def closing(schema: str) -> str:
    """Say what a closing answer must be."""
    return f"Your whole reply must be JSON, without words around it, that this JSON Schema takes:\n{schema}"


def refused(violations: Sequence[Violation], left: int, *, is_reply: bool = False) -> str:
    """Say why an answer was not taken, and how many more may be given. One may be a whole reply."""
    lines = "\n".join(f"- {violation}" for violation in violations)
    more = " (and perhaps more)" if len(violations) >= MAX_VIOLATIONS else ""
    return (
        f"Your answer was not taken, as the schema does not take it{more}:\n{lines}\n"
        f"{_REPLY_AGAIN if is_reply else _MEND} "
        f"{left} more {'answer' if left == 1 else 'answers'} may be given before the run ends (answer_attempts)."
    )


_MEND = 'answer["content"] still holds it, and answer["ready"] is False again: mend it, and set answer["ready"].'
_REPLY_AGAIN = "Reply with the whole answer again."


def as_text(text: str) -> str:
    """Write a text as JSON."""
    return json.dumps(text, ensure_ascii=False)
