"""What code gives a child RLM to read becomes exactly that: texts, documents, and parts of what its own node reads."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.runs.child_context import MAX_BEGINNING, ChildContexts, child_context
from rlm_server.runs.node_context import NodeContext, traced_back, whole_context
from rlm_server.shares.held import TooMuchHeld
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.shares import Shares
from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.corpora.coverage import Range
from sandbox.corpora.text import Form
from sandbox.door import DoorRefusal

AMPLE = Shares.of()
DOCUMENTS = ["the first", "", "größer", "中文", "\U0001f600!", "the last"]


@pytest.fixture
def documents() -> Iterator[NodeContext]:
    """What a node of documents reads, which is the run's context."""
    with parent_of(DOCUMENTS) as parent:
        yield parent


@contextmanager
def parent_of(texts: list[str], kind: Kind = Kind.DOCUMENTS) -> Iterator[NodeContext]:
    with in_memory(texts, kind) as corpus:
        yield whole_context(corpus)


def texts_of(corpus: Corpus) -> list[str]:
    return [text.read(0, text.characters) for text in corpus]


def numbered(numbers: range) -> dict[str, Any]:
    """Documents as the guest names them."""
    return {"corpus": 0, "documents": [numbers.start, numbers.stop, numbers.step]}


def part(document: int, start: int, end: int) -> dict[str, Any]:
    """A part of a text as the guest names it."""
    return {"corpus": 0, "document": document, "start": start, "end": end}


def sharing(held_bytes: int) -> Shares:
    return Shares.of(lambda _: TenantLimits(tenant_held_bytes=held_bytes))


def opened(context: Any, parent: NodeContext | None) -> AbstractAsyncContextManager[NodeContext]:
    """What a child reads, alone, for a tenant who may have as much as it takes."""
    return ChildContexts(AMPLE, "acme").opened(child_context(context, parent))


async def refusal_of(context: Any, parent: NodeContext | None) -> tuple[str, str]:
    with pytest.raises(DoorRefusal) as refusal:
        child_context(context, parent)
    return refusal.value.type, str(refusal.value)


# ---- texts of the code's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["some text", "", "größer", "中文", "\U0001f600"])
async def test_a_text_is_one(text: str) -> None:
    async with opened(text, None) as child:
        assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.TEXT, [text])
        assert list(traced_back(child, 0b1)) == [], "it is not part of the run's context"


@pytest.mark.parametrize("texts", [DOCUMENTS, ["one"], [""], []])
async def test_a_list_of_texts_are_documents(texts: list[str]) -> None:
    async with opened(texts, None) as child:
        assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.DOCUMENTS, texts)
        assert list(traced_back(child, 0b1)) == []


@pytest.mark.parametrize("context", [None, 7, True, ["a", 7], {}, {"corpus": 1, "document": 0, "start": 0, "end": 1}])
async def test_what_is_neither_a_text_nor_part_of_the_context_is_refused(context: Any, documents: NodeContext) -> None:
    refused = ("TypeError", "a context must be a text, a list of texts, or part of the context")
    assert await refusal_of(context, documents) == refused


@pytest.mark.parametrize("context", [numbered(range(0)), part(0, 0, 0)])
async def test_where_a_node_reads_nothing_there_is_no_part_of_that(context: Any) -> None:
    assert (await refusal_of(context, None))[0] == "TypeError"


# ---- documents of the context ----------------------------------------------------------------------------------------

indices = st.none() | st.integers(-8, 8)
texts = st.lists(st.text(st.sampled_from("a\xe9\u4e2d\U0001f600"), max_size=6), max_size=7)


@given(texts, indices, indices, st.none() | st.integers(-3, 3).filter(bool))
async def test_a_slice_of_documents_is_that_of_a_list(
    texts: list[str], start: int | None, stop: int | None, step: int | None
) -> None:
    with parent_of(texts) as parent:
        numbers = range(len(texts))[start:stop:step]
        async with opened(numbered(numbers), parent) as child:
            assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.DOCUMENTS, texts[start:stop:step])
            assert child.corpus.source == parent.corpus.source, "nothing was copied"
            for place, number in enumerate(numbers):
                assert list(traced_back(child, 1 << child.corpus.first_block(place))) == (
                    [Range(number, 0, len(texts[number]))] if texts[number] else []
                )


async def test_a_slice_of_a_slice_is_traced_back_to_the_runs_context(documents: NodeContext) -> None:
    async with (
        opened(numbered(range(0, 6, 2)), documents) as child,  # the documents 0, 2 and 4
        opened(numbered(range(2, 0, -1)), child) as grandchild,  # of these 4 and 2
    ):
        assert texts_of(grandchild.corpus) == [DOCUMENTS[4], DOCUMENTS[2]]
        assert list(traced_back(grandchild, 0b11)) == [Range(4, 0, 2), Range(2, 0, 6)]


@pytest.mark.parametrize("numbers", [range(7), range(6, 7), range(-1, 2), range(2, -3, -1), range(1 << 80)])
async def test_documents_that_are_not_there_are_refused(numbers: range, documents: NodeContext) -> None:
    assert await refusal_of(numbered(numbers), documents) == ("IndexError", "there are 6 documents")


@pytest.mark.parametrize("numbers", [None, 3, "012", [0, 1], [0, 1, 0], [0, 1, 1.0], [0, True, 1], [0, 1, 1, 1]])
async def test_what_are_no_numbers_of_documents_is_refused(numbers: Any, documents: NodeContext) -> None:
    refused = ("TypeError", "documents must be [start, stop, step]")
    assert await refusal_of({"corpus": 0, "documents": numbers}, documents) == refused


# ---- parts of a text -------------------------------------------------------------------------------------------------


@given(st.data(), texts.filter(bool))
async def test_a_part_of_a_text_is_those_characters(data: st.DataObject, texts: list[str]) -> None:
    number = data.draw(st.integers(0, len(texts) - 1))
    start = data.draw(st.integers(0, len(texts[number])))
    end = data.draw(st.integers(start, len(texts[number])))
    with parent_of(texts) as parent:
        async with opened(part(number, start, end), parent) as child:
            assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.TEXT, [texts[number][start:end]])
            assert list(traced_back(child, 0b1)) == ([Range(number, start, end)] if start < end else [])


async def test_a_part_that_can_be_mapped_as_it_is_is_not_copied() -> None:
    with parent_of(["0123456789", "中文" * 10], Kind.DOCUMENTS) as parent:
        async with opened(part(0, 4, 8), parent) as child:
            assert child.corpus.source == parent.corpus.source
        async with opened(part(1, 2, 8), parent) as child:
            assert child.corpus.source == parent.corpus.source
        async with opened(part(0, 3, 8), parent) as child:  # a string begins at a multiple of 4 bytes
            assert child.corpus.source != parent.corpus.source


async def test_a_part_is_in_the_form_that_a_string_of_its_characters_has() -> None:
    with parent_of(["abcd" + "中文中文"], Kind.TEXT) as parent:
        assert parent.corpus[0].form is Form.UCS2
        async with opened(part(0, 0, 4), parent) as child:
            assert (child.corpus[0].form, texts_of(child.corpus)) == (Form.ASCII, ["abcd"])


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (part(6, 0, 0), "there is no document 6"),
        (part(-1, 0, 0), "there is no document -1"),
        (part(0, 0, 10), "document 0 has 9 characters"),
        (part(0, -1, 2), "document 0 has 9 characters"),
        (part(0, 3, 2), "document 0 has 9 characters"),
        (part(1, 0, 1), "document 1 has 0 characters"),
        (part(0, 0, 1 << 80), "document 0 has 9 characters"),
    ],
)
async def test_a_part_that_is_not_there_is_refused(
    context: dict[str, Any], message: str, documents: NodeContext
) -> None:
    assert await refusal_of(context, documents) == ("IndexError", message)


@pytest.mark.parametrize("name", ["document", "start", "end"])
@pytest.mark.parametrize("value", [None, "0", 0.0, False, [0]])
async def test_a_part_without_its_numbers_is_refused(name: str, value: Any, documents: NodeContext) -> None:
    refused = ("TypeError", "document, start and end must be int")
    assert await refusal_of(part(0, 0, 0) | {name: value}, documents) == refused


# ---- the beginning of a text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "expected"),
    [(0, ""), (1, "o"), (3, "one"), (5, "one\n\ntw"), (6, "one\n\ntwo"), (100, "one\n\ntwo\n\nthree")],
)
def test_the_beginning_of_documents_is_that_of_each_after_another(most: int, expected: str) -> None:
    with parent_of(["one", "two", "three"]) as parent:
        assert child_context(numbered(range(3)), parent).beginning(most) == expected
        assert child_context(["one", "two", "three"], None).beginning(most) == expected


def test_the_beginning_of_a_text_or_a_part_is_its_first_characters() -> None:
    with parent_of(["0123中文56789"], Kind.TEXT) as parent:
        assert child_context(part(0, 3, 9), parent).beginning(3) == "3中文"
        assert child_context(part(0, 3, 9), parent).beginning(100) == "3中文567"
    assert child_context("0123", None).beginning(2) == "01"


def test_the_beginning_of_very_many_documents_is_that_of_so_many_of_them() -> None:
    with parent_of(["x"] * (MAX_BEGINNING + 10)) as parent:
        context = child_context(numbered(range(MAX_BEGINNING + 10)), parent)
        assert context.beginning(100_000) == "\n\n".join("x" * MAX_BEGINNING)


# ---- what is made, and counted ---------------------------------------------------------------------------------------

LONG = "x" * 100_003


async def test_children_that_read_the_same_share_it_until_the_last_ends() -> None:
    shares = sharing(150_000)
    held = shares.held
    with parent_of([LONG], Kind.TEXT) as parent:
        contexts = ChildContexts(shares, "acme")
        async with AsyncExitStack() as first, AsyncExitStack() as second:
            one, other = [
                await stack.enter_async_context(contexts.opened(child_context(part(0, 1, 100_001), parent)))
                for stack in (first, second)
            ]
            assert one.corpus is other.corpus
            assert 100_000 < held.of("acme") < 101_000
            await first.aclose()
            assert texts_of(other.corpus) == [LONG[1:100_001]]
        assert held.of("acme") == 0


async def test_children_that_begin_at_once_share_what_one_of_them_makes() -> None:
    shares = sharing(150_000)
    held = shares.held
    with parent_of([LONG], Kind.TEXT) as parent:
        contexts = ChildContexts(shares, "acme")

        async def read() -> Corpus:
            async with contexts.opened(child_context(part(0, 1, 100_001), parent)) as child:
                await asyncio.sleep(0)
                return child.corpus

        assert len({id(corpus) for corpus in await asyncio.gather(*[read() for _ in range(16)])}) == 1
        assert held.of("acme") == 0


async def test_what_would_take_more_than_the_tenant_may_have_is_refused_before_it_is_made() -> None:
    shares = sharing(150_000)
    held = shares.held
    with parent_of([LONG], Kind.TEXT) as parent:
        contexts = ChildContexts(shares, "acme")
        async with contexts.opened(child_context(part(0, 1, 100_001), parent)):
            with pytest.raises(TooMuchHeld, match="tenant_held_bytes"):
                async with contexts.opened(child_context(part(0, 2, 100_001), parent)):
                    pass
            async with contexts.opened(child_context(part(0, 4, 100_001), parent)):
                pass  # which is mapped as it is
        assert held.of("acme") == 0


@pytest.mark.parametrize("context", [LONG, ["x"] * 20_000], ids=["a text", "documents"])
async def test_texts_of_the_codes_own_count_as_what_they_take(context: Any) -> None:
    shares = sharing(1 << 30)
    held = shares.held
    async with ChildContexts(shares, "acme").opened(child_context(context, None)):
        assert held.of("acme") > 100_000
    assert held.of("acme") == 0


async def test_a_slice_of_very_many_documents_takes_an_index_and_no_more() -> None:
    with parent_of(["x"] * 50_000) as parent:
        context = child_context(numbered(range(49_999)), parent)
        assert context.plan()[0] == 17 * 49_999
        tracemalloc.start()
        with context.plan()[1]() as corpus:
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(corpus) == 49_999
        assert peak < 4 * 17 * 50_000


async def test_a_child_that_is_stopped_while_its_text_is_made_leaves_nothing_behind() -> None:
    shares = sharing(1 << 30)
    held = shares.held
    with parent_of([LONG], Kind.TEXT) as parent:
        contexts, files = ChildContexts(shares, "acme"), len(os.listdir("/proc/self/fd"))

        async def read() -> None:
            async with contexts.opened(child_context(part(0, 1, 100_001), parent)):
                raise AssertionError("it was stopped before")

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        assert (held.of("acme"), len(os.listdir("/proc/self/fd"))) == (0, files)
