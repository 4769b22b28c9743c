"""A run without a REPL: a text that its root's model reads at once is sent whole, and the reply is the answer.

How much that is comes from the model's window, as the catalog has it. Which of the two a run is is chosen as it
begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.broker.provider import ModelReply
from rlm_server.broker.routes import Route
from rlm_server.contexts.context_table import Content
from rlm_server.ledger import Limit
from rlm_server.runs import closing
from rlm_server.runs.asked import Asked, Strategy
from rlm_server.runs.cuts import size_of
from rlm_server.runs.events import Guard, StrategyChosen
from rlm_server.runs.reply import reader
from rlm_server.runs.told import direct as told
from sandbox.corpora.corpus import Corpus, Kind

COMFORTABLE = 4
"""One of so many parts of a model's window is what a text may have that `auto` has answered directly, as models find
less in what fills their window."""

BESIDES = 8_192
"""Bytes that a direct call has besides its text, its question and what else is asked: rules, and words around them."""

HEADING_BYTES = 220
"""Bytes that the heading of a document has at most, with its number and the beginning of its name."""

_NO_WINDOW = "how much the model {model} reads at once is not known here (context_window)"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model is to read at once: bytes of UTF-8 of the text, and of all that is said besides."""

    text_bytes: int
    besides: int

    @classmethod
    def of(cls, content: Content | None, question: str, asked: Asked) -> Reading:
        """Return what a run would have its model read: a content, if there is one, with headings of its documents."""
        if content is None:
            return cls.of_text(0, question, asked)
        headings = HEADING_BYTES * content.documents if content.kind is Kind.DOCUMENTS else 0
        return cls.of_text(content.size_bytes + headings, question, asked)

    @classmethod
    def of_text(cls, size_bytes: int, question: str, asked: Asked) -> Reading:
        """Return what a run over so many bytes of text would have its model read."""
        return cls(size_bytes, size_of(question) + asked.size + BESIDES)


def refusal(model: str, route: Route, reading: Reading, max_tokens: int) -> str:
    """Say why a text cannot be answered directly, or nothing."""
    if route.context_window is None:
        return _NO_WINDOW.format(model=model)
    most = _most(route, reading, max_tokens)
    if reading.text_bytes <= most:
        return ""
    return (
        f"the text has {reading.text_bytes} bytes, and the model {model} reads {max(0, most)} at once, beside its "
        f"answer (context_window: {route.context_window} tokens)"
    )


def choose(
    strategy: Strategy, model: str, route: Route, reading: Reading, left: Limit, max_tokens: int
) -> StrategyChosen:
    """Choose how a run is answered."""
    if strategy is Strategy.DIRECT:
        return StrategyChosen("direct", "it was asked for")
    if route.context_window is None:
        return StrategyChosen("rlm", _NO_WINDOW.format(model=model))
    part = f"a quarter of what the model {model} reads at once"
    most = min(_most(route, reading, max_tokens), route.context_window * closing.BYTES_A_TOKEN // COMFORTABLE)
    if reading.text_bytes > most:
        return StrategyChosen("rlm", f"the text has {reading.text_bytes} bytes, above {most}: {part}")
    if not closing.covers(reading.text_bytes + reading.besides, max_tokens, left, route.price):
        return StrategyChosen("rlm", "the budget does not cover a call with the whole text")
    return StrategyChosen("direct", f"the text has {reading.text_bytes} bytes, at most {most}: {part}")


def _most(route: Route, reading: Reading, max_tokens: int) -> int:
    """Return the bytes of text that surely fit into a model's window, beside its answer and what else is said."""
    return ((route.context_window or 0) - max_tokens) * closing.BYTES_A_TOKEN - reading.besides


def whole_text(corpus: Corpus) -> str:
    """Return all of a text as a model is sent it: documents with their numbers and names.

    Raises:
        OSError, EOFError: it cannot be read.
    """
    if corpus.kind is not Kind.DOCUMENTS:
        return "".join(piece for text in corpus for piece in text.pieces())
    names = corpus.names.read(0, corpus.names.characters).split("\n")
    return "\n\n".join(
        told.document(number, name, "".join(text.pieces()))
        for number, (name, text) in enumerate(zip(names, corpus, strict=False))
    )


@dataclass(frozen=True, slots=True)
class Read:
    """What a reply is: `said`, without reasoning, and why it is not the answer, for events and for the model."""

    said: str
    nothing: Guard | None = None
    told: str = ""


async def read(reply: ModelReply, max_tokens: int) -> Read:
    """Read a reply that is to be the answer."""
    said = (await reader.spoken(reply.text)).strip()
    if reply.stopped == "length":
        tokens = reply.usage.output if reply.usage is not None else max_tokens
        return Read(said, Guard("cut_off", f"the reply was cut off at {tokens} tokens"), told.cut_off(tokens))
    if reply.stopped == "refusal":
        return Read(said, Guard("refusal", "the model refused to reply"), told.REFUSED)
    if not said:
        return Read("", Guard("no_answer", "the reply is empty"), told.EMPTY)
    return Read(said)
