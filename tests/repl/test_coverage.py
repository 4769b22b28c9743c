"""How much of a text has been looked at, summed up from the blocks that were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.contexts.passages import Passage
from rlm_server.repl import coverage
from rlm_server.repl.coverage import MAX_SENT_RANGES, Coverage, Looked, SentText, summary
from sandbox.corpora import coverage as sets
from sandbox.corpora.corpus import BLOCK, Corpus, Kind, in_memory
from sandbox.corpora.coverage import Range, of_range, of_ranges


def test_of_a_text_the_blocks_that_were_looked_at_count_with_their_characters() -> None:
    with in_memory(["x" * (2 * BLOCK + BLOCK // 2)], Kind.TEXT) as corpus:
        assert summary(corpus, 0b000) == Coverage(0.0, 0, (), more=False)
        assert summary(corpus, 0b001) == Coverage(0.4, 1, (Range(0, 0, BLOCK),))
        assert summary(corpus, 0b101) == Coverage(0.6, 1, (Range(0, 0, BLOCK), Range(0, 2 * BLOCK, 163_840)))
        assert summary(corpus, 0b111) == Coverage(1.0, 1, (Range(0, 0, 163_840),))


def test_of_a_text_of_wide_characters_a_block_has_fewer() -> None:
    with in_memory(["\U0001f600" * BLOCK], Kind.TEXT) as corpus:
        assert summary(corpus, 0b0010) == Coverage(0.25, 1, (Range(0, BLOCK // 4, BLOCK // 2),))


def test_of_documents_those_that_were_looked_at_count() -> None:
    with in_memory(["one", "three", "", "x" * 2 * BLOCK], Kind.DOCUMENTS) as corpus:
        characters = corpus.characters
        assert summary(corpus, 0b10) == Coverage(5 / characters, 1, (Range(1, 0, 5),))
        both = summary(corpus, 0b10 | 1 << corpus.first_block(3))
        assert (both.documents, both.ranges) == (2, (Range(1, 0, 5), Range(3, 0, BLOCK)))


@given(st.lists(st.text(max_size=5), max_size=8), st.data())
def test_the_fraction_is_that_of_the_characters_and_everything_is_all_of_them(
    texts: list[str], data: st.DataObject
) -> None:
    with in_memory(texts, Kind.DOCUMENTS) as corpus:
        looked = data.draw(st.sets(st.sampled_from(range(len(texts))) if texts else st.nothing()))
        blocks = sum(1 << corpus.first_block(number) for number in looked)
        every = sum(map(len, texts))
        found = summary(corpus, blocks)
        if every:
            assert found.fraction == sum(len(texts[number]) for number in looked) / every
        assert found.documents == len([number for number in looked if texts[number]])
        assert summary(corpus, (1 << corpus.blocks) - 1).fraction == 1.0


def test_where_there_is_nothing_to_look_at_everything_has_been() -> None:
    with in_memory([""], Kind.TEXT) as corpus:
        assert summary(corpus, 0).fraction == 1.0


def test_of_many_ranges_the_first_are_told_and_all_of_them_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_RANGES", 2)
    with in_memory(["x"] * 8, Kind.DOCUMENTS) as corpus:
        assert summary(corpus, 0b0000101) == Coverage(0.25, 2, (Range(0, 0, 1), Range(2, 0, 1)), more=False)
        assert summary(corpus, 0b1010101) == Coverage(0.5, 4, (Range(0, 0, 1), Range(2, 0, 1)), more=True)


# ---- as it grows -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0, 1, 5, BLOCK + 7, 3 * BLOCK]), min_size=1, max_size=6), st.data())
def test_what_is_added_little_by_little_sums_up_to_the_same(sizes: list[int], data: st.DataObject) -> None:
    texts = [("x\xe9"[number % 2]) * size for number, size in enumerate(sizes)]
    with in_memory(texts, Kind.DOCUMENTS) as corpus:
        looked, every = Looked(corpus), 0
        for blocks in data.draw(st.lists(st.integers(0, (1 << corpus.blocks) - 1), max_size=5)):
            looked.add(blocks)
            every |= blocks
            assert looked.coverage() == summary(corpus, every)
            assert looked.known == looked.coverage()
        assert looked.blocks == every


def test_only_what_is_new_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = sets.ranges

    def ranges(corpus: Corpus, blocks: int) -> Iterator[Range]:
        asked.append(blocks)
        return real(corpus, blocks)

    with in_memory(["x"] * 8, Kind.DOCUMENTS) as corpus:
        looked = Looked(corpus)
        looked.add(0b1111)
        monkeypatch.setattr(sets, "ranges", ranges)
        looked.add(0b11111)
        looked.add(0b11111)
        assert asked == [0b10000]
        looked.coverage()
        looked.coverage()
        assert asked == [0b10000, 0b11111]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200_000), st.integers(0, 200_000)), max_size=8))
def test_the_blocks_of_ranges_are_those_of_each(found: list[tuple[int, int, int]]) -> None:
    with in_memory(["x" * 200_000, "\u4e2d" * 200_000, "short"], Kind.DOCUMENTS) as corpus:
        parts = [Range(number, min(start, len_of), min(end, len_of)) for number, start, end in found
                 for len_of in (corpus[number].characters,)]  # fmt: skip
        blocks = 0
        for one in parts:
            blocks |= of_range(corpus, one)
        assert of_ranges(corpus, parts) == blocks


def passages(*ranges: tuple[int, int, int]) -> list[Passage]:
    return [Passage(document, start, end, 0) for document, start, end in ranges]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(1, 20)), max_size=40))
def test_what_was_sent_is_counted_once_each_character(sent: list[tuple[int, int, int]]) -> None:
    told = SentText()
    for document, start, length in sent:
        told.add(passages((document, start, start + length)))
    assert told.characters == len({(d, at) for d, start, length in sent for at in range(start, start + length)})
    assert not told.more


def test_of_too_many_parts_the_first_are_counted_and_it_is_said() -> None:
    told = SentText()
    told.add(passages(*((0, 2 * number, 2 * number + 1) for number in range(MAX_SENT_RANGES + 1))))
    assert (told.characters, told.more) == (MAX_SENT_RANGES, True)
