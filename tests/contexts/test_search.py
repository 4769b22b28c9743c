"""A search finds what RE2 finds in the whole document, in every form, whatever the size of the pieces it works in."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import re2  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.contexts import search as searching
from rlm_server.contexts.search import Found, Match, PatternRefused, search
from sandbox.corpora.corpus import Corpus, Kind, Writer, in_memory, index_of
from sandbox.corpora.text import Form, Text, encode
from sandbox.memory.memory import sealed

Place = tuple[int, int, str]

ALPHABET = {Form.ASCII: "abk1_ \n"}
ALPHABET[Form.LATIN1] = ALPHABET[Form.ASCII] + "\xe9\xc9\xff\xb5\xdf\xb2"
ALPHABET[Form.UCS2] = ALPHABET[Form.LATIN1] + "\u0178\u03bc\u1e9e\u017f\u212a\u4e2d\u2014"
ALPHABET[Form.UCS4] = ALPHABET[Form.UCS2] + "\U0001f600\U0001d4b3"

ASSERTIONS = [r"\A", r"\z", "^", "$", "(?m:^)", "(?m:$)", r"\b"]
ONE_CHARACTER = [
    *("a", "b", "\xe9", "\xff", "\u0178", "\u4e2d", "\U0001f600", r"\n"),
    *(".", "(?s:.)", "[a-c]", "[^a]", "[^\xe9]", "[a-\u4e2d]", r"[^\x{80}-\x{10FFFF}]"),
    *(r"\w", r"\W", r"\s", r"\d", r"\pL", r"\PL", r"\p{Lu}", r"\p{Greek}", "[[:upper:]]"),
    *(r"\xe9", r"\x{ff}", r"\x{4e2d}", r"\x{1F600}", r"[\x{c0}-\x{ff}]", r"\Q.\E"),
    *(
        "(?i:K)",
        "(?i:\xe9)",
        r"(?i:\x{c9})",
        "(?i:\xdf)",
        "(?i:\xb5)",
        "(?i:[\xe0-\xff])",
        r"(?i:\p{Lu})",
        "(?i:\u212a)",
    ),
]
UNANCHORED = ["(x)?", "(?P<name>a)", "(?:a|b)", "(?:ab|a)", "(?:a|ab)", "(?:b||a)"]

TOO_LARGE_FOR_THE_DFA = "q{200}"  # with so little memory; it matches nothing in these texts
LITTLE_MEMORY = 32 << 10


@contextmanager
def tiny(**others: int) -> Iterator[None]:
    """Search in pieces of 16 characters, of which no match may have more than 4."""
    sizes = {"PIECE": 16, "LONGEST": 4, "READ_AHEAD": 8, "REWRITTEN": 3, **others}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(searching, name, size)
        yield


def places(pattern: str, text: str, limit: int = 1000) -> list[Place]:
    """What a search of one text finds."""
    with in_memory([text], Kind.TEXT) as corpus:
        return [(match.start, match.end, match.text) for match in search(corpus, pattern, None, limit).matches]


def whole(pattern: str, text: str) -> Iterator[Place]:
    """What RE2 finds in a text that it is given whole, as a `str`."""
    compiled, at = re2.compile(pattern), 0
    while at <= len(text) and (match := compiled.search(text, at)):
        yield match.start(), match.end(), match.group()
        at = max(match.end(), match.start() + 1)


def by_python(pattern: str, text: str) -> Iterator[Place]:
    """What Python's own `re` finds, where it and RE2 mean the same."""
    for match in re.finditer(pattern.replace(r"\z", r"\Z"), text, re.ASCII):
        yield match.start(), match.end(), match.group()


def texts(form: Form) -> st.SearchStrategy[str]:
    """Texts of a form, of up to eight pieces."""
    made = st.builds(lambda before, after: before + form.sample + after, *[st.text(ALPHABET[form], max_size=60)] * 2)
    return made.filter(lambda text: encode(text)[0] is form)


def sequences(
    items: Sequence[str], suffixes: Sequence[str], assertions: Sequence[str] = ASSERTIONS
) -> st.SearchStrategy[str]:
    """Patterns that match up to 4 characters, one after another."""
    item = st.builds(str.__add__, st.sampled_from(items), st.sampled_from(suffixes))
    return st.lists(item | st.sampled_from(assertions), min_size=1, max_size=4).map("".join)


PATTERNS = st.one_of(
    st.lists(sequences(ONE_CHARACTER, ["", "", "?", "??", "{0,1}"]), min_size=1, max_size=3).map("|".join),
    st.builds(str.__add__, st.sampled_from(UNANCHORED), st.sampled_from(["", "a", r"\b", "(?m:$)"])),
)


class TestEveryForm:
    """The form of a text, and where its pieces meet, make no difference."""

    @pytest.mark.parametrize("form", Form)
    @given(data=st.data())
    @settings(max_examples=500)
    def test_finds_in_pieces_what_re2_finds_in_the_whole(self, form: Form, data: st.DataObject) -> None:
        text, pattern = data.draw(texts(form)), data.draw(PATTERNS)
        with tiny():
            assert places(pattern, text) == list(whole(pattern, text))

    @pytest.mark.parametrize("form", Form)
    @given(data=st.data())
    @settings(max_examples=300)
    def test_finds_in_one_piece_what_re2_finds(self, form: Form, data: st.DataObject) -> None:
        text, pattern = data.draw(texts(form)), data.draw(PATTERNS)
        assert places(pattern, text) == list(whole(pattern, text))

    @pytest.mark.parametrize("form", Form)
    @given(data=st.data())
    @settings(max_examples=300)
    def test_finds_what_python_finds(self, form: Form, data: st.DataObject) -> None:
        shared = ["a", "k", "\xe9", "\u4e2d", ".", "(?s:.)", "[a-c]", "[^a]", r"\w", r"\W", r"\d"]
        assertions = [r"\A", r"\z", "^", "(?m:^)", "(?m:$)", r"\b", r"\B"]
        pattern = data.draw(sequences(shared, ["", "?"], assertions))
        text = data.draw(texts(form))
        with tiny():
            assert places(pattern, text) == list(by_python(pattern, text))

    @pytest.mark.parametrize("form", Form)
    @given(data=st.data())
    @settings(max_examples=200)
    def test_repetitions_without_a_bound_are_found_where_their_matches_are_short(
        self, form: Form, data: st.DataObject
    ) -> None:
        word = st.text(ALPHABET[form].replace(" ", "").replace("\n", ""), max_size=4)
        text = data.draw(st.lists(word, max_size=30).map("\n".join)) + "\n" + form.sample
        pattern = data.draw(st.sampled_from([r"\w+", r"[^\n]+", ".*", ".+$", "(?m:^).*", "(?m:^.*$)", r"\S+?", "a*b*"]))
        with tiny():
            assert places(pattern, text) == list(whole(pattern, text))

    @pytest.mark.parametrize("form", Form)
    def test_a_match_of_the_longest_kind_is_whole_wherever_it_is(self, form: Form) -> None:
        for before in range(50):
            text = "-" * before + f"<{form.sample}b>" + "-" * 50
            with tiny():
                assert places("<[^>]+>|<|>", text) == [(before, before + 4, f"<{form.sample}b>")]

    @pytest.mark.parametrize("pattern", [*ONE_CHARACTER, *ASSERTIONS, *UNANCHORED])
    def test_the_patterns_that_are_compared_do_match(self, pattern: str) -> None:
        text = ALPHABET[Form.UCS4] + ".K"
        with tiny():
            assert places(pattern, text) == list(whole(pattern, text)) != []

    @pytest.mark.parametrize(
        ("pattern", "character"),
        [
            ("(?i)\xe9", "\xc9"), (r"(?i)\x{e9}", "\xc9"), ("(?i)[\xe0-\xf0]", "\xc9"), (r"(?i)\p{Lu}", "\xe9"),
            ("(?i)\u0178", "\xff"), ("(?i)\u03bc", "\xb5"), ("(?i)\u1e9e", "\xdf"), ("(?i)\u212a", "k"),
            (r"[\x{e0}-\x{ffff}]", "\xe9"), (r"[^\x{100}-\x{10ffff}]", "\xe9"), (r"\x{e9}", "\xe9"), (".", "\xe9"),
        ],
    )  # fmt: skip
    def test_latin1_is_searched_as_unicode(self, pattern: str, character: str) -> None:
        assert encode("\xd7" + character)[0] is Form.LATIN1
        assert (1, 2, character) in places(pattern, "\xd7" + character)


class TestEdges:
    """What a pattern says about a place is about the document, not about the piece that is looked at."""

    TEXT = "aa aa\n" * 20

    @pytest.mark.parametrize(
        ("pattern", "count"),
        [
            (r"\Aa", 1), ("^a", 1), ("(?m)^a", 20), ("(?m)a$", 20), (r"\n\z", 1), (r"\n$", 1), (r"a\z", 0), ("a$", 0),
            (r"\ba", 40), (r"a\b", 40), (r"a\B", 40), (r"\b", 80), ("(?m)^", 21), ("(?m)$", 21), (r"\A", 1), (r"\z", 1),
        ],
    )  # fmt: skip
    def test_assertions_hold_at_the_documents_edges(self, pattern: str, count: int) -> None:
        with tiny():
            assert len(places(pattern, self.TEXT)) == count
            for sample in ("\xe9", "\u4e2d", "\U0001f600"):
                text = self.TEXT.replace("a ", sample) + sample + self.TEXT
                assert places(pattern, text) == list(whole(pattern, text))

    @pytest.mark.parametrize("edge", range(10, 22))
    def test_what_comes_first_in_the_pattern_wins_although_it_ends_in_the_next_piece(self, edge: int) -> None:
        text = "-" * edge + "abcd" + "-" * 30
        with tiny():
            assert places("b|abcd|a", text) == [(edge, edge + 4, "abcd")]
            assert places("a(?:bcd)??|b", text) == [(edge, edge + 1, "a"), (edge + 1, edge + 2, "b")]

    @given(data=st.data())
    @settings(max_examples=200)
    def test_a_pattern_too_large_for_re2s_faster_engine_finds_the_same(self, data: st.DataObject) -> None:
        small = [one for one in ONE_CHARACTER if r"\p" not in one.lower()]
        pattern = data.draw(sequences(small, ["", "?"]).map(lambda made: f"(?:{made}|{TOO_LARGE_FOR_THE_DFA})"))
        text = data.draw(texts(Form.UCS4))
        with tiny(MEMORY=LITTLE_MEMORY):
            assert places(pattern, text) == list(whole(pattern, text))


class TestEmptyMatches:
    """A match of no characters is found once, and the search goes on a character later, as `re.finditer` does."""

    @pytest.mark.parametrize("pattern", ["", "a*", "x*", r"\b", r"\B", "(?m)^", "(?m)$", r"\z", r"\Bx*", "(?:)"])
    @pytest.mark.parametrize(
        "text", ["b", "baac", "  ab", "\n\n", "\xe9\xe9a", "a\xe9", "\u4e2d\u4e2d b", "a\U0001f600" * 20]
    )
    def test_they_are_found_as_python_finds_them(self, pattern: str, text: str) -> None:
        assert places(pattern, text) == list(by_python(pattern, text))
        with tiny():
            assert places(pattern, text) == list(by_python(pattern, text))

    def test_they_are_found_after_the_last_character(self) -> None:
        assert places("", "") == places(r"\A", "") == places(r"\z", "") == [(0, 0, "")]
        assert places("a*", "baac") == [(0, 0, ""), (1, 3, "aa"), (3, 3, ""), (4, 4, "")]


class TestDocuments:
    """Documents are searched on their own, in their order."""

    DOCUMENTS = (
        "needle",
        "",
        "a needle, a needle",
        "n\xe9edle needle",
        "\u4e2dneedle",
        "\U0001f600\nneedle",
        "nee",
        "dle",
    )

    def test_positions_are_characters_of_each(self) -> None:
        with in_memory(self.DOCUMENTS, Kind.DOCUMENTS) as corpus:
            assert search(corpus, "needle", None, 100) == Found(
                tuple(Match(*place, "needle") for place in
                      [(0, 0, 6), (2, 2, 8), (2, 12, 18), (3, 7, 13), (4, 1, 7), (5, 2, 8)]),
                more=False,
            )  # fmt: skip

    def test_each_begins_and_ends_for_itself(self) -> None:
        with in_memory(self.DOCUMENTS, Kind.DOCUMENTS) as corpus:
            assert [match.document for match in search(corpus, r"\A", None, 100).matches] == list(range(8))
            assert [match.document for match in search(corpus, r"\z", None, 100).matches] == list(range(8))
            assert [match.document for match in search(corpus, r"e\z", None, 100).matches] == [0, *range(2, 8)]
            assert search(corpus, "(?s)nee.*dle.", None, 100).matches[0].document == 2
            assert not search(corpus, r"\x00", None, 100).matches

    def test_only_those_asked_for_are_searched_each_once_and_in_order(self) -> None:
        with in_memory(self.DOCUMENTS, Kind.DOCUMENTS) as corpus:
            found = search(corpus, "needle", [5, 0, 1, 5], 100)
            assert [match.document for match in found.matches] == [0, 5]
            assert search(corpus, "needle", [], 100) == Found((), more=False)

    @pytest.mark.parametrize("number", [-1, 8, 2**63])
    def test_one_that_does_not_exist_is_named_before_any_is_searched(self, number: int) -> None:
        def never() -> bool:
            raise AssertionError("searched")

        with in_memory(self.DOCUMENTS, Kind.DOCUMENTS) as corpus:
            with pytest.raises(IndexError, match=f"no document {number}:"):
                search(corpus, "needle", [0, number, 1], 100, cancelled=never)
            with pytest.raises(AssertionError, match="searched"):
                search(corpus, "needle", [0, 1], 100, cancelled=never)

    @given(documents=st.lists(st.sampled_from(Form).flatmap(texts), max_size=12), pattern=PATTERNS)
    @settings(max_examples=200)
    def test_many_of_every_form_are_found_in_as_each_alone(self, documents: list[str], pattern: str) -> None:
        expected = [(number, *place) for number, text in enumerate(documents) for place in whole(pattern, text)]
        with tiny(), in_memory(documents, Kind.DOCUMENTS) as corpus:
            found = search(corpus, pattern, None, 100_000)
        assert [(match.document, match.start, match.end, match.text) for match in found.matches] == expected

    def test_large_and_small_ones_in_a_file_on_disk(self, tmp_path: Path) -> None:
        documents = ["needle", "x" * 100_000 + "needle", "\u4e2d" * 70_000 + "needle", "needle" * 3, "\xe9needle"]
        with (tmp_path / "texts").open("wb") as out:
            writer = Writer(out, Kind.DOCUMENTS)
            for text in documents:
                form, data = encode(text)
                writer.write(form, len(text), [data[: -form.width]])
            (tmp_path / "index").write_bytes(writer.finish(["needle"] * len(documents)))
        corpus = Corpus(str(tmp_path / "texts"), str(tmp_path / "index"))
        places = [(match.document, match.start) for match in search(corpus, "needle", None, 100).matches]
        assert places == [(0, 0), (1, 100_000), (2, 70_000), (3, 0), (3, 6), (3, 12), (4, 1)]

    def test_a_file_cut_short_is_an_error_and_not_a_text_without_matches(self, tmp_path: Path) -> None:
        (tmp_path / "texts").write_bytes(b"x" * 99)
        text = Text(str(tmp_path / "texts"), Form.ASCII, 100, closed=False)
        with one_text(text) as corpus, pytest.raises(EOFError, match="1 bytes too early"):
            search(corpus, "needle", None, 100)


class TestLimits:
    """A search is bounded: in what it gives back, in its memory, and in the time until it can be stopped."""

    def test_no_more_matches_than_asked_for_and_a_word_about_the_rest(self) -> None:
        with in_memory(["aaa", "aaa"], Kind.DOCUMENTS) as corpus:
            found = search(corpus, "a", None, 4)
            assert [(match.document, match.start) for match in found.matches] == [(0, 0), (0, 1), (0, 2), (1, 0)]
            assert found.more
            assert not search(corpus, "a", None, 7).more

    @pytest.mark.parametrize("character", ["x", "\xe9", "\u4e2d", "\U0001f600"])
    def test_a_long_match_is_shown_in_part(self, character: str) -> None:
        assert places("<.*>", f"-<{character * 5000}>") == [(1, 5003, "<" + character * 999)]

    def test_the_longest_match_is_as_documented(self) -> None:
        inside = searching.LONGEST - 2
        text = "-" * 2_000_000 + "<" + "x" * inside + ">" + "-" * 5_000_000
        assert [place[:2] for place in places("<x*>", text)] == [(2_000_000, 2_000_000 + searching.LONGEST)]
        assert searching.MIN_PIECE // 4 >= searching.LONGEST_PATTERN

    @pytest.mark.parametrize("form", Form)
    def test_memory_does_not_grow_with_the_text(self, form: Form, tmp_path: Path) -> None:
        characters = (128 << 20) // form.width
        path = tmp_path / "zeros"
        path.touch()
        os.truncate(path, characters * form.width)
        tracemalloc.start()
        try:
            with one_text(Text(str(path), form, characters, closed=False)) as corpus:
                assert search(corpus, "needle", None, 100) == Found((), more=False)
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()

    def test_a_text_of_the_widest_characters_fits_in_the_memory_documented(self) -> None:
        with in_memory(["\U0001f600" * (5 << 20)], Kind.TEXT) as corpus:
            tracemalloc.start()
            try:
                (match,) = search(corpus, r"\z", None, 100).matches
                assert match.start == 5 << 20
                assert tracemalloc.get_traced_memory()[1] < 50 << 20
            finally:
                tracemalloc.stop()

    @pytest.mark.parametrize("form", Form)
    def test_it_can_be_stopped_between_pieces_and_gives_back_what_it_has(self, form: Form) -> None:
        text = "needle" + form.sample + "-" * 1000
        with tiny(PIECE=32, LONGEST=8), in_memory([text], Kind.TEXT) as corpus:
            asked: list[None] = []
            assert not search(corpus, "needle", None, 100, cancelled=counting(asked)).more
            assert len(asked) > 1000 / 32
            asked.clear()
            found = search(corpus, "needle", None, 100, cancelled=counting(asked, 5))
            assert found == Found((Match(0, 0, 6, "needle"),), more=True)
            assert len(asked) == 5

    def test_it_can_be_stopped_between_documents_and_between_matches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(searching, "CHECKED", 1)
        for documents in (["a"] * 100, ["a" * 100]):
            with in_memory(documents, Kind.DOCUMENTS) as corpus:
                asked: list[None] = []
                found = search(corpus, "a", None, 1000, cancelled=counting(asked, 5))
                assert (len(asked), found.more) == (5, True)
                assert 0 < len(found.matches) < 5

    def test_a_pattern_that_may_be_slow_works_in_smaller_pieces(self) -> None:
        def asked(pattern: str) -> int:
            asked: list[None] = []
            search(corpus, pattern, None, 100, cancelled=counting(asked))
            return len(asked)

        with in_memory(["-" * 200_000], Kind.TEXT) as corpus:
            assert asked("a") == 1
            assert asked("a" + "[ab]{1000}" * 9) > 5


class TestPatterns:
    """A pattern that cannot be searched for is refused with a reason, and nowhere else is anything said of it."""

    @pytest.mark.parametrize(
        ("pattern", "reason"),
        [
            ("a" * 1001, r"may have 1,000 characters, not 1,001"),
            ("(a", r"missing \): \(a"),
            ("[a", r"missing \]"),
            ("a{1001}", "invalid repetition size"),
            ("*", "no argument for repetition"),
            (r"\p{Klingon}", r"invalid character class range: \\p\{Klingon\}"),
            (r"(?:\pL\PL){300}", "pattern too large"),
            ("a\udc80", "half a surrogate pair"),
            (r"a\Cb", r"may not hold \\C"),
            ("(?=a)", "no lookaround, by design"),
            ("a(?!b)", "no lookaround, by design"),
            ("(?<=a)b", "no lookaround, by design"),
            ("(?<!\xe9)b", "no lookaround, by design"),
            (r"(a)\1", "no backreferences, by design"),
            (r"(?P<n>a)(?P=n)", "no backreferences, by design"),
            (r"(?<n>a)\k<n>", "no backreferences, by design"),
            ("(?>a)", "no atomic groups or possessive repetition, by design"),
            ("a++", "no atomic groups or possessive repetition, by design"),
        ],
    )
    def test_it_is_refused_with_a_reason(self, pattern: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
        with in_memory(["a"], Kind.TEXT) as corpus, pytest.raises(PatternRefused, match=reason):
            search(corpus, pattern, None, 100)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("pattern", ["(?=a", "[(?=a)", r"\Q(?=", r"(\Q\1"])
    def test_what_only_looks_like_it_is_not_called_lacking(self, pattern: str) -> None:
        try:
            places(pattern, "(?=")
        except PatternRefused as refused:
            assert ("by design" in str(refused)) is (pattern == "(?=a")  # noqa: PT017

    @pytest.mark.parametrize("pattern", ["a" * 1000, "\U0001f600" * 1000, r"\Q\C\E", "(?P<\xe9>a)"])
    def test_what_re2_can_do_is_not_refused(self, pattern: str) -> None:
        text = pattern if len(pattern) == 1000 else r"a\C"
        assert len(places(pattern, "-" + text)) == 1

    def test_re2_says_nothing_on_stderr_even_where_its_memory_ends(self, capfd: pytest.CaptureFixture[str]) -> None:
        pattern = f"a|{TOO_LARGE_FOR_THE_DFA}"
        with tiny(MEMORY=LITTLE_MEMORY):
            assert places(pattern, "-a-") == [(1, 2, "a")]
        assert capfd.readouterr() == ("", "")
        options = re2.Options()
        options.max_mem = LITTLE_MEMORY
        assert re2.compile(pattern, options).search("-a-")
        assert "DFA out of memory" in capfd.readouterr().err

    def test_it_is_forgotten_when_the_search_ends(self) -> None:
        places("never kept", "never kept")
        assert re2._Regexp._make.cache_info().currsize == 0


def counting(asked: list[None], most: int | None = None) -> Callable[[], bool]:
    """Count how often a search asks, and have it stop at the `most`-th time."""

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == most

    return cancelled


@contextmanager
def one_text(text: Text) -> Iterator[Corpus]:
    """A corpus of a text in a file of its own."""
    assert isinstance(text.source, str)
    fd = sealed(index_of([text], Text("", Form.ASCII, 0, closed=False), Kind.TEXT), "index")
    try:
        yield Corpus(text.source, fd)
    finally:
        os.close(fd)


def test_a_refusal_repeats_no_more_of_a_pattern_than_its_beginning() -> None:
    with in_memory(["text"], Kind.TEXT) as corpus, pytest.raises(PatternRefused) as refused:
        search(corpus, "(" + "a passage of the text " * 40, None, 10)
    assert len(str(refused.value)) < 150
    assert str(refused.value).endswith("…")
