"""The state of a node's environment, as its model is told it: its text, what became of that, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.ledger.amounts import Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.runs.told.quantities import counted, dollars, percent, seconds
from sandbox.corpora.corpus import Corpus, Kind

SHOWN_RANGES = 8
"""Of what was looked at."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How much of a node's text stood in calls of other models. `fraction` is None where that is not known."""

    fraction: float | None = 0.0
    more: bool = False
    """Whether it may have been more than this."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The state of a node's environment.

    `shown` counts the characters of what its code printed that its model was shown.
    """

    turn: int
    max_turns: int
    corpus: Corpus | None
    coverage: Coverage
    depth: int
    max_depth: int
    left: Limit
    calls: int
    seconds_left: float
    shown: int = 0
    sent: Sent = Sent()

    def describe(self) -> str:
        """Say it in lines."""
        left = self.left
        parts = [
            dollars(left.nano_usd) if left.nano_usd is not None else "",
            counted(left.tokens, "token") if left.tokens is not None else "",
            counted(left.calls, "call") if left.calls is not None else "",
            seconds(self.seconds_left),
        ]
        return (
            f"Turn {self.turn} of {self.max_turns}. {self._context()}\n"
            f"Left: {', '.join(part for part in parts if part)}. Model calls made by your code: {self.calls:,}.\n"
            f"Depth {self.depth} of {self.max_depth}"
            + (": rlm_query is answered by llm_query here." if self.depth >= self.max_depth else ".")
        )

    def _context(self) -> str:
        corpus = self.corpus
        if corpus is None:
            return "`context` is empty."
        size = counted(corpus.characters, "character")
        documents = corpus.kind is Kind.DOCUMENTS
        what = f"is a sequence of {counted(len(corpus), 'document')} with {size}" if documents else f"has {size}"
        return (
            f"`context` {what}. Your code has touched {percent(self.coverage.fraction)} of it{self._where(documents)}; "
            f"you were shown {counted(self.shown, 'character')} of what it printed{self._sent()}."
        )

    def _where(self, documents: bool) -> str:
        coverage = self.coverage
        if documents:
            return f", in {counted(coverage.documents, 'document')}"
        shown = ", ".join(f"{one.start:,}-{one.end:,}" for one in coverage.ranges[:SHOWN_RANGES])
        rest = ", ..." if len(coverage.ranges) > SHOWN_RANGES else ""
        return f" (characters {shown}{rest})" if shown else ""

    def _sent(self) -> str:
        if self.sent.fraction is None:
            return ""
        least = "at least " if self.sent.more else ""
        return f"; sub-models were sent {least}{percent(self.sent.fraction)} of it"
