"""What code gives a child RLM to read: a text, documents, or a part of what the code's own node reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeGuard

from rlm_server.runs.node_context import NodeContext, Origin
from sandbox.corpora.corpus import Corpus, Kind, in_memory, part_of
from sandbox.corpora.text import Form, Text, encode
from sandbox.door import DoorRefusal, Json

_ALIGNED = 4
"""A string of the guest's begins at a multiple of so many bytes."""


Making = tuple[Callable[[], AbstractContextManager[Corpus]], Origin | None]


def child_context(context: Json, parent: NodeContext | None) -> AbstractAsyncContextManager[NodeContext]:
    """Return what a child reads, without a copy where it is part of what its parent reads and can be mapped as it is.

    `context` is a text, a list of texts, or what the guest calls a part of its context:
    `{"document": number, "start": character, "end": character}` or `{"documents": [start, stop, step]}`.

    Raises:
        DoorRefusal: it is none of these, or the part is not there.
    """
    return _made(*_making(context, parent))


@asynccontextmanager
async def _made(
    make: Callable[[], AbstractContextManager[Corpus]], origin: Origin | None
) -> AsyncIterator[NodeContext]:
    with ExitStack() as stack:
        yield NodeContext(await asyncio.to_thread(lambda: stack.enter_context(make())), origin)


def _making(context: Json, parent: NodeContext | None) -> Making:
    if isinstance(context, str):
        return partial(in_memory, [context], Kind.TEXT), None
    if _are_texts(context):
        return partial(in_memory, context, Kind.DOCUMENTS), None
    if isinstance(context, dict) and parent is not None and context.get("corpus") == 0:
        return _documents(context["documents"], parent) if "documents" in context else _part(context, parent)
    raise DoorRefusal("TypeError", "a context must be a text, a list of texts, or part of the context")


def _are_texts(context: Json) -> TypeGuard[list[str]]:
    return isinstance(context, list) and all(isinstance(text, str) for text in context)


def _documents(asked: Any, parent: NodeContext) -> Making:
    corpus = parent.corpus
    if not (isinstance(asked, list) and len(asked) == 3 and all(type(n) is int for n in asked) and asked[2]):
        raise DoorRefusal("TypeError", "documents must be [start, stop, step]")
    numbers = range(*asked)
    if not all(0 <= outermost < len(corpus) for outermost in (*numbers[:1], *numbers[-1:])):
        raise DoorRefusal("IndexError", f"there are {len(corpus)} documents")
    make = lambda: part_of(corpus, [corpus[number] for number in numbers], Kind.DOCUMENTS)  # noqa: E731
    return make, _composed(parent, lambda document: (numbers[document], 0))


def _part(fields: dict[str, Any], parent: NodeContext) -> Making:
    document, start, end = (fields.get(name) for name in ("document", "start", "end"))
    if not (type(document) is int and type(start) is int and type(end) is int):
        raise DoorRefusal("TypeError", "document, start and end must be int")
    if not 0 <= document < len(parent.corpus):
        raise DoorRefusal("IndexError", f"there is no document {document}")
    text = parent.corpus[document]
    if not 0 <= start <= end <= text.characters:
        raise DoorRefusal("IndexError", f"document {document} has {text.characters} characters")
    part = text.part(start, end)

    def make() -> AbstractContextManager[Corpus]:
        if part.offset % _ALIGNED == 0 and _in_its_own_form(part):
            return part_of(parent.corpus, [part], Kind.TEXT)
        return in_memory([part.read(0, part.characters)], Kind.TEXT)

    return make, _composed(parent, lambda _: (document, start))


def _in_its_own_form(part: Text) -> bool:
    """Whether a string of these characters is in this form: it is in the narrowest that has them all."""
    return part.form is Form.ASCII or encode(part.read(0, part.characters))[0] is part.form


def _composed(parent: NodeContext, within: Callable[[int], tuple[int, int]]) -> Origin | None:
    outer = parent.origin
    if outer is None:
        return None

    def origin(document: int) -> tuple[int, int]:
        number, start = within(document)
        of_context, at = outer(number)
        return of_context, at + start

    return origin


def beginning(corpus: Corpus, most: int) -> str:
    """Return the first characters of a corpus, its documents one after another."""
    parts: list[str] = []
    for text in corpus:
        if most <= 0:
            break
        parts.append(text.read(0, most))
        most -= text.characters
    return "\n\n".join(parts)
