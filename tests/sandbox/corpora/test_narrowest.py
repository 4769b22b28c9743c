"""The narrowest form of a text in a file is that of a string of its characters, wherever the widest of them stands."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from sandbox.corpora import text as module
from sandbox.corpora.corpus import Kind, copy_of, in_memory
from sandbox.corpora.text import encode, narrowest

texts = st.text(st.sampled_from("a\xff\u0100\u4e2d\U00010000\U0001f600"), max_size=20)


@given(st.data(), texts)
def test_it_is_that_of_a_string_and_a_copy_has_it(data: st.DataObject, characters: str) -> None:
    start = data.draw(st.integers(0, len(characters)))
    end = data.draw(st.integers(start, len(characters)))
    with patch.object(module, "_PIECE", 3), in_memory([characters], Kind.TEXT) as corpus:
        part = corpus[0].part(start, end)
        assert narrowest(part) is encode(characters[start:end])[0]
        with copy_of(part) as copy:
            assert (copy[0].form, copy[0].read(0, end - start)) == (narrowest(part), characters[start:end])
