"""A count says how many matches a search finds, of any size, whatever the place where it is divided."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.contexts import count as counting
from rlm_server.contexts.around import around_matches
from rlm_server.contexts.count import Count
from rlm_server.contexts.search import Match, PatternRefused, search
from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.corpora.text import Form
from tests.contexts.test_search import PATTERNS, texts, tiny


def counted(corpus: Corpus, pattern: str, documents: list[int] | None = None) -> int:
    count = Count.of(corpus, pattern, documents)
    joined = count.joined([count.tally(part) for part in range(len(count.parts))])
    assert not joined.stopped
    return joined.matches


def found(corpus: Corpus, pattern: str, documents: list[int] | None = None) -> int:
    return len(search(corpus, pattern, documents, 1_000_000).matches)


class TestCount:
    """It is what a search finds."""

    @given(documents=st.lists(st.sampled_from(Form).flatmap(texts), min_size=1, max_size=4), data=st.data())
    @settings(max_examples=300)
    def test_it_is_divided_anywhere_and_comes_to_the_same(self, documents: list[str], data: st.DataObject) -> None:
        literals = st.sampled_from(["a", "aa", "ab", "aba", "k_", "\xe9", "\u4e2da", "b b", r"\.", "\n"])
        pattern = data.draw(PATTERNS | literals)
        with tiny(), pytest.MonkeyPatch.context() as patch, in_memory(documents, Kind.DOCUMENTS) as corpus:
            patch.setattr(counting, "DIVIDED_FROM", 0)
            patch.setattr(counting, "PIECE", 16)
            patch.setattr(counting, "KEPT", data.draw(st.integers(0, 3)))
            assert len(Count.of(corpus, pattern, None).parts) == 2
            assert counted(corpus, pattern) == found(corpus, pattern)

    @pytest.mark.parametrize("text", ["a" * 1001, "ab" * 500 + "a", "aaab" * 300, "\xe9a\xe9" * 400, "\u4e2d" * 999])
    @pytest.mark.parametrize("pattern", ["aa", "aba", "a+", "a{3}", "(?:aa)+", r"\xe9", "a*", r"\b", "\u4e2d\u4e2d"])
    def test_matches_that_reach_over_the_middle_are_counted_once(
        self, text: str, pattern: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(counting, "DIVIDED_FROM", 0)
        with in_memory([text], Kind.TEXT) as corpus:
            assert counted(corpus, pattern) == found(corpus, pattern)

    @pytest.mark.parametrize("pattern", ["the", "th.", "T|t", "needle", "aa"])
    def test_it_is_what_python_counts_in_a_large_text(self, pattern: str) -> None:
        text = "all the needles in the hay, aaaa aaa\n" * 600_000
        with in_memory([text], Kind.TEXT) as corpus:
            assert len(Count.of(corpus, pattern, None).parts) == 2
            assert counted(corpus, pattern) == len(re.findall(pattern, text))

    def test_only_the_documents_that_are_asked_for_are_counted(self) -> None:
        with in_memory(["a", "aa", "", "aaa"], Kind.DOCUMENTS) as corpus:
            assert counted(corpus, "a") == 6
            assert counted(corpus, "a", [3, 0, 3]) == 4
            assert counted(corpus, "a", []) == 0
            with pytest.raises(IndexError, match="no document 4"):
                Count.of(corpus, "a", [4])
            with pytest.raises(PatternRefused):
                Count.of(corpus, "(a", None)

    @pytest.mark.parametrize("pattern", ["a", "[ab]"])
    def test_it_can_be_stopped_and_then_is_no_count(self, pattern: str) -> None:
        with in_memory(["a" * 100], Kind.TEXT) as corpus:
            count = Count.of(corpus, pattern, None)
            stopped = count.tally(0, lambda: True)
            assert stopped.stopped
            assert count.joined([stopped]).stopped


class TestFollowingMatches:
    """A search goes on after the matches it has returned, and finds what one search would."""

    @given(
        documents=st.lists(st.sampled_from(Form).flatmap(texts), max_size=4), pattern=PATTERNS, limit=st.integers(1, 5)
    )
    @settings(max_examples=200)
    def test_page_after_page_is_the_whole(self, documents: list[str], pattern: str, limit: int) -> None:
        with tiny(), in_memory(documents, Kind.DOCUMENTS) as corpus:
            whole, pages, after = search(corpus, pattern, None, 100_000).matches, list[Match](), None
            while True:
                page = search(corpus, pattern, None, limit, after=after)
                pages += page.matches
                if not page.more:
                    break
                last = page.matches[-1]
                after = last.document, max(last.end, last.start + 1)
            assert tuple(pages) == whole


class TestAround:
    """The text around matches comes in passages that do not touch."""

    def test_near_matches_are_one_passage(self) -> None:
        text = "one fish two fish" + "-" * 50 + "red fish"
        with in_memory([text, "fish"], Kind.DOCUMENTS) as corpus:
            matches = search(corpus, "fish", None, 10)
            _, passages = around_matches(corpus, matches, 6)
        assert [(one.document, one.text) for one in passages] == [
            (0, "one fish two fish------"), (0, "--red fish"), (1, "fish"),
        ]  # fmt: skip
        assert [one.hits for one in passages] == [((4, 8), (13, 17)), ((71, 75),), ((0, 4),)]
        assert all(
            passage.text == [text, "fish"][passage.document][passage.start : passage.end] for passage in passages
        )

    def test_so_much_text_is_shown_and_the_rest_is_for_the_next_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rlm_server.contexts.around.ALL_SHOWN", 30)
        with in_memory([("-" * 99 + "x") * 5], Kind.TEXT) as corpus:
            matches, passages = around_matches(corpus, search(corpus, "x", None, 10), 10)
        assert len(matches.matches) == len(passages) == 2
        assert matches.more
