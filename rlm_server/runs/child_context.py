"""What code gives a child RLM to read: a text, documents, or a part of what the code's own node reads.

It is checked when it is asked for, and made when a child begins, once for all children that read the same.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeGuard

from rlm_server.repl.document_numbers import part_of_documents
from rlm_server.runs.node_context import NodeContext, Origin
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.corpora.corpus import Corpus, Kind, copy_of, in_memory, part_of, selection_of
from sandbox.corpora.text import Form, Text, narrowest
from sandbox.door import DoorRefusal, Json

_ALIGNED = 4
"""A string of the guest's begins at a multiple of so many bytes."""
_INDEX_BYTES = 17
"""Of the index of a corpus, for a document."""
MAX_BEGINNING = 2_000
"""Documents that the beginning of a corpus is taken from."""


Plan = tuple[int, Callable[[], AbstractContextManager[Corpus]]]
"""How a corpus is made, and the bytes that it takes then."""


@dataclass(frozen=True, slots=True)
class ChildContext:
    """What a child reads, checked and not made. Those with the same `key` are the same."""

    key: Hashable
    plan: Callable[[], Plan]
    """Finds out how it is made. It may read all of it."""
    beginning: Callable[[int], str]
    """Returns so many of its first characters; of documents, one after another."""
    origin: Origin | None = None


def child_context(context: Json, parent: NodeContext | None) -> ChildContext:
    """Return what a child reads, which is no copy where it is part of what its parent reads and can be mapped as it is.

    `context` is a text, a list of texts, or what the guest calls a part of its context:
    `{"document": number, "start": character, "end": character}` or `{"documents": [start, stop, step]}`.

    Raises:
        DoorRefusal: it is none of these, or the part is not there.
    """
    if isinstance(context, str):
        return _own([context], Kind.TEXT)
    if _are_texts(context):
        return _own(context, Kind.DOCUMENTS)
    if isinstance(context, dict) and parent is not None and context.get("corpus") == 0:
        return _documents(context["documents"], parent) if "documents" in context else _part(context, parent)
    raise DoorRefusal("TypeError", "a context must be a text, a list of texts, or part of the context")


def _are_texts(context: Json) -> TypeGuard[list[str]]:
    return isinstance(context, list) and all(isinstance(text, str) for text in context)


def _own(texts: list[str], kind: Kind) -> ChildContext:
    # Python's own size of a text is that of the guest's form, which is Python's too.
    return ChildContext(
        key=object(),
        plan=lambda: (
            sum(map(sys.getsizeof, texts)) + _INDEX_BYTES * len(texts),
            lambda: in_memory(texts, kind),
        ),
        beginning=lambda most: _joined((text[:most] for text in texts), most),
    )


def _documents(asked: Any, parent: NodeContext) -> ChildContext:
    corpus = parent.corpus
    numbers = part_of_documents("documents", asked, len(corpus))

    def beginning(most: int) -> str:
        with corpus.opened() as (source, _):
            texts = (replace(corpus[number], source=source) for number in numbers)
            return _joined((text.read(0, most) for text in texts), most)

    return ChildContext(
        key=(id(corpus), numbers),
        plan=lambda: (
            _INDEX_BYTES * len(numbers),
            lambda: _selected(corpus, numbers),
        ),
        beginning=beginning,
        origin=_composed(parent, lambda document: (numbers[document], 0)),
    )


def _selected(corpus: Corpus, numbers: range) -> AbstractContextManager[Corpus]:
    if corpus.kind is Kind.DOCUMENTS:
        return selection_of(corpus, numbers)
    return part_of(corpus, map(corpus.text, numbers), Kind.DOCUMENTS)


def _part(fields: dict[str, Any], parent: NodeContext) -> ChildContext:
    document, start, end = (fields.get(name) for name in ("document", "start", "end"))
    if not (type(document) is int and type(start) is int and type(end) is int):
        raise DoorRefusal("TypeError", "document, start and end must be int")
    if not 0 <= document < len(parent.corpus):
        raise DoorRefusal("IndexError", f"there is no document {document}")
    text = parent.corpus[document]
    if not 0 <= start <= end <= text.characters:
        raise DoorRefusal("IndexError", f"document {document} has {text.characters} characters")
    part = text.part(start, end)

    def plan() -> Plan:
        if part == text or _can_be_mapped(part):
            return _INDEX_BYTES, lambda: part_of(parent.corpus, [part], Kind.TEXT)
        return part.size, lambda: copy_of(part)

    return ChildContext(
        key=(id(parent.corpus), document, start, end),
        plan=plan,
        beginning=lambda most: part.read(0, most),
        origin=_composed(parent, lambda _: (document, start)),
    )


def _can_be_mapped(part: Text) -> bool:
    """Whether a string of these characters begins where one may, and is in this form: the narrowest that has them."""
    return part.offset % _ALIGNED == 0 and (part.form is Form.ASCII or narrowest(part) is part.form)


def _joined(beginnings: Iterable[str], most: int) -> str:
    """Join the beginnings of documents until there are so many characters of them, or enough documents."""
    parts: list[str] = []
    for beginning in islice(beginnings, MAX_BEGINNING):
        if most <= 0:
            break
        parts.append(beginning[:most])
        most -= len(beginning)
    return "\n\n".join(parts)


def _composed(parent: NodeContext, within: Callable[[int], tuple[int, int]]) -> Origin | None:
    outer = parent.origin
    if outer is None:
        return None

    def origin(document: int) -> tuple[int, int]:
        number, start = within(document)
        of_context, at = outer(number)
        return of_context, at + start

    return origin


@dataclass(slots=True)
class _Made:
    """A corpus of children that are at work, and how many they are."""

    users: int = 0
    corpus: Corpus | None = None
    size: int = 0
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: ExitStack = field(default_factory=ExitStack)

    def fill(self, make: Callable[[], AbstractContextManager[Corpus]]) -> None:
        """Make the corpus. It is there afterwards even where whoever had it made was stopped meanwhile."""
        self.corpus = self.opened.enter_context(make())


class ChildContexts:
    """What the children of a run read: each is made once for all that read it at a time, and counted before it is."""

    def __init__(self, shares: Shares, tenant: str) -> None:
        self._threads, self._held, self._tenant = shares.threads, shares.held, tenant
        self._made: dict[Hashable, _Made] = {}

    @asynccontextmanager
    async def opened(self, context: ChildContext) -> AsyncIterator[NodeContext]:
        """Yield what a child reads, for as long as it does.

        Raises:
            TooMuchHeld: it would take more of the server's memory than the tenant may have.
        """
        made = self._made.setdefault(context.key, _Made())
        made.users += 1
        try:
            async with made.making:
                if made.corpus is None:
                    await self._make(context, made)
            assert made.corpus is not None  # noqa: S101
            yield NodeContext(made.corpus, context.origin)
        finally:
            made.users -= 1
            if not made.users:
                del self._made[context.key]
                made.opened.close()
                self._held.give_back(self._tenant, made.size)

    async def _make(self, context: ChildContext, made: _Made) -> None:
        size, make = await self._threads.run(Purpose.READING, self._tenant, lambda _: context.plan())
        self._held.take(self._tenant, size, "what a child RLM reads")
        made.size = size
        try:
            await self._threads.run(Purpose.READING, self._tenant, lambda _: made.fill(make))
        except BaseException:
            if made.corpus is None:
                self._held.give_back(self._tenant, made.size)
                made.size = 0
            raise
