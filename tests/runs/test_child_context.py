"""What code gives a child RLM to read becomes exactly that: texts, documents, and parts of what its own node reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.runs.child_context import beginning, child_context
from rlm_server.runs.node_context import NodeContext, traced_back, whole_context
from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.corpora.coverage import Range
from sandbox.corpora.text import Form
from sandbox.door import DoorRefusal

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


async def refusal_of(context: Any, parent: NodeContext | None) -> tuple[str, str]:
    with pytest.raises(DoorRefusal) as refusal:
        async with child_context(context, parent):
            pass
    return refusal.value.type, str(refusal.value)


# ---- texts of the code's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["some text", "", "größer", "中文", "\U0001f600"])
async def test_a_text_is_one(text: str) -> None:
    async with child_context(text, None) as child:
        assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.TEXT, [text])
        assert list(traced_back(child, 0b1)) == [], "it is not part of the run's context"


@pytest.mark.parametrize("texts", [DOCUMENTS, ["one"], [""], []])
async def test_a_list_of_texts_are_documents(texts: list[str]) -> None:
    async with child_context(texts, None) as child:
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
        async with child_context(numbered(numbers), parent) as child:
            assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.DOCUMENTS, texts[start:stop:step])
            assert child.corpus.source == parent.corpus.source, "nothing was copied"
            for place, number in enumerate(numbers):
                assert list(traced_back(child, 1 << child.corpus.first_block(place))) == (
                    [Range(number, 0, len(texts[number]))] if texts[number] else []
                )


async def test_a_slice_of_a_slice_is_traced_back_to_the_runs_context(documents: NodeContext) -> None:
    async with (
        child_context(numbered(range(0, 6, 2)), documents) as child,  # the documents 0, 2 and 4
        child_context(numbered(range(2, 0, -1)), child) as grandchild,  # of these 4 and 2
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
        async with child_context(part(number, start, end), parent) as child:
            assert (child.corpus.kind, texts_of(child.corpus)) == (Kind.TEXT, [texts[number][start:end]])
            assert list(traced_back(child, 0b1)) == ([Range(number, start, end)] if start < end else [])


async def test_a_part_that_can_be_mapped_as_it_is_is_not_copied() -> None:
    with parent_of(["0123456789", "中文" * 10], Kind.DOCUMENTS) as parent:
        async with child_context(part(0, 4, 8), parent) as child:
            assert child.corpus.source == parent.corpus.source
        async with child_context(part(1, 2, 8), parent) as child:
            assert child.corpus.source == parent.corpus.source
        async with child_context(part(0, 3, 8), parent) as child:  # a string begins at a multiple of 4 bytes
            assert child.corpus.source != parent.corpus.source


async def test_a_part_is_in_the_form_that_a_string_of_its_characters_has() -> None:
    with parent_of(["abcd" + "中文中文"], Kind.TEXT) as parent:
        assert parent.corpus[0].form is Form.UCS2
        async with child_context(part(0, 0, 4), parent) as child:
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
    with in_memory(["one", "two", "three"], Kind.DOCUMENTS) as corpus:
        assert beginning(corpus, most) == expected
