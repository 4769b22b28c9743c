"""Dense matches are counted by another engine where that is known to find the same, in bounded time at each place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.contexts import count as counting
from rlm_server.contexts import dense as counted_densely
from rlm_server.contexts.dense import dense
from rlm_server.contexts.search import PatternRefused, compiled
from sandbox.corpora.corpus import Kind, in_memory
from sandbox.corpora.text import Form
from tests.contexts.test_count import counted, found
from tests.contexts.test_search import PATTERNS, places, texts

ATOMS = [
    "a", "b", "k", " ", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\.", r"\n", "\n", "[ab]", "[^ab]", "-",
    "[a-k]", r"[\w-]", r"[\s.]", r"[^\n]", "[^k]", "\xe9", "\u4e2d", "(?:a|ab)", "(a|b)", "(?P<one>.)", r"\b", "(?:b|)",
    "_", "(?:a?b)", "[K-k]", "(ab|a|b)",
]  # fmt: skip
REPEATS = ["", "", "", "?", "{2}", "{1,2}", "{0,2}"]
TAILS = ["", "", r"\w+", r"\d*", "[^ ]+", "a{2,}", ".*", ".+", r"[^\n]*", "b*"]


def sequences() -> st.SearchStrategy[str]:
    items = st.builds(str.__add__, st.sampled_from(ATOMS), st.sampled_from(REPEATS))
    middle = st.lists(items, max_size=4).map("".join)
    return st.builds("{}{}{}".format, st.sampled_from(["", "", r"\b", "^"]), middle, st.sampled_from(TAILS))


def written() -> st.SearchStrategy[str]:
    flags = st.sampled_from(["", "", "(?m)", "(?i)", "(?s)", "(?im)"])
    several = st.lists(sequences(), min_size=1, max_size=3).map("|".join)
    return st.builds("{}{}{}".format, flags, several, st.sampled_from(["", "", "$", r"\b"]))


def densely(patch: pytest.MonkeyPatch, size: int) -> None:
    """Let matches be counted densely as early as can be, so many characters at once."""
    patch.setattr(counting, "DIVIDED_FROM", 0)
    patch.setattr(counting, "PIECE", 16)
    patch.setattr(counting, "KEPT", 1)
    patch.setattr(counting, "LOOKED", 1)
    patch.setattr(counting, "APART", 1000)
    patch.setattr(counted_densely, "SLICE", size)


class TestSame:
    """What is counted densely is what RE2 finds."""

    @given(documents=st.lists(st.sampled_from(Form).flatmap(texts), min_size=1, max_size=3), data=st.data())
    @settings(max_examples=400)
    def test_both_find_as_many_whatever_the_pattern_and_the_slices(
        self, documents: list[str], data: st.DataObject
    ) -> None:
        pattern = data.draw(written() | PATTERNS)
        try:
            compiled(pattern)
        except PatternRefused:
            return
        with pytest.MonkeyPatch.context() as patch, in_memory(documents, Kind.DOCUMENTS) as corpus:
            densely(patch, data.draw(st.integers(1, 40)))
            assert counted(corpus, pattern) == found(corpus, pattern)

    @given(text=st.sampled_from(Form).flatmap(texts), pattern=written())
    @settings(max_examples=400)
    def test_both_find_the_same_in_a_whole_text(self, text: str, pattern: str) -> None:
        other = dense(pattern)
        if other is None or not other.fits(text):
            return
        expected = [(start, end) for start, end, _ in places(pattern, text)]
        assert [match.span() for match in other.pattern.finditer(text)] == expected

    @pytest.mark.parametrize(
        "pattern",
        [
            r"error \d+", "error", "(?i)error", r"\d+", r"\w+", r"(?m)^\d{4}", "(?m)^.+$", r"\bthe\b", "cat|dogs?|bird",
            r"label: (\w+)", r"\d{4}-\d{2}-\d{2}", r"[A-Z]\w+", r"(?P<year>\d{4})", r"\|\|", r"(?im)^user: \S+",
            r"[^\n]+", r"https?://\S+", r"[\w.-]", ".", r"(?s).", "\u4e2d[\u4e00-\u9fff]*",
        ],
    )  # fmt: skip
    def test_patterns_as_they_are_written_are_counted_densely(self, pattern: str) -> None:
        assert dense(pattern) is not None

    @pytest.mark.parametrize("form", Form)
    @pytest.mark.parametrize(
        "pattern", [r"error \d+", r"(?m)^.+$", r"\w+", "(?i)ERROR", r"[^\n]+", r"\b\w", "error|x.*"]
    )
    def test_a_large_text_comes_to_the_same(self, pattern: str, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = [
            f"{number} error {number % 1013}: at {form.sample} x{'-' * (number % 97)}\n" for number in range(20_000)
        ]
        monkeypatch.setattr(counting, "DIVIDED_FROM", 0)
        monkeypatch.setattr(counting, "PIECE", 1 << 17)
        monkeypatch.setattr(counting, "KEPT", 100)
        with in_memory(["".join(lines) + "y" * 70_000 + "".join(lines[:5_000])], Kind.TEXT) as corpus:
            assert counted(corpus, pattern) == found(corpus, pattern)


class TestCost:
    """Another engine backtracks, so it is given only what costs it little."""

    @pytest.mark.parametrize(
        "pattern",
        [
            r"\d+x", r"\w+@\w+", "a*", "(a+)+", "(?:a|b)*c", "a?a?a?a?a?a?aaaaaa", ".*x", r"\w+\b", "(a*)b", "a+?",
            "x{1,9}{1,9}", r"\p{L}", "[[:alpha:]]", "^a", "a$", r"\Aa", r"a\z", r"\Ba", "(?i)k\xe9", "", "(|a)", "[]a]",
            r"\x41", "(?U)a+", "(?i:a)", ".{200}.{200}", r"(?:.{1,6}){5}x", r"\Qa\E", "a{2}{3}", "[a&&b]{300}",
        ],
    )  # fmt: skip
    def test_what_may_cost_much_or_mean_something_else_is_left_to_re2(self, pattern: str) -> None:
        assert dense(pattern) is None

    @given(pattern=written())
    @settings(max_examples=500)
    def test_no_place_of_a_text_costs_more_than_a_bounded_number_of_steps(self, pattern: str) -> None:
        other = dense(pattern)
        assert other is None or other.most * other.size <= counted_densely.WORK
        assert other is None or other.pattern.fullmatch("") is None
