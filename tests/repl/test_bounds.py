"""Whatever is cut is no longer than it may be, is whole characters, and says that it was cut."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st

from rlm_server.repl.bounds import cut

texts = st.text(st.characters(codec="utf-8") | st.sampled_from("a\xe9\u4e2d\U0001f600"), max_size=60)


@given(texts, st.integers(3, 60))
def test_what_is_cut_is_a_beginning_of_the_text_within_its_bound(text: str, most: int) -> None:
    short = cut(text, most)
    assert len(short.encode()) <= most
    assert short == text if len(text.encode()) <= most else short.endswith("…")
    assert text.startswith(short.removesuffix("…"))


def test_no_half_of_a_surrogate_pair_comes_through() -> None:
    assert cut("a\ud800b", 10) == "a?b"


def test_a_long_text_is_not_looked_at_to_its_end() -> None:
    class Watched(str):
        __slots__ = ()
        looked: ClassVar[list[int]] = []

        def __getitem__(self, index: object) -> str:
            assert isinstance(index, slice)
            Watched.looked.append(index.stop)
            return str.__getitem__(self, index)

    assert cut(Watched("x" * 10_000), 100) == "x" * 97 + "…"
    assert Watched.looked == [101]
