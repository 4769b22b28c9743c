"""What a node's model is shown: the task, the state of its environment, and what its code printed. Never the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlm_server.ledger.amounts import Limit, usd
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.functions import Functions
from sandbox.corpora.corpus import Corpus, Kind
from sandbox.turn import Status, Turn

SHOWN_RANGES = 8
"""Of what was looked at."""
FEEDBACK_CHARACTERS = 8_000
"""Shown of one block's output; the middle of a longer one is cut out."""

_SYSTEM = """\
You answer a question about a text that is too large to read. The text is the variable `context` in a Python REPL that
you control: a Python str, or, for many documents, a read-only sequence of str (with `.names`; slices are sequences).
You never see it except for what your code prints, so look at it with code.

Write Python in fenced blocks marked `repl`:

```repl
print(len(context), context[:500])
```

The code runs in a sandbox without network or files; variables persist from turn to turn. What it prints comes back to
you, cut to about 8,000 characters, so print little and keep results in variables. The standard library is there.

Besides `context` the code may use:
{functions}

Work in steps: look at how the text is built; plan; select, split or filter with code; ask models about meaning, many
parts at once; combine the results with code; check; answer. Every call costs money; the budget is enforced. Do not set
answer["ready"] in the same block as code whose output you have yet to see.
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """The state of a node's environment, as its model is told it."""

    turn: int
    max_turns: int
    corpus: Corpus | None
    coverage: Coverage
    depth: int
    max_depth: int
    left: Limit
    calls: int
    seconds_left: float

    def describe(self) -> str:
        """Say it in lines."""
        left = self.left
        parts = [
            f"{usd(left.nano_usd)}" if left.nano_usd is not None else "",
            f"{left.tokens:,} tokens" if left.tokens is not None else "",
            f"{left.calls:,} calls" if left.calls is not None else "",
            f"{self.seconds_left:.0f} s",
        ]
        return (
            f"Turn {self.turn} of {self.max_turns}. {self._context()}\n"
            f"Left: {', '.join(part for part in parts if part)}. Model calls made by your code: {self.calls}.\n"
            f"Depth {self.depth} of {self.max_depth}"
            + (": rlm_query is answered by llm_query here." if self.depth >= self.max_depth else ".")
        )

    def _context(self) -> str:
        corpus, coverage = self.corpus, self.coverage
        if corpus is None:
            return "`context` is empty."
        documents = corpus.kind is Kind.DOCUMENTS
        size = f"{corpus.characters:,} characters"
        what = f"is a sequence of {len(corpus):,} documents with {size}" if documents else f"has {size}"
        seen = f"Looked at so far: {coverage.fraction:.1%}"
        if documents:
            return f"`context` {what}. {seen}, in {coverage.documents:,} documents."
        shown = ", ".join(f"{one.start:,}-{one.end:,}" for one in coverage.ranges[:SHOWN_RANGES])
        rest = ", ..." if len(coverage.ranges) > SHOWN_RANGES else ""
        return f"`context` {what}. {seen}" + (f" (characters {shown}{rest})." if shown else ".")


def system(functions: Functions) -> str:
    """Compose the system prompt: the same for every turn of a run, so that providers can cache it."""
    return _SYSTEM.format(functions=functions.prompt)


def task(question: str, environment: Environment) -> str:
    """Compose the first message."""
    return f"Question:\n{question}\n\nEnvironment:\n{environment.describe()}"


def feedback(results: Sequence[Turn], blocks: int, environment: Environment) -> str:
    """Compose the message after a turn: what each block printed, how it ended, and the state of the environment."""
    parts = []
    for i, result in enumerate(results, start=1):
        heading = f"Block {i} of {blocks}" if blocks > 1 else "Your code"
        parts.append(f"{heading} {_ending(result)}\n{_shown(result)}")
    if len(results) < blocks:
        parts.append(f"The {blocks - len(results)} blocks after it did not run.")
    variables = results[-1].variables if results else ()
    named = ", ".join(f"{v.name}: {v.type}" + (f"[{v.length}]" if v.length >= 0 else "") for v in variables[-40:])
    return "\n\n".join([*parts, f"Variables: {named or 'none'}\n\nEnvironment:\n{environment.describe()}"])


def call_notes(notes: Mapping[str, int]) -> list[str]:
    """Say what there is to say of model calls of the code, given how many each note is about."""
    return [f"{calls} model call{'s' if calls != 1 else ''} of your code: {note}." for note, calls in notes.items()]


def _ending(result: Turn) -> str:
    if result.status is Status.OK:
        return f"ran in {result.running_seconds:.2f} s and printed {result.output_bytes} bytes:"
    if result.status is Status.ERROR:
        return "raised an exception; what it had set before is kept:"
    return "was stopped and undone: all variables are as they were before it:"


def _shown(result: Turn) -> str:
    printed = cut("\n".join(part for part in (result.stdout, result.stderr) if part), FEEDBACK_CHARACTERS)
    if result.error is None:
        return printed
    return f"{printed}\n{cut(result.error.traceback or f'{result.error.type}: {result.error.message}', 3000)}"


NO_CODE = (
    'Your reply held no `repl` block, so nothing ran. Write one; to finish, set answer["content"] and '
    'answer["ready"] = True in it.'
)

REPEATED = "You have run this very code before, with the same result. Do something else, or answer."

LAST_WORD = (
    "This was the last turn: the limit is reached. Give your best answer to the question now, as plain text without "
    "code, from what you have seen so far. Say what is uncertain."
)


def cut(text: str, most: int) -> str:
    """Shorten a text to about `most` characters by cutting out its middle, and say how much."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut out ...]\n{text[-half:]}"
