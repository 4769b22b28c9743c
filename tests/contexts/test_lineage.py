"""What of a corpus stands word for word in a prompt: all of it is found, and nothing else is claimed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.contexts import fingerprints, lineage
from rlm_server.contexts.fingerprints import (
    FILE,
    WINDOW,
    BuildCancelled,
    Fingerprints,
    FingerprintsUnusable,
    Integers,
    Places,
    build,
)
from rlm_server.contexts.lineage import Lineage
from rlm_server.contexts.passages import Passage, Traced
from sandbox.corpora.corpus import Kind, in_memory, part_of

ALPHABETS = {
    "ascii": "abcdefghijklmnopqrstuvwxyz ",
    "latin1": "abcdefghijklmnopqrstuvwxy\xe9 ",
    "ucs2": "abc\u4e2d\u6587\u5b57 ",
    "ucs4": "abc\U0001f600\U0001f601\u4e2d ",
}


@contextmanager
def traced(documents: Sequence[str], folder: Path | None = None) -> Iterator[Lineage]:
    """A lineage of these documents, built in a folder of its own."""
    with TemporaryDirectory() as temporary, in_memory(documents, Kind.DOCUMENTS) as corpus:
        yield Lineage.open(corpus, folder or Path(temporary))


def text(seed: object, length: int, alphabet: str = ALPHABETS["ascii"]) -> str:
    return "".join(random.Random(repr(seed)).choices(alphabet, k=length))


def assert_true(found: Traced, documents: Sequence[str], prompt: str) -> None:
    """Every passage is there, long enough, as long as it can be, within no other, and after the one before it."""
    for passage in found.passages:
        document, start, end = documents[passage.document], passage.start, passage.end
        at, stop = passage.prompt_start, passage.prompt_start + end - start
        assert end - start >= WINDOW
        assert 0 <= start < end <= len(document)
        assert 0 <= at < stop <= len(prompt)
        assert document[start:end] == prompt[at:stop]
        assert start == 0 or at == 0 or document[start - 1] != prompt[at - 1]
        assert end == len(document) or stop == len(prompt) or document[end] != prompt[stop]
    ranges = [(passage.prompt_start, passage.prompt_start + passage.end - passage.start) for passage in found.passages]
    assert all(before[0] < after[0] and before[1] < after[1] for before, after in pairwise(ranges))


def assert_whole(found: Traced, documents: Sequence[str], prompt: str) -> None:
    """Each 64 characters in a row of the prompt that stand in a document lie in a passage."""
    there = {document[at : at + 64] for document in documents for at in range(len(document) - 63)}
    lying = {
        at
        for passage in found.passages
        for at in range(passage.prompt_start, passage.prompt_start + passage.end - passage.start - 63)
    }
    assert [at for at in range(len(prompt) - 63) if (prompt[at : at + 64] in there) != (at in lying)] == []


def test_64_characters_is_the_least() -> None:
    assert WINDOW == 64


@pytest.mark.parametrize("prompt_alphabet", ALPHABETS)
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_part_is_found_in_whatever_form_the_document_and_the_prompt_have(alphabet: str, prompt_alphabet: str) -> None:
    documents = [text((number, alphabet), 700, ALPHABETS[alphabet]) for number in range(40)]
    documents[23] = documents[23][:300] + text("part", 64) + documents[23][300:]
    around = text("around", 50, ALPHABETS[prompt_alphabet].replace(" ", "").upper() + "!")
    with traced(documents) as opened:
        found = opened.find(f"{around}#{text('part', 64)}#{around}")
    assert found == Traced((Passage(23, 300, 364, 51),), more=False)


@pytest.mark.parametrize("shift", range(0, 60, 7))
def test_wherever_it_stands_a_part_of_64_characters_is_found_and_one_of_63_is_not(shift: int) -> None:
    document = text("document", 500)
    with traced([text("other", 100), document]) as opened:
        for start in range(shift, 436, 60):
            assert opened.find(f"#{document[start : start + 64]}#").passages == (Passage(1, start, start + 64, 1),)
            assert opened.find(f"#{document[start : start + 63]}#").passages == ()


def test_a_passage_is_as_long_as_it_can_be_and_ends_with_its_document() -> None:
    documents = [text("first", 5_000), text("second", 70_000)]
    with traced(documents) as opened:
        found = opened.find("?" + documents[1][100:] + documents[0][:4_000] + "?")
        assert found.passages == (Passage(1, 100, 70_000, 1), Passage(0, 0, 4_000, 69_901))
        assert opened.find(documents[1]).passages == (Passage(1, 0, 70_000, 0),)


def test_the_parts_around_a_changed_character_are_two_passages() -> None:
    document = text("document", 2_000)
    with traced([document]) as opened:
        found = opened.find(document[:1_000] + "#" + document[1_001:])
    assert found.passages == (Passage(0, 0, 1_000, 0), Passage(0, 1_001, 2_000, 1_001))


def test_parts_that_overlap_in_the_prompt_are_each_of_their_own_document() -> None:
    whole = text("whole", 200)
    with traced([whole[:120], "?" * 50 + whole[50:]]) as opened:
        found = opened.find(whole)
    assert found == Traced((Passage(0, 0, 120, 0), Passage(1, 50, 200, 50)), more=False)


def test_a_part_is_found_that_lies_in_two_others_but_for_64_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_CHUNK", 1)
    whole = text("whole", 200)
    with traced([whole[:100], whole[38:], "?" + whole[37:101] + "?"]) as opened:
        found = opened.find(whole)
    assert found == Traced((Passage(0, 0, 100, 0), Passage(2, 1, 65, 37), Passage(1, 0, 162, 38)), more=False)


def test_of_a_part_that_stands_in_many_places_the_first_is_claimed() -> None:
    part = text("part", 300)
    documents = [text(number, 90 + number) + "#" + part + "#" for number in range(50)]
    with traced(documents) as opened:
        assert opened.find(f"({part})") == Traced((Passage(0, 91, 391, 1),), more=False)


def test_of_each_part_that_stands_in_many_places_the_first_is_claimed() -> None:
    parts = [text(number, 300) for number in range(9)]
    documents = ["+" * places + part + "+" for part in parts for places in range(4)]
    with traced(documents) as opened:
        found = opened.find("#".join(parts))
    assert found.passages == tuple(Passage(4 * number, 0, 300, 301 * number) for number in range(9))


def test_of_a_part_that_stands_in_many_places_the_one_where_more_is_the_same_is_claimed() -> None:
    part = text("part", 300)
    documents = [text(number, 90) + part + text(-number, 90, "0123456789") for number in range(50)]
    with traced(documents) as opened:
        assert opened.find(f"({documents[37][85:395]})") == Traced((Passage(37, 85, 395, 1),), more=False)


def test_a_shorter_run_of_one_character_accounts_for_a_longer_one_in_few_passages() -> None:
    with traced(["#" + "-" * 80 + "#"]) as opened:
        found = opened.find("(" + "-" * 100 + ")")
    assert found == Traced((Passage(0, 1, 81, 1), Passage(0, 1, 81, 18), Passage(0, 1, 81, 21)), more=False)


def test_documents_without_room_for_a_passage_have_none() -> None:
    for documents in ([], [""], ["", "a" * 63, ""], ["a" * 24]):
        with traced(documents) as opened:
            assert opened.find("a" * 1_000) == Traced((), more=False)
    with traced(["a" * 1_000]) as opened:
        assert opened.find("") == opened.find("a" * 63) == Traced((), more=False)


@pytest.mark.parametrize("segment", [1, 7, 64])
def test_it_does_not_matter_how_many_samples_are_sorted_at_once(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [text(number, 100 + 13 * number, [*ALPHABETS.values()][number % 4]) for number in range(40)]
    documents += ["=" * 500, documents[3]]
    with TemporaryDirectory() as folder, in_memory(documents, Kind.DOCUMENTS) as corpus:
        build(corpus, Path(folder))
        at_once = (Path(folder) / FILE).read_bytes()
        monkeypatch.setattr(fingerprints, "SEGMENT", segment)
        build(corpus, Path(folder))
        assert (Path(folder) / FILE).read_bytes() == at_once


def test_a_prompt_is_searched_to_its_end() -> None:
    document = text("document", 100_000)
    with traced([document]) as opened:
        prompt = (
            text("prompt", lineage.SLICE - 1_000, "#+!?=") + document + text("more", 10_000, "#+!?=") + document[:64]
        )
        assert opened.find(prompt) == Traced(
            (
                Passage(0, 0, 100_000, lineage.SLICE - 1_000),
                Passage(0, 0, 64, len(prompt) - 64),
            ),
            more=False,
        )


def test_parts_of_documents_are_documents() -> None:
    whole = text("whole", 1_000, ALPHABETS["ucs2"])
    with TemporaryDirectory() as folder, in_memory(["x" * 90, whole], Kind.DOCUMENTS) as corpus:
        part = corpus[1]
        part = type(part)(part.source, part.form, 400, part.offset + 2 * 301, closed=False)
        with part_of(corpus, [part], Kind.DOCUMENTS) as parts:
            assert Lineage.open(parts, Path(folder)).find(whole).passages == (Passage(0, 0, 400, 301),)


# Texts of few pieces, which therefore have much in common.

SMALL = ["ab", "a", " ", "ab\xe9", "a\u4e2d", "b\U0001f600", "\0\1", "ab ", "aaaaaaab"]


@st.composite
def related(draw: st.DrawFn) -> tuple[list[str], str]:
    """Draw documents and a prompt that are made of the same pieces."""
    piece = st.builds(text, st.integers(0, 9), st.integers(1, 130), st.sampled_from(SMALL))
    pieces = draw(st.lists(piece, min_size=1, max_size=6))

    def drawn() -> str:
        drawn = draw(st.lists(st.tuples(st.sampled_from(pieces), st.integers(0, 40)), max_size=8))
        return "".join(piece[cut:] for piece, cut in drawn)

    documents = [drawn() for _ in range(draw(st.integers(1, 8)))]
    return documents, drawn()


@settings(max_examples=400)
@given(related(), st.sampled_from([3, 50, 1 << 22]))
def test_all_that_stands_in_a_document_is_found_and_nothing_else(texts: tuple[list[str], str], segment: int) -> None:
    documents, prompt = texts
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fingerprints, "SEGMENT", segment)
        with traced(documents) as opened:
            found = opened.find(prompt)
    assert_true(found, documents, prompt)
    assert not found.more
    assert_whole(found, documents, prompt)


@settings(max_examples=200)
@given(related(), st.sampled_from([64, 100, 257]), st.sampled_from([1, 5, 64]))
def test_it_does_not_matter_how_much_is_looked_at_at_once(
    texts: tuple[list[str], str], slice_size: int, chunk: int
) -> None:
    documents, prompt = texts
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lineage, "CANDIDATES", 1 << 30)
        patched.setattr(lineage, "SLICE", slice_size)
        patched.setattr(lineage, "_CHUNK", chunk)
        with traced(documents) as opened:
            found = opened.find(prompt)
    assert_true(found, documents, prompt)
    assert not found.more
    assert_whole(found, documents, prompt)


@settings(max_examples=100)
@given(
    st.data(),
    st.lists(st.sampled_from(sorted(ALPHABETS)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 900), st.integers(64, 400)), max_size=12),
)
def test_planted_parts_are_found(data: st.DataObject, forms: list[str], plants: list[tuple[int, int, int]]) -> None:
    documents = [text((number, form), 1_000, ALPHABETS[form]) for number, form in enumerate(forms)]
    prompt = ""
    for document, start, length in plants:
        part = documents[document % len(documents)][start : start + length]
        prompt += text(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 90)), "#!\u4e2d\U0001f600") + part
    with traced(documents) as opened:
        found = opened.find(prompt)
    assert_true(found, documents, prompt)
    assert not found.more
    assert_whole(found, documents, prompt)


# Much of the same.


@pytest.mark.parametrize(
    ("document", "prompt"),
    [
        (" " * 300_000, " " * 200_000),
        (" " * 200_000, " " * 300_000),
        ("INFO the same line over and over, until there is nothing else to be read\n" * 20_000,) * 2,
        ("ab" * 50_000 + "c" + "ab" * 50_000, "ab" * 40_000 + "d" + "ab" * 60_000),
    ],
    ids=["spaces", "more spaces", "lines", "two characters"],
)
def test_a_prompt_of_what_repeats_is_found_whole(document: str, prompt: str) -> None:
    with traced([document]) as opened:
        found = opened.find(prompt)
    assert_true(found, [document], prompt)
    assert len(found.passages) <= 4
    ranges = [(passage.prompt_start, passage.prompt_start + passage.end - passage.start) for passage in found.passages]
    assert len(set().union(*(range(*each) for each in ranges))) >= len(prompt) - 1


def test_boilerplate_does_not_hide_what_stands_between_it() -> None:
    boilerplate = "Licensed under the Apache License, Version 2.0; you may not use this file except so.\n"
    documents = [boilerplate + text(number, 200) + "\n" + boilerplate for number in range(3_000)]
    chosen = [2_990, 17, 1_500]
    with traced(documents) as opened:
        found = opened.find("\n".join(documents[number] for number in chosen))
    assert [passage for passage in found.passages if passage.end - passage.start > 100] == [
        Passage(number, 0, len(documents[0]), place * (len(documents[0]) + 1)) for place, number in enumerate(chosen)
    ]
    assert not found.more


# Bounds.


def test_of_too_many_passages_the_first_are_given() -> None:
    documents = [text(number, 64) for number in range(1_500)]
    with traced(documents) as opened:
        found = opened.find("#".join(documents))
        exact = opened.find("#".join(documents[:1_000]))
    assert found.passages == exact.passages == tuple(Passage(number, 0, 64, 65 * number) for number in range(1_000))
    assert found.more
    assert not exact.more


def test_of_too_many_passages_in_a_long_prompt_the_first_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SLICE", 10_000)
    monkeypatch.setattr(lineage, "MAX_PASSAGES", 100)
    documents = [text(number, 64) for number in range(1_500)]
    with traced(documents) as opened:
        found = opened.find("#".join(documents))
    assert found.passages == tuple(Passage(number, 0, 64, 65 * number) for number in range(100))
    assert found.more


@pytest.mark.parametrize(
    "bounds",
    [{"MAX_CANDIDATES": 500}, {"CANDIDATES": 500, "CANDIDATES_A_CHARACTER": 0}, {"COMPARED": -2_000_000}],
    ids=["candidates", "candidates by size", "compared"],
)
def test_where_too_much_would_have_to_be_looked_at_it_says_so_and_claims_what_is_true(
    bounds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "the same words in every one of these documents, and then "
    documents = [f"{number:06} {line}{text(number, 12)}" for number in range(5_000)]
    prompt = "\n".join(f"{document[3:]}" for document in documents[::6])
    with traced(documents) as opened:
        assert not opened.find(documents[4_321]).more
        whole = opened.find(prompt)
        for name, value in bounds.items():
            monkeypatch.setattr(lineage, name, value)
        found = opened.find(prompt)
    assert_true(whole, documents, prompt)
    assert_true(found, documents, prompt)
    assert found.more
    assert len(found.passages) < len(whole.passages)


def test_what_is_all_over_the_corpus_does_not_use_up_what_may_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SLICE", 500)
    monkeypatch.setattr(lineage, "MAX_CANDIDATES", 2_000)
    looked_at: list[int] = []

    class Counted(Fingerprints):
        def places(self, entries: Integers) -> tuple[Integers, Places]:
            looked_at.append(len(entries))
            return super().places(entries)

    monkeypatch.setattr(lineage, "Fingerprints", Counted)
    all_over = "there are sixty characters of this in every one of them here"
    part = text("part", 64)
    with traced([*(f"{number:05}{all_over}{number:05}" for number in range(3_000)), part]) as opened:
        found = opened.find(f"?{all_over}?" * 200 + part)
    assert found == Traced((Passage(3_000, 0, 64, 62 * 200),), more=True)
    assert 1_500 < sum(looked_at) <= 2_000


# The file.


def test_what_was_built_is_used_again(tmp_path: Path) -> None:
    with in_memory([text("document", 1_000)], Kind.TEXT) as corpus:
        with pytest.raises(FingerprintsUnusable):
            Lineage(corpus, tmp_path)
        Lineage.open(corpus, tmp_path)
        built = (tmp_path / FILE).stat().st_ino
        assert Lineage.open(corpus, tmp_path).find(text("document", 1_000)).passages == (Passage(0, 0, 1_000, 0),)
    assert (tmp_path / FILE).stat().st_ino == built
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_build_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "SEGMENT", 100)
    asked: list[bool] = []

    def count() -> bool:
        asked.append(True)
        return False

    with in_memory([text("document", 20_000)], Kind.TEXT) as corpus:
        build(corpus, tmp_path, count)
        (tmp_path / FILE).unlink()
        for before in range(len(asked)):
            answers = iter([False] * before)
            with pytest.raises(BuildCancelled):
                build(corpus, tmp_path, partial(next, answers, True))
            assert [*tmp_path.iterdir()] == []
    assert len(asked) > 8


def damages(whole: bytes) -> Iterator[bytes]:
    """Yield what is not the file."""
    yield b""
    yield b"RLMF"
    yield whole[:-1]
    yield whole[: len(whole) // 2]
    yield whole + b"\0"
    yield bytes(len(whole))
    yield whole[:4] + struct.pack("<H", 99) + whole[6:]
    for at in (0, 6, 8, 16, 24, 32, 40, 64, 90, len(whole) - 3):
        yield whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :]


def test_a_damaged_file_is_built_anew(tmp_path: Path) -> None:
    document = text("document", 1_000)
    with in_memory([document], Kind.TEXT) as corpus:
        build(corpus, tmp_path)
        whole = (tmp_path / FILE).read_bytes()
        for damaged in damages(whole):
            (tmp_path / FILE).unlink()
            (tmp_path / FILE).write_bytes(damaged)
            with pytest.raises(FingerprintsUnusable):
                Lineage(corpus, tmp_path)
            assert Lineage.open(corpus, tmp_path).find(document).passages == (Passage(0, 0, 1_000, 0),)
            assert (tmp_path / FILE).read_bytes() == whole


def test_the_file_of_another_corpus_is_not_used(tmp_path: Path) -> None:
    first, second = [text("first", 1_000), text("a", 500)], [text("second", 999), text("a", 501)]
    with in_memory(first, Kind.DOCUMENTS) as corpus:
        build(corpus, tmp_path)
    with in_memory(second, Kind.DOCUMENTS) as corpus:
        assert Lineage.open(corpus, tmp_path).find(second[0]).passages == (Passage(0, 0, 999, 0),)


def test_a_passage_of_another_corpus_that_looks_the_same_is_not_claimed(tmp_path: Path) -> None:
    documents = [text(number, 100) for number in range(200)]
    with in_memory(documents, Kind.DOCUMENTS) as corpus:
        build(corpus, tmp_path)
    documents[1] += "4444"
    documents[2] = documents[2][:96]
    with in_memory(documents, Kind.DOCUMENTS) as corpus, pytest.raises(FingerprintsUnusable):
        Lineage(corpus, tmp_path).find(documents[1])


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_whatever_befalls_the_entries_what_is_claimed_is_true(seed: int) -> None:
    chance = random.Random(seed)
    documents = [text(number, 500, ALPHABETS[chance.choice(sorted(ALPHABETS))]) for number in range(10)]
    prompt = "#".join(documents)
    with TemporaryDirectory() as temporary, in_memory(documents, Kind.DOCUMENTS) as corpus:
        build(corpus, Path(temporary))
        path = Path(temporary) / FILE
        data = bytearray(path.read_bytes())
        entries = 64 + 8 * 11 + 24 * 10
        samples = 10 * ((500 - 24) // 41 + 1)
        for _ in range(chance.randrange(1, 2 * samples)):
            data[entries + chance.randrange(8 * samples)] = chance.randrange(256)
        path.write_bytes(data)
        assert_true(Lineage(corpus, Path(temporary)).find(prompt), documents, prompt)
